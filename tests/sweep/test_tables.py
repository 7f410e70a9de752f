"""The shipped plans: every command composes and passes the checks, and the rows are those of the tables."""

import functools
import json
from pathlib import Path

import pytest

from voco_llama.cli import COMMANDS
from voco_llama.composition import difference
from voco_llama.config_files import CONFIG_DIR
from voco_llama.model.quality import numbers_up_to
from voco_llama.settings import TrainSettings
from voco_llama.sweep.plan import expand
from voco_llama.sweep.records import Records, record_file
from voco_llama.training.checks import check_settings

TABLES = sorted(file.stem for file in (CONFIG_DIR / "plan").glob("*.yaml"))
MANY_ROWS = (
    "toy",
    "toy_gpu",
    "toy_adaptive",
    "toy_tokens",
    "toy_tokens_selection",
    "real_gpu",
    "real",
    "small",
    "table_2",
)


@functools.cache
def plan_of(table):
    """One seed, the same of every table, so that what tables share is composed once."""
    return expand(COMMANDS["sweep"].compose([f"plan={table}", "seeds=[3]", "base_seed=null"]))[0]


@pytest.fixture
def records(fake):
    """Of the real commands, each composed once for all tests."""
    return Records(fake.runners)


def results_of(table):
    """Results of a seed, by row that trains."""
    return {job.row: list(job.evaluations) for job in plan_of(table).jobs}


@pytest.mark.parametrize(
    "table",
    [pytest.param(table, marks=pytest.mark.slow if table in MANY_ROWS else ()) for table in TABLES],
)
def test_every_command_composes(table, records):
    plan = plan_of(table)
    folders, seed = {}, plan.seed
    for command in (*plan.base, *(job.train for job in plan.jobs)):
        settings = records.compose(command)
        if command.name == "train":
            assert settings.seed == seed
            check_settings(settings, paths=False)
            assert Path(settings.output_dir).is_relative_to(plan.runs)
            assert folders.setdefault(settings.output_dir, command) is command
    ways = set()
    for job in plan.jobs:
        assert str(job.run_folder) in folders
        for result, command in job.evaluations.items():
            row, checkpoint, *way = command.overrides
            run = f"${{paths.runs}}/{job.run_folder.relative_to(plan.runs)}"
            assert (row, checkpoint) == (f"row={result}", f"checkpoint={run}/final")
            if tuple(way) in ways:
                continue  # the same settings for another row
            ways.add(tuple(way))
            settings = records.compose(command)
            assert (settings.row, settings.output) == (result, plan.results)
            assert settings.checkpoint == job.run_folder / "final"
            is_synthetic = table.startswith(("toy", "real"))
            assert settings.hub == (plan.runs / "toyworld" if is_synthetic else Path("data")) / "benchmarks"
    assert not {settings for settings in folders if "${" in settings}


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("table_1", {"upper": ["upper", "lower", "blind"], "voco_1": 0, "average_pool_1": 0, "q_former_1": 0}),
        ("table_2", {"upper": ["upper", "lower"], **{f"voco_{2**n}": 0 for n in range(8)}}),
        ("13b", {"upper": ["upper", "lower", "blind"], "voco_1": 0, "voco_4": 0}),
        (
            "real",
            {"upper": ["upper", "lower", "blind"], "voco_1": 0, "voco_4": 0, "average_pool_1": 0},
        ),
        (
            "small",
            {
                "upper": ["upper", "lower", "blind"],
                **{f"voco_{n}": 0 for n in (1, 2, 4, 16)},
                "average_pool_1": 0,
                "q_former_1": 0,
                "elastic": [f"elastic_at_{n}" for n in (1, 2, 4, 16)],
            },
        ),
        (
            "table_4",
            {
                "upper": ["upper", "lower"],
                "voco_1": 0,
                "voco_32": ["voco_32", "voco_32_at_16", "voco_32_at_4", "voco_32_at_1"],
                "elastic": [f"elastic_at_{2**n}" for n in range(8)],
            },
        ),
    ],
)
def test_rows_of_the_paper(table, rows):
    assert results_of(table) == {row: results or [row] for row, results in rows.items()}


@pytest.mark.parametrize(("table", "results"), [("small", "runs/small/results"), ("13b", "runs/vicuna_13b/results")])
def test_rungs_keep_their_results_apart(table, results):
    assert str(plan_of(table).results) == f"{results}/seed_3"
    assert COMMANDS["sweep"].compose([f"plan={table}"]).seeds == ([0, 1, 2] if table == "small" else [0])


@pytest.mark.slow
def test_all_rows_of_the_small_plan_train_for_as_long_from_one_alignment(records):
    plan = plan_of("small")
    (align,) = plan.base
    composed = [records.compose(job.train) for job in plan.jobs]
    assert {s.model.checkpoint for s in composed} == {f"{records.compose(align).output_dir}/final"}
    keys = ("num_train_epochs", "learning_rate", "per_device_train_batch_size")
    assert len({tuple(s.trainer[key] for key in keys) for s in composed}) == 1


def test_another_language_model_takes_the_whole_plan(records):
    given = ["plan=small", "seeds=[3]", 'trainings=["model=qwen3_0.6b"]', "only=[voco_4]"]
    (plan,) = expand(COMMANDS["sweep"].compose(given))
    align, voco = (records.compose(command) for command in (*plan.base, plan.jobs[0].train))
    assert (align.model.language.pretrained, align.model.vision.name) == ("Qwen/Qwen3-0.6B", "ViT-L-14-336-quickgelu")
    assert voco.model.checkpoint == f"{align.output_dir}/final" == "runs/seed_3/small/Qwen/Qwen3-0.6B/align/final"


def test_rows_at_synthetic_scale():
    rows = results_of("toy")
    assert {row: results for row, results in rows.items() if results != [row]} == {
        "upper": ["upper", "lower", "blind"],
        "voco_16": ["voco_16", *(f"voco_16_at_{n}" for n in (1, 2, 4, 8))],
        **{
            row: [f"{row}_at_{n}" for n in (1, 2, 4, 8, 16)]
            for row in ("elastic", "elastic_kl", "elastic_bidirectional")
        },
        "no_mask_16": ["no_mask_16_visible", "no_mask_16_removed"],
    }
    assert {row for row, results in rows.items() if results == [row]} == {
        *(f"voco_{n}" for n in (1, 2, 4, 8)),
        *(f"{method}_{n}" for method in ("average_pool", "q_former") for n in (1, 4)),
        *(f"voco_{n}_{what}" for what in ("kl", "bidirectional") for n in (1, 4)),
        "voco_4_distinct",
    }


def test_the_adaptive_row_is_read_at_each_number_that_its_head_may_choose():
    results = results_of("toy_adaptive")
    assert list(results) == ["upper", "elastic"]
    numbers = {f"elastic_at_{n}" for n in numbers_up_to(16)}
    assert {name for name in results["elastic"] if "_at_" in name} == numbers
    assert len(set(results["elastic"]) - numbers) == 6
    trains = {table: {job.row: job.train for job in plan_of(table).jobs} for table in ("toy", "toy_adaptive")}
    assert trains["toy_adaptive"].items() <= trains["toy"].items()


@pytest.mark.slow
def test_all_rows_at_synthetic_scale_train_for_as_long_from_the_same_model(records):
    plan = plan_of("toy")
    composed = [records.compose(job.train) for job in plan.jobs]
    start = f"runs/seed_{plan.seed}/toy/instruct/final"
    assert {(s.trainer["max_steps"], s.model.checkpoint, s.seed) for s in composed} == {(2000, start, plan.seed)}
    rates = {(s.trainer["learning_rate"], s.compression.compressor) for s in composed}
    assert rates == {(1.5e-3, "language_model"), (3e-3, "average_pool"), (1.5e-3, "q_former")}
    teachers = {s.loss.teacher_checkpoint for s in composed if s.loss.kl}
    assert teachers == {start}


def test_num_voco_of_a_result_is_what_its_name_says():
    for table in ("toy", "table_4"):
        for job in plan_of(table).jobs:
            for result, command in job.evaluations.items():
                _, at, number = result.partition("_at_")
                given = [override for override in command.overrides if override.startswith("num_voco=")]
                assert given == ([f"num_voco={number}"] if at else [])


@pytest.mark.slow
def test_trainings_that_were_recorded_before_are_those_of_now(records):
    """The committed ones are older than many settings."""
    results = CONFIG_DIR.parent / "docs/results/comparison"
    (plan,) = expand(COMMANDS["sweep"].compose(["plan=toy", "seeds=[3]", f"results={results}"]))
    records.check_base(plan)
    recorded = [job for job in plan.jobs if record_file(job).is_file()]
    assert len(recorded) > 15
    for job in recorded:
        there = json.loads(record_file(job).read_text())["train"]
        assert not difference(there, records.describe(job.train), TrainSettings), job.row
