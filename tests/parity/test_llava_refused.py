"""Folders of LLaVA that are damaged, of another kind, or not enough: one line each, and no model."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.llava_files import tiny_llava, write_hub, write_own
from voco_llama import VoCoLlama, VoCoProcessor
from voco_llama.errors import CheckpointError, VoCoError


@pytest.fixture(scope="module")
def llava():
    return tiny_llava()


def edit_config(folder, **changes) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))


def edit_weights(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def refused(folder) -> str:
    with pytest.raises(VoCoError) as error:
        VoCoLlama.from_llava(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mm_projector_type": "mlp3x_gelu"}, "projector 'mlp3x_gelu', and only linear or mlp2x_gelu"),
        ({"mm_projector_type": "linear"}, "the projector's weights do not fit"),
        ({"mm_vision_select_feature": "cls_patch"}, "only patch tokens"),
        ({"image_aspect_ratio": "anyres_max_9"}, r"anyres_max_9' \(LLaVA-1.6\)"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"model_type": "llava_mpt"}, "model_type 'llava_mpt', and only one of llava, llava_llama"),
        ({"mm_vision_tower": "somebody/siglip"}, "no such tower is known .* vision_tower="),
        ({"hidden_size": 64}, "of another shape"),
        ({"num_hidden_layers": 3}, "missing .model.layers.2"),
        ({"vocab_size": 200}, "the tokenizer has 259 tokens and the language model 200 embeddings"),
        ({"mm_vision_tower": "gone"}, "without mm_vision_tower is no LLaVA-1.5"),
    ],
    ids=str,
)
def test_configurations_of_the_own_layout(llava, tmp_path, changes, complaint):
    edit_config(write_own(llava, tmp_path), **changes)
    text = refused(tmp_path)
    assert re.search(complaint, text), text


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"vision_feature_layer": [-2, -5]}, "only one layer's features"),
        ({"vision_feature_select_strategy": "full"}, "only patch tokens"),
        ({"projector_hidden_act": "relu"}, "only a GELU projector"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "'siglip_vision_model', and only CLIP"),
    ],
    ids=str,
)
def test_configurations_of_the_hub_layout(llava, tmp_path, changes, complaint):
    edit_config(write_hub(llava, tmp_path, "old"), **changes)
    text = refused(tmp_path)
    assert re.search(complaint, text), text


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w.pop("language_model.model.norm.weight"), r"language model's weights do not fit: .*model\.norm"),
        (
            lambda w: w.pop("multi_modal_projector.linear_1.bias"),
            r"projector's weights do not fit: .*1 missing \(0.bias",
        ),
        (lambda w: w.update({"stray.weight": torch.zeros(1)}), r"1 unexpected \(stray.weight\)"),
        (
            lambda w: [w.pop(name) for name in list(w) if "vision" in name],
            "the weights of its vision tower are missing",
        ),
        (lambda w: [w.pop(name) for name in list(w) if "projector" in name], "holds no projector .* it is no LLaVA"),
    ],
)
def test_weights(llava, tmp_path, change, complaint):
    edit_weights(write_hub(llava, tmp_path, "old"), change)
    text = refused(tmp_path)
    assert re.search(complaint, text), text


def test_a_projector_alone_says_where_it_belongs(llava, tmp_path):
    write_own(llava, tmp_path)
    for file in tmp_path.glob("pytorch_model*"):
        file.unlink()
    torch.save({"model.mm_projector.0.weight": torch.zeros(1)}, tmp_path / "mm_projector.bin")
    assert "holds a projector alone (mm_projector.bin): set model.projector_weights" in refused(tmp_path)


def test_a_tower_whose_weights_are_nowhere(llava, tmp_path):
    write_own(llava, tmp_path, tower="elsewhere")
    (tmp_path / "clip" / "model.safetensors").unlink()
    assert "no weights are given for" in refused(tmp_path)


def test_a_tower_that_was_trained_is_not_replaced_by_the_one_that_it_began_from(llava, tmp_path):
    write_own(llava, tmp_path, tower="clip")
    assert VoCoLlama.from_llava(tmp_path)
    edit_config(tmp_path, unfreeze_mm_vision_tower=True)
    assert "its vision tower, which was trained with it, are missing" in refused(tmp_path)


def test_a_missing_tokenizer_is_one_line_for_both(llava, tmp_path):
    write_own(llava, tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    assert "its tokenizer: cannot be read" in refused(tmp_path)
    with pytest.raises(CheckpointError, match="its tokenizer: cannot be read"):
        VoCoProcessor.from_pretrained(tmp_path)
