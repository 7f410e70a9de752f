"""Trainings on the student's own answers, and with its reading through the most VoCo tokens as teacher."""

import json
from pathlib import Path

import pytest
import torch

from voco_llama.errors import CheckpointError
from voco_llama.layout import HostRows
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.training.elastic import ElasticDraw
from voco_llama.training.own_answers import OWN_ROWS
from voco_llama.training.run import train
from voco_llama.training.teachers.teacher import CheckpointTeacher
from voco_llama.training.trainer import VoCoTrainer

ELASTIC = ("compression.num_voco=4", "compression.num_voco_choices=[1,2,4]")
READINGS = (*ELASTIC, "compression.readings=3")
MOST = (*READINGS, "loss=lm_kl", "loss.teacher=most_voco", "loss.lm=0.25", "loss.kl=3")
DIVIDED = ("trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=4")


@pytest.fixture
def taught(settings_for, upper):
    """Trains from the upper bound, and returns what its log says of each step, and its folder."""

    def make(name: str, *overrides: str) -> tuple[list[dict], Path]:
        settings = settings_for("toy/voco_1", f"model.checkpoint={upper}", *overrides)
        settings.output_dir = f"{settings.output_dir}_{name}"
        final = train(settings)
        return json.loads((final.parent / "result.json").read_text())["loss_curve"], final

    return make


@pytest.fixture
def own(upper) -> tuple[str, ...]:
    """Settings of a training with answers of its own."""
    return ("loss=kl", f"loss.teacher_checkpoint={upper}", "loss.own_answers=0.5")


def check_same(ours: list[dict], theirs: list[dict], rel: float = 1e-4) -> None:
    for name in ("loss", "loss_lm", "loss_kl"):
        assert [e[name] for e in ours] == pytest.approx([e[name] for e in theirs], rel=rel, abs=1e-7), name


# ---- the reading through the most VoCo tokens


def test_the_reading_through_the_most_tokens_teaches_the_others(taught):
    curve, _ = taught("most", *MOST)
    for entry in curve:
        assert entry["loss"] == pytest.approx(0.25 * entry["loss_lm"] + 3 * entry["loss_kl"], rel=1e-5)
    assert curve[0]["loss_kl"] > 0
    assert curve[2]["loss_kl"] == 0  # of rows without an image, whose readings are one and the same
    plain, _ = taught("plain", *READINGS)
    assert curve[0]["loss_lm"] == pytest.approx(plain[0]["loss"], rel=1e-5)  # in all readings, as without a teacher


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [DIVIDED, ("loss.chunk_size=7",), ("two_steps=false",)])
def test_what_must_not_change_what_it_teaches(taught, overrides):
    check_same(taught("varied", *MOST, *overrides)[0], taught("plain", *MOST)[0])


# ---- own answers


def test_their_rows_count_for_the_divergence_alone(taught, own, monkeypatch):
    """Both terms are means over the tokens that have them; the batch is what the model trains on."""
    steps, original = {}, VoCoTrainer.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        rows, counts = inputs[OWN_ROWS].rows, (HostRows.of_batch(inputs).fields["labels"][:, 1:] >= 0).sum(dim=1)
        numbers = int(kwargs["num_items_in_batch"]), int(self._num_labeled)
        steps.setdefault(self.state.global_step, []).append((rows, counts, numbers))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(VoCoTrainer, "compute_loss", watched)
    curve, _ = taught("own", *own, "loss.lm=0.5", "loss.kl=2", "trainer.max_steps=6", *DIVIDED)
    for entry in curve:
        assert entry["loss"] == pytest.approx(0.5 * entry["loss_lm"] + 2 * entry["loss_kl"], rel=1e-5)
    for passes in steps.values():
        rows, counts = (torch.cat(parts) for parts in list(zip(*passes, strict=True))[:2])
        assert {numbers for *_, numbers in passes} == {(int(counts.sum()), int(counts[~rows].sum()))}
    share = torch.cat([rows for passes in steps.values() for rows, *_ in passes]).float().mean()
    assert 0.25 < share < 0.75


@pytest.mark.slow
def test_all_rows_may_be_its_own_and_the_divergence_goes_down(taught, own):
    curve, final = taught("all", *own, "loss.own_answers=1", "trainer.max_steps=16")
    assert curve[-1]["loss_kl"] < 0.7 * curve[0]["loss_kl"]
    assert [entry["loss_lm"] for entry in curve] == [0] * 16
    VoCoLlama.from_pretrained(final)


@pytest.mark.slow
def test_they_are_written_in_half_precision(taught, own, monkeypatch):
    monkeypatch.setattr("voco_llama.training.trainer.matrix_peak", lambda *_: 1e12)  # minutes on a CPU
    curve, _ = taught("half", *own, *READINGS, "trainer.bf16=true", "trainer.gradient_checkpointing=true")
    first = taught("whole", *own, *READINGS, "trainer.max_steps=1")[0][0]
    assert curve[0]["loss_kl"] == pytest.approx(first["loss_kl"], rel=0.3)
    assert 0 < curve[-1]["loss_kl"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [DIVIDED, ("two_steps=false",)])
def test_what_must_not_change_what_it_learns_of_them(taught, own, overrides):
    settings = (*own, "loss.lm=0.5", *READINGS)
    check_same(taught("varied", *settings, *overrides)[0], taught("plain", *settings)[0])


def test_a_schedule_spares_the_writing(taught, own, monkeypatch):
    steps, original = [], VoCoTrainer._with_own_answers

    def watched(self, *args):
        steps.append(self.state.global_step)
        return original(self, *args)

    monkeypatch.setattr(VoCoTrainer, "_with_own_answers", watched)
    points = "[{at: 0.25, lm: 1, kl: 0}, {at: 0.75, lm: 0, kl: 2}]"
    taught("schedule", *own, f"loss.schedule={points}")
    assert steps == [2, 3]


@pytest.mark.slow
def test_they_go_with_the_reading_that_teaches(taught):
    curve, _ = taught("both", *MOST, "loss.own_answers=0.5")
    check_same(taught("divided", *MOST, "loss.own_answers=0.5", *DIVIDED)[0], curve)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("model.lora.rank=2", "model.lora.dropout=0.1", "stage.trains=[language]")])
def test_a_killed_run_goes_on_to_the_same_curve(taught, own, monkeypatch, overrides):
    if overrides:
        overrides = (*overrides, "loss.teacher=adapters_off", "loss.teacher_checkpoint=null")
    saving = ("trainer.max_steps=6", "trainer.save_strategy=steps", "trainer.save_steps=2")
    settings = (*own, "loss.lm=1", *ELASTIC, *overrides, *saving)
    whole, _ = taught("whole", *settings)
    original = VoCoTrainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(VoCoTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        taught("killed", *settings)
    monkeypatch.undo()
    resumed, _ = taught("killed", *settings)
    for name in ("loss", "loss_lm", "loss_kl"):
        assert [entry[name] for entry in resumed] == [entry[name] for entry in whole]


# ---- a teacher that reads less and less


@pytest.mark.slow
def test_the_teacher_reads_as_much_as_the_schedule_says(taught, monkeypatch):
    read, seen = CheckpointTeacher.read, []

    def watched(self, student, batch, num_voco):
        seen.append(num_voco)
        return read(self, student, batch, num_voco)

    monkeypatch.setattr(CheckpointTeacher, "read", watched)
    _, teacher = taught("teacher", *ELASTIC, "trainer.max_steps=8")
    points = "[{at: 0, lm: 0, kl: 1}, {at: 0.5, lm: 0, kl: 1, teacher_num_voco: 4}, {at: 0.75, lm: 0, kl: 1, "
    kl = (*ELASTIC, "loss=kl", f"loss.teacher_checkpoint={teacher}")
    curve, _ = taught("lowered", *kl, f"loss.schedule={points}teacher_num_voco: 1}}]")
    assert seen == [None, None, 4, 1]
    assert all(entry["loss"] == pytest.approx(entry["loss_kl"]) for entry in curve)
    start = ("trainer.max_steps=1", f"model.checkpoint={teacher}", "compression.draw=batch")
    numbers = ElasticDraw((1, 2, 4), "batch", 8, 0)(0, 0, 1)
    itself, _ = taught(
        "itself", *kl, *start, f"loss.schedule=[{{at: 0, lm: 0, kl: 1, teacher_num_voco: {numbers.item()}}}]"
    )
    assert itself[0]["loss_kl"] == pytest.approx(0, abs=1e-6)


def test_a_teacher_that_sees_images_alone_has_no_budget(taught, upper):
    schedule = "loss.schedule=[{at: 0, lm: 0, kl: 1, teacher_num_voco: 1}]"
    with pytest.raises(CheckpointError, match=r"was trained with condition full, and a teacher_num_voco of"):
        taught("refused", *ELASTIC, "loss=kl", f"loss.teacher_checkpoint={upper}", schedule)
