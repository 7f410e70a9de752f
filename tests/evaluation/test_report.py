"""The report's numbers come from the files it is given, and rows that cannot be compared are refused."""

import csv
import json

import pytest

from voco_llama.errors import DataError
from voco_llama.evaluation.report import report
from voco_llama.evaluation.results import write_result

FULL = {"GQA": 1.0, "POPE": 1.0, "MME": 400.0}


def write_row(folder, row, values, condition="voco", num_voco=None, seed=0, **changes):
    benchmarks = {
        name: {
            "metric": "m",
            "value": value,
            "full": FULL[name],
            "accuracy": value / FULL[name],
            "questions": 10,
            "images": 5,
            "data_fingerprint": f"{name} questions",
            "details": {},
        }
        for name, value in values.items()
    }
    result = {
        "condition": condition,
        "seed": seed,
        "num_voco": num_voco,
        "limit": None,
        "benchmarks": benchmarks,
        "mean_accuracy": sum(d["accuracy"] for d in benchmarks.values()) / len(benchmarks),
        "tokens_per_image": num_voco or 16,
        "kv_bytes_per_image": 1000 * (num_voco or 16),
        "kv_dtype": "float32",
        "checkpoint_fingerprint": "upper's",
        **changes,
    }
    return write_result(folder, "benchmarks", row, result, [])


@pytest.fixture
def files(tmp_path):
    return [
        write_row(tmp_path, "blind", {"GQA": 0.3, "POPE": 0.5, "MME": 100.0}, "blind"),
        write_row(tmp_path, "lower", {"GQA": 0.4, "POPE": 0.5, "MME": 120.0}, num_voco=1),
        write_row(tmp_path, "voco_1", {"GQA": 0.8, "POPE": 0.7, "MME": 220.0}, num_voco=1),
        write_row(tmp_path, "voco_4", {"GQA": 0.9, "POPE": 0.85, "MME": 320.0}, num_voco=4),
        write_row(tmp_path, "upper", {"GQA": 0.9, "POPE": 0.9, "MME": 320.0}, "full"),
    ]


def cells(text, heading):
    """The table under a heading: row name to its cells."""
    lines = text.split(f"## {heading}", 1)[1].split("\n\n")[1].splitlines()
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(split[0][1:], row[1:], strict=True)) for row in split[2:]}


def test_scores_and_order_of_rows(files, tmp_path):
    scores = cells(report(files, tmp_path), "Scores")
    assert list(scores) == ["upper", "voco_4", "voco_1", "lower", "blind"]
    assert scores["voco_1"] == {
        "Tokens": "1",
        "KV bytes/image": "1,000",
        "GQA": "80.0",
        "POPE": "70.0",
        "MME": "220.0",
        "Mean accuracy": "0.683",
    }


def test_retention_and_plain_ratio(files, tmp_path):
    kept = cells(report(files, tmp_path), "Retention")
    assert kept["voco_1"] == {
        "GQA": "80.0 (88.9)",
        "POPE": "50.0 (77.8)",
        "MME": "50.0 (68.8)",
        "Average": "60.0 (78.5)",
    }
    assert kept["upper"]["Average"] == "100.0 (100.0)"
    assert kept["lower"]["Average"].startswith("0.0 (")


def test_missing_cell_is_marked_and_left_out_of_every_average(files, tmp_path):
    files[2] = write_row(tmp_path, "voco_1", {"GQA": 0.8, "POPE": 0.7}, num_voco=1)
    text = report(files, tmp_path)
    assert cells(text, "Scores")["voco_1"]["MME"] == "–"
    kept = cells(text, "Retention")
    assert kept["voco_1"]["MME"] == "–"
    assert kept["voco_4"]["Average"] == "93.8 (97.2)"  # of GQA 100 and POPE 87.5
    assert "averages are over GQA, POPE only" in text


def test_equal_bounds_leave_retention_undefined(files, tmp_path):
    files[1] = write_row(tmp_path, "lower", {"GQA": 0.9, "POPE": 0.5, "MME": 120.0}, num_voco=1)
    kept = cells(report(files, tmp_path), "Retention")
    assert kept["voco_1"]["GQA"] == "– (88.9)"
    assert kept["voco_1"]["Average"] == "50.0 (78.5)"


def test_files_written(files, tmp_path):
    text = report(files, tmp_path / "out")
    assert (tmp_path / "out" / "report.md").read_text() == text
    with (tmp_path / "out" / "report.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 15
    (found,) = (row for row in rows if row["row"] == "voco_1" and row["benchmark"] == "GQA")
    assert float(found["retention"]) == pytest.approx(0.8)
    assert float(found["plain_ratio"]) == pytest.approx(8 / 9)
    assert (tmp_path / "out" / "retention.png").read_bytes().startswith(b"\x89PNG")
    assert "![" in text


def test_clip_rows_have_a_table_of_their_own(files, tmp_path):
    result = {"num_frames": 4, "tokens_per_clip": 8, "kv_bytes_per_clip": 8192, "in_order": 0.9, "shuffled": 0.5}
    files.append(write_result(tmp_path, "clips", "video", {"questions": 20, "limit": None, **result}, []))
    assert cells(report(files, tmp_path), "Clips")["video"] == {
        "Frames": "4",
        "Tokens": "8",
        "KV bytes/clip": "8,192",
        "In order": "90.0",
        "Shuffled": "50.0",
        "Questions": "20",
    }


def test_limited_rows_are_refused_unless_asked(files, tmp_path):
    files[2] = write_row(tmp_path, "voco_1", {"GQA": 0.8}, num_voco=1, limit=5)
    with pytest.raises(DataError, match="'voco_1' was evaluated on 5 questions only"):
        report(files, tmp_path)
    assert "on a part of the questions only" in report(files, tmp_path, allow_limited=True)


def test_rows_that_cannot_be_compared(files, tmp_path):
    with pytest.raises(DataError, match="the lower bound 'lower' is not among the rows upper"):
        report(files[-1:], tmp_path)
    with pytest.raises(DataError, match="two results of benchmarks are named 'upper'"):
        report([*files, files[-1]], tmp_path)
    other = json.loads(files[2].read_text())
    other["benchmarks"]["POPE"]["data_fingerprint"] = "other questions"
    files[2].write_text(json.dumps(other))
    with pytest.raises(DataError, match="asked different questions of POPE"):
        report(files, tmp_path)


def test_lower_bound_of_other_weights_is_noted(files, tmp_path):
    assert "not the paper's lower bound" not in report(files, tmp_path)
    files[1] = write_row(tmp_path, "lower", {"GQA": 0.4}, num_voco=1, checkpoint_fingerprint="another's")
    assert "not the paper's lower bound" in report(files, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as a result"),
        ("[]", "is no result"),
        ('{"kind": "benchmarks", "format_version": 99}', "has result format 99"),
    ],
)
def test_file_that_is_no_result(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=message):
        report([tmp_path / "x.json"], tmp_path)


def test_table_is_aligned():
    assert table(["Row", "N"], [["a", "10"], ["long", "4"]]).splitlines() == [
        "| Row  |  N |",
        "|------|---:|",
        "| a    | 10 |",
        "| long |  4 |",
    ]
