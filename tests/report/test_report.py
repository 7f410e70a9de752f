"""The report's numbers come from the files it is given, of one seed or several; its files agree with each other."""

import csv
import math

import pytest

from tests.evaluation.rows import FULL, write_bounds, write_clips, write_row, write_text
from voco_llama.errors import DataError, SettingsError
from voco_llama.report.paper import read_paper_table
from voco_llama.report.report import ReportSettings, report


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """A picture takes a second: one test has them drawn."""
    for plot in ("plot_retention", "plot_benchmarks"):
        monkeypatch.setattr(f"voco_llama.report.report.{plot}", lambda *what: None)


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    write_row(folder, "blind", {"GQA": 0.3, "POPE": 0.5, "MME": 100.0}, "blind")
    write_row(folder, "lower", {"GQA": 0.4, "POPE": 0.5, "MME": 120.0}, num_voco=1)
    write_row(folder, "voco_1", {"GQA": 0.8, "POPE": 0.7, "MME": 220.0}, num_voco=1)
    write_row(folder, "voco_4", {"GQA": 0.9, "POPE": 0.85, "MME": 320.0}, num_voco=4)
    write_row(folder, "upper", {"GQA": 0.9, "POPE": 0.9, "MME": 320.0}, "full")
    return folder


@pytest.fixture
def seeds(tmp_path):
    """Two worlds whose bounds differ, and a row whose retention is 0.8 and 0.6, with one more in the first only."""
    folder = tmp_path / "seeds"
    write_bounds(folder / "seed_0", 0, upper=0.9, lower=0.4)
    write_bounds(folder / "seed_7", 7, upper=0.8, lower=0.3)
    write_row(folder / "seed_0", "voco_1", {"GQA": 0.8, "POPE": 0.8}, num_voco=1, seed=0)
    write_row(folder / "seed_7", "voco_1", {"GQA": 0.6, "POPE": 0.6}, num_voco=1, seed=7)
    write_row(folder / "seed_0", "average_pool_1", {"GQA": 0.7, "POPE": 0.6}, num_voco=1, seed=0)
    write_row(folder / "seed_7", "average_pool_1", {"GQA": 0.4, "POPE": 0.5}, num_voco=1, seed=7)
    write_row(folder / "seed_0", "voco_2", {"GQA": 0.9, "POPE": 0.8}, num_voco=2, seed=0)
    return folder


def run(results, **settings):
    return report(ReportSettings(results, results.parent / "out", **settings))


def cells(text, heading):
    """The table under a heading: row name to its cells."""
    lines = text.split(f"## {heading}", 1)[1].split("\n\n")[1].splitlines()
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(split[0][1:], row[1:], strict=True)) for row in split[2:]}


def read_csv(file):
    with file.open() as opened:
        return list(csv.DictReader(opened))


def test_scores_and_order_of_rows(results):
    scores = cells(run(results), "Scores")
    assert list(scores) == ["upper", "voco_4", "voco_1", "lower", "blind"]
    assert scores["voco_1"] == {
        "Tokens": "1",
        "KV bytes/image": "1,000",
        "GQA": "80.0",
        "POPE": "70.0",
        "MME": "220.0",
        "Mean accuracy": "0.683",
    }


def test_rows_that_choose_by_the_image_show_means(seeds):
    """Over images in a result, then over seeds; such a row costs not the same with each seed."""
    for seed, tokens in ((0, 1.5), (7, 2.0)):
        kept = {"tokens_per_image": tokens, "kv_bytes_per_image": 1001 * tokens, "quality": 0.05}
        write_row(seeds / f"seed_{seed}", "adaptive", {"GQA": 0.8, "POPE": 0.7}, num_voco=16, seed=seed, **kept)
    text = run(seeds)
    scores = cells(text, "Scores")
    assert (scores["adaptive"]["Tokens"], scores["adaptive"]["KV bytes/image"]) == ("1.8", "1,751.8")
    assert (scores["voco_2"]["Tokens"], scores["voco_2"]["KV bytes/image"]) == ("2", "2,000")
    assert list(scores)[1:4] == ["voco_2", "adaptive", "average_pool_1"]  # by the tokens that they keep
    assert "choose the number of tokens by the image" in text
    assert "(adaptive: 0.05)" in text
    (first, *_) = [row for row in read_csv(seeds.parent / "out" / "report.csv") if row["row"] == "adaptive"]
    assert (first["quality"], first["tokens_per_image"]) == ("0.05", "1.5")


def test_retention_and_plain_ratio(results):
    text = run(results)
    kept = cells(text, "Retention")
    assert kept["voco_1"] == {
        "GQA": "80.0 (88.9)",
        "POPE": "50.0 (77.8)",
        "MME": "50.0 (68.8)",
        "Average": "60.0 (78.5)",
    }
    assert kept["upper"]["Average"] == "100.0 (100.0)"
    assert kept["lower"]["Average"].startswith("0.0 (")
    assert "One seed (0): there is no standard error." in text


def test_seeds_are_measured_against_their_own_bounds_and_averaged(seeds):
    text = run(seeds)
    scores = cells(text, "Scores")
    assert {name: row["Seeds"] for name, row in scores.items()} == {
        "upper": "2",
        "voco_2": "1 of 2",
        "average_pool_1": "2",
        "voco_1": "2",
        "lower": "2",
    }
    assert scores["voco_1"]["GQA"] == "70.0 ± 10.0"  # 80 and 60: sample deviation 14.14, over sqrt(2)
    assert scores["voco_1"]["Mean accuracy"] == "0.700 ± 0.100"
    kept = cells(text, "Retention")
    assert kept["voco_1"]["Average"] == "70.0 ± 10.0 (81.9)"  # of 80 and 60
    assert kept["average_pool_1"]["GQA"] == "40.0 ± 20.0 (63.9)"  # of 60 and 20; 0.7 / 0.9 and 0.4 / 0.8
    assert kept["voco_2"]["Average"] == "90.0 (94.4)"
    assert "Means over 2 seeds (0, 7)" in text
    assert "lack some of the seeds (voco_2: 0)" in text


def test_one_seed_of_several(seeds):
    text = run(seeds, seeds=[7])
    assert cells(text, "Retention")["voco_1"]["Average"] == "60.0 (75.0)"
    assert "voco_2" not in text
    with pytest.raises(DataError, match=r"no result has a seed of \[3\]: there are \[0, 7\]"):
        run(seeds, seeds=[3])


def test_benchmark_missing_in_one_seed_is_marked_and_left_out_of_every_average(seeds):
    write_row(seeds / "seed_7", "voco_1", {"GQA": 0.6}, num_voco=1, seed=7)
    text = run(seeds)
    kept = cells(text, "Retention")
    assert kept["voco_1"]["POPE"] == "80.0 (88.9), n=1"
    assert cells(text, "Scores")["voco_1"]["POPE"] == "80.0, n=1"
    assert kept["average_pool_1"]["Average"] == "40.0 ± 20.0 (63.9)"  # GQA alone
    assert "averages are over GQA only" in text


def test_missing_cell_is_marked_and_left_out_of_every_average(results):
    write_row(results, "voco_1", {"GQA": 0.8, "POPE": 0.7}, num_voco=1)
    text = run(results)
    assert cells(text, "Scores")["voco_1"]["MME"] == "–"
    assert cells(text, "Scores")["voco_4"]["Mean accuracy"] == "0.875"  # of 0.9 and 0.85
    kept = cells(text, "Retention")
    assert kept["voco_1"]["MME"] == "–"
    assert kept["voco_4"]["Average"] == "93.8 (97.2)"  # of GQA 100 and POPE 87.5
    assert "averages are over GQA, POPE only" in text


def test_equal_bounds_leave_retention_undefined(results):
    write_row(results, "lower", {"GQA": 0.9, "POPE": 0.5, "MME": 120.0}, num_voco=1)
    text = run(results)
    kept = cells(text, "Retention")
    assert kept["voco_1"]["GQA"] == "– (88.9)"
    assert kept["voco_1"]["Average"] == "50.0 (78.5)"
    assert "The bounds are equal in GQA with seed 0: no retention there, and averages of retention leave it out" in text


def test_files_agree_with_the_text(seeds, monkeypatch):
    monkeypatch.undo()
    out = seeds.parent / "out"
    text = run(seeds)
    assert (out / "report.md").read_text() == text
    by_seed = read_csv(out / "report.csv")
    assert len(by_seed) == 2 * 9
    (found,) = (r for r in by_seed if (r["row"], r["benchmark"], r["seed"]) == ("average_pool_1", "GQA", "7"))
    assert float(found["value"]) == 0.4
    assert float(found["retention"]) == pytest.approx(0.2)
    assert float(found["plain_ratio"]) == pytest.approx(0.5)
    summary = {(r["row"], r["benchmark"]): r for r in read_csv(out / "summary.csv")}
    assert float(summary["average_pool_1", "GQA"]["retention"]) == pytest.approx(0.4)
    assert float(summary["average_pool_1", "GQA"]["retention_standard_error"]) == pytest.approx(0.2)
    assert float(summary["voco_1", "average"]["retention"]) == pytest.approx(0.7)
    assert summary["voco_1", "average"]["retention_seeds"] == "2"
    assert math.isnan(float(summary["voco_2", "average"]["retention_standard_error"]))
    for plot in ("retention", "benchmarks"):
        assert (out / f"{plot}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / f"{plot}.svg").read_text()
        assert f"]({plot}.png)" in text
    assert r"average\_pool\_1 & 40.0 $\pm$ 20.0 (63.9) &" in (out / "report.tex").read_text()


def test_table_selects_orders_and_names_rows(seeds, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "title: Mine\nrows: [{row: voco_1, label: One}, {row: voco_8, label: Eight}, {row: average_pool_1}]\n"
        "pairs: [[voco_1, average_pool_1], [voco_8, voco_1]]\n"
    )
    text = run(seeds, table=str(own))
    assert text.startswith("# Mine\n")
    assert list(cells(text, "Retention")) == ["One", "average_pool_1"]
    assert "Rows of the table without a result: Eight." in text
    assert cells(text, "Differences") == {
        "One minus average_pool_1": {"Seeds": "2", "Points": "30.0 ± 0.0", "In standard errors": "–"}
    }


def test_pairs_are_paired_by_seed(seeds, tmp_path):
    write_row(seeds / "seed_7", "average_pool_1", {"GQA": 0.4, "POPE": 0.4}, num_voco=1, seed=7)
    own = tmp_path / "own.yaml"
    own.write_text("pairs: [[voco_1, average_pool_1], [voco_2, voco_1]]")
    found = cells(run(seeds, table=str(own)), "Differences")
    assert found["voco_1 minus average_pool_1"] == {
        "Seeds": "2",
        "Points": "35.0 ± 5.0",  # 30 and 40
        "In standard errors": "7.0",
    }
    assert found["voco_2 minus voco_1"] == {"Seeds": "1", "Points": "10.0", "In standard errors": "–"}


def test_table_without_any_of_its_rows(seeds, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("rows: [{row: elastic}]")
    with pytest.raises(DataError, match="no row of table .* has a result: .* has average_pool_1, lower"):
        run(seeds, table=str(own))


def test_rows_outside_of_the_table_are_not_judged(seeds):
    write_row(seeds / "seed_0", "voco_2", {"GQA": 0.9}, num_voco=2, seed=0, limit=5)
    with pytest.raises(DataError, match="limit"):
        run(seeds)
    assert list(cells(run(seeds, table="table_1"), "Scores")) == [
        "Upper bound",
        "VoCo (1)",
        "Average pooling + linear (1)",
        "Lower bound",
    ]


def test_reference_stands_beside_ours_and_in_no_mean(seeds):
    plain, text = run(seeds), run(seeds, reference="table_1")
    for table in ("Scores\n", "Retention in % (plain"):
        assert cells(text, table) == cells(plain, table)
    beside = cells(text, "Retention in % beside the paper's Table 1")
    assert list(beside)[:2] == ["upper", "paper: upper bound"]
    assert "voco_2" not in beside
    assert beside["voco_1"] == {
        "GQA": "70.0 ± 10.0",
        "POPE": "70.0 ± 10.0",
        "Average": "70.0 ± 10.0",
        "All 7 of the paper": "",
    }
    assert beside["paper: VoCo (1)"] == {"GQA": "82.5", "POPE": "88.4", "Average": "85.5", "All 7 of the paper": "83.7"}
    scores = cells(text, "Scores beside")
    assert scores["paper: AvgPool + Linear (1)"] == {"GQA": "52.9", "POPE": "79.1"}
    assert "none of our means contains them" in text


def test_averages_beside_the_paper_are_over_common_benchmarks(results):
    beside = cells(run(results, reference="table_2"), "Retention in % beside")  # has GQA, neither POPE nor MME
    assert beside["voco_1"] == {"GQA": "80.0", "Average": "80.0", "All 4 of the paper": ""}
    assert beside["paper: VoCo (1)"] == {"GQA": "82.5", "Average": "82.5", "All 4 of the paper": "83.8"}
    write_row(results, "blind", {"POPE": 0.5}, "blind")
    with pytest.raises(DataError, match="Table 2 has GQA, MMBench, SEED, VQAv2, all rows together have POPE"):
        run(results, reference="table_2")


def test_counterpart_named_by_a_table(seeds, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("rows: [{row: voco_1, paper: voco_32_at_1}]")
    beside = cells(run(seeds, table=str(own), reference="table_4"), "Retention in % beside")
    assert list(beside) == ["voco_1", "paper: VoCo (32 read at 1)"]


def test_the_papers_table_by_itself(tmp_path):
    text = report(ReportSettings(tmp_path / "nothing", tmp_path / "out", paper="table_2"))
    rows = cells(text, "The paper's Table 2")
    assert rows["VoCo (4)"] == {
        "MMB": "60.4 (91.4)",
        "GQA": "58.4 (88.5)",
        "VQAv2": "74.5 (91.2)",
        "SEED": "56.0 (91.0)",
        "Average": "90.5",
        "As printed": "90.4",
    }
    assert "- VoCo (4), average: the paper prints 90.4, its scores give 90.50." in text
    assert text.count("the paper prints") == 1
    assert (tmp_path / "out" / "paper_table_2.md").read_text() == text
    assert len(read_csv(tmp_path / "out" / "paper_table_2.csv")) == 10 * 4
    assert "VoCo (4) & 60.4 (91.4)" in (tmp_path / "out" / "paper_table_2.tex").read_text()


def test_unknown_tables(results):
    with pytest.raises(SettingsError, match="there is no table 'table_11'; did you mean 'table_1'"):
        run(results, table="table_11")
    with pytest.raises(SettingsError, match="no 'table_7' in .*choices: table_1, table_2, table_4"):
        run(results, reference="table_7")


def test_clip_rows_have_a_table_of_their_own(results):
    write_clips(results, "video", 0.9, 0.5)
    assert cells(run(results), "Clips")["video"] == {
        "Frames": "4",
        "Tokens": "8",
        "KV bytes/clip": "8,192",
        "In order": "90.0",
        "Shuffled": "50.0",
        "Questions": "20",
    }


def test_clips_alone_need_no_bounds(tmp_path):
    write_clips(tmp_path, "video", 0.9, 0.5, limit=20)
    with pytest.raises(DataError, match=r"row 'video' was evaluated on 20 questions only: .* allow_limited=true"):
        report(ReportSettings(tmp_path, tmp_path / "report"))
    text = report(ReportSettings(tmp_path, tmp_path / "report", allow_limited=True))
    assert "## Clips, exact match in %" in text
    assert "| 90.0 |" in " ".join(text.split())
    assert text.endswith("- Some rows were evaluated on a part of the questions only.\n")
    assert not list(tmp_path.rglob("*.png"))


def test_clips_over_seeds(seeds):
    write_clips(seeds / "seed_0", "video", 0.9, 0.5, seed=0)
    write_clips(seeds / "seed_7", "video", 0.7, 0.4, seed=7)
    write_clips(seeds / "seed_7", "long", 0.7, 0.4, seed=7, num_frames=8)
    found = cells(run(seeds), "Clips")
    assert list(found) == ["long", "video"]
    assert (found["video"]["Seeds"], found["long"]["Seeds"]) == ("2", "1 of 2")
    assert (found["video"]["In order"], found["video"]["Shuffled"]) == ("80.0 ± 10.0", "45.0 ± 5.0")
    assert found["video"]["Questions"] == "40"
    summary = {(r["row"], r["benchmark"]): r for r in read_csv(seeds.parent / "out" / "summary.csv")}
    assert float(summary["video", "clips, in order"]["value"]) == pytest.approx(0.8)


def test_limited_rows_are_refused_unless_asked(results):
    write_row(results, "voco_1", {"GQA": 0.8}, num_voco=1, limit=5)
    with pytest.raises(DataError, match="'voco_1' was evaluated on 5 questions only"):
        run(results)
    assert "on a part of the questions only" in run(results, allow_limited=True)


def test_units_are_those_of_the_columns_that_were_measured(results):
    for file in results.glob("*.json"):
        file.write_text(file.read_text().replace('"metric": "m"', '"metric": "exact_match"', 1))
    assert "- GQA: exact match in %; POPE: m in %; MME: m of 400.\n" in run(results)


def test_lower_bound_of_other_weights_is_noted(seeds):
    assert "not the paper's lower bound" not in run(seeds)
    write_row(
        seeds / "seed_7", "lower", {"GQA": 0.3, "POPE": 0.3}, num_voco=1, seed=7, checkpoint_fingerprint="another's"
    )
    assert "lower was not measured on the weights of upper (seed 7)" in run(seeds)


def test_unreadable_answers_are_counted_over_seeds(seeds):
    for seed in (0, 7):
        file = write_row(seeds / f"seed_{seed}", "voco_1", {"GQA": 0.8, "POPE": 0.8}, num_voco=1, seed=seed)
        file.write_text(file.read_text().replace('"details": {}', '"details": {"unreadable": 2.0}', 1))
    assert "name no option: voco_1 GQA 4 of 20." in run(seeds)


def test_no_results(tmp_path):
    with pytest.raises(DataError, match=r"holds no results \(no such folder .+\): run voco-llama evaluate first"):
        run(tmp_path / "nowhere")


def test_a_number_that_is_none_is_left_out(tmp_path):
    """NaN is a number to JSON as Python writes it."""
    write_bounds(tmp_path)
    write_row(tmp_path, "voco_1", {"GQA": float("nan"), "POPE": 0.9}, num_voco=1)
    text = report(ReportSettings(tmp_path, tmp_path / "report"))
    line = [line for line in text.splitlines() if line.startswith("| voco_1")][1]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["–", "100.0 (100.0)", "100.0 (100.0)"]


def test_texts_have_a_table_of_their_own_whatever_the_rows_of_the_table(seeds):
    write_text(seeds, "before", {"docs": 1.0, "story": 0.5})
    for seed, rate in ((0, 1.25), (7, 1.75)):
        write_text(seeds / f"seed_{seed}", "voco_1", {"docs": rate, "story": 0.5}, seed=seed)
    text = run(seeds, table="table_1")
    assert cells(text, "Plain text") == {
        "before": {"Seeds": "1 of 2", "docs": "1.000", "story": "0.500", "All": "0.750", "All, nats a token": "3.000"},
        "VoCo (1)": {
            "Seeds": "2", "docs": "1.500 ± 0.250", "story": "0.500 ± 0.000", "All": "1.000 ± 0.125",
            "All, nats a token": "4.000 ± 0.500",
        },
    }  # fmt: skip
    assert "windows of 512 tokens, 256 of them predicted" in text
    (row,) = [
        row for row in read_csv(seeds.parent / "out" / "summary.csv")
        if (row["row"], row["benchmark"]) == ("voco_1", "text, bits_per_byte")
    ]  # fmt: skip
    assert (float(row["value"]), float(row["value_standard_error"])) == (1.0, 0.125)


def test_texts_alone_need_no_bounds(tmp_path):
    write_text(tmp_path, "before", {"docs": 1.0})
    assert list(cells(run(tmp_path), "Plain text")) == ["before"]


@pytest.mark.parametrize("changed", ["window", "stride", "vocabulary", "data_fingerprint"])
def test_losses_on_other_texts_or_windows_cannot_stand_in_one_table(tmp_path, changed):
    write_text(tmp_path, "before", {"docs": 1.0})
    write_text(tmp_path, "after", {"docs": 1.0}, **{changed: "other" if changed == "data_fingerprint" else 17})
    with pytest.raises(DataError, match=f"plain text has {changed}"):
        run(tmp_path)


COLUMNS = {"GQA": "GQA", "MMBench": "MMB", "MME": "MME", "POPE": "POPE", "SQA": "SQA-I", "VQAv2": "VQAv2"}
REPRODUCED = {"GQA": 52.3, "MMBench": 52.7, "MME": 1036, "POPE": 79.1, "SQA": 61.2, "VQAv2": 65.0}
"""What a user who followed the authors' script reported."""


def in_our_units(scores):
    return {name: score / 100 if FULL[name] == 1 else score for name, score in scores.items()}


@pytest.fixture
def papers_scores(tmp_path):
    """The paper's own as if we had measured them, and a reproduction of theirs: 8.6 % of retention in ScienceQA."""
    table = read_paper_table("table_1")
    for name, count, condition in (("upper", None, "full"), ("lower", 1, "voco"), ("average_pool_1", 1, "voco")):
        scores = {ours: table.rows[name].scores[theirs] for ours, theirs in COLUMNS.items()}
        write_row(tmp_path / "results", name, in_our_units(scores), condition, num_voco=count)
    write_row(tmp_path / "results", "voco_1", in_our_units(REPRODUCED), num_voco=1)
    return tmp_path / "results"


def test_averages_with_science_qa_and_without(papers_scores, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "voco_llama.report.report.plot_retention", lambda series, stem: drawn.update({stem.name: series[-1].label})
    )
    text = run(papers_scores, table="table_1", reference="table_1")
    assert [("SQA-I" in drawn[name], "GQA" in drawn[name]) for name in ("retention", "retention_without_SQA")] == [
        (True, True),
        (False, True),
    ]
    kept = cells(text, "Retention in % (plain ratio in %)")["VoCo (1)"]
    assert (kept["SQA"], kept["Average"], kept["Average without SQA"]) == ("8.6 (92.0)", "56.4 (84.4)", "65.9 (82.9)")
    beside = cells(text, "Retention in % beside the paper's Table 1")
    assert [beside["VoCo (1)"][name] for name in ("Average", "Average without SQA")] == ["56.4", "65.9"]
    paper = beside["paper: VoCo (1)"]
    assert [paper[name] for name in ("Average", "Average without SQA", "All 7 of the paper")] == [
        "84.3",
        "85.0",
        "83.7",
    ]
    pair = cells(text, "Differences")["VoCo (1) minus Average pooling + linear (1)"]
    assert (pair["Points"], pair["Points without SQA"]) == ("-7.8", "-5.9")
    assert "- Average without SQA: bounds lie close there" in text
    assert "![Average without SQA retention against tokens an image](retention_without_SQA.png)" in text
    summary = {(r["row"], r["benchmark"]): r for r in read_csv(tmp_path / "out" / "summary.csv")}
    assert float(summary["voco_1", "average"]["retention"]) == pytest.approx(0.564, abs=0.0005)
    assert float(summary["voco_1", "average without SQA"]["retention"]) == pytest.approx(0.659, abs=0.0005)


def test_without_science_qa_there_is_one_average(results):
    text = run(results)
    assert "without SQA" not in text
    assert "without SQA" not in (results.parent / "out" / "summary.csv").read_text()
