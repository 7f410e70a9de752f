"""Models as they are built before their weights are divided: mapped from disk, in the type they are stored in."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model, tiny_processor
from voco_llama.composition import compose
from voco_llama.data.media.images import ImageTransform
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.training.build import build_or_load, build_processor
from voco_llama.training.checks import check_settings


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders with a model of ours, and its language model alone, in bf16."""
    folder, processor = tmp_path_factory.mktemp("saved"), tiny_processor()
    model = tiny_model(processor).to(torch.bfloat16)
    model.save_pretrained(folder / "own")
    processor.save_pretrained(folder / "own")
    model.language_model.save_pretrained(folder / "language")
    return folder


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether its memory is a file's."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        first, last = (int(address, 16) for address in addresses.split("-"))
        if first <= tensor.data_ptr() < last:
            return name.endswith(".safetensors")
    return False


@pytest.mark.parametrize("start", ["own", "parts"])
@pytest.mark.parametrize(("group", "stays"), [("fsdp2", True), ("cpu", False)])
def test_what_will_be_divided_is_not_copied(saved, world, start, group, stays):
    tower = world / "clip" / "tiny_clip.json"
    parts = [
        f"model.language.pretrained={saved / 'language'}",
        "model.language.config=null",
        f"model.tokenizer={saved / 'own'}",
        f"model.vision.name={tower}",
    ]
    chosen = [f"model.checkpoint={saved / 'own'}"] if start == "own" else ["model.checkpoint=null", *parts]
    settings = compose(["experiment=toy/voco_1", f"trainer={group}", "model.dtype=float32", *chosen])
    model, _ = build_or_load(settings)
    layers = [parameter for layer in model.decoder.layers for parameter in layer.parameters()]
    assert {parameter.dtype for parameter in layers} == {torch.bfloat16 if stays else torch.float32}
    assert all(is_mapped(parameter) == stays for parameter in layers)


def test_a_tokenizer_of_another_model_is_refused_before_weights_are_loaded(saved, world, tmp_path):
    described = json.loads((saved / "own" / "tokenizer.json").read_text())
    words = described["model"]["vocab"]
    words["A"], words["B"] = words["B"], words["A"]
    shutil.copytree(saved / "own", tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(described))
    shutil.copytree(saved / "language", tmp_path / "language")
    shutil.copy(saved / "own" / "tokenizer.json", tmp_path / "language")
    parts = [
        "model.checkpoint=null",
        f"model.language.pretrained={tmp_path / 'language'}",
        "model.language.config=null",
    ]
    parts.append(f"model.vision.name={world / 'clip' / 'tiny_clip.json'}")
    assert build_processor(compose(["experiment=toy/voco_1", *parts, f"model.tokenizer={saved / 'own'}"]))
    with pytest.raises(CheckpointError, match="model.tokenizer: .*other: 2 tokens have other ids .* instead of"):
        build_processor(compose(["experiment=toy/voco_1", *parts, f"model.tokenizer={tmp_path / 'other'}"]))


def test_images_are_normalized_as_the_tower_says(saved):
    tower = [
        "model.vision.name=ViT-L-14",
        "model.vision.pretrained=laion2b_s32b_b82k",
        f"model.tokenizer={saved / 'own'}",
    ]
    processor = build_processor(compose(["experiment=toy/voco_1", "model.checkpoint=null", *tower]))
    assert processor.image_transform == ImageTransform(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_a_configuration_beside_weights_is_no_random_tower(world, tmp_path):
    shutil.copy(world / "clip" / "tiny_clip.json", tmp_path / "open_clip_config.json")
    overrides = ["experiment=toy/language", f"paths.toyworld={world}", f"output_dir={tmp_path / 'run'}"]
    overrides.append(f"model.vision.name={tmp_path / 'open_clip_config.json'}")
    check_settings(compose(overrides))
    (tmp_path / "open_clip_model.safetensors").touch()
    for paths in (True, False):  # a dry run's too
        with pytest.raises(
            SettingsError, match="whose tower has random weights, and beside it lies .*: name the folder"
        ):
            check_settings(compose(overrides), paths=paths)
