"""Image files to tensors, as LLaVA-1.5 prepares them.

Files come from data sets that nobody has looked through, so everything a file can do wrong ends in a `DataError` that
names it: missing, not an image, truncated, or so large that decoding it would exhaust the memory (a decompression
bomb; judged from the header, before a pixel is decoded).

Colors follow LLaVA: a plain `convert("RGB")`. So an alpha channel is dropped (not blended), a palette looked up, grey
repeated, CMYK converted without its profile, other color profiles ignored, of an animation the first frame taken.

Pictures stand upright: turned as their EXIF orientation says, as viewers show them, and as `datasets` decodes them for
published benchmarks, so that training, `ask` and `evaluate` see the same. (LLaVA's own training and evaluation code
reads them as they are stored.) Metadata that cannot be read say nothing of an orientation. `to_rgb` is the one place of
all this, for files and for images that a caller has opened.

One exception: 16-bit grey. Pillow cuts its values off at 255, so that LLaVA sees an almost white picture; here they are
scaled to 8 bits, as Pillow scales 16-bit RGB. Grey values of a range that nothing states (32-bit integers or floats of
a TIFF) are refused.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps

from voco_llama.data.media.stored import MediaFile, StoredFile
from voco_llama.errors import DataError, ProblemKind, SettingsError, one_line, refused_as
from voco_llama.files import read_json

MAX_IMAGE_PIXELS = 2**26
"""Most pixels an image may have once padded to a square: 8192 on a side, 192 MiB as RGB."""

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is decoded. Named, since Pillow would otherwise start outside programs for some formats (PostScript)."""

OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_SAME_FORMAT = {"MPO": "JPEG"}
"""Several JPEGs in one file, as phones write them: its first one is what a JPEG decoder reads."""


def load_image(file: MediaFile | str) -> Image.Image:
    """Decodes an image file (of several frames the first), fully, into an upright RGB image that holds no open file.

    Has Pillow refuse truncated files from now on, whatever another library set (lmms-eval wants them filled up with
    grey): the switch is one for the whole process.

    Raises:
        DataError: The file is missing, is in none of `IMAGE_FORMATS`, is corrupt or truncated, has more than
            `MAX_IMAGE_PIXELS` pixels when padded to a square, or grey values of an unknown range.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with _opened(file) as image:
        return to_rgb(image, f"image {file}")


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image say: its format, as Pillow names it (JPEG, PNG, ...), and size as stored."""

    format: str
    width: int
    height: int


def read_image_header(file: MediaFile) -> ImageHeader:
    """Reads format and size without decoding a pixel.

    Raises:
        DataError: The file is missing, no image that can be read, or too large to decode.
    """
    with _opened(file) as image:
        return ImageHeader(_SAME_FORMAT.get(image.format, image.format), *image.size)


def format_in_name(name: str) -> str | None:
    """The format that a file's ending stands for; None where it stands for no image.

    >>> format_in_name("a/b.JPG")
    'JPEG'
    """
    return Image.registered_extensions().get(Path(name).suffix.lower())


@contextmanager
def _opened(file: MediaFile | str) -> Iterator[Image.Image]:
    """An image of a size that may be decoded; what Pillow raises, while it is open too, becomes a `DataError`.

    Pillow's warnings, of large pictures (our own limit is stricter), torn metadata and a palette's lost transparency,
    are left out.
    """
    where = f"image {file}"
    if not isinstance(file, StoredFile) and not os.path.isfile(file):  # noqa: PTH113 - a name too long is no file either
        raise DataError(f"{where}: no such file; fetch it, or take the record out", ProblemKind.MISSING_FILE)
    try:
        with ExitStack() as opened:
            opened.enter_context(warnings.catch_warnings(action="ignore", category=UserWarning))
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            stream = opened.enter_context(file.open()) if isinstance(file, StoredFile) else file
            image = opened.enter_context(Image.open(stream, formats=IMAGE_FORMATS))
            width, height = image.size
            if max(width, height) ** 2 > MAX_IMAGE_PIXELS:
                raise _too_large(where, f"{width} x {height}")
            yield image
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(where, one_line(error)) from error
    except Image.UnidentifiedImageError as error:
        message = f"{where}: not an image that can be read ({', '.join(IMAGE_FORMATS)}); replace it"
        raise DataError(message, ProblemKind.UNDECODABLE) from error
    except Exception as error:  # on damaged files Pillow raises exceptions of any type
        message = f"{where}: corrupt or truncated ({one_line(error)}); fetch it again"
        raise DataError(message, ProblemKind.UNDECODABLE) from error


def to_rgb(image: Image.Image, where: str = "image") -> Image.Image:
    """An image of any mode in mode RGB, upright and without its metadata: see the module; itself it is not changed.

    Args:
        image: Of any mode; one in memory that is RGB and needs no turn is given back as it is.
        where: What messages call it.

    Raises:
        DataError: It is no image of Pillow, or has grey values of an unknown range.
    """
    if not isinstance(image, Image.Image):
        raise DataError(f"{where}: a {type(image).__name__} is no image; give a PIL.Image.Image")
    image.load()
    orientation = _orientation(image)
    if type(image) is Image.Image and image.mode == "RGB" and orientation == 1:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise DataError(f"{where}: grey values of 32 bits, whose range is not known; save it with 8 or 16 bits")
    elif image.mode == "La":  # which Pillow converts to nothing else
        image = image.convert("LA")
    rgb = image.convert("RGB")
    rgb.info.clear()  # read already: else it would be turned again
    if orientation != 1:
        rgb.getexif()[ExifTags.Base.Orientation] = orientation
        rgb = ImageOps.exif_transpose(rgb)
    return rgb


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image, 1 (upright) to 8."""
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of torn metadata
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken metadata; Pillow raises exceptions of any type
        return 1
    return orientation if orientation in range(2, 9) else 1


def _too_large(where: str, size: str) -> DataError:
    side = int(MAX_IMAGE_PIXELS**0.5)
    message = f"{where}: too large to decode ({size}; at most {side} pixels on a side); scale it down"
    return DataError(message, ProblemKind.UNDECODABLE)


def expand_to_square(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Pads the shorter side, half before and half after (the odd pixel after), as LLaVA's `expand2square`."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), background)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


@dataclass(frozen=True)
class ImageTransform:
    """LLaVA-1.5's `pad` preprocessing.

    Pad to a square with the mean color, resize (bicubic, on 8-bit values, as Pillow does it), divide by 255,
    subtract `mean`, divide by `std`. Equal to LLaVA's `expand2square` and the `CLIPImageProcessor` of the transformers
    that it used, which is `CLIPImageProcessorPil` of transformers 5; today's `CLIPImageProcessor` resizes by
    torchvision, which is a grey level apart here and there.

    Attributes:
        image_size: Side of the result in pixels.
        mean: Of red, green, blue, in [0, 1]; also the padding's color, `int(255 * mean)`.
        std: Of red, green, blue.
    """

    image_size: int = 336
    mean: tuple[float, float, float] = OPENAI_CLIP_MEAN
    std: tuple[float, float, float] = OPENAI_CLIP_STD

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = tuple(float(channel) for channel in getattr(self, name))
            if len(value) != 3:
                raise SettingsError(f"image transform: {name} needs three values (red, green, blue), not {len(value)}")
            object.__setattr__(self, name, value)
        if type(self.image_size) is not int or self.image_size < 1:
            raise SettingsError(
                f"image transform: image_size must be a whole number of at least 1, not {self.image_size!r}"
            )
        if not all(0 <= channel <= 1 for channel in self.mean) or not all(channel > 0 for channel in self.std):
            raise SettingsError("image transform: mean must lie in [0, 1] and std above 0 (colors scaled to [0, 1])")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """An image of any mode and size, as `to_rgb` sees it -> float32 `[3, image_size, image_size]`, normalized.

        Raises:
            DataError: As `to_rgb`.
        """
        square = expand_to_square(to_rgb(image), tuple(int(channel * 255) for channel in self.mean))
        resized = square.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).to(torch.float32) / 255
        mean, std = (torch.tensor(channels).view(3, 1, 1) for channels in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous()

    def to_image(self, pixels: torch.Tensor) -> Image.Image:
        """Undoes the normalization: float `[3, height, width]` -> the RGB image that was normalized."""
        mean, std = (torch.tensor(channels).view(3, 1, 1) for channels in (self.mean, self.std))
        values = ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the arguments, lists for tuples."""
        return {"image_size": self.image_size, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def beside(cls, folder: str | os.PathLike[str], image_size: int) -> "ImageTransform":
        """With the mean and standard deviation of a folder's `preprocessor_config.json`, where there is one.

        Raises:
            DataError: The file cannot be read.
        """
        file = Path(folder) / "preprocessor_config.json"
        if not file.is_file():
            return cls(image_size)
        advice = "get the image processor of the same model again"
        described = read_json(file, DataError, advice)
        with refused_as(DataError, file, advice):
            return cls(image_size, tuple(described["image_mean"]), tuple(described["image_std"]))
