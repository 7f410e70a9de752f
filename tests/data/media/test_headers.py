import io

import pytest
from PIL import Image

from voco_llama.data.media.headers import ImageHeader, format_in_name, read_image_header
from voco_llama.data.media.stored import StoredFile
from voco_llama.errors import DataError


class Bytes(StoredFile):
    def __init__(self, data: bytes) -> None:
        self.data = data

    name = "a.png"

    def open(self) -> io.BytesIO:
        return io.BytesIO(self.data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_format_and_size(tmp_path, kind):
    Image.new("RGB", (30, 20)).save(tmp_path / "a", format=kind)
    header = ImageHeader(kind, 30, 20)
    assert read_image_header(tmp_path / "a") == header
    assert read_image_header(Bytes((tmp_path / "a").read_bytes())) == header


def test_pictures_of_a_phone_are_jpegs(tmp_path):
    pictures = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    pictures[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pictures[1:])
    assert read_image_header(tmp_path / "a.jpg") == ImageHeader("JPEG", 8, 6)


def test_no_pixel_is_decoded(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-1000])
    assert read_image_header(tmp_path / "a.jpg") == ImageHeader("JPEG", 64, 64)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image that can be read"),
        (b"<html>404</html>", "not an image that can be read"),
        (b"P6 9000 100 255\n", "too large to decode (9000 x 100; at most 8192 pixels on a side)"),
        (b"P6 90000 90000 255\n", "too large to decode (Image size (8100000000 pixels) exceeds limit"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
        (None, "not an image that can be read ([Errno 2]"),
    ],
)
def test_what_cannot_be_read(tmp_path, data, message):
    if data is not None:
        (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_image_header(tmp_path / "a.jpg")
    assert str(caught.value).startswith(f"image {tmp_path / 'a.jpg'}: {message}")
    assert "\n" not in str(caught.value)
    assert caught.value.kind == "undecodable"


def test_what_a_name_says():
    names = ["a.jpg", "b/a.JPEG", "a.png", "a.gif", "a.webp", "a", "a.txt"]
    assert [format_in_name(name) for name in names] == ["JPEG", "JPEG", "PNG", "GIF", "WEBP", None, None]
