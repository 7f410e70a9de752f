"""What a log says of speed: counts against the mask and the packed batch, rates by a clock of our own, first lines."""

import logging
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from tests.model.rows import answered, batch_of
from tests.tiny import tiny_model, tiny_processor
from voco_llama.layout import pack_rows
from voco_llama.model.flops import flops_of_work, training_flops
from voco_llama.packing import images_of_rows, pack
from voco_llama.training import speed
from voco_llama.training.arguments import training_arguments
from voco_llama.training.log_entries import SPEED, speed_in_words
from voco_llama.training.progress import Progress
from voco_llama.training.run import train
from voco_llama.training.speed import Counts, Speed, count, matrix_peak
from voco_llama.training.stages import set_trainable, trained_parts
from voco_llama.training.trainer import VoCoTrainer
from voco_llama.visibility import TokenFacts, dense_mask

TEXTS = ["<image>\nWhat is it?", "Why?", "<image>Or <image>?"]


def mixed_rows(condition: str, order: str):
    """Rows of one document, and one of two."""
    processor = tiny_processor(condition=condition, order=order)
    rows = [processor.lay_out(answered(text)) for text in TEXTS]
    return processor, batch_of(processor, [*rows[:2], pack_rows(rows)], "right", labels=True)


def counted(*args, **kwargs) -> Counts:
    return Counts(**dict(zip([field.name for field in fields(Counts)], count(*args, **kwargs).tolist(), strict=True)))


@pytest.mark.parametrize(
    ("condition", "order", "attention"),
    [
        ("voco", "inline", "causal"),
        ("voco", "inline", "independent"),
        ("full", "inline", "causal"),
        ("full", "first", "causal"),
    ],
)
def test_pairs_are_those_of_the_mask(condition, order, attention):
    _, rows = mixed_rows(condition, order)
    found = counted(rows, 2, condition, False, segment_attention=attention)
    facts = TokenFacts.of_batch(rows)
    sees = dense_mask(facts, facts, condition, attention)
    text = (rows["segment"] == 0)[:, :, None]
    assert found.text_before + found.text == int((sees & text & text.transpose(1, 2)).sum())
    assert found.read_before == int((sees & text & ~text.transpose(1, 2)).sum())
    assert found.segment_before + found.segment_tokens == int((sees & ~text).sum())
    assert (found.shown, found.images, found.places) == (4, 2, rows["document"].numel())
    assert found.filled == found.text + found.segment_tokens == int((rows["document"] >= 0).sum())


@pytest.mark.parametrize(("condition", "order"), [("voco", "inline"), ("full", "first")])
def test_places_are_those_of_the_packed_batch(condition, order):
    processor, rows = mixed_rows(condition, order)
    wanted = torch.zeros_like(rows["voco"])
    packing = pack(rows, condition, processor.segment_shape(), processor.tokens, images_of_rows(rows), wanted)
    found = counted(rows, 4, condition, True)
    assert found.places == packing.num_rows * packing.longest
    assert found.filled == len(packing.text_places) + len(packing.read_places) < found.places
    assert found.read == len(packing.read_places)


@pytest.mark.parametrize("condition", ["voco", "full"])
def test_shared_images_are_work_once(condition):
    processor = tiny_processor(condition=condition)
    config = tiny_model(processor).config
    rows = batch_of(
        processor, [processor.lay_out(answered(t)) for t in ("<image>\nWhat?", "<image>\nIs it?")], "right", True
    )
    text = ((rows["segment"] == 0) & (rows["document"] >= 0)).sum(dim=1).tolist()
    found = counted(rows, 1, condition, True)
    assert flops_of_work(config, found.work()) == training_flops(config, text, [1, 1], 1, found.trained)
    assert (found.shown, found.shared) == (2, 0.5)


def test_a_stretch_is_summed_over_processes_and_another_begins(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(speed, "time", clock)
    processor, rows = mixed_rows("voco", "first")
    measured = Speed(tiny_model(processor).config, ["language"], peak=1e6, processes=2)
    assert measured.take(0, lambda x: x) == {}
    for step, seconds in ((2, 4.0), (3, 8.0)):
        measured.add(rows, 2, two_steps=True)
        clock.now += seconds
        taken, steps = measured.take(step, lambda x: 2 * x), {2: 2, 3: 1}[step]
        one = counted(rows, 2, "voco", True)
        flops = measured.new_flops()
        assert flops == flops_of_work(measured.config, one.work(), ["language"]) > 0
        assert taken == {
            "text_tokens_per_second": pytest.approx(2 * one.text / seconds, abs=1e-4),
            "segment_tokens_per_second": pytest.approx(one.segment_tokens / seconds, abs=1e-4),  # half are shared
            "model_flops_utilization": pytest.approx(flops / seconds / 1e6, abs=1e-4),
            "padding_share": pytest.approx(1 - one.filled / one.places, abs=1e-4),
            "images_a_step": 4 / steps,
            "images_shown_a_step": 8 / steps,
        }
    assert "4 of 8 images" in speed_in_words(taken | {"data_wait_share": 0.0})


def test_a_model_with_a_frozen_piece_of_a_part_does_not_train_that_part():
    model = tiny_model(tiny_processor())
    set_trainable(model, ["projector", "language"])
    assert trained_parts(model) == ["projector", "language"]
    model.get_input_embeddings().requires_grad_(False)
    assert trained_parts(model) == ["projector"]


def test_the_peak_leaves_random_numbers_alone():
    matrix_peak.cache_clear()
    state = torch.get_rng_state()
    assert 1e8 < matrix_peak(torch.device("cpu"), torch.float32) < 1e15
    assert torch.equal(state, torch.get_rng_state())


def test_first_steps_are_logged_and_have_lines(caplog):
    caplog.set_level(logging.INFO, "voco_llama")
    progress = Progress(None, lambda step: None)
    arguments, state = SimpleNamespace(logging_first_step=True), TrainerState(max_steps=100_000)
    state.is_world_process_zero = True
    progress.on_train_begin(arguments, state)
    for step in range(1, 21):
        state.global_step, control = step, TrainerControl(should_log=step == 20)
        progress.on_step_end(arguments, state, control)
        if control.should_log:
            progress.on_log(arguments, state, logs={"loss": 1.0, "learning_rate": 1e-3, "data_wait_share": 0.0})
    assert [message.split()[1] for message in caplog.messages] == [f"{step}/100000" for step in (1, 2, 5, 10)]


def test_a_run_says_it_at_every_entry(settings_for, monkeypatch):
    trainers, start = [], VoCoTrainer.train_from
    monkeypatch.setattr(VoCoTrainer, "train_from", lambda self, *args: (trainers.append(self), start(self, *args)))
    train(settings_for("toy/voco_1", "trainer.max_steps=2"))
    entries = [entry for entry in trainers[0].state.log_history if "loss" in entry]
    assert len(entries) == 2
    assert all(entry[name] >= 0 for entry in entries for name in SPEED)
    assert all(entry["text_tokens_per_second"] > 0 for entry in entries)
    assert trainers[0].state.total_flos == trainers[0].speed._flops > 0


@pytest.mark.parametrize(("override", "expected"), [("trainer.use_cpu=false", True), ("trainer.use_cpu=true", False)])
def test_batches_are_copied_to_a_gpu_without_waiting(settings_for, override, expected):
    assert training_arguments(settings_for("toy/voco_1", override)).accelerator_config.non_blocking is expected
