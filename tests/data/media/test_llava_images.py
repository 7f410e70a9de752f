"""The transform against LLaVA's own formula and transformers' image processor, on photographs.

The processor is the one that LLaVA-1.5 trained with: `CLIPImageProcessor` of transformers 4, which worked by Pillow and
NumPy, and is `CLIPImageProcessorPil` in transformers 5. The photographs are scikit-learn's.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from voco_llama.data.media.images import OPENAI_CLIP_STD, ImageTransform

GREY_LEVEL = torch.tensor([1 / 255 / deviation for deviation in OPENAI_CLIP_STD]).view(3, 1, 1)
ROUNDING = 1e-5
"""Of float32, far below a grey level (0.014)."""


def photograph(name: str) -> Image.Image:
    return Image.fromarray(load_sample_image(f"{name}.jpg"))


def expand2square(pil_img: Image.Image, background_color: tuple[int, int, int]) -> Image.Image:
    """As in LLaVA's `mm_utils.py`."""
    width, height = pil_img.size
    if width == height:
        return pil_img
    if width > height:
        result = Image.new(pil_img.mode, (width, width), background_color)
        result.paste(pil_img, (0, (width - height) // 2))
        return result
    result = Image.new(pil_img.mode, (height, height), background_color)
    result.paste(pil_img, ((height - width) // 2, 0))
    return result


def llava(image: Image.Image, size: int) -> torch.Tensor:
    """What LLaVA-1.5 trains on with `image_aspect_ratio=pad`."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, resample=Image.Resampling.BICUBIC
    )
    square = expand2square(image, tuple(int(x * 255) for x in processor.image_mean))
    return processor.preprocess(square, return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize("name", ["china", "flower"])
@pytest.mark.parametrize("size", [336, 224, 448, 24])
def test_photographs(name, size):
    image = photograph(name)
    assert image.size == (640, 427)
    torch.testing.assert_close(ImageTransform(size)(image), llava(image, size), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    "box",
    [
        (100, 50, 227, 350),  # portrait, of odd width
        (100, 50, 401, 350),  # landscape, one column more than rows
        (100, 50, 436, 386),  # square, of the target's size
        (100, 50, 300, 250),  # square, to be scaled up
        (100, 50, 105, 53),  # 5 x 3
        (100, 50, 101, 51),  # one pixel
    ],
)
def test_shapes(box):
    image = photograph("china").crop(box)
    torch.testing.assert_close(ImageTransform(336)(image), llava(image, 336), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (5000, 2)])
def test_thin_images(size):
    image = photograph("flower").resize(size)
    pixels = ImageTransform(336)(image)
    torch.testing.assert_close(pixels, llava(image, 336), rtol=0, atol=ROUNDING)
    assert float((pixels.abs() > GREY_LEVEL).float().mean()) < 0.02  # nearly all of it is padding, of the mean color


def test_todays_default_processor_is_not_llavas():
    """It resizes by torchvision; were it equal one day, the docstring of `ImageTransform` would be wrong."""
    from transformers import CLIPImageProcessor

    size = {"height": 336, "width": 336}
    square = expand2square(photograph("china"), (122, 116, 104))
    processor = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=size)
    other = processor(square, return_tensors="pt")["pixel_values"][0]
    levels = (other - ImageTransform(336)(photograph("china"))).abs() / GREY_LEVEL
    assert 0.5 < float(levels.max()) < 5


def test_the_image_comes_back_from_its_pixels():
    transform = ImageTransform(336)
    image = photograph("china").crop((0, 0, 336, 336))
    np.testing.assert_array_equal(transform.to_image(transform(image)), image)
    rows = ImageTransform(24, (0.1, 0.5, 0.9), (0.2, 0.3, 0.4))
    np.testing.assert_array_equal(rows.to_image(rows(image)), image.resize((24, 24), Image.Resampling.BICUBIC))
