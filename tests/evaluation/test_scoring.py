"""Scores by hand: an oracle gets the full mark, a constant answer what arithmetic says, odd answers are counted."""

import pytest

from tests.evaluation.files import request
from voco_llama.errors import DataError
from voco_llama.evaluation.scoring import infer_letter, read_yes_no, score
from voco_llama.evaluation.vqa_answers import normalize_vqa_answer

OPTIONS = {"A": "red", "B": "green", "C": "blue", "D": "nan"}


def gqa(*answers):
    return [request("GQA", answer, number) for number, answer in enumerate(answers)]


def mmbench(*pairs):
    return [request("MMBench", answer, index, index=index, **OPTIONS) for index, answer in pairs]


def mme(*rows):
    return [request("MME", answer, category=category, question_id=image) for category, image, answer in rows]


def pope(*answers):
    return [request("POPE", answer, number) for number, answer in enumerate(answers)]


QUESTIONS = {
    "GQA": gqa("red", "no", "left"),
    "MMBench": mmbench((1, "A"), (2, "B"), (1_000_001, "C")),
    "MME": mme(("count", "a", "Yes"), ("count", "a", "No"), ("color", "b", "Yes"), ("color", "b", "No")),
    "POPE": pope("yes", "no", "no"),
    "VQAv2": [request("VQAv2", ("two",) * 10), request("VQAv2", ("red",) * 10)],
}


@pytest.mark.parametrize(("name", "full"), [("GQA", 1), ("MMBench", 100), ("MME", 400), ("POPE", 1), ("VQAv2", 1)])
def test_oracle_gets_the_full_mark(name, full):
    requests = QUESTIONS[name]
    scored = score(name, requests, [r.answers[0] for r in requests])
    assert scored.value == scored.full == full
    assert scored.accuracy == 1
    assert scored.details.get("unreadable", 0) == 0


def test_gqa_ignores_case_and_punctuation_only():
    scored = score("GQA", gqa("red", "no", "left", "T-shirt"), [" Red.", "No!", "the left", "t shirt"])
    assert scored.per_question == (1, 1, 0, 0)
    assert scored.value == 0.5


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("B. green", "B"),
        ("Answer :C", "C"),
        ("green", "B"),
        ("It is Green", "B"),
        ("red or green", None),
        ("A B", None),
        ("A dog sits here", None),
        ("A red dog sits here", "A"),
        ("b", None),
        ("", None),
    ],
)
def test_letter_of_an_answer(answer, letter):
    assert infer_letter(answer, {"A": "red", "B": "green", "C": "blue"}) == letter


def test_mmbench_question_is_right_only_with_all_its_variants():
    requests = mmbench((1, "A"), (1_000_001, "B"), (2, "C"))
    scored = score("MMBench", requests, ["A", "A", "C"])
    assert scored.per_question == (1, 0, 1)
    assert scored.value == 50
    assert scored.details == {"questions": 2, "unreadable": 0}
    assert score("MMBench", requests, ["?", "B", "what"]).details["unreadable"] == 2


def test_mme_pairs_and_categories():
    requests = mme(
        ("count", "a", "Yes"),
        ("count", "a", "No"),
        ("count", "b", "Yes"),
        ("count", "b", "No"),
        ("color", "c", "Yes"),
        ("color", "c", "No"),
    )
    always_yes = score("MME", requests, ["yes"] * 6)  # half of each pair, no pair: 50 + 0 in both categories
    assert always_yes.value == 100
    assert always_yes.full == 400
    mixed = score("MME", requests, ["yes", "no", "yes", "yes", "hm", "hm"])  # count: (200 + 50) / 2, color: 0
    assert mixed.value == 125
    assert mixed.details == {"count": 125, "color": 0, "unreadable": 2}


def test_mme_leaves_cognition_out_of_the_perception_score():
    requests = mme(
        ("count", "a", "Yes"), ("count", "a", "No"), ("code_reasoning", "b", "Yes"), ("code_reasoning", "b", "No")
    )
    scored = score("MME", requests, ["yes", "no", "yes", "no"])
    assert (scored.value, scored.full) == (200, 200)
    assert scored.details["code_reasoning"] == 200


def test_mme_wants_pairs():
    with pytest.raises(DataError, match=r"'a' \(count\): has 1 rows where the score needs two"):
        score("MME", mme(("count", "a", "Yes")), ["yes"])


@pytest.mark.parametrize(
    ("answer", "word"),
    [("Yes.", "yes"), ("y", "yes"), ("N", "no"), ("No, it is", "no"), ("it is yes", None), ("x", None), ("", None)],
)
def test_yes_or_no_of_an_answer(answer, word):
    assert read_yes_no(answer) == word


def test_pope_by_hand():
    # references yes yes yes no no; answers: 2 true positives, 1 false negative, 1 false positive, 1 unreadable
    scored = score("POPE", pope("yes", "yes", "yes", "no", "no"), ["Yes", "yes", "no", "yes", "yes it is"])
    assert scored.details["pope_precision"] == pytest.approx(2 / 3)
    assert scored.details["pope_recall"] == pytest.approx(2 / 3)
    assert scored.value == pytest.approx(2 / 3)
    assert scored.details["pope_accuracy"] == pytest.approx(2 / 5)
    assert scored.details["unreadable"] == 1


@pytest.mark.parametrize(("constant", "f1"), [("yes", 2 / 3), ("no", 0.0)])
def test_pope_constant_answer(constant, f1):
    scored = score("POPE", pope("yes", "no", "yes", "no"), [constant] * 4)
    assert scored.value == pytest.approx(f1)
    assert scored.accuracy == 0.5


@pytest.mark.parametrize(
    ("matching", "accuracy"),
    # with m of ten alike: m annotators are left with m - 1 matches, the others with m
    [(0, 0), (1, 0.3), (2, (2 * 1 / 3 + 8 * 2 / 3) / 10), (3, (3 * 2 / 3 + 7) / 10), (4, 1), (10, 1)],
)
def test_vqa_soft_accuracy(matching, accuracy):
    references = ("red",) * matching + ("blue",) * (10 - matching)
    assert score("VQAv2", [request("VQAv2", references)], ["Red"]).value == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("The two dogs.", "2 dogs"),
        ("None", "0"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("yes/no", "yes no"),
        ("yes / no", "yes no"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("a\nT-shirt!", "t shirt"),
    ],
)
def test_vqa_normalization(answer, normalized):
    assert normalize_vqa_answer(answer) == normalized


def test_reference_that_is_no_yes_or_no():
    with pytest.raises(DataError, match="POPE question 0: the answer is 'maybe'"):
        score("POPE", pope("maybe"), ["yes"])


def test_number_of_answers_must_fit():
    with pytest.raises(ValueError, match="1 answers to 3 questions"):
        score("GQA", QUESTIONS["GQA"], ["red"])
    with pytest.raises(DataError, match="no question"):
        score("GQA", [], [])
