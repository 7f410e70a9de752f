"""A training on other numbers of GPUs: how its rows are divided, what is sent and written, and what is said of it."""

import re
from dataclasses import replace

import pytest

from voco_llama.composition import compose
from voco_llama.model.flops import training_flops
from voco_llama.preflight.dry_run import dry_run, format_dry_run
from voco_llama.preflight.epoch import count_epoch
from voco_llama.preflight.scale import cost_text, divided, scale_lines, step_flops
from voco_llama.preflight.shapes import meta_model
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


@pytest.mark.parametrize(("characters", "text"), [("null", 2048 - 577), ("770", 770 / 4), ("1000000", 2048 - 577)])
def test_flops_are_those_of_rows_of_the_assumed_length_or_of_full_length(of_7b, characters, text):
    settings = composed(f"data.sources.0.assumed_characters={characters}")
    length = text + 577
    epoch = count_epoch(settings, 577)
    assert epoch.tokens == (None if characters == "null" else round(665298 * length))
    config = meta_model(composed()).model.config
    flops = step_flops(settings, config, epoch, 128)
    assert flops == pytest.approx(training_flops(config, [text] * 128, [1] * 128, 128, 128 * text), rel=1e-6)
    assert (flops == of_7b.scales.flops) == (characters == "770")  # what data=mix665k says
    assert 0.8 < flops / (6 * 6.74e9 * 128 * length) < 1.0  # 6 x parameters x tokens; the last layer is left out


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


def test_no_other_numbers_of_gpus():
    scales = dry_run(composed("hardware.scales=[]")).scales
    assert scales.each == (scales.planned,)


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
    assert [row[-2] for row in rows] == ["11.9", "1.5", "0.2"]  # (109.4 - 14.1) / GPUs
    assert [row[-1] for row in rows] == ["1,250", "157", "20"]
    assert "a checkpoint is 109.4 GB on any number of GPUs, 1m49s at hardware.disk_gb_per_second=1" in "".join(lines)
    advice = "use 128 at most, or set global_batch_size=512 and find the learning rate anew"
    assert lines[-1] == f"  512 GPUs cannot divide 128 rows: {advice}"


def test_what_it_costs(of_7b):
    """Arithmetic on what stands beside it: FLOPs of all steps, at a part of what a GPU can do."""
    scales = of_7b.scales
    hours = scales.flops * of_7b.length.steps / (312e12 * 0.4) / 3600
    assert [scale.gpu_hours for scale in scales.each[:2]] == pytest.approx([hours, hours])
    assert scales.planned is scales.each[0]
    assert 85 < hours < 95
    time, cost = list(scale_lines(scales))[5:7]
    assert "at hardware.utilization=0.4 of hardware.gpu_tflops=312 a GPU; data" in time
    assert cost == f"  cost: {hours:.1f} GPU hours (their price: hardware.gpu_hour_price), at that utilization"
    assert cost_text(1234.56, 2.5) == "1,234.6 GPU hours, 3,086.40 at hardware.gpu_hour_price=2.5"
    priced = replace(scales, hardware=replace(scales.hardware, gpu_hour_price=2.0))
    assert f"{2 * hours:,.2f} at hardware.gpu_hour_price=2, at that" in list(scale_lines(priced))[6]


def test_what_it_costs_is_not_known_without_its_length():
    scales = dry_run(compose(["experiment=video_7b", "hardware.scales=[8]"])).scales
    assert scales.planned.gpu_hours is None
    assert not any("cost:" in line for line in scale_lines(scales))


LLAVA_HOURS = {
    ("align_lcs_7b", "model=llava_7b"): (3.5, 0.29),
    ("instruct_7b", "trainer.num_train_epochs=1"): (10, 0.225),
    ("vicuna_13b/align", "data=lcs_558k"): (5.5, 0.36),
    ("vicuna_13b/instruct", "trainer.num_train_epochs=1"): (20, 0.22),
}
"""What LLaVA-1.5's README says that it took on eight A100, and the utilization at which this arithmetic gives that."""


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "known"), LLAVA_HOURS.items())
def test_it_is_as_far_off_llavas_hours_as_the_documentation_says(overrides, known):
    hours, utilization = known
    experiment, more = overrides
    settings = compose([f"experiment={experiment}", more, f"hardware.utilization={utilization}", "hardware.scales=[8]"])
    assert dry_run(settings).scales.planned.gpu_hours / 8 == pytest.approx(hours, rel=0.03)


def test_rows_that_share_an_image_stay_together_where_the_batch_ends():
    lines = list(scale_lines(dry_run(composed("data.share_media=4", "hardware.scales=[64]")).scales))
    assert lines[-1].startswith("  64 GPUs cannot divide 128 rows: use 32 at most, or set global_batch_size=256 and")


@pytest.mark.parametrize(("overrides", "written"), [(["trainer=zero2"], "10.1"), (["trainer=gpu_bf16"], "41.2")])
def test_whole_weights_and_what_is_not_divided_are_written_by_the_first(overrides, written):
    lines = list(scale_lines(dry_run(composed(*overrides)).scales))
    assert lines[2].split()[-2] == written
    assert ("every process its piece" in "".join(lines)) == (written == "10.1")


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


@pytest.mark.parametrize(
    "name", ["scales=[0]", "gpu_tflops=0", "utilization=-1", "disk_gb_per_second=0", "gpu_hour_price=0"]
)
def test_numbers_below_nothing_are_refused(name, capsys):
    from voco_llama import cli

    assert cli.main(["train", "experiment=voco_1", "dry_run=true", f"hardware.{name}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: hardware.{name.partition('=')[0]}")
