"""Questions: right, and no question gives its answer away."""

import random
from collections import Counter, defaultdict

import pytest

from voco_llama.toyworld import ToyWorldSettings
from voco_llama.toyworld.dialogues import (
    CAPTION_PROMPTS,
    TEXT_TASKS,
    Balancer,
    balanced_groups,
    choice_text,
    instruct_row,
    options_of,
    question_turns,
    text_row,
)
from voco_llama.toyworld.questions import SHORT_PROMPT, TEMPLATES, Question, all_questions
from voco_llama.toyworld.scenes import Scene, Thing, draw_scenes

SETTINGS = ToyWorldSettings()
#   red circle   | blue square
#   (empty)      | red triangle
SCENE = Scene(2, (Thing(0, 0, "circle", "red"), Thing(0, 1, "square", "blue"), Thing(1, 1, "triangle", "red")))
ANSWERS = {
    "color.of_shape": {"What color is the circle?": "red", "What color is the square?": "blue"},
    "color.at": {"What color is the top right shape?": "blue", "What color is the bottom right shape?": "red"},
    "color.verify": {"Is the circle red?": "yes", "Is the circle blue?": "no"},
    "shape.of_color": {"Which shape is blue?": "square"},
    "shape.at": {"Which shape is top left?": "circle", "Which shape is bottom right?": "triangle"},
    "shape.verify": {"Is the blue shape a square?": "yes", "Is the blue shape a circle?": "no"},
    "position.of_shape": {"Where is the triangle?": "bottom right"},
    "position.of_color": {"Where is the blue shape?": "top right"},
    "position.of_thing": {"Where is the red circle?": "top left", "Where is the red triangle?": "bottom right"},
    "position.verify": {"Is the square top right?": "yes", "Is the square bottom right?": "no"},
    "count.all": {"How many shapes are there?": "3"},
    "count.some": {
        "How many red shapes are there?": "2",
        "How many circles are there?": "1",
        "How many crosses are there?": "0",
    },
    "count.verify": {"Are there exactly 2 red shapes?": "yes", "Is there exactly 1 red shape?": "no"},
    "existence.thing": {"Is there a red circle?": "yes", "Is there a red square?": "no"},
    "existence.part": {"Is there a cross?": "no", "Is there a blue shape?": "yes", "Is there a green shape?": "no"},
    "relation.shapes": {
        "Is the circle left of the square?": "yes",
        "Is the circle left of the triangle?": "yes",
        "Is the square left of the triangle?": "no",
        "Is the circle above the triangle?": "yes",
        "Is the triangle above the circle?": "no",
        "Is the triangle right of the circle?": "yes",
        "Is the circle below the square?": "no",
    },
    "relation.colors": {},
    "relation.neighbor": {
        "Which shape is right of the circle?": "square",
        "Which shape is below the square?": "triangle",
        "Which shape is above the triangle?": "square",
    },
    "comparison.more": {
        "Are there more circles than crosses?": "yes",
        "Are there more circles than squares?": "no",
        "Are there more red than blue shapes?": "yes",
    },
    "comparison.color": {
        "Is the circle the same color as the triangle?": "yes",
        "Is the circle the same color as the square?": "no",
    },
}


@pytest.mark.parametrize("template", ANSWERS)
def test_answers_are_right(template: str) -> None:
    given = {question.text: question.answer for question in TEMPLATES[template](SCENE, SETTINGS)}
    assert ANSWERS[template].items() <= given.items()


def test_every_template_is_tested() -> None:
    assert {name for name in TEMPLATES if not name.startswith("size.")} == set(ANSWERS)


def test_questions_without_one_referent_are_not_asked() -> None:
    texts = {question.text for question in all_questions(SCENE, SETTINGS)}
    assert not texts & {"Which shape is red?", "Where is the red shape?", "What color is the cross?"}
    assert "Which shape is left of the triangle?" not in texts


def test_sizes_are_asked_where_they_are_an_attribute() -> None:
    settings = ToyWorldSettings(sizes=2)
    scene = Scene(2, (Thing(0, 0, "circle", "red", "small"), Thing(0, 1, "square", "blue", "large")))
    given = {question.text: question.answer for question in all_questions(scene, settings)}
    assert given["What size is the circle?"] == "small"
    assert given["Is the square larger than the circle?"] == "yes"
    assert given["Is the circle larger than the square?"] == "no"
    assert not any(question.kind == "size" for question in all_questions(SCENE, SETTINGS))


@pytest.mark.parametrize("settings", [SETTINGS, ToyWorldSettings(grid=3, image_size=48), ToyWorldSettings(sizes=3)])
def test_answers_are_among_the_choices(settings: ToyWorldSettings) -> None:
    for scene in draw_scenes(settings, "train", 40, random.Random(0)):
        for question in all_questions(scene, settings):
            assert question.answer in question.choices
            assert question.answer == question.answer.lower()


def best_guess(asked: list[tuple[str, str]]) -> float:
    """Accuracy of always giving each text's most frequent answer."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in asked:
        answers[text][answer] += 1
    return sum(max(given.values()) for given in answers.values()) / len(asked)


def asked_in(rows: list[dict]) -> list[tuple[str, str]]:
    """(question without prompts and marks, answer) of every turn that is not multiple choice."""
    pairs = []
    for row in rows:
        turns = row["conversations"]
        for user, assistant in zip(turns[::2], turns[1::2], strict=True):
            text = user["value"].replace("<image>", "").replace(SHORT_PROMPT, "").strip()
            if "options" not in text and text not in CAPTION_PROMPTS:
                pairs.append((text, assistant["value"]))
    return pairs


@pytest.mark.slow
def test_training_questions_do_not_give_their_answers_away() -> None:
    rng = random.Random(0)
    balancer = Balancer(rng)
    scenes = draw_scenes(SETTINGS, "train", 8000, rng)
    rows = [instruct_row(str(number), scene, "x.png", SETTINGS, balancer, rng) for number, scene in enumerate(scenes)]
    asked = asked_in(rows)
    assert best_guess(asked) < 0.42
    yes_no = Counter((text, answer) for text, answer in asked if answer in ("yes", "no"))
    assert len(yes_no) > 400
    assert all(abs(yes_no[text, "yes"] - yes_no[text, "no"]) <= 1 for text, _ in yes_no)
    colors = Counter(answer for text, answer in asked if text.startswith("What color"))
    assert max(colors.values()) < 1.1 * min(colors.values())
    kinds = Counter(len(row["conversations"]) for row in rows)
    assert set(kinds) == {2 * (SETTINGS.turns + 1)}  # the caption comes last


def test_balanced_groups_are_uniform() -> None:
    rng = random.Random(0)
    pool = [all_questions(scene, SETTINGS) for scene in draw_scenes(SETTINGS, "test", 100, rng)]
    picked = balanced_groups(pool, {"color.at": 60, "existence.thing": 40}, rng)
    assert 100 <= len(picked) <= 108
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for scene, question in picked:
        assert question in pool[scene]
        answers[question.text][question.answer] += 1
    assert all(len(set(given.values())) == 1 and len(given) > 1 for given in answers.values())
    assert len({(scene, question.text) for scene, question in picked}) == len(picked)
    assert max(Counter(scene for scene, _ in picked).values()) <= 3


def test_prompts_of_a_conversation() -> None:
    """LLaVA's habit: one mark, at the first turn; the short-answer prompt once; options with a prompt of their own."""
    rng = random.Random(0)
    balancer = Balancer(rng)
    marks = Counter()
    for _ in range(100):
        turns = instruct_row("x", SCENE, "x.png", SETTINGS, balancer, rng)["conversations"]
        users = [turn["value"] for turn in turns[::2]]
        marks["before" if users[0].startswith("<image>\n") else "after"] += 1
        assert users[0].startswith("<image>\n") or users[0].endswith("\n<image>")
        assert sum(user.count("<image>") for user in users) == 1
        assert sum(SHORT_PROMPT in user for user in users) == 1
        assert sum("options" in user for user in users) == SETTINGS.choice_turns
        first_short = next(user for user in users if "options" not in user)
        assert SHORT_PROMPT in first_short
        assert len(set(users)) == len(users)
    assert marks["before"] > marks["after"] > 0


def test_choice_layout_is_the_tasks() -> None:
    options = {"A": "red", "B": "blue", "C": "green", "D": "cyan"}
    assert choice_text("What color is the circle?", options) == (
        "What color is the circle? There are several options:\nA. red\nB. blue\nC. green\nD. cyan\n\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_options_hold_the_answer_at_its_letter() -> None:
    question = Question("What color is the circle?", "red", "color.of_shape", SETTINGS.color_names, "x")
    letters = Counter()
    for seed in range(200):
        options, letter = options_of(question, random.Random(seed))
        letters[letter] += 1
        assert options[letter] == "red"
        assert list(options) == list("ABCD")
        assert len(set(options.values())) == 4
    assert min(letters.values()) > 30
    assert options_of(question, random.Random(0), "C")[1] == "C"


def test_text_tasks() -> None:
    seen = defaultdict(dict)
    for task in TEXT_TASKS:
        for seed in range(300):
            text, answer = task(SETTINGS, random.Random(seed))
            assert seen[task].setdefault(text, answer) == answer
    solved = {text: answer for given in seen.values() for text, answer in given.items()}
    assert solved["What is the opposite of left?"] == "right"
    assert solved["Is red a color or a shape?"] == "color"
    assert solved["Is circle a color or a shape?"] == "shape"
    for text, answer in solved.items():
        head, _, words = text.partition(": ")
        if head == "Repeat":
            assert answer == words
        elif head == "How many words":
            assert answer == str(len(words.split()))
        elif head == "Which word is first":
            assert answer == words.split()[0]


def test_text_rows_have_no_image() -> None:
    row = text_row("t", SETTINGS, random.Random(0))
    assert "image" not in row
    assert not any("<image>" in turn["value"] for turn in row["conversations"])


def test_a_bare_scene_has_enough_questions() -> None:
    settings = ToyWorldSettings(colors=2, shapes=2, turns=12, choice_turns=4)
    rng = random.Random(0)
    balancer = Balancer(rng)
    bare = Scene(2, (Thing(0, 0, "circle", "red"),))
    for _ in range(50):
        assert len(question_turns(bare, settings, balancer, rng)) == 12
