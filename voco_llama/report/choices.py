"""What choosing the number of VoCo tokens by the image is worth: beside a random choice, and the best with labels.

An adaptive result (`evaluate quality=...`) says how many images were kept as so many tokens, and results of the same
checkpoint at each of these numbers (`evaluate num_voco=n`) say of every question whether it was answered right there.

    random   the same numbers dealt out at random: of each number, its share of the images times the accuracy there
    best     the numbers that give most right answers at the same mean, known from the labels: an upper limit. It is
             solved as a linear program: of each image, the gains of more tokens by falling gain a token; the best of
             all images first, the last one in part.

Accuracy is the mean over benchmarks of the share of questions answered right. Left out are benchmarks whose questions
have no points of their own (MMBench counts a question when all its orders are right).
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voco_llama.errors import DataError, refused_as
from voco_llama.evaluation.results import read_result


@dataclass(frozen=True)
class Choice:
    """An adaptive result and its counterparts at the same mean number of tokens, accuracies from 0 to 1.

    Attributes:
        left_out: Benchmarks that the accuracies are not of, for their questions have no points of their own.
    """

    row: str
    quality: float
    tokens: float
    accuracy: float
    random: float
    best: float
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """What a result says of every question.

    Attributes:
        result: Of `read_result`.
        points: Benchmark and document -> points.
        image: Benchmark and document -> the image that it is about.
        left_out: Benchmarks whose questions have no points of their own.
    """

    result: Mapping[str, Any]
    points: Mapping[tuple[str, str], float]
    image: Mapping[tuple[str, str], str]
    left_out: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """The mean over benchmarks of the mean points."""
        weights = weights_of(self.points)
        return sum(weights[question] * points for question, points in self.points.items())


def weights_of(questions: Iterable[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """What each question counts, so that benchmarks count alike and all of them 1."""
    of_benchmark: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for question in questions:
        of_benchmark[question[0]].append(question)
    return {q: 1 / len(some) / len(of_benchmark) for some in of_benchmark.values() for q in some}


def read_answers(file: Path) -> Answers:
    """A result and its answers.

    Raises:
        DataError: They cannot be read, or a question with points of its own is not about one image.
    """
    result = read_result(file)
    answers = file.with_name(str(result.get("answers_file")))
    points, image, left_out = {}, {}, set()
    with refused_as(DataError, answers, "evaluate the row again"):
        for line in map(json.loads, answers.read_text(encoding="utf-8").splitlines()):
            question = (line["benchmark"], str(line["document"]))
            if line["points"] is None:
                left_out.add(line["benchmark"])
                continue
            images = line.get("images") or {}
            if len(images) != 1:
                raise DataError(
                    f"{answers}: {' '.join(question)} has not one image, but {len(images)}: evaluate tasks of questions"
                    " on one image each"
                )
            points[question], (image[question],) = float(line["points"]), images
    for question in [question for question in points if question[0] in left_out]:  # in part only, it is no benchmark
        del points[question], image[question]
    return Answers(result, points, image, tuple(sorted(left_out)))


def compare_choices(adaptive: Sequence[Path], fixed: Sequence[Path]) -> list[Choice]:
    """Each adaptive result beside its counterparts.

    Raises:
        DataError: A number of tokens has no fixed result, or two; or results are of other weights or questions.
    """
    known: dict[int, Answers] = {}
    for answers in map(read_answers, fixed):
        row, number = answers.result["row"], answers.result["num_voco"]
        if number is None or answers.result["quality"] is not None:
            raise DataError(f"row {row!r} has no one number of tokens: name results of evaluate num_voco=... there")
        if number in known:
            raise DataError(f"rows {known[number].result['row']!r} and {row!r} both have {number} tokens: name one")
        known[number] = answers
    return [_compare(read_answers(file), known) for file in adaptive]


def _compare(chosen: Answers, known: Mapping[int, Answers]) -> Choice:
    row, shares = chosen.result["row"], chosen.result.get("images_by_tokens") or {}
    if chosen.result["quality"] is None or not shares:
        raise DataError(f"row {row!r} did not choose by the image: name results of evaluate quality=...")
    if not chosen.points:
        raise DataError(f"row {row!r}: no question has points of its own: evaluate other tasks (GQA, POPE, ...) too")
    if lacking := sorted({int(number) for number in shares} - set(known)):
        numbers = ", ".join(map(str, lacking))
        raise DataError(f"row {row!r} keeps {numbers} tokens of some images: evaluate num_voco=... there too")
    for number, answers in known.items():
        same = answers.result["checkpoint_fingerprint"] == chosen.result["checkpoint_fingerprint"]
        if not same or answers.points.keys() != chosen.points.keys():
            what = "questions" if same else "weights"
            raise DataError(f"rows {row!r} and {answers.result['row']!r} ({number} tokens) are of different {what}")
    images, tokens = sum(shares.values()), chosen.result["tokens_per_image"]
    dealt_out = sum(share * known[int(number)].accuracy for number, share in shares.items()) / images
    best = best_accuracy({number: answers.points for number, answers in known.items()}, chosen.image, tokens)
    return Choice(row, chosen.result["quality"], tokens, chosen.accuracy, dealt_out, best, chosen.left_out)


def best_accuracy(
    points: Mapping[int, Mapping[tuple[str, str], float]], image: Mapping[tuple[str, str], str], tokens: float
) -> float:
    """The accuracy of the best numbers of tokens for images, at a mean of `tokens`.

    Args:
        points: Number of tokens -> question -> points.
        image: Question -> image.
        tokens: At least the fewest of the numbers.
    """
    weights, numbers = weights_of(image), sorted(points)
    gained: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(numbers))
    for question, its_image in image.items():
        for place, number in enumerate(numbers):
            gained[its_image][place] += weights[question] * points[number][question]
    steps = sorted((step for values in gained.values() for step in _steps(numbers, values)), reverse=True)
    accuracy, left = sum(values[0] for values in gained.values()), (tokens - numbers[0]) * len(gained)
    for rate, more in steps:
        taken = min(more, left)
        accuracy += rate * taken
        left -= taken
    return accuracy


def _steps(numbers: Sequence[int], values: Sequence[float]) -> list[tuple[float, int]]:
    """Gain a token, and tokens, from each corner to the next of the concave hull over an image's values."""
    steps, here = [], 0
    while here < len(numbers) - 1:
        rates = [
            ((values[there] - values[here]) / (numbers[there] - numbers[here]), there)
            for there in range(here + 1, len(numbers))
        ]
        rate, there = max(rates)
        if rate <= 0:
            break
        steps.append((rate, numbers[there] - numbers[here]))
        here = there
    return steps
