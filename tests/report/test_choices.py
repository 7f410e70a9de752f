"""Choices by the image beside random ones and the best: hand-made answers whose sums are worked out here."""

import dataclasses
import itertools
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.evaluation.rows import write_row
from voco_llama.errors import DataError
from voco_llama.report.choices import best_accuracy, compare_choices

RIGHT = {1: "yynn", 2: "yyyn", 4: "yyyy"}
"""Of four images with a question each, which are answered right at so many tokens."""


def write(folder, row, right, tokens, images="abcd", **changes):
    """A result and its answers; `tokens` of each image."""
    file = write_row(folder, row, {"GQA": 0.5}, num_voco=max(tokens), tokens_per_image=sum(tokens) / 4, **changes)
    lines = [
        {"benchmark": "GQA", "document": i, "points": float(r == "y"), "images": {image: [n]}}
        for i, (r, image, n) in enumerate(zip(right, images, tokens, strict=True))
    ]
    file.with_name(json.loads(file.read_text())["answers_file"]).write_text("\n".join(map(json.dumps, lines)) + "\n")
    return file


@pytest.fixture
def fixed(tmp_path):
    return [write(tmp_path, f"at_{n}", right, [n] * 4) for n, right in RIGHT.items()]


def adaptive(folder, right="yyyn", tokens=(1, 1, 2, 2), **changes):
    by_tokens = {str(n): tokens.count(n) for n in sorted(set(tokens))}
    return write(folder, "adaptive", right, tokens, quality=0.05, images_by_tokens=by_tokens, **changes)


def test_a_choice_beside_its_counterparts(tmp_path, fixed):
    (choice,) = compare_choices([adaptive(tmp_path)], fixed)
    assert (choice.row, choice.quality, choice.tokens, choice.accuracy) == ("adaptive", 0.05, 1.5, 0.75)
    assert choice.random == pytest.approx(0.5 * 0.5 + 0.5 * 0.75)
    # two tokens above one each: one for the third image, and a third of the way to four for the fourth
    assert choice.best == pytest.approx(0.75 + 0.25 / 3)


def test_the_best_is_what_trying_everything_finds(tmp_path):
    """At means that whole choices reach: there the linear program has no part of an image."""
    points = {
        1: {("a", str(i)): float(p) for i, p in enumerate([0, 1, 0, 0, 1, 0])},
        2: {("a", str(i)): float(p) for i, p in enumerate([1, 0, 0, 1, 1, 0])},
        4: {("a", str(i)): float(p) for i, p in enumerate([1, 1, 1, 1, 0, 1])},
    }
    image = {("a", "0"): "x", ("a", "1"): "x", ("a", "2"): "y", ("a", "3"): "y", ("a", "4"): "z", ("a", "5"): "z"}
    best: dict[float, float] = {}
    for numbers in itertools.product(points, repeat=3):
        chosen = dict(zip("xyz", numbers, strict=True))
        accuracy = sum(points[chosen[i]][q] for q, i in image.items()) / 6
        mean = sum(numbers) / 3
        best[mean] = max(best.get(mean, 0.0), accuracy)
    for mean, accuracy in best.items():
        found = best_accuracy(points, image, mean)
        assert found >= accuracy - 1e-9
    assert best_accuracy(points, image, 1.0) == pytest.approx(2 / 6)
    assert best_accuracy(points, image, 4.0) == pytest.approx(max(best.values()))


def test_benchmarks_count_alike():
    points = {1: {("a", "0"): 1.0, ("b", "0"): 0.0, ("b", "1"): 0.0, ("b", "2"): 1.0}}
    image = dict.fromkeys(points[1], "x")
    assert best_accuracy(points, image, 1.0) == pytest.approx(0.5 * 1 + 0.5 / 3)


def test_benchmarks_without_points_of_their_own_are_left_out(tmp_path, fixed):
    """As the toy suite's MMBench: the others are compared, and it is named."""
    file = adaptive(tmp_path)
    (alone,) = compare_choices([file], fixed)
    for result in (file, *fixed):
        answers = result.with_name(json.loads(result.read_text())["answers_file"])
        line = {"benchmark": "MMBench", "document": 0, "points": None, "images": {"a": [1]}}
        part = line | {"document": "another", "points": 1.0, "images": {"e": [1]}}
        answers.write_text(f"{answers.read_text()}{json.dumps(line)}\n{json.dumps(part)}\n")
    (choice,) = compare_choices([file], fixed)
    assert choice == dataclasses.replace(alone, left_out=("MMBench",))


def test_what_cannot_be_compared_is_refused(tmp_path, fixed):
    with pytest.raises(DataError, match=r"keeps 3, 5 tokens of some images: evaluate num_voco=\.\.\. there"):
        compare_choices([adaptive(tmp_path / "3", tokens=(1, 5, 2, 3))], fixed)
    with pytest.raises(DataError, match="are of different weights"):
        compare_choices([adaptive(tmp_path / "w", checkpoint_fingerprint="other")], fixed)
    with pytest.raises(DataError, match="row 'at_1' did not choose by the image"):
        compare_choices(fixed[:1], fixed)
    with pytest.raises(DataError, match="rows 'at_2' and 'again' both have 2 tokens: name one"):
        compare_choices([adaptive(tmp_path)], [*fixed, write(tmp_path, "again", RIGHT[2], [2] * 4)])
    for changes in ({"quality": 0.1}, {"condition": "full", "num_voco": None}):
        other = write_row(tmp_path, "other", {"GQA": 0.5}, **changes)
        other.with_name(json.loads(other.read_text())["answers_file"]).write_text("")
        with pytest.raises(DataError, match="row 'other' has no one number of tokens: name results of evaluate num_v"):
            compare_choices([adaptive(tmp_path)], [*fixed, other])
    file = adaptive(tmp_path / "p")
    answers = file.with_name(json.loads(file.read_text())["answers_file"])
    whole = answers.read_text()
    answers.write_text(re.sub(r'"points": \d.\d', '"points": null', whole))
    with pytest.raises(DataError, match=r"no question has points of its own: evaluate other tasks \(GQA"):
        compare_choices([file], fixed)
    answers.write_text(whole.replace('{"a": [1]}', "{}"))
    with pytest.raises(DataError, match="GQA 0 has not one image, but 0"):
        compare_choices([file], fixed)
    answers.write_text("".join(whole.splitlines(keepends=True)[:3]))
    with pytest.raises(DataError, match="are of different questions"):
        compare_choices([file], fixed)


def test_the_script_prints_them(tmp_path, fixed, monkeypatch, capsys):
    script = Path(__file__).parents[2] / "scripts" / "choices.py"
    arguments = ["--adaptive", str(adaptive(tmp_path)), "--fixed", *map(str, fixed)]
    monkeypatch.setattr(sys, "argv", ["choices.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    head, line = capsys.readouterr().out.splitlines()
    assert line.split() == ["adaptive", "0.05", "1.50", "75.0", "62.5", "83.3"]
    assert head.split()[:3] == ["row", "quality", "tokens"]
