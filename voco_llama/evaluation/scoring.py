"""Scores of the five benchmarks, by the formulas of lmms-eval 0.7.3.

| benchmark | metric | full mark |
|---|---|---|
| GQA | `exact_match`, case and punctuation ignored | 1 |
| MMBench | `gpt_eval_score`, without a judge: the right letter, in all circular variants of a question | 100 |
| MME | `mme_perception_score`: accuracy + accuracy of pairs, summed over the categories present | 200 each |
| POPE | `pope_f1_score` over all rows (precision, recall and accuracy beside it) | 1 |
| VQAv2 | `exact_match`: soft accuracy against ten answers, leave one out | 1 |

What lmms-eval does silently is counted here: answers that are neither yes nor no, or name no letter.
"""

import string
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from voco_llama.errors import DataError
from voco_llama.evaluation.benchmarks import Request, options_of
from voco_llama.evaluation.vqa_answers import normalize_vqa_answer

MME_PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
CIRCULAR = 1_000_000
"""MMBench: rows whose index agrees modulo this are one question with its options in another order."""


@dataclass(frozen=True)
class Score:
    """A benchmark's result.

    Attributes:
        metric: Name of the main metric, as lmms-eval has it.
        value: The main metric, from 0 to `full`.
        full: What a perfect answerer gets.
        per_question: 0 to 1 for every question, in request order; the mean is plain accuracy.
        details: Further figures, and counts of answers that could not be read.
    """

    metric: str
    value: float
    full: float
    per_question: tuple[float, ...]
    details: dict[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Mean over questions, 0 to 1; comparable between benchmarks."""
        return sum(self.per_question) / len(self.per_question)


def score(benchmark: str, requests: Sequence[Request], answers: Sequence[str]) -> Score:
    """Score the answers to a benchmark's questions.

    Raises:
        DataError: There are no questions, a reference answer is not of the benchmark's kind, or MME's questions do
            not come in pairs.
    """
    if not requests:
        raise DataError(f"{benchmark}: there is no question to score")
    if len(requests) != len(answers):
        raise ValueError(f"{benchmark}: {len(answers)} answers to {len(requests)} questions")
    return _SCORERS[benchmark](requests, [answer.strip() for answer in answers])


def normalize_exact(text: str) -> str:
    """Lower case without punctuation, as lmms-eval's `exact_match` compares."""
    return text.strip().lower().translate(str.maketrans("", "", string.punctuation))


def _gqa(requests: Sequence[Request], answers: Sequence[str]) -> Score:
    right = tuple(
        float(normalize_exact(a) == normalize_exact(r.answers[0])) for r, a in zip(requests, answers, strict=True)
    )
    return Score("exact_match", sum(right) / len(right), 1.0, right)


_LETTER_DECORATIONS = (
    *(("", suffix) for suffix in ("", ".", ",", ":", ")", ").")),
    *(("(", suffix) for suffix in (")", ").")),
    *((":", suffix) for suffix in ("", ",", ".", ")", ").")),
)


def infer_letter(answer: str, options: dict[str, str]) -> str | None:
    """The option that an answer names: by exactly one letter standing alone, else by exactly one option's text.

    A lone "A" in a longer answer may be an article and does not count. lmms-eval's static scoring has a last resort
    after these two (letters anywhere in the text), which is not repeated here: such an answer names no option.
    """
    words = answer.split()
    for prefix, suffix in _LETTER_DECORATIONS:
        found = [letter for letter in "ABCDE" if f"{prefix}{letter}{suffix}" in words]
        may_be_article = not prefix and not suffix and "A" in words and len(words) > 3
        if len(found) == 1 and not may_be_article:
            return found[0]
    named = [letter for letter in "ABCD" if letter in options and str(options[letter]).lower() in answer.lower()]
    return named[0] if len(named) == 1 else None


def _mmbench(requests: Sequence[Request], answers: Sequence[str]) -> Score:
    letters = [infer_letter(answer, options_of(r.meta)) for r, answer in zip(requests, answers, strict=True)]
    right = tuple(float(letter == r.answers[0]) for r, letter in zip(requests, letters, strict=True))
    hits: dict[int, float] = {}
    for request, hit in zip(requests, right, strict=True):
        question = int(request.meta["index"]) % CIRCULAR
        hits[question] = min(hit, hits.get(question, 1.0))
    details = {"questions": float(len(hits)), "unreadable": float(letters.count(None))}
    return Score("gpt_eval_score", 100.0 * sum(hits.values()) / len(hits), 100.0, right, details)


def _yes_no_reference(request: Request) -> str:
    reference = request.answers[0].lower().strip().replace(".", "")
    if reference not in ("yes", "no"):
        raise DataError(f"{request.benchmark} question {request.id}: the answer is {reference!r}, neither yes nor no")
    return reference


def read_yes_no(answer: str) -> str | None:
    """MME's reading of an answer: exactly yes or no or their first letter, else one of them among the first four."""
    text = answer.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text)
    return next((word for word in ("yes", "no") if word in text[:4]), None)


def _mme(requests: Sequence[Request], answers: Sequence[str]) -> Score:
    read = [read_yes_no(answer) for answer in answers]
    right = tuple(float(a == _yes_no_reference(r)) for r, a in zip(requests, read, strict=True))
    pairs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for request, hit in zip(requests, right, strict=True):
        pairs[str(request.meta["category"])][str(request.meta["question_id"])].append(hit)
    details: dict[str, float] = {}
    for category, by_image in pairs.items():
        for question_id, hits in by_image.items():
            if len(hits) != 2:
                raise DataError(
                    f"MME question {question_id!r} ({category}): has {len(hits)} rows where the score needs two:"
                    " use the whole set, or an even limit"
                )
        details[category] = sum(50.0 * sum(hits) + 100.0 * (sum(hits) == 2) for hits in by_image.values())
        details[category] /= len(by_image)
    perception = [value for category, value in details.items() if category in MME_PERCEPTION]
    if not perception:
        raise DataError(
            f"MME: none of the categories {', '.join(details)} is one of perception: use the original names"
        )
    details["unreadable"] = float(read.count(None))
    return Score("mme_perception_score", sum(perception), 200.0 * len(perception), right, details)


def _pope(requests: Sequence[Request], answers: Sequence[str]) -> Score:
    read = [answer.lower() for answer in answers]
    references = [_yes_no_reference(request) for request in requests]
    right = tuple(float(a == b) for a, b in zip(read, references, strict=True))
    outcomes = list(zip(references, read, strict=True))
    true_positives = outcomes.count(("yes", "yes"))
    precision = _share(true_positives, outcomes.count(("no", "yes")))
    recall = _share(true_positives, outcomes.count(("yes", "no")))
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    details = {
        "pope_accuracy": sum(right) / len(right),
        "pope_precision": precision,
        "pope_recall": recall,
        "unreadable": float(sum(answer not in ("yes", "no") for answer in read)),
    }
    return Score("pope_f1_score", f1, 1.0, right, details)


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else 0.0


def _vqav2(requests: Sequence[Request], answers: Sequence[str]) -> Score:
    soft = tuple(_vqa_accuracy(a, r.answers) for r, a in zip(requests, answers, strict=True))
    return Score("exact_match", sum(soft) / len(soft), 1.0, soft)


def _vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Mean over the annotators of `min(1, matches among the others / 3)`."""
    answer = normalize_vqa_answer(answer)
    matches = [normalize_vqa_answer(reference) == answer for reference in references]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


_SCORERS: dict[str, Callable[[Sequence[Request], Sequence[str]], Score]] = {
    "GQA": _gqa,
    "MMBench": _mmbench,
    "MME": _mme,
    "POPE": _pope,
    "VQAv2": _vqav2,
}
