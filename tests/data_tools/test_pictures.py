"""The pictures of a preview: what the tower sees, and the mask."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data_tools.preview_page import counts, page_of, rows_of, settings_in
from tests.pictures import FULL, ONE_IMAGE, TWO_IMAGES, picture
from tests.tiny import IMAGE_SIZE
from voco_llama.choices import SEGMENT_ATTENTIONS
from voco_llama.composition import compose
from voco_llama.data.media.images import load_image
from voco_llama.data_tools import sample as preview_sample
from voco_llama.data_tools.sample import KINDS, PROMPT, VISION, VOCO
from voco_llama.toyworld.world import encode_video
from voco_llama.training.build import build_processor
from voco_llama.visibility import TokenFacts, dense_mask


@pytest.fixture
def settings_for(tmp_path):
    return partial(settings_in, tmp_path)


def test_pictures_are_what_the_tower_sees(settings_for, tmp_path):
    settings = settings_for("records=[1]")
    *pictures, mask = page_of(settings).samples[0]["images"]
    transform = build_processor(settings).image_transform
    for shown, name in zip(pictures, ("wide.png", "tall.png"), strict=True):
        assert shown.size == (IMAGE_SIZE, IMAGE_SIZE)
        assert torch.equal(transform(shown), transform(load_image(tmp_path / name)))
        assert shown.convert("RGB").getpixel((0, 0)) == (122, 116, 104)  # the padding's color
    assert mask.width == mask.height


def test_a_clip_is_shown_as_its_frames(settings_for, tmp_path):
    colors = ("red", "lime", "blue", "white")
    encode_video(tmp_path / "a.mp4", [Image.new("RGB", (32, 32), color) for color in colors], rate=2)
    (tmp_path / "captions.csv").write_text("videoid,name,page_dir,contentUrl,duration\na,colors change,,,\n")
    source = f"{{format: caption_csv, file: {tmp_path}/captions.csv, media_folder: {tmp_path}}}"
    settings = settings_for("records=[0]", "data.num_frames=4")
    settings.data.sources = compose([f"data.sources=[{source}]"]).data.sources
    sample = page_of(settings).samples[0]
    assert len(sample["images"]) == 5
    assert (counts(sample)["vision"], counts(sample)["voco"]) == (16, 8)
    shown = [picture.convert("RGB").getpixel((8, 8)) for picture in sample["images"][:4]]
    for pixel, color in zip(shown, colors, strict=True):
        np.testing.assert_allclose(pixel, Image.new("RGB", (1, 1), color).getpixel((0, 0)), atol=40)


def mask_of(image: Image.Image, num_drawn: int) -> torch.Tensor:
    """`[queries, keys]`: which pixels behind the axes are dark."""
    pixels = np.array(image.convert("RGB"))[-num_drawn:, -num_drawn:]
    assert {tuple(color) for color in pixels.reshape(-1, 3).tolist()} <= {preview_sample.VISIBLE, preview_sample.HIDDEN}
    return torch.from_numpy((pixels == preview_sample.VISIBLE).all(axis=-1))


@pytest.mark.parametrize(
    ("drawn", "letters", "condition"),
    [(ONE_IMAGE, "VVCtt", "voco"), (TWO_IMAGES, "VVCVVCt", "voco"), (FULL, "VVCtt", "full")],
)
def test_the_mask_is_the_drawn_one(drawn, letters, condition):
    segment, current = [], 0
    for before, letter in zip(" " + letters, letters, strict=False):
        current += letter == "V" and before != "V"
        segment.append(0 if letter == "t" else current)
    row = {
        "segment": torch.tensor(segment),
        "voco": torch.tensor([letter == "C" for letter in letters]),
        "position": torch.arange(len(letters)),
        "document": torch.zeros(len(letters), dtype=torch.long),
    }
    kinds = torch.tensor([KINDS.index({"V": VISION, "C": VOCO, "t": PROMPT}[letter]) for letter in letters])
    image, places = preview_sample.mask_picture(row, kinds, condition, "causal")
    assert places.tolist() == list(range(len(letters)))
    assert torch.equal(mask_of(image, len(letters)), picture(drawn))
    colors = [tuple(color) for color in np.array(image)[0, 1:].tolist()]
    assert colors == [KINDS[kind].color for kind in kinds]
    assert [tuple(color) for color in np.array(image)[1:, 0].tolist()] == colors


@pytest.mark.parametrize("attention", SEGMENT_ATTENTIONS)
def test_the_mask_of_a_page_is_the_one_of_visibility(settings_for, attention):
    """Rows with padding and with runs of 64 vision tokens, of which 24 are drawn."""
    settings = settings_for(
        "records=[0,1,2]", f"compression.segment_attention={attention}", "data.max_length=500", image_size=64
    )
    for sample, row in zip(page_of(settings).samples, rows_of(settings), strict=True):
        half = preview_sample.RUN_DRAWN // 2
        places, place = [], 0
        for kind, count, _, _ in sample["tokens"]:
            run = list(range(place, place + count))
            is_long = kind in ("vision", "padding") and count > 2 * half
            places += [*run[:half], *run[-half:]] if is_long else run
            place += count
        assert place == len(row["segment"])
        assert len(places) < place
        facts = TokenFacts.of_batch({name: values[None] for name, values in row.items()})
        expected = dense_mask(facts, facts, "voco", attention)[0][places][:, places]
        assert torch.equal(mask_of(sample["images"][-1], len(places)), expected)
