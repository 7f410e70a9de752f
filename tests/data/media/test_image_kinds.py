"""What becomes of every kind of file that a data set may hold: the pixels expected, or the error."""

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, PngImagePlugin
from sklearn.datasets import load_sample_image

from voco_llama.data.media.images import load_image
from voco_llama.data.media.stored import StoredFile
from voco_llama.errors import DataError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
DEEP = np.array([[0, 255, 256], [4096, 32768, 65535]], dtype=np.uint16)
GREY = [[0, 0, 1], [16, 128, 255]]
"""`DEEP` in 8 bits."""


def png(width: int, height: int, depth: int, color_type: int, rows: list[bytes]) -> bytes:
    """A PNG of pixel formats that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def photograph() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")).crop((0, 0, 200, 120))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


class Stored(StoredFile):
    """A file in memory."""

    name = "x"

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __str__(self) -> str:
        return self.name

    def open(self) -> io.BytesIO:
        return io.BytesIO(self.data)


def decoded(data: bytes) -> np.ndarray:
    image = load_image(Stored(data))
    assert image.mode == "RGB"
    return np.array(image)


def colors(data: bytes) -> list[list[tuple[int, ...]]]:
    return [[tuple(pixel) for pixel in row] for row in decoded(data).tolist()]


# ---- profiles


def test_color_profiles_are_ignored():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for kind in ("JPEG", "PNG"):
        data = encoded(photograph(), kind, icc_profile=profile)
        assert Image.open(io.BytesIO(data)).info["icc_profile"] == profile
        np.testing.assert_array_equal(decoded(data), decoded(encoded(photograph(), kind)))


# ---- modes


def test_one_bit_and_grey():
    assert colors(encoded(Image.fromarray(DEEP > 300), "PNG"))[1] == [(255,) * 3] * 3
    grey = Image.fromarray(np.array([[0, 7, 255]], dtype=np.uint8))
    assert colors(encoded(grey, "PNG")) == [[(0,) * 3, (7,) * 3, (255,) * 3]]


def test_grey_with_alpha_loses_the_alpha():
    layers = [Image.fromarray(np.array([values], dtype=np.uint8)) for values in ([10, 20], [0, 255])]
    assert colors(encoded(Image.merge("LA", layers), "PNG")) == [[(10,) * 3, (20,) * 3]]


def test_a_transparent_color_keeps_what_it_hides():
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    assert colors(encoded(palette, "PNG", transparency=1)) == [[RED, GREEN]]
    assert colors(encoded(palette, "PNG", transparency=b"\x80\x00")) == [[RED, GREEN]]
    assert colors(encoded(palette, "GIF", transparency=1)) == [[RED, GREEN]]
    rgba = Image.new("RGBA", (2, 1), (*BLUE, 0))
    assert colors(encoded(rgba, "PNG")) == [[BLUE, BLUE]]


def test_cmyk():
    """Adobe's JPEGs hold inverted values, which Pillow and so LLaVA turns back: (255 - ink) x (255 - black) / 255."""
    inks = Image.merge("CMYK", [Image.new("L", (8, 8), ink) for ink in (10, 100, 200, 30)])
    data = encoded(inks, "JPEG", quality=100)
    assert Image.open(io.BytesIO(data)).info["adobe"] == 100
    assert decoded(data)[0, 0].tolist() == [216, 137, 49]
    assert decoded(encoded(inks, "TIFF"))[0, 0].tolist() == [216, 137, 49]


# ---- deep colors


def test_16_bit_grey_is_scaled_and_not_cut_off():
    expected = [[(value,) * 3 for value in row] for row in GREY]
    assert colors(encoded(Image.fromarray(DEEP), "PNG")) == expected
    assert colors(encoded(Image.fromarray(DEEP), "TIFF")) == expected
    assert colors(encoded(Image.fromarray(DEEP.astype(">u2")), "TIFF")) == expected
    assert colors(b"P5 3 2 65535\n" + DEEP.astype(">u2").tobytes()) == expected
    assert colors(b"P5 3 2 4095\n" + (DEEP // 16).astype(">u2").tobytes())[1] == expected[1]


def test_other_16_bit_colors_are_scaled_alike():
    mirrored = DEEP[:, ::-1]

    def rows(*channels: np.ndarray) -> list[bytes]:
        return [row.astype(">u2").tobytes() for row in np.stack(channels, axis=-1)]

    grey_alpha = png(3, 2, 16, 4, rows(DEEP, mirrored))
    assert colors(grey_alpha) == [[(value,) * 3 for value in row] for row in GREY]
    rgb = png(3, 2, 16, 2, rows(DEEP, mirrored, DEEP))
    assert colors(rgb) == [[(a, b, a) for a, b in zip(row, row[::-1], strict=True)] for row in GREY]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_of_no_known_range_is_refused(dtype):
    with pytest.raises(DataError, match="image x: grey values of 32 bits, whose range is not known; save it"):
        decoded(encoded(Image.fromarray(DEEP.astype(dtype)), "TIFF"))


def test_truncated_16_bit_grey():
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 65536, (64, 64), dtype=np.uint16)), "PNG")
    with pytest.raises(DataError, match="corrupt or truncated"):
        decoded(data[: len(data) // 2])


# ---- several frames


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_of_several_frames_the_first_is_taken(kind, options):
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, GREEN, BLUE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert colors(data)[0] == [RED] * 4


def test_a_phones_two_pictures_in_one_jpeg():
    frames = [photograph(), photograph().transpose(Image.Transpose.ROTATE_180)]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    np.testing.assert_array_equal(decoded(data), decoded(encoded(frames[0], "JPEG")))


def test_the_ending_of_a_name_says_nothing(tmp_path):
    """OCR-VQA has GIFs named .jpg."""
    Image.new("RGB", (4, 4), RED).save(tmp_path / "a.jpg", "GIF")
    assert load_image(tmp_path / "a.jpg").getpixel((0, 0)) == RED


# ---- damage

CUTTABLE = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "ppm": ("PPM", {}),
}


@pytest.mark.parametrize("lenient", [False, True], ids=["strict", "lenient"])
@pytest.mark.parametrize("name", CUTTABLE)
def test_a_truncated_file_is_never_a_half_grey_image(name, lenient, monkeypatch):
    """Also where another library wants truncated files filled up, as lmms-eval does for the whole process."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    kind, options = CUTTABLE[name]
    data = encoded(photograph(), kind, **options)
    for share in (0.001, 0.02, 0.3, 0.5, 0.7, 0.9, 0.98):
        with pytest.raises(DataError, match="image x: (corrupt or truncated|not an image)"):
            decoded(data[: int(share * len(data))])
    whole = decoded(data)
    for missing in (1, 2, 4, 8, 12):  # what stands behind the pixels (a PNG's last chunk, a GIF's trailer) may be lost
        with suppress(DataError):
            np.testing.assert_array_equal(decoded(data[:-missing]), whole)


@pytest.mark.parametrize(
    "data", [b"", b"<html><body>404</body></html>", b"\xff\xd8\xff", b"GIF89a", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_image(data, tmp_path):
    path = Path(tmp_path / "a.jpg")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.jpg: (not an image that can be read|corrupt or truncated)"):
        load_image(path)


def test_a_png_whose_texts_are_too_large_is_refused():
    """Compressed text may be a bomb; Pillow reads at most 1 MiB of each and 64 MiB of all."""
    for texts, kilobytes in ((1, 2000), (80, 1000)):
        info = PngImagePlugin.PngInfo()
        for number in range(texts):
            info.add_text(f"key {number}", "x" * kilobytes * 1000, zip=True)
        with pytest.raises(DataError, match="MAX_TEXT"):
            decoded(encoded(Image.new("RGB", (4, 4)), "PNG", pnginfo=info))
    info = PngImagePlugin.PngInfo()
    info.add_text("key", "x" * 2_000_000)
    assert colors(encoded(Image.new("RGB", (1, 1), RED), "PNG", pnginfo=info)) == [[RED]]


def test_thin_pictures():
    for size in ((1, 5000), (5000, 1)):
        assert decoded(encoded(Image.new("RGB", size, BLUE), "PNG")).shape == (*size[::-1], 3)
