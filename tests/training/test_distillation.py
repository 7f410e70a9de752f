"""Training with a teacher, for each source of one: curves that must be equal, and what a run leaves behind."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import losses
from voco_llama.composition import compose
from voco_llama.data.processor import VoCoProcessor
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.settings import TeacherSettings
from voco_llama.training.run import train
from voco_llama.training.teachers.teacher import CheckpointTeacher, load_teacher
from voco_llama.training.teachers.write_top_k import write_top_k
from voco_llama.training.trainer import VoCoTrainer

LORA = ("model.lora.rank=2", "model.lora.alpha=8", "stage.trains=[language]")


@pytest.fixture
def distilled(settings_for, upper):
    """Trains a student of the upper bound, and returns its loss curve and its folder.

    It starts from random weights, far from the teacher, so that rounding is small beside the divergence; with
    adapters from the upper bound.
    """

    def make(name: str, *overrides: str, teacher: str = "checkpoint") -> tuple[list[dict], Path]:
        settings = settings_for(
            "toy/voco_1",
            "loss=kl",
            *([f"model.checkpoint={upper}"] if LORA[0] in overrides else []),
            f"loss.teacher={teacher}",
            *([f"loss.teacher_checkpoint={upper}"] if teacher == "checkpoint" else []),
            *overrides,
        )
        settings.output_dir = f"{settings.output_dir}_{name}"
        final = train(settings)
        return json.loads((final.parent / "result.json").read_text())["loss_curve"], final

    return make


def values(curve: list[dict], name: str = "loss") -> list[float]:
    return [entry[name] for entry in curve]


def test_a_student_follows_its_teacher(distilled, upper):
    before = {file.name: file.read_bytes() for file in upper.glob("*.safetensors")}
    curve, final = distilled("kl", "trainer.max_steps=16", "loss.temperature=2")
    assert values(curve)[-1] < 0.6 * values(curve)[0]
    assert values(curve) == pytest.approx(values(curve, "loss_kl"))
    assert all(value > 0 for value in values(curve, "loss_lm"))
    assert {file.name: file.read_bytes() for file in upper.glob("*.safetensors")} == before
    saved = load_file(final / "model.safetensors")
    assert saved.keys() == load_file(upper / "model.safetensors").keys()  # the teacher is no part of the student
    table = json.loads((final.parent / "result.json").read_text())["parameters"]
    assert {row["module"] for row in table} == {"vision", "language_model", "projector"}
    VoCoLlama.from_pretrained(final)


def test_weights_add_up(distilled):
    curve, _ = distilled("both", "loss.lm=0.25", "loss.kl=3", "trainer.logging_steps=2")
    for entry in curve:
        assert entry["loss"] == pytest.approx(0.25 * entry["loss_lm"] + 3 * entry["loss_kl"], rel=1e-5)
    assert [entry["step"] for entry in curve] == [1, 2, 4]


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=4"),
        ("loss.chunk_size=7",),
        ("trainer.gradient_checkpointing=true",),
    ],
    ids=["2x4", "chunks", "checkpointing"],
)
def test_what_must_not_change_the_curve(distilled, overrides):
    plain, _ = distilled("plain", "loss.lm=0.5", "loss.kl=0.5", "loss.temperature=2")
    varied, _ = distilled("varied", "loss.lm=0.5", "loss.kl=0.5", "loss.temperature=2", *overrides)
    for name in ("loss", "loss_lm", "loss_kl"):
        assert values(varied, name) == pytest.approx(values(plain, name), rel=1e-4)


def test_chunked_cross_entropy_alone_gives_the_plain_curve(distilled, settings_for):
    train(settings_for("toy/voco_1"))
    plain = losses(Path(settings_for("toy/voco_1").output_dir))
    halved, _ = distilled("half", "loss=lm", "loss.lm=0.5", teacher="none")  # clipping and Muon ignore the scale
    assert values(halved, "loss_lm")[0] == pytest.approx(plain[0], rel=1e-6)
    assert values(halved)[0] == pytest.approx(0.5 * plain[0], rel=1e-6)
    assert "loss_kl" not in halved[0]


def test_a_schedule_moves_the_weights_and_spares_the_teacher(distilled, monkeypatch):
    read, steps = CheckpointTeacher.read, []

    def watched(self, *args):
        steps.append(len(steps))
        return read(self, *args)

    monkeypatch.setattr(CheckpointTeacher, "read", watched)
    points = "[{at: 0.25, lm: 1, kl: 0}, {at: 0.75, lm: 0, kl: 2}]"
    curve, _ = distilled("schedule", f"loss.schedule={points}", "loss.lm=9")
    assert ["loss_kl" in entry for entry in curve] == [False, False, True, True]
    assert len(steps) == 2
    assert curve[0]["loss"] == pytest.approx(curve[0]["loss_lm"])
    assert curve[2]["loss"] == pytest.approx(0.5 * curve[2]["loss_lm"] + 1.0 * curve[2]["loss_kl"], rel=1e-5)
    assert curve[3]["loss"] == pytest.approx(2 * curve[3]["loss_kl"], rel=1e-5)


def test_an_elastic_student_has_a_teacher(distilled):
    curve, _ = distilled("elastic", "compression.num_voco=4", "compression.num_voco_choices=[1,2,4]")
    assert all(0 < value < 20 for value in values(curve, "loss_kl"))


# ---- adapters


def test_the_student_without_adapters_is_the_checkpoint_it_started_from(distilled):
    frozen, _ = distilled("checkpoint", *LORA)
    switched, _ = distilled("off", *LORA, teacher="adapters_off")
    assert values(switched) == pytest.approx(values(frozen), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own call
def test_a_run_with_adapters_saves_a_merged_model_and_the_adapters(distilled, upper):
    from peft import PeftModel

    _, final = distilled("lora", *LORA, teacher="adapters_off")
    model, base = VoCoLlama.from_pretrained(final), VoCoLlama.from_pretrained(upper)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, base.state_dict()[name])}
    targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"}
    assert {name.split(".")[-2] for name in changed} == targets
    embeddings, before = model.get_input_embeddings().weight, base.get_input_embeddings().weight
    rows = (embeddings != before).any(dim=1).nonzero().flatten().tolist()
    assert rows == [model.config.voco_token_id]

    adapted = PeftModel.from_pretrained(base.language_model, final / "adapters").merge_and_unload()
    for (name, ours), theirs in zip(model.language_model.named_parameters(), adapted.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    table = {row["module"]: row for row in json.loads((final.parent / "result.json").read_text())["parameters"]}
    assert table["projector"]["trained"] == table["vision"]["trained"] == 0
    assert 0 < table["language_model"]["trained"] < 0.5 * table["language_model"]["frozen"]


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.mark.slow
def test_a_killed_run_with_adapters_goes_on_to_the_same_curve(distilled, monkeypatch):
    more = (
        *LORA,
        "model.lora.dropout=0.1",
        "trainer.max_steps=6",
        "trainer.save_strategy=steps",
        "trainer.save_steps=2",
    )
    whole, final = distilled("whole", *more, teacher="adapters_off")
    step = VoCoTrainer.training_step

    def killed_at_step_4(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise Killed
        return step(self, *args, **kwargs)

    monkeypatch.setattr(VoCoTrainer, "training_step", killed_at_step_4)
    with pytest.raises(Killed):
        distilled("killed", *more, teacher="adapters_off")
    monkeypatch.undo()
    resumed, again = distilled("killed", *more, teacher="adapters_off")
    for name in ("loss", "loss_lm", "loss_kl"):
        assert values(resumed, name) == values(whole, name)
    expected = load_file(final / "model.safetensors")
    for name, tensor in load_file(again / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


# ---- top-k


def teacher_settings(settings, k: int, *overrides: str) -> TeacherSettings:
    """Settings of the command that makes the files of a training."""
    composed = compose(
        ["experiment=toy/voco_1", f"k={k}", "records_per_file=16", *overrides], "teacher", TeacherSettings
    )
    composed.data, composed.model, composed.trainer = settings.data, settings.model, settings.trainer
    composed.output_dir = settings.output_dir
    return composed


@pytest.mark.slow
def test_top_k_of_the_whole_vocabulary_gives_the_curve_of_the_teacher_at_hand(distilled, settings_for, upper, tmp_path):
    live, _ = distilled("live", "loss.temperature=2")
    vocabulary = json.loads((upper / "config.json").read_text())["text_config"]["vocab_size"]
    start = settings_for("toy/voco_1")
    curves = {}
    for k in (4, vocabulary):
        folder = tmp_path / f"top_{k}"
        command = (f"loss.teacher_checkpoint={upper}", f"loss.top_k_folder={folder}", "loss.temperature=2")
        write_top_k(teacher_settings(start, k, *command))
        training = (f"loss.top_k_folder={folder}", "loss.temperature=2", "data.keep_in_memory=false")
        workers = "trainer.dataloader_num_workers=1"
        curves[k], _ = distilled(f"top_{k}", *training, workers, teacher="top_k")
    assert values(curves[vocabulary]) == pytest.approx(values(live), rel=1e-4)
    assert 0 < values(curves[4])[0] < values(live)[0]


# ---- refused at the start


def test_a_misfit_is_refused_before_the_student_is_loaded(distilled, upper, tmp_path, monkeypatch):
    processor = VoCoProcessor.from_pretrained(upper)
    processor.tokenizer.add_tokens(["another"])
    processor.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_bytes((upper / "config.json").read_bytes())
    monkeypatch.setattr("voco_llama.training.run.build_or_load", None)
    with pytest.raises(CheckpointError, match="has another tokenizer"):
        distilled("other", f"loss.teacher_checkpoint={tmp_path / 'other'}")


def test_a_teacher_with_another_table_of_words(settings_for, upper):
    settings = settings_for("toy/voco_1", "loss=kl", f"loss.teacher_checkpoint={upper}")
    with pytest.raises(CheckpointError, match=r"predicts 677 words, the student 700: choose a teacher of the same"):
        load_teacher(settings, 700)


def test_adapters_off_with_another_segment_attention(distilled):
    with pytest.raises(CheckpointError, match=r"segment_attention causal, the student has bidirectional"):
        distilled("bidirectional", *LORA, "compression.segment_attention=bidirectional", teacher="adapters_off")


def test_a_teacher_trained_anew_is_another_input(distilled, upper, tmp_path):
    copy = tmp_path / "teacher"
    copy.mkdir()
    for file in upper.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    named = f"loss.teacher_checkpoint={copy}"
    _, final = distilled("again", named)
    assert distilled("again", named)[1] == final
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(SettingsError, match=r"holds a run on what loss.teacher_checkpoint named then"):
        distilled("again", named)
