"""Counts against numbers worked out by hand: a token is a byte, an image is 4 vision tokens and a VoCo token."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data_tools.conftest import conversation, record
from voco_llama import cli
from voco_llama.composition import compose
from voco_llama.data_tools.settings import DataStatsSettings
from voco_llama.data_tools.stats import count_data, stats_table

PROMPT = 1 + len("USER: ") + len(" ASSISTANT:")
"""Tokens of a turn beside its words; BOS is the first."""
ANSWER = 1 + 1
"""The space before an answer, and the end of it."""


@pytest.fixture
def stats(overrides):
    """`count_data` on sources of (file, media folder), with other overrides."""

    def count(*sources, **own):
        options = {"workers": own.pop("workers", 0), **own}
        return count_data(compose(overrides(*sources, **options), "data_stats", DataStatsSettings))

    return count


@pytest.fixture
def files(tmp_path, images):
    """Two images and a text; a text of two turns, in a file of its own."""
    Image.new("RGB", (10, 20)).save(images / "tall.png")
    mixed = [
        record("a", question="<image>ab", answer="c" * 3),
        record("b", question="<image>\nabcd<image>", answer="c" * 5, image=["good.png", "tall.png"]),
        {"id": "c", "conversations": conversation("abcdef", "c" * 7)},
    ]
    text = [{"id": "d", "conversations": conversation("ab", "c", "ab", "ccc")}]
    for name, records in (("mixed", mixed), ("text", text)):
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    return ("llava_json", tmp_path / "mixed.json", images), ("llava_json", tmp_path / "text.json", None)


def test_counts_by_hand(stats, files):
    result = stats(*files, sample=0)
    mixed, text = result["sources"]
    assert (mixed["records"], mixed["epoch_records"], mixed["sampled"], mixed["bad_records"]) == (3, 3, 3, 0)
    assert mixed["text_only"] == pytest.approx(1 / 3)
    assert mixed["media"] == {"mean": 1.0, "max": 2}
    prompts, answers = [PROMPT + 2, PROMPT + 4, PROMPT + 6], [ANSWER + 3, ANSWER + 5, ANSWER + 7]
    lengths = [5 + prompts[0] + answers[0], 10 + prompts[1] + answers[1], prompts[2] + answers[2]]
    for name, values in (
        ("turns", [2, 2, 2]),
        ("prompt_tokens", prompts),
        ("answer_tokens", answers),
        ("vision_tokens", [4, 8, 0]),
        ("voco_tokens", [1, 2, 0]),
        ("row_tokens", lengths),
    ):
        ordered = sorted(values)
        assert mixed[name] == {
            "mean": pytest.approx(sum(values) / 3),
            "median": ordered[1],
            "p95": ordered[2],
            "min": ordered[0],
            "max": ordered[2],
        }, name
    assert mixed["width"] == {"mean": pytest.approx((24 + 24 + 10) / 3), "median": 24, "p95": 24, "min": 10, "max": 24}
    assert mixed["height"]["mean"] == pytest.approx((12 + 12 + 20) / 3)
    assert (mixed["aspect"]["min"], mixed["aspect"]["max"]) == (0.5, 2.0)
    assert text["text_only"] == 1.0
    assert text["turns"]["mean"] == 4
    assert text["answer_tokens"]["mean"] == 2 * ANSWER + 4
    assert text["prompt_tokens"]["mean"] == 2 * PROMPT - 1 + 4
    assert text["width"] is None


def test_conversations_about_an_image_and_what_sharing_them_saves(stats, images, tmp_path):
    """Five about one image, one about another, one about both (in this order), and text; the first source twice."""
    names = [*["good.png"] * 4, "other.png", ["good.png", "other.png"], None]
    records = [record(str(i), question="<image>?", image=name) for i, name in enumerate(names)]
    for name, part in (("many", records), ("one", records[:1])):
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    sources = [("llava_json", tmp_path / f"{name}.json", images) for name in ("many", "one")]
    result = stats(*sources, sample=1)
    many, one, epoch = *result["sources"], result["epoch"]
    assert many["conversations_an_image"] == {"mean": 2.0, "median": 1, "p95": 4, "min": 1, "max": 4}
    assert many["saved_by_sharing"] == pytest.approx({"2": 2 / 7, "4": 3 / 7, "8": 3 / 7})  # of 4 + 1 + 2 images
    assert one["saved_by_sharing"] == {"2": 0, "4": 0, "8": 0}
    assert epoch["saved_by_sharing"] == pytest.approx({"2": 2 / 8, "4": 3 / 8, "8": 4 / 8})  # 5 about the first
    lines = stats_table(result).splitlines()
    assert [line.split("  ")[0] for line in lines if "share_media" in line] == [
        f"saved by share_media={number}" for number in (2, 4, 8)
    ]
    again = stats(*sources, sample=1, **{"data.sources.0.weight": 2})["sources"][0]
    assert again["saved_by_sharing"] == many["saved_by_sharing"]  # a record does not share with itself


def test_the_epoch_weighs_sources_by_what_they_contribute(stats, files):
    result = stats(*files, sample=0, **{"data.sources.1.weight": 3})
    epoch = result["epoch"]
    assert (epoch["records"], epoch["epoch_records"]) == (4, 6)
    assert epoch["text_only"] == pytest.approx(4 / 6)
    assert epoch["turns"] == {"mean": pytest.approx((3 * 2 + 3 * 4) / 6), "median": 2, "p95": 4, "min": 2, "max": 4}
    assert [source["epoch_records"] for source in result["sources"]] == [3, 3]


def test_a_sample_stands_for_the_whole(stats, images, tmp_path):
    many = [{"id": str(i), "conversations": conversation("a", "c" * (1 + i % 2))} for i in range(200)]
    few = [{"id": "x", "conversations": conversation("a", "c" * 10)} for _ in range(50)]
    for name, records in (("many", many), ("few", few)):
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    sources = [("llava_json", tmp_path / f"{name}.json", None) for name in ("many", "few")]
    result = stats(*sources, sample=50)
    many_counted, few_counted = result["sources"]
    assert (many_counted["records"], many_counted["sampled"], few_counted["sampled"]) == (200, 50, 50)
    share = (many_counted["answer_tokens"]["mean"] * 4 + few_counted["answer_tokens"]["mean"]) / 5
    assert result["epoch"]["answer_tokens"]["mean"] == pytest.approx(share)
    assert stats(*sources, sample=50) == result
    assert 0 < many_counted["answer_tokens"]["mean"] - (ANSWER + 1) < 1
    others = [stats(*sources, sample=50, seed=seed)["sources"][0]["answer_tokens"]["mean"] for seed in (1, 2, 3)]
    assert len({*others, many_counted["answer_tokens"]["mean"]}) > 1


def test_limits_and_steps(stats, files):
    trainer = {
        "trainer.per_device_train_batch_size": 2,
        "trainer.gradient_accumulation_steps": 3,
        "trainer.dataloader_drop_last": "false",
    }
    result = stats(*files, sample=0, **{"data.sources.0.limit": 2, "data.sources.1.weight": 9}, **trainer)
    assert [source["epoch_records"] for source in result["sources"]] == [2, 9]
    assert result["sources"][0]["sampled"] == 2
    expected = {"records_a_batch": 2, "batches_a_step": 3, "records_a_step": 6, "steps_an_epoch": 2, "processes": 1}
    assert result["steps"] == expected
    assert result["sources"][0]["records_a_step"] == pytest.approx(6 * 2 / 11)
    whole_batches = stats(*files, sample=0, **{"data.sources.0.limit": 2, "data.sources.1.weight": 9})["steps"]
    assert (whole_batches["records_a_batch"], whole_batches["steps_an_epoch"]) == (8, 1)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"hardware.num_processes": 2, "trainer.gradient_accumulation_steps": 3}, (8, 6, 48, 6, 2)),
        ({"global_batch_size": 128}, (8, 16, 128, 3, 1)),
        ({"global_batch_size": 128, "hardware.num_processes": 4}, (8, 16, 128, 3, 4)),
    ],
)
def test_a_step_is_the_global_batch_of_the_training(stats, files, own, expected):
    own = {"trainer.per_device_train_batch_size": 8, "data.sources.1.weight": 297, **own}
    result = stats(*files, sample=1, **own)
    steps = result["steps"]
    names = ("records_a_batch", "batches_a_step", "records_a_step", "steps_an_epoch", "processes")
    assert tuple(steps[name] for name in names) == expected
    shares = [source["records_a_step"] for source in result["sources"]]
    assert shares == pytest.approx([expected[2] * 0.01, expected[2] * 0.99])


def test_an_experiment_has_the_steps_of_its_dry_run(stats, files):
    steps = stats(*files, sample=1, **{"experiment": "voco_1", "stage.name": "voco"})["steps"]
    assert (steps["records_a_step"], steps["processes"]) == (128, 8)


def test_cut_rows_and_what_cannot_be_read(stats, images, tmp_path):
    records = [
        record("a", answer="c" * 200),
        record("b", image="lost.jpg"),
        record("c", conversations=3),
        record("d", image="empty.jpg"),
    ]
    (tmp_path / "some.json").write_text(json.dumps(records))
    (counted,) = stats(("llava_json", tmp_path / "some.json", images), sample=0)["sources"]
    assert (counted["sampled"], counted["bad_records"], counted["bad_images"]) == (4, 1, 2)
    assert counted["cut"] == pytest.approx(1 / 3)
    assert counted["width"]["max"] == 24


def test_workers_change_nothing(stats, files):
    assert stats(*files, workers=2) == stats(*files)


def test_clips_have_a_segment_a_frame(stats, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "1.mp4").touch()
    (tmp_path / "c.csv").write_text("videoid,name\n1,One\n")
    (counted,) = stats(("caption_csv", tmp_path / "c.csv", tmp_path / "clips"), **{"data.num_frames": 3})["sources"]
    assert (counted["vision_tokens"]["mean"], counted["voco_tokens"]["mean"]) == (12, 3)


def test_without_a_tokenizer(stats, files, tmp_path):
    result = stats(*files, **{"model.tokenizer": tmp_path / "none"})
    (mixed, _) = result["sources"]
    assert mixed["row_tokens"] is mixed["cut"] is None
    assert mixed["turns"]["mean"] == 2
    assert result["lengths"].startswith("not measured: ")


def test_the_command_prints_a_table_and_writes_a_file(overrides, files, tmp_path, capsys):
    own = overrides(*files, output=tmp_path / "new" / "stats.json", sample=0)
    assert cli.main(["data", "stats", *own]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"source 0: {files[0][1]}"
    table = {line[:18].strip(): line[18:].split() for line in printed if line and "source" not in line}
    assert table["records"] == ["3", "1", "4"]
    assert table["text-only"] == ["33.3", "%", "100.0", "%", "50.0", "%"]
    assert "spreads are mean, median, 95 %, max; read: all records of an epoch" in printed
    written = json.loads((tmp_path / "new" / "stats.json").read_text(encoding="utf-8"))
    assert written["epoch"]["records"] == 4
    assert written["settings"]["sample"] == 0
    assert np.isfinite(written["epoch"]["row_tokens"]["mean"])


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"sample": -1}, "sample is -1: give 0 or more"),
        ({"global_batch_size": 12}, "global_batch_size is 12, which 1 processes of 8 rows do not divide"),
        ({"output": "tokenizer/tokenizer.json/stats.json"}, "stats.json cannot be written"),
    ],
)
def test_mistakes(overrides, files, tmp_path, capsys, own, message):
    own = {key: tmp_path / value if key == "output" else value for key, value in own.items()}
    assert cli.main(["data", "stats", *overrides(*files, **own)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
