"""What is run, what is skipped, and what is refused: with commands that only leave their files."""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.sweep.conftest import Runner
from voco_llama.errors import SettingsError
from voco_llama.sweep import run as run_module
from voco_llama.sweep.run import RowsFailed, sweep

ALL = [
    "toyworld",
    "train clip",
    "train upper",
    "evaluate upper",
    "evaluate lower",
    "train voco_4",
    "evaluate voco_4",
    "evaluate voco_4_at_2",
]


def test_everything_once(run):
    assert run() == ALL
    assert run() == []


@pytest.mark.slow
def test_each_seed_has_its_own(run, tmp_path):
    assert run(seeds=[0, 3]) == [*ALL, *ALL]
    assert {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("voco_4.benchmarks.json")} == {
        "results/seed_0/voco_4.benchmarks.json",
        "results/seed_3/voco_4.benchmarks.json",
    }
    assert json.loads((tmp_path / "results/seed_3/voco_4.benchmarks.json").read_text())["seed"] == 3
    assert run(seeds=[0, 3]) == []
    assert run(seeds=[0, 1, 3]) == ALL


BASE, ROWS = ALL[:2], ALL[2:]


def test_seeds_that_share_the_base_stages_run_them_once(run, tmp_path):
    assert run(seeds=[0, 3], base_seed=0) == [*BASE, *ROWS, *ROWS]
    assert run(seeds=[0, 3], base_seed=0) == []
    assert not (tmp_path / "runs/seed_3/toyworld").exists()
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "results/seed_3/voco_4.benchmarks.json").unlink()
    (tmp_path / "results/seed_3/voco_4.sweep.json").unlink()
    assert run(seeds=[0, 3], base_seed=0) == [*BASE, "train voco_4", "evaluate voco_4", "evaluate voco_4_at_2"]


def test_shared_base_stages_are_made_for_the_seed_that_needs_most_of_them(run, tmp_path):
    """Seed 0 wants only a world to evaluate on, seed 3 all that it trains from."""
    run(base_seed=0)
    (tmp_path / "results/seed_0/lower.benchmarks.json").unlink()
    for made in ("toyworld", "toy/clip"):
        shutil.rmtree(tmp_path / "runs/seed_0" / made)
    assert run(seeds=[0, 3], base_seed=0) == [*BASE, "evaluate lower", *ROWS]


def test_results_on_another_seeds_base_stages_are_refused(run):
    run(seeds=[0, 3], base_seed=0)
    with pytest.raises(
        SettingsError, match="seed_3 stand on the base stages of seed 0, not of 3: set base_seed=0, choose"
    ):
        run(seeds=[3])


@pytest.mark.slow
def test_results_of_before_base_seed_stand_on_their_own_seeds_stages(run, tmp_path):
    run(seeds=[3])
    file = tmp_path / "results/seed_3/base.sweep.json"
    record = json.loads(file.read_text())
    del record["seed"]
    file.write_text(json.dumps(record))
    assert run(seeds=[3]) == []
    with pytest.raises(SettingsError, match="seed_3 stand on the base stages of seed 3, not of 0: set base_seed=3"):
        run(seeds=[3], base_seed=0)


def test_results_are_enough_wherever_they_lie(run, tmp_path):
    """Committed results, no runs, other folders."""
    run()
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "results").rename(tmp_path / "committed")
    assert run(results=tmp_path / "committed", runs=tmp_path / "elsewhere") == []
    assert not list((tmp_path / "elsewhere").rglob("settings.yaml"))


def test_a_record_tells_how_the_training_went_and_keeps_it(run, tmp_path):
    run()
    file = tmp_path / "results/seed_0/voco_4.sweep.json"
    training = json.loads(file.read_text())["training"]
    (start,) = training["starts"]
    assert {"git_commit", "hardware", "versions", "command", "started"} <= set(start)
    (tmp_path / "results/seed_0/voco_4.benchmarks.json").unlink()
    run()
    assert json.loads(file.read_text())["training"] == training


def test_a_missing_result_is_evaluated_again_and_nothing_else(run, tmp_path):
    run()
    (tmp_path / "results/seed_0/lower.benchmarks.json").unlink()
    assert run() == ["evaluate lower"]
    assert run() == []


def test_a_missing_result_of_a_missing_run_is_all_that_it_stands_on(run, tmp_path):
    run()
    (tmp_path / "results/seed_0/lower.benchmarks.json").unlink()
    shutil.rmtree(tmp_path / "runs")
    assert run() == ["toyworld", "train clip", "train upper", "evaluate lower"]


def test_a_new_row_is_added(run, settings):
    run(rows={"upper": settings.rows["upper"]})
    assert run() == ["train voco_4", "evaluate voco_4", "evaluate voco_4_at_2"]


def test_an_evaluation_alone_needs_its_data_but_no_training(run, tmp_path):
    run()
    (tmp_path / "results/seed_0/lower.benchmarks.json").unlink()
    shutil.rmtree(tmp_path / "runs/seed_0/toyworld")
    shutil.rmtree(tmp_path / "runs/seed_0/toy/clip")
    assert run() == ["toyworld", "evaluate lower"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"overrides": ["trainer.max_steps=5"]},
            r"row seed_0/upper was trained with other settings: trainer.max_steps \(1900 there, 5 now\): remove"
            r" results/seed_0/upper.sweep.json and results/seed_0/lower.benchmarks.json and"
            r" results/seed_0/upper.benchmarks.json and runs/seed_0/toy/upper to make it again",
        ),
        (
            {"evaluate": ["limit=6"]},
            r"result upper of row seed_0/upper was made with other settings: limit \(None there, 6 now\): remove"
            r" \S+/upper.benchmarks.json",
        ),
        (
            {"base": [["toyworld", "grid=3"], ["train", "experiment=toy/clip"]]},
            r"results in results/seed_0 stand on 'toyworld runs/toyworld' with other settings: grid \(2 there, 3 now\)",
        ),
        (
            {"base": [["toyworld"], ["train", "experiment=toy/clip", "trainer.max_steps=7"]]},
            r"stand on 'train runs/toy/clip' with other settings: trainer.max_steps \(500 there, 7 now\)",
        ),
    ],
)
def test_changed_settings_are_refused(run, fake, changes, message):
    run()
    with pytest.raises(SettingsError, match=message) as refused:
        run(**changes)
    assert fake.take() == []
    assert "\n" not in str(refused.value)


def test_a_world_of_other_settings_is_refused_where_no_result_tells(run, fake, tmp_path):
    """New folders for results alone, and the runs of before."""
    run()
    grid_3 = {"base": [["toyworld", "grid=3"], ["train", "experiment=toy/clip"]], "results": tmp_path / "others"}
    with pytest.raises(
        SettingsError, match=r"seed_0/toyworld holds a world of other settings: grid \(2 there, 3 now\): choose other"
    ):
        run(**grid_3)
    assert fake.take() == []
    shutil.rmtree(tmp_path / "runs/seed_0")
    assert run(**grid_3) == ALL


def test_new_results_of_rows_on_other_base_stages_are_refused(run, fake, tmp_path):
    """The rows are trained, by the settings of now, and on a stage that is not."""
    run()
    longer = {"base": [["toyworld"], ["train", "experiment=toy/clip", "trainer.max_steps=7"]]}
    with pytest.raises(SettingsError, match=r"toy/clip holds a run with other settings: trainer.max_steps \(500 there"):
        run(results=tmp_path / "others", **longer)
    assert fake.take() == []
    shutil.rmtree(tmp_path / "runs/seed_0/toy/clip")
    with pytest.raises(SettingsError, match=r"trained, and what they stand on is gone from runs/seed_0, .* run 'voco"):
        run(results=tmp_path / "others", **longer)


def test_results_without_the_record_of_what_they_stand_on_are_refused(run, tmp_path):
    run()
    (tmp_path / "results/seed_0/base.sweep.json").unlink()
    with pytest.raises(
        SettingsError, match=r"seed_0/base.sweep.json is missing, which says what the results beside it"
    ):
        run()


def test_what_the_refusal_says_to_remove_is_enough(run, tmp_path):
    run()
    for row in ("upper", "voco_4"):
        (tmp_path / f"results/seed_0/{row}.sweep.json").unlink()
        shutil.rmtree(tmp_path / f"runs/seed_0/toy/{row}")
    assert run(overrides=["trainer.max_steps=5"]) == ALL[2:]
    (tmp_path / "results/seed_0/upper.benchmarks.json").unlink()
    changed = {"overrides": ["trainer.max_steps=5"], "evaluate": ["limit=6"]}
    assert run(only=["upper"], skip=["lower"], **changed) == ["evaluate upper"]


def test_where_it_is_logged_and_on_what_it_is_evaluated_make_no_difference(run):
    run()
    assert run(overrides=["trainer.logging_steps=7"], evaluate=["device=cpu"]) == []


def test_a_result_from_elsewhere_is_refused(run, tmp_path):
    run()
    file = tmp_path / "results/seed_0/voco_4.benchmarks.json"
    file.write_text(file.read_text().replace("{", "{ "))
    with pytest.raises(
        SettingsError,
        match="results/seed_0/voco_4.benchmarks.json is not what the sweep wrote for row seed_0/voco_4: remove",
    ):
        run()


def test_a_damaged_record_is_refused(run, tmp_path):
    run()
    file = tmp_path / "results/seed_0/voco_4.sweep.json"
    whole = json.loads(file.read_text())
    file.write_text("{")
    with pytest.raises(SettingsError, match=r"results/seed_0/voco_4.sweep.json: cannot be read \(Expecting"):
        run()
    file.write_text("{}")
    with pytest.raises(SettingsError, match="voco_4.sweep.json is no record"):
        run()
    file.write_text(json.dumps(whole | {"results": {"voco_4": 7}}))
    with pytest.raises(SettingsError, match="voco_4.sweep.json is no record"):
        run()


def test_a_record_with_settings_that_are_gone_says_so(run, tmp_path):
    """And not which of hundreds differ: records from before lmms-eval list `benchmarks.0` and so on."""
    run()
    file = tmp_path / "results/seed_0/voco_4.sweep.json"
    record = json.loads(file.read_text())
    record["results"]["voco_4"]["evaluate"] |= {f"benchmarks.{number}": "GQA" for number in range(9)}
    file.write_text(json.dumps(record))
    with pytest.raises(
        SettingsError,
        match=r"result voco_4 of row seed_0/voco_4 was made by an earlier version, with settings \(benchmarks\) that"
        r" are gone: remove results/seed_0/voco_4.benchmarks.json to make it again",
    ):
        run()


@dataclass
class Old:
    row: str
    output: Path
    num_voco: int | None
    seed: int


@dataclass
class New(Old):
    new: int = 3


def test_a_setting_that_is_new_and_at_its_default_changes_nothing(settings, fake):
    compose = fake.runners["evaluate"].compose

    def with_schema(schema, **values):
        def composed(overrides):
            known = compose(overrides)
            return schema(known.row, known.output, known.num_voco, known.seed, **values)

        return {**fake.runners, "evaluate": Runner(composed, fake.runners["evaluate"].run)}

    sweep(settings, [], with_schema(Old))
    assert fake.take() == ALL
    sweep(settings, [], with_schema(New))
    assert fake.take() == []
    with pytest.raises(SettingsError, match=r"with other settings: new \(3 there, 4 now\)"):
        sweep(settings, [], with_schema(New, new=4))


def test_a_failing_row_does_not_stop_the_others(run, fake):
    fake.failing_with("train upper")
    message = "1 of 3 jobs failed: seed_0/upper .train upper does not work: mend it.: the same command tries them again"
    with pytest.raises(RowsFailed, match=message):
        run()
    assert fake.take() == [call for call in ALL if call not in ("evaluate upper", "evaluate lower")]
    fake.failing_with("evaluate lower")
    with pytest.raises(RowsFailed, match="1 of 1 jobs failed"):
        run()
    assert fake.take() == ["train upper", "evaluate upper", "evaluate lower"]
    fake.failing_with()
    assert run() == ["evaluate lower"]


def test_a_bug_in_one_row_does_not_stop_the_others(run, fake, caplog):
    fake.failing["train upper"] = RuntimeError("out of memory")
    with pytest.raises(RowsFailed, match="seed_0/upper .RuntimeError: out of memory."):
        run()
    assert fake.take()[-1] == "evaluate voco_4_at_2"
    assert "Traceback" in caplog.text


def test_rows_of_a_seed_whose_base_failed_are_not_run(run, fake):
    fake.failing_with("train clip")
    with pytest.raises(RowsFailed, match="seed_0/upper .not run, as seed_0/base failed.; seed_0/voco_4 .not run"):
        run()
    assert fake.take() == ALL[:2]


def test_progress_is_told(run, caplog):
    caplog.set_level("INFO", "voco_llama")
    run()
    lines = [record.getMessage() for record in caplog.records if record.name == "voco_llama.sweep.scheduler"]
    assert lines[0] == "seed_0/base: starts (0 of 2 rows done)"
    assert lines[2] == "seed_0/upper: starts (0 of 2 rows done)"
    assert re.fullmatch(r"seed_0/upper: done in \ds; 1 of 2 rows, \ds so far, about \ds left", lines[3])
    assert re.fullmatch(r"seed_0/voco_4: done in \ds; 2 of 2 rows, \ds so far", lines[5])


def test_the_dry_run_says_all_and_does_nothing(settings, fake, tmp_path):
    text = sweep(replace(settings, dry_run=True), [], fake.runners)
    assert [line for line in text.splitlines() if line.startswith("seed")] == [
        "seed_0/base: to do",
        "seed_0/upper: to do",
        "seed_0/voco_4: to do",
    ]
    assert [line.split()[1] for line in text.splitlines() if line.startswith("    voco-llama")] == [
        call.split()[0] for call in ALL
    ]
    assert not list(tmp_path.iterdir())
    sweep(settings, [], fake.runners)
    (tmp_path / "results/seed_0/lower.benchmarks.json").unlink()
    lines = sweep(replace(settings, dry_run=True), [], fake.runners).splitlines()
    assert lines[:2] == ["seed_0/base: nothing to do", "seed_0/upper: trained, evaluations to do"]
    assert lines[2].startswith("    voco-llama evaluate row=lower ")
    assert lines[3:] == ["seed_0/voco_4: finished"]


@pytest.mark.parametrize("job", ["seed_0/upper", "seed_0/base"])
def test_one_job_alone(run, job):
    assert run(job=job) == (ALL[2:5] if job.endswith("upper") else ALL[:2])


def test_an_unknown_job_is_refused(run):
    with pytest.raises(SettingsError, match="job=seed_5/upper names no row of this sweep"):
        run(job="seed_5/upper")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": -1}, "processes is -1"),
        ({"launcher": "no-such-program --x"}, "launcher: 'no-such-program' is not found"),
        ({"launcher": "env", "processes": 2}, "a launcher gives every training all devices"),
        (
            {"base": [["evaluate-clips"]]},
            "a sweep cannot run 'evaluate-clips': choose from toyworld, convert-gguf, train",
        ),
        ({"overrides": ["trainer.max_steps=[", "x=1"]}, "cannot read the override"),
        ({"evaluate": ["lmit=3"]}, "voco-llama evaluate row=upper .* unknown setting 'lmit'; did you mean 'limit'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(run, fake, changes, message):
    with pytest.raises(SettingsError, match=message) as refused:
        run(**changes)
    assert fake.take() == []
    assert "\n" not in str(refused.value)


def test_the_launcher_stands_before_trainings_only(run, fake, monkeypatch):
    launched = []
    monkeypatch.setattr(run_module, "launch", launched.append)
    calls = run(launcher="env A=1")
    assert calls == [call for call in ALL if not call.startswith("train")]
    assert [line[1:6] for line in launched] == [
        ["A=1", "-m", "voco_llama.cli", "train", override]
        for override in ("experiment=toy/clip", "experiment=toy/instruct_long", "experiment=toy/voco_4")
    ]
