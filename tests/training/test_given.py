"""Overrides that a training would not read."""

import json
import re

import pytest

from voco_llama import cli
from voco_llama.errors import SettingsError

Q_FORMER = "compression.q_former.layers=2"


def composed(*overrides: str, command: str = "train"):
    return cli.COMMANDS[command].compose_typed(list(overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["experiment=toy/align", "model.language.pretrained=another"],
            "model.language.pretrained=another would not be read, for model.checkpoint=runs/toy/language/final names"
            " the whole model: set model.checkpoint=null to build one of parts, or leave it out",
        ),
        (
            ["model.checkpoint=a", "model.vision.name=b"],
            "model.vision.name=b would not be read, for model",
        ),
        (["model.checkpoint=a", "model.vision={name: b}"], "model.checkpoint=a names the whole model"),
        (["model.checkpoint=a", "model.projector=linear"], "model.checkpoint=a names the whole model"),
        (["model.checkpoint=a", "model.projector_weights=b"], "model.checkpoint=a names the whole model"),
        (["model.checkpoint=a", "++model.tokenizer=b"], "model.checkpoint=a names the whole model"),
        (["experiment=toy/align", "model=llava_7b"], "model=llava_7b and model.checkpoint=runs/toy/language/final, of"),
        (["experiment=voco_1", "model=qwen3_0.6b"], "model=qwen3_0.6b and model.checkpoint=runs/align_7b/final, of"),
        (
            ["experiment=small/voco_1", "model.vision.name=ViT-L-14"],
            "model.vision.name=ViT-L-14 would not be read, for model.checkpoint=runs/small/Hugging",
        ),
        (
            ["model.lora.alpha=8"],
            "=8 would not be read, for there are no adapters: set model.lora.rank",
        ),
        ([Q_FORMER], "compression.compressor is language_model: choose compression=q_former_N"),
        (["compression.draw=batch"], "set compression.num_voco_choices"),
        (["compression.readings=2"], "set compression.num_voco_choices"),
        (["compression=elastic_16", "compression.readings=5", "compression.draw=batch"], "readings=5 draws nothing"),
        (["data.shuffle_buffer=9"], "set data.streaming=true"),
        (["loss.temperature=2"], "the loss has no KL term: choose loss=kl"),
        (["loss.teacher_checkpoint=a"], "loss.teacher is none: choose loss=kl"),
        (["loss=kl", "loss.teacher_checkpoint=a", "loss.top_k_folder=b"], "set loss.teacher=top_k"),
        (["loss.lm=2", "loss.schedule=[{at: 0, lm: 1, kl: 0}]"], "loss.schedule goes before"),
        (["loss.reconstruction=1", "loss.schedule=[{at: 0, lm: 1, kl: 0}]"], "loss.schedule goes before"),
        (["optimizer=muon", "trainer.optim=adafactor"], "optimizer is muon: set optimizer=trainer"),
        (
            ["experiment=toy/align", "trainer.num_train_epochs=3"],
            "trainer.max_steps=200 goes before: set",
        ),
    ],
)
def test_what_would_not_be_read_is_refused(overrides, message):
    for command in ("train", "doctor", "data-stats"):
        with pytest.raises(SettingsError) as caught:
            composed(*overrides, command=command)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=toy/align", "model.checkpoint=null", "model.language.pretrained=another"],
        ["experiment=toy/align", "model.dtype=bfloat16", "model.attention=eager", "model.tokenizer=null"],
        ["experiment=toy/align", "model=llava_7b", "model.checkpoint=a"],
        ["model=llava_7b"],
        ["experiment=small/voco_1", "model=qwen3_0.6b"],  # whose checkpoint follows it
        ["model.lora.rank=2", "model.lora.alpha=8"],
        ["compression=q_former_4", Q_FORMER],
        ["loss=kl", "loss.teacher_checkpoint=a", "loss.temperature=2"],
        ["experiment=toy/align", "trainer.max_steps=-1", "trainer.num_train_epochs=3"],
        ["experiment=small/voco_1", "trainer.num_train_epochs=3"],  # which sets no max_steps
    ],
)
def test_what_is_read_passes(overrides):
    composed(*overrides)


def test_a_teacher_reads_its_temperature():
    more = ["loss.teacher_checkpoint=a", "loss.top_k_folder=b", "loss.temperature=2"]
    assert composed("experiment=toy/voco_1", *more, command="teacher").loss.temperature == 2


def test_the_dry_run_refuses_it_too(capsys):
    overrides = ["experiment=toy/align", "model.language.pretrained=another"]
    assert cli.main(["train", *overrides, "dry_run=true"]) == 2
    assert capsys.readouterr().err.startswith("error: model.language.pretrained=another would not be read")


@pytest.mark.slow
def test_the_overrides_of_a_sweep_are_for_all_rows(capsys):
    overrides = 'overrides=["trainer.num_train_epochs=2","compression.q_former.layers=1"]'
    rows = 'only=["upper","q_former_1"]'  # one of them reads neither
    assert cli.main(["sweep", "plan=toy", overrides, rows, "seeds=[0]", "dry_run=true"]) == 0
    assert "would not be read" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "held", "says"),
    [
        (
            "vicuna_13b",
            {"text_config": {"hidden_size": 4096, "num_hidden_layers": 32}},
            "32 layers of 4096, .*13b-v1.5,",
        ),
        (
            "vicuna_13b",
            {"hidden_size": 4096, "num_hidden_layers": 32, "mm_vision_tower": "a"},
            "has 40 layers of 5120$",
        ),
        ("vicuna_13b", {"text_config": {"hidden_size": 5120, "num_hidden_layers": 40}}, None),
        ("vicuna_13b", {"text_config": {"model_type": "llama"}}, None),
        ("vicuna_13b", None, None),
        ("llava_7b", {"text_config": {"hidden_size": 4096, "num_hidden_layers": 32}}, None),
    ],
)
def test_a_checkpoint_of_another_language_model_than_files_name_is_said(model, held, says, tmp_path, caplog):
    """An experiment of 13B with the checkpoint of 7B trains 7B."""
    if held is not None:
        (tmp_path / "config.json").write_text(json.dumps(held))
    composed(f"model={model}", f"model.checkpoint={tmp_path}")
    assert bool(says) == bool(caplog.records)
    assert says is None or re.search(says, caplog.text.strip())
    assert says is None or "which the settings name and which is not read" in caplog.text
