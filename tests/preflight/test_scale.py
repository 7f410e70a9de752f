"""A training on other numbers of GPUs: how its rows are divided, what is sent and written, and what is said of it."""

import re
from dataclasses import replace

import pytest

from voco_llama.composition import compose
from voco_llama.model.flops import training_flops
from voco_llama.preflight.dry_run import dry_run, format_dry_run
from voco_llama.preflight.scale import divided, scale_lines
from voco_llama.sharding import Fsdp, Group, Sharding, Zero


def composed(*overrides):
    return compose(["experiment=voco_1", *overrides])


@pytest.fixture(scope="module")
def of_7b():
    return dry_run(composed())


@pytest.mark.parametrize(
    ("size", "rows", "share", "processes", "expected"),
    [
        (128, 8, 1, 8, (8, 2)),
        (128, 8, 1, 64, (2, 1)),
        (128, 8, 1, 128, (1, 1)),
        (128, 8, 1, 512, (1, 1)),
        (128, 8, 1, 6, (1, 22)),
        (120, 8, 1, 8, (5, 3)),
        (128, 8, 4, 8, (8, 2)),
        (128, 8, 4, 32, (4, 1)),
        (128, 8, 4, 64, (4, 1)),
    ],
)
def test_the_rows_of_a_step_are_divided(size, rows, share, processes, expected):
    settings = composed(f"trainer.per_device_train_batch_size={rows}", f"data.share_media={share}")
    batch = divided(settings, size, processes)
    assert (batch.rows, batch.accumulation) == expected
    assert batch.size >= size
    assert batch.size == size or size % (processes * share)


def test_the_scales_of_a_training(of_7b):
    planned, more, most = of_7b.scales.each
    assert [scale.batch.processes for scale in of_7b.scales.each] == [8, 64, 512]
    assert planned.batch == replace(of_7b.batch, drop_last=False)
    assert planned.memory.estimate == of_7b.memory.estimate
    assert (planned.steps, more.steps) == (of_7b.length.steps, of_7b.length.steps)
    assert (most.batch.size, most.steps) == (512, -(-of_7b.length.steps // 4))
    assert planned.seconds == pytest.approx(8 * more.seconds)
    assert planned.seconds == pytest.approx(of_7b.scales.flops / (8 * 312e12 * 0.4))
    assert more.memory.estimate.peak < planned.memory.estimate.peak


def test_flops_are_those_of_rows_of_full_length(of_7b):
    from voco_llama.preflight.shapes import meta_model

    config = meta_model(composed()).model.config
    text = 2048 - 577
    assert of_7b.scales.flops == training_flops(config, [text] * 128, [1] * 128, 128, 128 * text)
    assert 1e13 < of_7b.scales.flops / 1000 < 2e13  # 6 x parameters x tokens is 1.06e16


def test_flops_are_those_of_the_data_where_it_is_here(settings_for):
    overrides = ("hardware.num_processes=2", "hardware.scales=[4]", "data.share_media=2")
    settings = settings_for("toy/instruct", *overrides)
    settings.data.sources *= 2
    run = dry_run(settings)
    assert run.scales.mean
    assert [scale.batch.processes for scale in run.scales.each] == [2, 4]
    assert 0 < run.scales.flops < dry_run(settings_for("toy/instruct", *overrides[:2])).scales.flops
    assert {scale.steps for scale in run.scales.each} == {4}  # trainer.max_steps
    assert "rows of the mean length" in format_dry_run(run)


def test_nothing_is_said_where_no_gpus_are_planned(settings_for):
    run = dry_run(settings_for("toy/instruct"))
    assert run.scales is None
    assert "GPUs" not in format_dry_run(run)


GROUPS = (Group("vision", 0, 100, 2), Group("language", 1000, 500, 2), Group("projector", 10, 0, 4))


@pytest.mark.parametrize(
    ("sharding", "passes", "expected"),
    [
        (Sharding(), 3, 2 * (2 * 1000 + 4 * 10)),
        (Zero(1), 3, 2 * 1010 + 2 * 1010),
        (Zero(2), 3, 3 * 2 * 1010 + 2 * 1010),
        (Zero(3), 3, 3 * (2 * (100 + 2 * 1510) + 2 * 1010)),
        (Fsdp(), 3, 3 * (2 * (100 + 2 * 1510) + 4 * 1010)),
        (Fsdp(reshards=False), 1, 2 * (100 + 1510) + 4 * 1010),
    ],
)
def test_bytes_that_go_round(sharding, passes, expected):
    assert sharding.exchanged(GROUPS, True, passes) == expected


def test_a_process_gets_what_others_hold(of_7b):
    plan = of_7b.memory.plan
    for scale in of_7b.scales.each:
        around = plan.sharding.exchanged(plan.groups, True, scale.batch.accumulation)
        n = scale.batch.processes
        assert scale.received == around * (n - 1) // n


def test_it_reads_as_a_table(of_7b):
    lines = list(scale_lines(of_7b.scales))
    assert max(map(len, lines[:5])) < 120
    head, *rows = (re.split(r"\s{2,}", line.strip()) for line in lines[1:5])
    assert head == [
        "GPUs",
        "rows x passes",
        "GB a GPU",
        "a step",
        "in all",
        "GB received",
        "GB/s",
        "GB written",
        "questions",
    ]
    assert [row[:3] for row in rows] == [["8", "8 x 2", "27.0"], ["64", "2 x 1", "8.0"], ["512", "1 x 1 = 512", "5.3"]]
    assert [row[-1] for row in rows] == ["1,250", "157", "20"]
    assert "a checkpoint is 109.4 GB on any number of GPUs, 1m49s at hardware.disk_gb_per_second=1" in "".join(lines)
    advice = "use 128 at most, or set global_batch_size=512 and find the learning rate anew"
    assert lines[-1] == f"  512 GPUs cannot divide 128 rows: {advice}"


def test_what_does_not_fit_there_says_what_would():
    run = dry_run(compose(["experiment=llama3_70b/voco_1", "hardware.scales=[8]"]))
    fewer, planned = run.scales.each
    assert (fewer.memory.fits, planned.memory.fits) == (False, True)
    (line,) = (line for line in scale_lines(run.scales) if line.startswith("  8 GPUs: "))
    assert "of 80 GB: does not fit; " in line
    assert "offload_optimizer" in line


def test_under_torchrun_its_processes_are_those_planned(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "16")
    run = dry_run(composed("trainer.per_device_train_batch_size=4"))
    assert [scale.batch.processes for scale in run.scales.each] == [8, 16, 64, 512]
    assert run.scales.each[1].memory.estimate == run.memory.estimate


@pytest.mark.parametrize("name", ["scales=[0]", "gpu_tflops=0", "utilization=-1", "disk_gb_per_second=0"])
def test_numbers_below_nothing_are_refused(name, capsys):
    from voco_llama import cli

    assert cli.main(["train", "experiment=voco_1", "dry_run=true", f"hardware.{name}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: hardware.{name.partition('=')[0]}")
