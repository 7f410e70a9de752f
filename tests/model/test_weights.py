"""Weights on disk: every usual set of files is read, and what is damaged, unsafe or of another model is one line."""

import json
import os
import re

import pytest
import torch
from safetensors.torch import save_file

from voco_llama.errors import CheckpointError
from voco_llama.model.weights import check_fit, guess_layout, read_weights, without_buffers

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(3), "b": torch.zeros(1, dtype=torch.bfloat16)}
SHARDS = {"model-1.safetensors": ["a.weight"], "model-2.safetensors": ["a.bias", "b"]}


def write(folder, kind: str) -> None:
    if kind == "safetensors":
        save_file(TENSORS, folder / "model.safetensors")
    elif kind == "bin":
        torch.save(TENSORS, folder / "pytorch_model.bin")
    elif kind == "old bin":
        torch.save(TENSORS, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif kind == "nested":
        torch.save({"state_dict": {f"module.{k}": v for k, v in TENSORS.items()}}, folder / "pytorch_model.bin")
    else:
        for file, names in SHARDS.items():
            save_file({name: TENSORS[name] for name in names}, folder / file)
        write_index(folder)


def write_index(folder, shards=SHARDS) -> None:
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("kind", ["safetensors", "bin", "old bin", "nested", "shards"])
def test_every_usual_set_of_files(tmp_path, kind):
    write(tmp_path, kind)
    read = read_weights(tmp_path)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


class Code:
    def __reduce__(self):
        return (os.system, ("touch was_run",))


def cut(file, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


@pytest.mark.parametrize(
    ("kind", "damage", "complaint"),
    [
        (
            "shards",
            lambda d: (d / "model-2.safetensors").unlink(),
            "1 of the 2 files that it names are not there, first",
        ),
        ("shards", lambda d: cut(d / "model-2.safetensors", 100), "model-2.safetensors: cannot be read"),
        ("shards", lambda d: cut(d / "model-2.safetensors", 0), "model-2.safetensors: cannot be read"),
        (
            "shards",
            lambda d: write_index(d, SHARDS | {"model-1.safetensors": ["a.weight", "c"]}),
            "lacks 1 .* first c:",
        ),
        (
            "shards",
            lambda d: write_index(d, {"../x.safetensors": ["a"]}),
            "names ../x.safetensors, which is not beside",
        ),
        ("shards", lambda d: (d / "model.safetensors.index.json").write_text("{"), "it is no index of weights"),
        ("shards", lambda d: (d / "model.safetensors.index.json").write_text("[]"), "it is no index of weights"),
        ("safetensors", lambda d: cut(d / "model.safetensors", 150), "not downloaded to the end"),
        ("safetensors", lambda d: (d / "model.safetensors").write_text("version https://git-lfs"), "cannot be read"),
        ("bin", lambda d: cut(d / "pytorch_model.bin", 700), "pytorch_model.bin: cannot be read"),
        ("bin", lambda d: torch.save({"a": Code()}, d / "pytorch_model.bin"), "holds more than tensors .* not opened"),
        ("bin", lambda d: torch.save([1, 2], d / "pytorch_model.bin"), "holds no weights but a list"),
        ("bin", lambda d: torch.save({"a": 1}, d / "pytorch_model.bin"), "holds no weights but a dict"),
        ("bin", lambda d: (d / "pytorch_model.bin").unlink(), "holds no weights .*model.safetensors"),
    ],
)
def test_damage_is_one_line(tmp_path, monkeypatch, kind, damage, complaint):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, kind)
    damage(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        read_weights(tmp_path)
    assert re.search(complaint, str(refused.value)), str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert not (tmp_path / "was_run").exists()


def test_what_differs_is_listed():
    expected = {f"model.layers.{i}.weight": torch.zeros(2) for i in range(5)} | {"tied": torch.zeros(1)}
    found = {f"language_model.model.layers.{i}.weight": torch.zeros(2) for i in range(4)}
    with pytest.raises(CheckpointError) as refused:
        check_fit(expected, found | {"model.layers.0.weight": torch.zeros(3)}, "the weights", "do this", ["tied"])
    assert str(refused.value) == (
        "the weights do not fit: 9 tensors differ: 4 missing (model.layers.1.weight, model.layers.2.weight,"
        " model.layers.3.weight, ...); 4 unexpected (language_model.model.layers.0.weight,"
        " language_model.model.layers.1.weight, language_model.model.layers.2.weight, ...); 1 of another shape"
        " (model.layers.0.weight [3] instead of [2]); the names look like a VoCoLlama of ours: do this"
    )
    check_fit(expected, {name: tensor for name, tensor in expected.items() if name != "tied"}, "", "", ["tied"])


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("model.mm_projector.0.weight", "LLaVA's original layout"),
        ("multi_modal_projector.linear_1.bias", "the llava-hf layout"),
        ("model.multi_modal_projector.linear_1.bias", "the llava-hf layout"),
        ("vision.visual.conv1.weight", "a VoCoLlama of ours"),
        ("visual.conv1.weight", "an open_clip model"),
        ("vision_model.embeddings.class_embedding", "Hugging Face's CLIP"),
        ("base_model.model.lm_head.weight", "adapters of peft"),
        ("model.layers.0.input_layernorm.weight", "a causal language model of transformers"),
        ("encoder.block.0", None),
    ],
)
def test_layouts_are_guessed(name, layout):
    assert guess_layout([name, "lm_head.weight"]) == layout


def test_buffers_of_old_checkpoints_are_dropped():
    names = [
        "model.layers.3.self_attn.rotary_emb.inv_freq",
        "vision_model.embeddings.position_ids",
        "position_ids",
        "w",
    ]
    assert list(without_buffers(dict.fromkeys(names))) == ["w"]


def test_an_index_of_the_one_file_beside_it_is_no_second_set(tmp_path):
    write(tmp_path, "safetensors")
    write_index(tmp_path, {"model.safetensors": list(TENSORS)})
    assert read_weights(tmp_path).keys() == TENSORS.keys()
    write_index(tmp_path)
    with pytest.raises(CheckpointError, match=r"two sets of weights, and nothing says which is meant: remove one"):
        read_weights(tmp_path)
