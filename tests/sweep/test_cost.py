"""What a sweep's trainings would take: counted as a training's own dry run counts, summed over rows and seeds."""

import logging
from dataclasses import replace

import pytest

from tests.sweep.conftest import FakeCommands
from voco_llama.cli import COMMANDS
from voco_llama.composition import compose
from voco_llama.errors import SettingsError
from voco_llama.preflight.dry_run import dry_run
from voco_llama.settings import HardwareSettings
from voco_llama.sweep import cost as cost_module
from voco_llama.sweep.cost import Cost, cost_lines, costs_of
from voco_llama.sweep.plan import expand
from voco_llama.sweep.records import Records
from voco_llama.sweep.run import sweep

GB = 10**9
GPU = HardwareSettings(num_processes=2, gpu_hour_price=1.5)
COSTS = [Cost("align", 3, 1.5, 7 * GB, "", GPU), Cost("voco_1", 3, 100.0, 9 * GB, "9.0 GB of 8 GB: does not", GPU)]


def test_the_sum_is_that_of_the_rows():
    assert list(cost_lines(COSTS)) == [
        "GPU hours, at hardware.utilization=0.4 of hardware.gpu_tflops=312 a GPU:",
        "  training      GPUs    GB a GPU    each    seeds    all seeds",
        "  align            2         7.0     1.5        3          4.5",
        "  voco_1           2        9.0!   100.0        3        300.0",
        "  together: 304.5 GPU hours, 456.75 at hardware.gpu_hour_price=1.5; evaluations are not counted",
        "  voco_1: 9.0 GB of 8 GB: does not",
    ]
    assert list(cost_lines([])) == []


def test_what_is_not_known_is_said():
    first, other = (replace(cost, problem="") for cost in COSTS)
    unknown = [first, replace(other, gpu_hours=None)]
    assert (
        "  together: 4.5 GPU hours, 6.75 at hardware.gpu_hour_price=1.5, without 1 of unknown length"
        in (list(cost_lines(unknown))[-1])
    )
    assert list(cost_lines(unknown))[-2].split() == ["voco_1", "2", "9.0", "?", "3", "?"]
    dearer = replace(other, hardware=replace(GPU, gpu_hour_price=2.0, gpu_tflops=71.0))
    head, *_, last = cost_lines([first, dearer])
    assert last.startswith("  together: 304.5 GPU hours, 606.75 at their prices; ")
    assert head.endswith("hardware.gpu_tflops=312 a GPU; hardware.utilization=0.4 of hardware.gpu_tflops=71 a GPU:")


@pytest.fixture
def records():
    return Records(FakeCommands().runners)


@pytest.fixture
def plans():
    def make(*more):
        return expand(COMMANDS["sweep"].compose([*more, "seeds=[0,1]"]))

    return make


def test_a_row_costs_what_its_own_dry_run_says_and_is_counted_once_for_all_seeds(plans, records, monkeypatch):
    trainings = [plan.jobs[0].train for plan in plans("plan=small", "only=[voco_1]")]
    runs = []
    monkeypatch.setattr(cost_module, "dry_run", lambda settings: runs.append(dry_run(settings)) or runs[-1])
    (cost,) = costs_of(trainings, records)
    (run,) = runs
    named = compose(["experiment=small/voco_1"])
    assert (run.settings.model.language, run.settings.trainer) == (named.model.language, named.trainer)
    assert (cost.name, cost.seeds, cost.gpu_hours) == ("voco_1", 2, run.scales.planned.gpu_hours)
    assert (cost.peak, cost.problem) == (run.memory.estimate.peak, "")


def test_what_trains_on_no_gpu_is_not_counted(plans, records):
    trainings = [command for plan in plans("plan=toy", "only=[voco_1]") for command in (*plan.base, plan.jobs[0].train)]
    assert costs_of(trainings, records) == []


def test_the_dry_run_says_it_before_it_refuses_what_is_not_there(monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    counted = []
    monkeypatch.setattr(cost_module, "_cost", lambda settings, same: counted.append(same[0]) or COSTS[0])
    settings = COMMANDS["sweep"].compose(["plan=small", "only=[voco_1]", "dry_run=true"])
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(SettingsError, match=r"blip_laion_cc_sbu_558k.json does not exist"),
    ):
        sweep(settings, [], FakeCommands().runners)
    assert "together: 9.0 GPU hours" in caplog.text
    assert "seed_0/voco_1: to do\n    voco-llama train experiment=small/voco_1 " in caplog.text
    assert [command.overrides[0] for command in counted] == ["experiment=small/align", "experiment=small/voco_1"]
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_counted_says_why_and_keeps_no_other_from_it(plans, records):
    more = 'overrides=["model.checkpoint=null","model.language.pretrained=runs/seed_0/converted"]'
    trainings = [plan.jobs[0].train for plan in plans("plan=small", "only=[voco_1]", more)]
    (cost,) = costs_of(trainings, records)
    assert (cost.gpu_hours, cost.peak) == (None, None)
    lines = list(cost_lines([COSTS[0], cost]))
    assert lines[3].split() == ["voco_1", "1", "?", "?", "2", "?"]
    assert lines[-2].startswith("  together: ")
    assert ", without 1 of unknown length" in lines[-2]
    assert lines[-1].startswith(
        "  voco_1: not counted: model.language.pretrained: runs/seed_0/converted does not exist"
    )
