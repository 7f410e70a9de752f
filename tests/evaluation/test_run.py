"""A saved checkpoint through lmms-eval's tasks and clips to result files that describe themselves, and to a report."""

import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.evaluation.hub import change_pope_image, write_hub, write_pope
from tests.evaluation.lmms import JUDGE_NAME, JUDGED, UNJUDGED
from tests.tiny import tiny_model, tiny_processor
from voco_llama.errors import CheckpointError, DataError, SettingsError
from voco_llama.evaluation.answering import Answerer
from voco_llama.evaluation.clips import EvaluateClipsSettings, evaluate_clips, shuffled
from voco_llama.evaluation.evaluate_settings import EvaluateSettings, rows_of
from voco_llama.evaluation.report import ReportSettings, report
from voco_llama.evaluation.results import read_result
from voco_llama.evaluation.run import evaluate, evaluate_rows

TASKS = [task for task in UNJUDGED if task != "pope"]
NUM_NEW = 4


def save(folder, processor, **model):
    tiny_model(processor, **model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoint"), tiny_processor(num_voco=2, num_frames=3))


@pytest.fixture(autouse=True)
def judge(tiny_hub, monkeypatch):
    """Where the tiny hub's clips and judge are."""
    monkeypatch.setenv("HF_HOME", str(tiny_hub.home))


@pytest.fixture
def settings_for(checkpoint, tiny_hub, tmp_path, tmp_path_factory):
    def make(**changes):
        plain = {
            "checkpoint": checkpoint, "runs": tmp_path, "hub": tiny_hub.hub, "output": tmp_path, "row": "voco_2",
            "condition": "voco", "batch_size": 4, "max_new_tokens": NUM_NEW, "device": "cpu",
            "datasets_cache": tmp_path_factory.getbasetemp() / "evaluate_cache",
        }  # fmt: skip
        return EvaluateSettings(**plain | changes)

    return make


def lines_of(file):
    answers = file.with_name(read_result(file)["answers_file"]).read_text(encoding="utf-8")
    return [json.loads(line) for line in answers.splitlines()]


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


def test_a_judge_is_asked_and_named(settings_for, tiny_hub, monkeypatch):
    judged = [task for task in JUDGED if task.startswith("ms")]
    for name, value in {"OPENAI_API_URL": "", "OPENAI_API_KEY": "", "MODEL_VERSION": "", "API_TYPE": "openai"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="OPENAI_API_URL and OPENAI_API_KEY not set"):
        evaluate(settings_for(tasks=judged))
    monkeypatch.setenv("OPENAI_API_URL", tiny_hub.judge.address)
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with pytest.raises(SettingsError, match="MODEL_VERSION"):
        evaluate(settings_for(tasks=judged))
    monkeypatch.setenv("MODEL_VERSION", JUDGE_NAME)
    asked = len(tiny_hub.judge.asked)
    result = read_result(evaluate(settings_for(tasks=judged)))
    assert result["judge"] == JUDGE_NAME
    assert len(tiny_hub.judge.asked) - asked == sum(d["questions"] for d in result["benchmarks"].values())
    assert {d["full"] for d in result["benchmarks"].values()} == {100.0}


def test_answers_to_judged_tasks_do_not_depend_on_batches_either(settings_for, tiny_hub, monkeypatch):
    """Most are on clips; nothing is scored by chance, or the second evaluation would differ."""
    for name, value in (("URL", tiny_hub.judge.address), ("KEY", "key")):
        monkeypatch.setenv(f"OPENAI_API_{name}", value)
    monkeypatch.setenv("MODEL_VERSION", JUDGE_NAME)
    batched, one_by_one = (
        evaluate(settings_for(row=row, tasks=JUDGED, batch_size=size)) for row, size in (("all", 7), ("one", 1))
    )
    assert {line["benchmark"] for line in lines_of(batched)} == set(JUDGED)
    assert lines_of(batched) == lines_of(one_by_one)
    assert read_result(batched)["benchmarks"] == read_result(one_by_one)["benchmarks"]
    assert read_result(batched)["judge"] == JUDGE_NAME


def with_size(width, height):
    """A PNG file whose header says that it is so large."""

    def change(whole):
        header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
        return whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:]

    return change


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: b"GIF" + whole[3:], id="header"),
        pytest.param(lambda whole: whole[:50] + b"\xff" * 3 + whole[53:], id="content"),
        pytest.param(lambda whole: whole[:50], id="cut"),
        pytest.param(with_size(100_000, 100_000), id="huge"),
        pytest.param(lambda whole: b"", id="empty"),
    ],
)
def test_a_damaged_image_is_named(settings_for, tmp_path, damage):
    """Whatever is wrong with the file, and wherever it is noticed: when rows are read or when pixels are."""
    hub = tmp_path / "hub"
    write_pope(hub)
    change_pope_image(hub, 1, damage)
    with pytest.raises(DataError, match=r"^pope document 1: cannot be answered \(") as caught:
        evaluate(settings_for(tasks=["pope"], hub=hub))
    assert "\n" not in str(caught.value)
    result = read_result(evaluate(settings_for(tasks=["pope"], hub=hub, go_on=True)))
    assert [failure["id"] for failure in result["failures"]] == ["pope document 1"]


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
    second = evaluate(settings_for(tasks=["pope"], hub=hub))
    assert lines_of(second) != before[1]
    assert len(lines_of(second)) == rows.num_rows - 1
    assert (
        read_result(second)["benchmarks"]["pope"]["data_fingerprint"]
        != before[0]["benchmarks"]["pope"]["data_fingerprint"]
    )


def test_a_run_that_was_cut_off_goes_on(settings_for, tmp_path, monkeypatch):
    settings = settings_for(tasks=["gqa", "pope", "vqav2_val"], keep_answers=True, batch_size=2)
    monkeypatch.setattr("voco_llama.evaluation.answering.WINDOW_BATCHES", 1)
    whole = evaluate(replace(settings, row="whole"))
    window = Answerer._window
    windows = []

    def stop_at_the_third(self, asked):
        if len(windows) == 2:
            raise KeyboardInterrupt
        windows.append([question.id for question in asked])
        return window(self, asked)

    monkeypatch.setattr(Answerer, "_window", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings)
    assert not (tmp_path / "voco_2.benchmarks.json").exists()
    monkeypatch.setattr(Answerer, "_window", window)

    other = save(tmp_path / "other", tiny_processor(num_voco=2, num_frames=3), seed=1)
    changed = read_result(evaluate(replace(settings, checkpoint=other, keep_answers=None, tasks=["gqa"], row="other")))
    assert changed["num_answers"] == changed["benchmarks"]["gqa"]["questions"]
    resumed = evaluate(settings)
    given = sum(len(asked) for asked in windows)
    assert read_result(resumed)["num_answers"] == read_result(whole)["num_answers"] - given
    assert lines_of(resumed) == lines_of(whole)
    assert not (tmp_path / "voco_2.responses").exists()


def test_failing_questions_are_listed_and_the_report_says_so(settings_for, tmp_path, monkeypatch):
    look = Answerer._look

    def break_one(self, question):
        if question.id == "pope document 1":
            raise OSError("broken image")
        return look(self, question)

    monkeypatch.setattr(Answerer, "_look", break_one)
    with pytest.raises(DataError, match="pope document 1: cannot be answered .*broken image"):
        evaluate(settings_for(tasks=["pope"]))
    assert not (tmp_path / "voco_2.benchmarks.json").exists()
    results = tmp_path / "results"
    evaluate(settings_for(tasks=["pope"], go_on=True, output=results, row="upper", condition="full"))
    monkeypatch.setattr(Answerer, "_look", look)
    evaluate(settings_for(tasks=["pope"], output=results, row="lower"))
    result = read_result(results / "upper.benchmarks.json")
    assert [failure["id"] for failure in result["failures"]] == ["pope document 1"]
    with pytest.raises(DataError, match="left 1 questions unanswered"):
        report(ReportSettings(results, tmp_path / "report"))
    assert "INCOMPLETE: upper" in report(ReportSettings(results, tmp_path / "report", allow_limited=True))


def test_a_question_that_failed_before_the_cut_is_still_listed(settings_for, monkeypatch):
    """Its empty answer is not taken for one, neither where the run goes on nor by a run that allows no failure."""
    monkeypatch.setattr("voco_llama.evaluation.answering.WINDOW_BATCHES", 1)
    look, window = Answerer._look, Answerer._window
    settings = settings_for(tasks=["pope"], keep_answers=True, go_on=True, batch_size=1)

    def break_one(self, question):
        if question.id == "pope document 1":
            raise OSError("broken image")
        return look(self, question)

    def stop(self, asked):
        if asked[0].id == "pope document 3":
            raise KeyboardInterrupt
        return window(self, asked)

    monkeypatch.setattr(Answerer, "_look", break_one)
    monkeypatch.setattr(Answerer, "_window", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings)
    monkeypatch.setattr(Answerer, "_window", window)
    with pytest.raises(DataError, match="pope document 1: cannot be answered"):
        evaluate(replace(settings, go_on=False))
    result = read_result(evaluate(settings))
    assert [failure["id"] for failure in result["failures"]] == ["pope document 1"]
    assert result["num_answers"] == 9 - 2


def test_a_task_without_a_result_leaves_no_file(settings_for, tmp_path, monkeypatch):
    from voco_llama.evaluation import lmms_adapter

    run = lmms_adapter.run_tasks

    def lose_pope(*arguments):
        found = run(*arguments)
        del found["samples"]["pope"]
        return found

    monkeypatch.setattr(lmms_adapter, "run_tasks", lose_pope)
    with pytest.raises(DataError, match="task pope: lmms-eval gave no pope_f1_score"):
        evaluate(settings_for(tasks=["gqa", "pope"]))
    assert not (tmp_path / "voco_2.benchmarks.json").exists()


def test_limit_takes_the_first_documents(settings_for):
    file = evaluate(settings_for(tasks=["pope", "gqa"], limit=1))
    assert [line["document"] for line in lines_of(file)] == [0, 0]
    assert read_result(file)["limit"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition": "lower"}, "condition 'lower' is unknown"),
        ({"tasks": ["gqa", "seed"]}, "task 'seed' is not known here"),
        ({"tasks": ["pope_full", "pope_adv"]}, "pope_adv is named twice"),
        ({"suite": "tox"}, "there is no suite 'tox'; did you mean 'toy'"),
        ({"limit": 0}, "limit must be at least 1"),
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


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips of noise, three questions."""
    import av

    folder = tmp_path_factory.mktemp("clips")
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=4, options={"crf": "0"})
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv444p"
            for _ in range(6):
                pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
    asked = [("What first?", "red", "a"), ("What comes last of all?", "blue", "b"), ("And then?", "red", "a")]
    (folder / "test.json").write_text(json.dumps([{"q": q, "a": a, "video_id": v} for q, a, v in asked]))
    return folder


def test_clips_in_order_and_shuffled(checkpoint, clips, tmp_path):
    settings = EvaluateClipsSettings(
        checkpoint, clips / "test.json", clips, tmp_path, "video", batch_size=2, max_new_tokens=4, device="cpu"
    )
    result = read_result(evaluate_clips(settings))
    assert (result["questions"], result["clips"], result["num_frames"], result["num_compressed"]) == (3, 2, 3, 6)
    assert (result["tokens_per_clip"], result["kv_bytes_per_clip"]) == (6, 6 * 2 * 2 * 2 * 8 * 4)
    lines = [json.loads(line) for line in (tmp_path / result["answers_file"]).read_text().splitlines()]
    assert [line["clip"] for line in lines] == ["a.mp4", "b.mp4", "a.mp4"]


def test_marks_take_each_clips_frames_in_time_order_and_shuffled(checkpoint, clips, tmp_path, monkeypatch):
    from voco_llama.data.video import read_frames
    from voco_llama.evaluation.results import load_checkpoint

    read = []  # the caches of the batches: questions 0 and 2 on clip a, then 1 on clip b, each in order and shuffled

    def spy(model, processor, laid_out, cache, max_new_tokens):
        read.append(cache)
        return [str(len(read))] * len(laid_out["input_ids"])

    monkeypatch.setattr("voco_llama.evaluation.clips.generate_texts", spy)
    settings = EvaluateClipsSettings(checkpoint, clips / "test.json", clips, tmp_path, "video", batch_size=2)
    result = read_result(evaluate_clips(settings))
    model, processor = load_checkpoint(checkpoint, None)
    keys = {name: model.compress(processor.pixels(read_frames(clips / name, 3))).keys for name in ("a.mp4", "b.mp4")}
    order = {name: shuffled(3, f"0/{name}") for name in keys}
    torch.testing.assert_close(read[0].keys, keys["a.mp4"].repeat(1, 2, 1, 1, 1))
    torch.testing.assert_close(read[1].keys, keys["a.mp4"][:, order["a.mp4"]].repeat(1, 2, 1, 1, 1))
    torch.testing.assert_close(read[2].keys, keys["b.mp4"])
    torch.testing.assert_close(read[3].keys, keys["b.mp4"][:, order["b.mp4"]])
    lines = [json.loads(line) for line in (tmp_path / result["answers_file"]).read_text().splitlines()]
    assert [(line["in_order"], line["shuffled"]) for line in lines] == [("1", "2"), ("3", "4"), ("1", "2")]


def test_shuffled_is_a_seeded_permutation_but_the_identity():
    for count in (2, 3, 8):
        orders = [shuffled(count, str(seed)) for seed in range(50)]
        assert all(sorted(order) == list(range(count)) and order != list(range(count)) for order in orders)
    assert shuffled(8, "a") == shuffled(8, "a") != shuffled(8, "b")
    with pytest.raises(ValueError, match="1 frame"):
        shuffled(1, "a")


def test_bad_clip_settings(checkpoint, clips, tmp_path):
    with pytest.raises(SettingsError, match="one frame has no order"):
        EvaluateClipsSettings(checkpoint, clips / "test.json", clips, tmp_path, "video", num_frames=1)
    empty = tmp_path / "empty"
    empty.mkdir()
    settings = EvaluateClipsSettings(checkpoint, clips / "test.json", empty, tmp_path, "video")
    with pytest.raises(DataError, match="no clip"):
        evaluate_clips(settings)
