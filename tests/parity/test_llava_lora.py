"""LLaVA's LoRA adapters, as its training writes them: loaded, they are the model whose weights were merged by hand."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tests.model.rows import random_images
from tests.parity.llava_files import parts_of, tiny_llava, write_hub, write_own
from tests.tiny import tiny_tokenizer
from voco_llama import VoCoLlama, VoCoLlamaConfig, VoCoProcessor, cli, hub
from voco_llama.errors import CheckpointError, VoCoError
from voco_llama.inference import Inference, checkpoint_fingerprint
from voco_llama.model.adapters import merge_adapters, read_adapters

RANK, ALPHA = 2, 6
ADAPTED = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
LAYER = "model.layers.{}.{}"
"""Of LLaVA's own layout; the adapters' names have `base_model.model.` before it."""


def tensors(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.2


@pytest.fixture(scope="module")
def llava():
    return tiny_llava()


@pytest.fixture(scope="module")
def trained(llava):
    """Adapters by module, and the projector, as they are after training."""
    language = parts_of(llava).language
    modules = [LAYER.format(layer, name) for layer in range(2) for name in ADAPTED]
    adapters = {}
    for seed, module in enumerate(modules):
        outputs, inputs = language[f"{module}.weight"].shape
        adapters[module] = tensors(seed, RANK, inputs), tensors(100 + seed, outputs, RANK)
    projector = {name: tensors(200, *tensor.shape) for name, tensor in parts_of(llava).projector.items()}
    return adapters, projector


@pytest.fixture(scope="module")
def merged(llava, trained, tmp_path_factory):
    """The same model, merged by `W + alpha / r B A`."""
    adapters, projector = trained
    by_hand = copy.deepcopy(llava)
    weights = by_hand.state_dict()
    for module, (down, up) in adapters.items():
        weights[f"{module.replace('model.', 'model.language_model.', 1)}.weight"] += ALPHA / RANK * up @ down
    for name, tensor in projector.items():
        weights[f"model.multi_modal_projector.{name.replace('0', 'linear_1').replace('2', 'linear_2')}"].copy_(tensor)
    by_hand.load_state_dict(weights)
    return VoCoLlama.from_pretrained(write_own(by_hand, tmp_path_factory.mktemp("merged")))


def write_adapters(folder, trained, base, config=None, ending="safetensors", names=LAYER, projector=True, **changes):
    """What LLaVA's `train.py` leaves with `--lora_enable`."""
    adapters, whole = trained
    folder.mkdir(exist_ok=True)
    described = {
        "base_model_name_or_path": str(base),
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": [name.rpartition(".")[2] for name in ADAPTED],
    }
    (folder / "adapter_config.json").write_text(json.dumps(described | changes))
    weights = {}
    for module, pair in adapters.items():
        _, _, layer, name = module.split(".", 3)
        for letter, tensor in zip("AB", pair, strict=True):
            weights[f"base_model.model.{names.format(layer, name)}.lora_{letter}.weight"] = tensor
    if ending == "bin":
        torch.save(weights, folder / "adapter_model.bin")
    else:
        save_file(weights, folder / "adapter_model.safetensors")
    if projector:
        named = {f"base_model.model.model.mm_projector.{name}": tensor for name, tensor in whole.items()}
        torch.save(named, folder / "non_lora_trainables.bin")
    if config is not None:
        (folder / "config.json").write_text((config / "config.json").read_text())
    return folder


def same(model, expected) -> None:
    mine, theirs = model.state_dict(), expected.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_adapters_on_a_llava(llava, trained, merged, tmp_path, ending):
    base = write_own(llava, tmp_path / "base", tower="elsewhere")
    folder = write_adapters(tmp_path / "lora", trained, base, config=base, ending=ending)
    same(VoCoLlama.from_pretrained(folder), merged)
    assert VoCoLlamaConfig.from_pretrained(folder).num_vision_tokens == 4
    processor = VoCoProcessor.from_pretrained(folder)
    assert (processor.condition, processor.style.order, processor.num_vision) == ("full", "llava", 4)


def test_adapters_on_a_language_model_with_the_projector_beside_them(llava, trained, merged, tmp_path):
    """LLaVA-1.5 trained by LoRA from Vicuna: the base knows of no image."""
    whole = write_own(llava, tmp_path / "whole", tower="elsewhere")
    vicuna = tmp_path / "vicuna"
    tiny_tokenizer().save_pretrained(vicuna)
    language = parts_of(llava).language
    save_file({k: v[:259].clone() if len(v) > 259 else v for k, v in language.items()}, vicuna / "model.safetensors")
    (vicuna / "config.json").write_text(json.dumps({"model_type": "llama"}))
    folder = write_adapters(tmp_path / "lora", trained, "../vicuna", config=whole)
    (folder / "clip").symlink_to(whole / "clip")
    same(VoCoLlama.from_pretrained(folder), merged)
    write_adapters(folder, trained, "../vicuna", config=whole, projector=False)
    (folder / "non_lora_trainables.bin").unlink()
    assert "has no non_lora_trainables.bin, which holds the projector" in refused(folder)


@pytest.mark.parametrize(
    ("names", "layout"),
    [("model.language_model.layers.{}.{}", "new"), ("language_model.model.layers.{}.{}", "old")],
)
def test_plain_adapters_of_peft_on_llava_hf(llava, trained, merged, tmp_path, names, layout):
    """No `config.json` beside them, and the projector as it was."""
    base = write_hub(llava, tmp_path / "base", layout)
    folder = write_adapters(tmp_path / "lora", trained, base, names=names, projector=False)
    loaded = VoCoLlama.from_pretrained(folder)
    language = merged.language_model.state_dict()
    for name, tensor in loaded.language_model.state_dict().items():
        torch.testing.assert_close(tensor[:259], language[name][:259], atol=1e-6, rtol=1e-5, msg=name)
    assert torch.equal(loaded.projector[0].weight, VoCoLlama.from_pretrained(base).projector[0].weight)
    assert VoCoProcessor.from_pretrained(folder).condition == "full"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"use_rslora": True},
        {"alpha_pattern": {"model.layers.0.self_attn.q_proj": 20}, "rank_pattern": {"down_proj": 3}},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own call
@pytest.mark.parametrize("prefix", ["", "language_model."], ids=["own", "llava_hf"])
def test_they_are_merged_as_peft_does_it(llava, tmp_path, changes, prefix):
    from peft import LoraConfig, PeftModel, get_peft_model

    language = LlamaForCausalLM(llava.config.text_config)
    language.load_state_dict(parts_of(llava).language)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "down_proj"], **changes)
    trained = get_peft_model(copy.deepcopy(language), config)
    for seed, (name, parameter) in enumerate(trained.named_parameters()):
        if "lora_" in name:
            parameter.data += tensors(seed, *parameter.shape)
    trained.save_pretrained(tmp_path)
    expected = PeftModel.from_pretrained(copy.deepcopy(language), tmp_path).merge_and_unload().state_dict()
    _rename(tmp_path, prefix)
    adapters, _ = read_adapters(tmp_path)
    merged = merge_adapters(copy.deepcopy(language), adapters, tmp_path).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def _rename(folder, prefix) -> None:
    """Name the modules as those of a whole LLaVA."""
    file, described = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    beginning = "base_model.model."
    weights = {name.replace(beginning, beginning + prefix, 1): tensor for name, tensor in load_file(file).items()}
    save_file(weights, file)
    config = json.loads(described.read_text())
    config["alpha_pattern"] = {prefix + name: value for name, value in config["alpha_pattern"].items()}
    described.write_text(json.dumps(config))


def test_it_answers_and_its_base_is_part_of_its_fingerprint(llava, trained, tmp_path):
    base = write_own(llava, tmp_path / "base")
    folder = write_adapters(tmp_path / "lora", trained, base, config=base)
    inference = Inference.load(folder, "cpu")
    answers = inference.answer(["<image>\nWhat?"], images=random_images(1), condition="full", max_new_tokens=3)
    assert len(answers) == 1
    before = checkpoint_fingerprint(folder)
    weights = torch.load(base / "pytorch_model-00001-of-00002.bin")
    next(iter(weights.values())).add_(1)
    torch.save(weights, base / "pytorch_model-00001-of-00002.bin")
    assert checkpoint_fingerprint(folder) != before


def test_export_writes_the_merged_model(llava, trained, merged, tmp_path):
    base = write_own(llava, tmp_path / "base")
    folder = write_adapters(tmp_path / "lora", trained, base, config=base)
    assert cli.main(["export", f"checkpoint={folder}", "layout=voco", f"output={tmp_path}/merged"]) == 0
    same(VoCoLlama.from_pretrained(tmp_path / "merged"), merged)


@pytest.mark.parametrize("revision", [None, "v1"])
def test_the_base_is_that_of_the_revision_that_the_adapters_name(
    revision, llava, trained, merged, tmp_path, monkeypatch
):
    base, asked = write_own(llava, tmp_path / "base"), []
    folder = write_adapters(tmp_path / "lora", trained, base, config=base)
    file = folder / "adapter_config.json"
    named = {"base_model_name_or_path": "somebody/llava", "revision": revision}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **more: asked.append(more["revision"]) or str(base))
    same(VoCoLlama.from_pretrained(folder), merged)
    assert set(asked) == {revision}


# ---- refused


def refused(folder) -> str:
    lines = []
    for load in (VoCoLlama.from_pretrained, lambda folder: Inference.load(folder, "cpu")):
        with pytest.raises(VoCoError) as error:
            load(folder)
        assert "\n" not in str(error.value)
        lines.append(str(error.value))
    assert lines[0] == lines[1]
    return lines[0]


def _cut(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def _of_the_tower(folder):
    name = (
        "base_model.model.model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    )
    save_file({name: torch.zeros(2, 16)}, folder / "adapter_model.safetensors")


def _of_another_shape(folder):
    names = [f"base_model.model.model.layers.0.self_attn.q_proj.lora_{letter}.weight" for letter in "AB"]
    save_file({names[0]: torch.zeros(2, 64), names[1]: torch.zeros(64, 2)}, folder / "adapter_model.safetensors")


def _of_no_module(folder):
    names = [f"base_model.model.model.layers.9.self_attn.q_proj.lora_{letter}.weight" for letter in "AB"]
    save_file({names[0]: torch.zeros(2, 32), names[1]: torch.zeros(32, 2)}, folder / "adapter_model.safetensors")


def _described_as(**changes):
    def edit(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (_cut, r"adapter_model.safetensors: cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "and no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_config.json").write_bytes(b"\xff{"), "adapter_config.json: cannot be read"),
        (lambda folder: (folder / "non_lora_trainables.bin").write_bytes(b""), "trainables.bin: cannot be read"),
        (_described_as(base_model_name_or_path=None), "adapters that do not say of what: put its folder"),
        (_described_as(base_model_name_or_path="/gone/vicuna"), "a model that is not here .*/gone/vicuna: no such"),
        (_described_as(peft_type="IA3"), "only LoRA can be merged|cannot be read"),
        (_described_as(r="two"), "lora"),
        (_of_the_tower, r"adapts the vision too .*only adapters of the language model can be merged"),
        (_of_another_shape, "its adapters do not fit: 2 tensors differ: 2 of another shape"),
        (_of_no_module, "the adapters are of another language model"),
    ],
)
def test_adapters_that_cannot_be_merged(llava, trained, tmp_path, edit, complaint):
    base = write_own(llava, tmp_path / "base")
    folder = write_adapters(tmp_path / "lora", trained, base, config=base)
    edit(folder)
    text = refused(folder)
    assert re.search(complaint, text), text
    assert str(folder) in text


def test_adapters_of_what_is_no_llava(llava, trained, tmp_path):
    base = tmp_path / "base"
    llava.config.text_config.save_pretrained(base)
    folder = write_adapters(tmp_path / "lora", trained, base, projector=False)
    assert re.search(r"lora: holds adapters of .*base, which is no LLaVA: merge them into it", refused(folder))
    with pytest.raises(CheckpointError):
        VoCoProcessor.from_pretrained(folder)
