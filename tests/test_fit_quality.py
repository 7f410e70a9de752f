"""`fit-quality`: what is measured of a checkpoint is what its own passes say, and a head comes of it."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch.utils.data import DataLoader

from tests.model.heads import random_head
from tests.training.conftest import WORLD
from voco_llama import VoCoLlama
from voco_llama.composition import compose
from voco_llama.errors import CheckpointError, DataError, SettingsError
from voco_llama.fit_quality import _outcomes, fit_quality, measure
from voco_llama.layout import next_tokens, truncate_voco
from voco_llama.model.quality import QUALITY_FILE, HeadShape, QualityHead
from voco_llama.settings import FitQualitySettings
from voco_llama.toyworld import write_toyworld
from voco_llama.training.arguments import training_arguments
from voco_llama.training.build import build_processor, open_mixture
from voco_llama.training.run import train


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A world, and a checkpoint of four VoCo tokens that was trained for a step."""
    root = tmp_path_factory.mktemp("fit")
    write_toyworld(WORLD, root / "toyworld")
    train(compose([*training(root), "model.checkpoint=null", "trainer.max_steps=1", "trainer.save_strategy=no"]))
    return root


def training(root) -> list[str]:
    world = root / "toyworld"
    source = f"{{format: llava_json, file: {world}/instruct/train.json, media_folder: {world}/instruct/images}}"
    return [
        "experiment=toy/voco_4", f"paths.toyworld={world}", f"output_dir={root}/run", f"data.sources=[{source}]",
        f"model.vision.name={world}/clip/tiny_clip.json", "trainer.per_device_train_batch_size=4",
        "trainer.report_to=none",
    ]  # fmt: skip


def settings_of(root, *more) -> FitQualitySettings:
    own = [f"model.checkpoint={root}/run/final", "rows=48", "steps=4", *more]
    return compose([*training(root), *own], "fit_quality", FitQualitySettings)


def test_a_head_is_fitted_and_saved_with_the_checkpoint(place, caplog):
    caplog.set_level(logging.INFO)
    file = fit_quality(settings_of(place))
    assert file == place / "run" / "final" / QUALITY_FILE
    assert "quality=0.05: " in caplog.text
    with safe_open(file, framework="pt") as opened:
        described = json.loads(opened.metadata()["voco_llama"])
    found = described["found"]
    assert described["numbers"] == [1, 2, 3, 4]
    assert 10 <= found["rows"] <= 48
    assert found["held_out_rows"] > 0
    assert list(found["mean_divergences"]) == ["1", "2", "3"]
    assert found["settings"]["steps"] == 4
    model = VoCoLlama.from_pretrained(place / "run" / "final")
    assert model.quality_head.fingerprint == model.fingerprint()
    pixels = torch.rand(3, 3, *[model.config.image_size] * 2)
    assert model.compress(pixels, quality=0).counts.tolist() == [4, 4, 4]
    assert model.compress(pixels, quality=1e9).counts.tolist() == [1, 1, 1]


def test_a_quality_that_leads_further_than_it_allows_is_told(caplog):
    head = QualityHead(HeadShape((1, 2, 3, 4), 0, 8), "of no model")
    list(_outcomes(head, torch.zeros(40, 3), torch.full((40, 3), 0.3)))  # foreseen, measured
    assert "quality=0.2 allows less than it led to" in caplog.text
    assert "quality=0.5 allows less" not in caplog.text


def test_what_is_measured_is_what_the_masked_passes_say(place):
    settings = settings_of(place)
    processor, mixture = build_processor(settings), open_mixture(settings)
    model = VoCoLlama.from_pretrained(settings.model.checkpoint).eval()
    head = random_head(model, 4)
    samples = [processor.row(mixture.try_load(i, lambda record: record)) for i in range(24)]
    loader = DataLoader(samples, batch_size=5, collate_fn=list)
    measured = measure(model, head, processor, loader, training_arguments(settings))
    looking = [sample for sample in samples if len(sample["pixel_values"]) == 1]
    assert len(measured.images) == len(looking) < len(samples)  # some are on text alone
    assert measured.images.tolist() == [int(sample["image_keys"]) for sample in looking]
    for sample, found, features in zip(looking, measured.divergences, measured.features, strict=True):
        row = {name: sample[name][None] for name in ("input_ids", "labels", "segment", "voco", "position", "document")}
        said = []
        for number in (4, 1, 2, 3):
            fewer = truncate_voco(row, number, 0)
            wanted = next_tokens(fewer.pop("labels")) != -100
            with torch.no_grad():
                logits = model(**fewer, pixel_values=sample["pixel_values"], logits_mask=wanted).logits
            said.append(logits.log_softmax(-1))
        whole, *each = said
        expected = [(whole.exp() * (whole - fewer)).sum(-1).mean() for fewer in each]
        torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-3)
        assert found[0] > 0
        cache = model.compress(sample["pixel_values"], 4)
        torch.testing.assert_close(features, head.features(cache)[0], atol=1e-4, rtol=1e-4)
    torch.nn.init.constant_(model.get_output_embeddings().weight, torch.nan)
    with pytest.raises(CheckpointError, match="the checkpoint's VoCo tokens or answers are no numbers"):
        measure(model, head, processor, loader, training_arguments(settings))


def test_what_cannot_be_fitted_is_refused(place):
    settings = settings_of(place)
    for changes, complaint in (
        ({"rows": 5}, "rows must be at least 10, not 5"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"layer": 9}, "layer=9: the language model has 2 layers: give -2 to 1"),
        ({"model": replace(settings.model, checkpoint=None)}, "model.checkpoint is not set"),
        ({"compression": replace(settings.compression, num_voco=1)}, "compression.num_voco is 1: there is nothing"),
        ({"compression": replace(settings.compression, compressor="q_former")}, "=q_former makes one number of tokens"),
    ):
        with pytest.raises(SettingsError, match=complaint):
            fit_quality(replace(settings, **changes))
    other = "was trained with compression.condition=voco and num_voco=4, and the settings have voco and 2: name"
    with pytest.raises(SettingsError, match=other):
        fit_quality(settings_of(place, "compression.num_voco=2"))
    text = f"{{format: llava_json, file: {place}/toyworld/text/train.json}}"
    with pytest.raises(DataError, match="only 0 of the rows drawn look at one image"):
        fit_quality(settings_of(place, f"data.sources=[{text}]"))
