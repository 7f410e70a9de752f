"""What the first bytes of an image say: its format and its size, without decoding a pixel."""

import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from voco_llama.data.media.images import DECODER_ERRORS, IMAGE_FORMATS, MAX_IMAGE_PIXELS
from voco_llama.data.media.stored import MediaFile, StoredFile
from voco_llama.errors import DataError, one_line

_SAME_FORMAT = {"MPO": "JPEG"}
"""Several JPEGs in one file, as phones write them: its first one is what a JPEG decoder reads."""


@dataclass(frozen=True)
class ImageHeader:
    """Of an image.

    Attributes:
        format: As Pillow names it: JPEG, PNG, GIF, ...
        width: In pixels.
        height: In pixels.
    """

    format: str
    width: int
    height: int


def read_image_header(file: MediaFile) -> ImageHeader:
    """Reads format and size.

    Raises:
        DataError: The file is missing, no image that can be read, or too large to decode.
    """
    where = f"image {file}"
    try:
        with ExitStack() as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stream = opened.enter_context(file.open()) if isinstance(file, StoredFile) else file
            image = opened.enter_context(Image.open(stream, formats=IMAGE_FORMATS))
            header = ImageHeader(_SAME_FORMAT.get(image.format, image.format), *image.size)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: too large to decode ({one_line(error)}); scale it down", "undecodable") from error
    except DECODER_ERRORS as error:
        raise DataError(
            f"{where}: not an image that can be read ({one_line(error)}); fetch it again", "undecodable"
        ) from error
    if max(header.width, header.height) ** 2 > MAX_IMAGE_PIXELS:
        side = int(MAX_IMAGE_PIXELS**0.5)
        raise DataError(
            f"{where}: too large to decode ({header.width} x {header.height}; at most {side} pixels on a side);"
            " scale it down",
            "undecodable",
        )
    return header


def format_in_name(name: str) -> str | None:
    """The format that a file's ending stands for; None where it stands for no image.

    >>> format_in_name("a/b.JPG")
    'JPEG'
    """
    return Image.registered_extensions().get(Path(name).suffix.lower())
