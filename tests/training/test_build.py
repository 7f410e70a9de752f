"""Models as they are built before their weights are divided: mapped from disk, in the type they are stored in."""

from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model, tiny_processor
from voco_llama.composition import compose
from voco_llama.training.build import build_or_load


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
