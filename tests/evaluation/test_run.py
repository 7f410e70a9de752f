"""A saved checkpoint through lmms-eval's tasks to result files that describe themselves, and to a report."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.evaluation.hub import write_hub, write_pope
from tests.evaluation.lmms import JUDGE_NAME, JUDGED, UNJUDGED, Judge, full_marks, serve
from tests.evaluation.runs import lines_of, save
from tests.tiny import tiny_model, tiny_processor
from voco_llama.errors import CheckpointError, DataError, SettingsError
from voco_llama.evaluation.results import read_result
from voco_llama.evaluation.run import evaluate, evaluate_rows
from voco_llama.evaluation.settings import rows_of
from voco_llama.report.report import ReportSettings, report

TASKS = [task for task in UNJUDGED if task != "pope"]


@pytest.fixture
def judge():
    """One of the test's own: what that of the tiny hub was asked is looked at elsewhere."""
    with serve(Judge(full_marks)) as judge:
        yield judge


def test_result_describes_itself(settings_for, tmp_path):
    file = evaluate(settings_for())
    assert file == tmp_path / "voco_2.benchmarks.json"
    result = read_result(file)
    assert list(result["benchmarks"]) == ["GQA", "MMBench", "MME", "POPE", "VQAv2"]
    assert [d["task"] for d in result["benchmarks"].values()][:2] == ["gqa", "mmbench_en_dev_static"]
    lines = lines_of(file)
    assert result["num_answers"] == len(lines) == sum(d["questions"] for d in result["benchmarks"].values())
    assert 0 < result["num_compressed"] < result["num_visuals"] == len(lines)
    assert (result["tokens_per_image"], result["kv_bytes_per_image"]) == (2, 2 * 2 * 2 * 8 * 2 * 4)
    assert {"git_commit", "versions", "hardware", "command", "seed", "wall_seconds", "date"} <= set(result)
    assert result["versions"]["lmms_eval"] == "0.7.3"
    assert len(result["config_fingerprint"]) == len(result["checkpoint_fingerprint"]) == 64
    assert set(result["task_files"]) == {d["task"] for d in result["benchmarks"].values()}
    assert (result["judge"], result["failures"], result["processes"]) == (None, [], 1)
    assert result["first_token_seconds"]["cache"] > 0
    assert {line["benchmark"] for line in lines} == set(result["benchmarks"])
    assert all(line["prompt"] for line in lines)
    assert result["mean_accuracy"] == pytest.approx(np.mean([d["accuracy"] for d in result["benchmarks"].values()]))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_answers_to_every_task_do_not_depend_on_batches_or_reuse(settings_for):
    """One evaluation of each kind over all tasks that need no judge, images, frames, clips and text-only rows."""
    files = {
        row: evaluate(settings_for(row=row, tasks=TASKS, **changes))
        for row, changes in {
            "batched": {"batch_size": 7},
            "one_by_one": {"batch_size": 1},
            "no_reuse": {"batch_size": 7, "reuse": False},
        }.items()
    }
    batched, one_by_one, no_reuse = (lines_of(file) for file in files.values())
    assert {line["benchmark"] for line in batched} == set(TASKS)
    assert batched == one_by_one == no_reuse
    assert len({line["answer"] for line in batched}) > 1
    compressed = {row: read_result(file)["num_compressed"] for row, file in files.items()}
    assert compressed["batched"] == compressed["one_by_one"] < compressed["no_reuse"]
    assert set(read_result(files["batched"])["submissions"]) == {"vqav2_test", "vqav2_testdev"}
    assert list(files["batched"].with_name("batched.files").rglob("vqav2_testdev*.json"))


def test_a_judge_is_asked_and_named(settings_for, judge, monkeypatch):
    judged = [task for task in JUDGED if task.startswith("ms")]
    for name, value in {"OPENAI_API_URL": "", "OPENAI_API_KEY": "", "MODEL_VERSION": "", "API_TYPE": "openai"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="OPENAI_API_URL and OPENAI_API_KEY and MODEL_VERSION not set"):
        evaluate(settings_for(tasks=judged))
    monkeypatch.setenv("OPENAI_API_URL", judge.address)
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with pytest.raises(SettingsError, match="MODEL_VERSION"):
        evaluate(settings_for(tasks=judged))
    monkeypatch.setenv("MODEL_VERSION", JUDGE_NAME)
    result = read_result(evaluate(settings_for(tasks=judged)))
    assert result["judge"] == JUDGE_NAME
    assert len(judge.asked) == sum(d["questions"] for d in result["benchmarks"].values())
    assert {d["full"] for d in result["benchmarks"].values()} == {100.0}


@pytest.mark.slow
def test_answers_to_judged_tasks_do_not_depend_on_batches_either(settings_for, judge, monkeypatch):
    """Most are on clips; nothing is scored by chance, or the second evaluation would differ."""
    for name, value in (("URL", judge.address), ("KEY", "key")):
        monkeypatch.setenv(f"OPENAI_API_{name}", value)
    monkeypatch.setenv("MODEL_VERSION", JUDGE_NAME)
    batched, one_by_one = (
        evaluate(settings_for(row=row, tasks=JUDGED, batch_size=size)) for row, size in (("all", 7), ("one", 1))
    )
    assert {line["benchmark"] for line in lines_of(batched)} == set(JUDGED)
    assert lines_of(batched) == lines_of(one_by_one)
    assert read_result(batched)["benchmarks"] == read_result(one_by_one)["benchmarks"]
    assert read_result(batched)["judge"] == JUDGE_NAME


def test_an_external_compressor_is_evaluated_and_described(settings_for, tmp_path):
    processor = replace(tiny_processor(num_voco=2), num_vision=0)
    model = {"compressor": "q_former", "q_former": {"layers": 1, "width": 8, "heads": 2}}
    folder = save(tmp_path / "model", processor, **model)
    result = read_result(evaluate(settings_for(checkpoint=folder, tasks=["pope"])))
    described = result["model"]
    assert (described["compressor"], described["trained_condition"], described["trained_num_voco"]) == (
        "q_former",
        "voco",
        2,
    )
    size = sum(parameter.numel() for parameter in tiny_model(processor, **model).compressor.parameters())
    assert described["million_parameters"]["compressor"] == size / 1e6
    assert result["tokens_per_image"] == 2


def test_a_suites_rows_are_evaluated_and_reported(settings_for, checkpoint, tmp_path):
    for run in ("instruct_long", "voco_1", "voco_4", "average_pool_1"):
        (tmp_path / "toy" / run).mkdir(parents=True)
        (tmp_path / "toy" / run / "final").symlink_to(checkpoint)
    all_rows = settings_for(row=None, checkpoint=None, condition=None, tasks=["gqa", "pope"])
    assert [(s.row, s.condition) for s in rows_of(all_rows)] == [
        ("upper", "full"), ("voco_4", "voco"), ("voco_1", "voco"), ("average_pool_1", "voco"), ("lower", "voco"),
        ("blind", "blind"),
    ]  # fmt: skip
    files = evaluate_rows(replace(all_rows, output=tmp_path / "results"))
    read = {read_result(file)["row"]: read_result(file) for file in files}
    assert [read[row]["tokens_per_image"] for row in ("upper", "voco_1", "blind")] == [4 + 2, 2, 0]
    assert len({result["checkpoint_fingerprint"] for result in read.values()}) == 1
    assert len({result["config_fingerprint"] for result in read.values()}) == 6
    text = report(ReportSettings(tmp_path / "results", tmp_path / "report"))
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert [name for name in names if name in ("upper", "lower", "blind")] == ["upper", "lower", "blind"] * 2
    (tmp_path / "toy" / "voco_4" / "final").unlink()
    with pytest.raises(CheckpointError, match=r"voco_4.final: holds no saved model"):
        evaluate_rows(all_rows)  # before the first row is evaluated


def test_a_checkpoint_of_ones_own_is_asked_as_it_was_trained(settings_for, tmp_path):
    """Unless the suite has a row of the name: the lower bound is `voco` on the weights of the upper bound."""
    full = save(tmp_path / "full", tiny_processor(num_voco=2, condition="full"))
    for row, condition in (("mine", "full"), ("lower", "voco"), ("blind", "blind"), ("upper", "full")):
        settings = settings_for(row=row, checkpoint=full, condition=None, tasks=["pope"], limit=2)
        result = read_result(evaluate(settings))
        assert (result["condition"], result["settings"]["condition"]) == (condition, condition)
    settings = settings_for(row="lower", checkpoint=full, condition="full", tasks=["pope"])
    assert [s.condition for s in rows_of(settings)] == ["full"]


def test_checkpoint_fingerprint_follows_the_weights(settings_for, tmp_path):
    other = save(tmp_path / "other", tiny_processor(num_voco=2), seed=1)
    one, two = (
        read_result(evaluate(settings_for(tasks=["pope"], row=row, **changes)))
        for row, changes in (("one", {}), ("two", {"checkpoint": other}))
    )
    assert one["checkpoint_fingerprint"] != two["checkpoint_fingerprint"]
    assert one["benchmarks"]["pope"]["data_fingerprint"] == two["benchmarks"]["pope"]["data_fingerprint"]


def test_a_changed_hub_is_read_anew_in_the_same_process(settings_for, tmp_path):
    hub = tmp_path / "hub"
    write_pope(hub)
    first = evaluate(settings_for(tasks=["pope"], hub=hub))
    before = read_result(first), lines_of(first)
    (table,) = (hub / "lmms-lab-encoder" / "POPE").rglob("test*.parquet")
    rows = pq.read_table(table)
    pq.write_table(rows.slice(1), table)
    with pytest.raises(SettingsError, match=r"another evaluation: data.pope"):
        evaluate(settings_for(tasks=["pope"], hub=hub))
    second = evaluate(settings_for(tasks=["pope"], hub=hub, overwrite=True))
    assert lines_of(second) != before[1]
    assert len(lines_of(second)) == rows.num_rows - 1
    assert (
        read_result(second)["benchmarks"]["pope"]["data_fingerprint"]
        != before[0]["benchmarks"]["pope"]["data_fingerprint"]
    )


def listed(folder):
    """All that is below a folder: times and sizes."""
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*")}


def test_nothing_is_written_but_the_output_and_one_data_cache(settings_for, tiny_hub, tmp_path, monkeypatch):
    """A task writes into its working directory, as those of SEED's variants do: that is the row's own, not the hub."""
    from lmms_eval.api.task import ConfigurableTask

    construct = ConfigurableTask.construct_requests

    def construct_and_write(self, *args, **kwargs):
        Path("seed_submission.json").write_text("[]")
        return construct(self, *args, **kwargs)

    monkeypatch.setattr(ConfigurableTask, "construct_requests", construct_and_write)
    cache, output = tmp_path / "cache", tmp_path / "out"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = listed(tiny_hub.hub), listed(tiny_hub.home)
    kept = set()
    for row in ("one", "two"):
        evaluate(settings_for(row=row, tasks=["seedbench", "msvd_qa"], datasets_cache=cache, output=output))
        assert (listed(tiny_hub.hub), listed(tiny_hub.home)) == before
        kept.add(frozenset(cache.rglob("*.arrow")))
    assert len(kept) == len(list(cache.iterdir())) == 1
    endings = ("benchmarks.answers.jsonl", "benchmarks.json", "files")
    made = [f"{row}.{ending}" for row in ("one", "two") for ending in endings]
    assert sorted(path.name for path in output.iterdir()) == made
    assert [path.name for path in (output / "one.files").iterdir()] == ["seed_submission.json"]
    assert not list((tmp_path / "here").iterdir())


def test_a_result_of_another_checkpoint_or_hub_stays_until_asked(settings_for, tiny_hub, tmp_path):
    file = evaluate(settings_for(tasks=["pope"]))
    before = file.read_bytes(), lines_of(file)
    other = save(tmp_path / "other", tiny_processor(num_voco=2, num_frames=3), seed=1)
    with pytest.raises(SettingsError, match=r"another evaluation: checkpoint .*overwrite=true"):
        evaluate(settings_for(tasks=["pope"], checkpoint=other))
    shutil.copytree(tiny_hub.hub, tmp_path / "copy")
    card = next((tmp_path / "copy").rglob("POPE/README.md"))
    text = card.read_text()
    card.write_text(f"{text}\nAnother version.\n")
    with pytest.raises(SettingsError, match=r"another evaluation: data.pope \(.*overwrite=true"):
        evaluate(settings_for(tasks=["pope"], hub=tmp_path / "copy"))
    assert (file.read_bytes(), lines_of(file)) == before
    card.write_text(text)
    evaluate(settings_for(tasks=["pope"], hub=tmp_path / "copy", num_voco=2, dtype="float32"))
    assert lines_of(file) == before[1]
    evaluate(settings_for(tasks=["pope"], checkpoint=other, overwrite=True))
    assert lines_of(file) != before[1]


def test_limit_takes_the_first_documents(settings_for):
    file = evaluate(settings_for(tasks=["pope", "gqa"], limit=1))
    assert [line["document"] for line in lines_of(file)] == [0, 0]
    assert read_result(file)["limit"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition": "lower"}, "condition is 'lower': choose one of"),
        ({"tasks": ["gqa", "seed"]}, "task 'seed' is not known here"),
        ({"tasks": ["pope_full", "pope_adv"]}, "pope_adv is named twice"),
        ({"suite": "tox"}, "there is no suite 'tox'; did you mean 'toy'"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"limit": 5, "tasks": ["gqa", "mme"]}, "limit is 5, and MME is scored by pairs"),
        ({"num_voco": 0}, "num_voco must be at least 1"),
        ({"row": "../x"}, "names a file"),
    ],
)
def test_bad_settings_fail_at_once(settings_for, changes, message):
    with pytest.raises(SettingsError, match=message):
        settings_for(**changes)


def test_rows_without_what_they_need(settings_for, tmp_path):
    with pytest.raises(SettingsError, match="is of no row"):
        evaluate_rows(settings_for(row=None))
    with pytest.raises(SettingsError, match="row x has no checkpoint in suite toy .its rows are upper"):
        evaluate_rows(settings_for(row="x", checkpoint=None))
    with pytest.raises(CheckpointError, match="holds no saved model"):
        evaluate(settings_for(checkpoint=tmp_path, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_is_not_there(settings_for, tmp_path):
    write_hub(tmp_path / "hub", tmp_path / "home")
    card = tmp_path / "hub" / "lmms-lab-encoder" / "MME" / "README.md"
    card.unlink()
    with pytest.raises(DataError, match=r"MME: has no data set card README.md, which task mme reads"):
        evaluate(settings_for(hub=tmp_path / "hub"))
