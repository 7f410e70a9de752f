"""Conversations in LLaVA's JSON layout: questions on an image, multiple choice, captions, and text-only tasks.

The prompts are those of LLaVA-1.5's instruction mix and of the evaluation tasks: short answers are asked for once, at
the first turn that wants one; multiple choice carries its options and its own prompt at every turn.

Which questions are asked is chosen so that no question alone gives its answer away: under every question text the
possible answers become evenly frequent, in the training data as evenly as the scenes allow, in the benchmarks exactly.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from voco_llama.data.records import IMAGE_MARK
from voco_llama.toyworld.questions import (
    CHOICE_PROMPT,
    LETTERS,
    OPTIONS_PROMPT,
    SHORT_PROMPT,
    TEMPLATES,
    WEIGHTS,
    YES_NO,
    Question,
)
from voco_llama.toyworld.scenes import Scene, caption
from voco_llama.toyworld.settings import ToyWorldSettings

CAPTION_PROMPTS = (
    "Describe the image concisely.",
    "Give a brief description of the image.",
    "Write a short caption for the image.",
    "What is in the image?",
)
CHOICE_KINDS = ("color", "shape", "position", "count")
OPPOSITES = (
    ("left", "right"),
    ("top", "bottom"),
    ("above", "below"),
    ("up", "down"),
    ("first", "last"),
    ("yes", "no"),
    ("more", "fewer"),
    ("small", "large"),
)
TEXT_TURNS = 4
TEXT_TASK_SHARE = 0.2

Pair = tuple[str, str]
Row = dict[str, Any]


class Balancer:
    """Chooses questions so that under each question text the answers become evenly frequent."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._asked: Counter[tuple[str, str]] = Counter()

    def choose(self, candidates: Iterable[Question]) -> Question | None:
        """The candidate asked least often so far with its answer; ties are broken at random.

        A yes/no question waits while its answer leads the other: there may be none to choose.
        """
        waiting = [entry for entry in candidates if entry.choices != YES_NO or self._lead(entry) <= 0]
        return self._least(waiting, lambda entry: self._asked[entry.text, entry.answer]) if waiting else None

    def most_owed(self, candidates: Iterable[Question]) -> Question:
        """The yes/no candidate whose text has had the other answer most often beyond this one."""
        return self._least(candidates, self._lead)

    def _least(self, candidates: Iterable[Question], rank: Callable[[Question], int]) -> Question:
        chosen = min(candidates, key=lambda entry: (rank(entry), self._rng.random()))
        self._asked[chosen.text, chosen.answer] += 1
        return chosen

    def _lead(self, question: Question) -> int:
        """How much more often a yes/no text was asked with this answer than with the other."""
        other = YES_NO[question.answer == YES_NO[0]]
        return self._asked[question.text, question.answer] - self._asked[question.text, other]


def balanced_groups(
    pool: list[list[Question]], quotas: dict[str, int], rng: random.Random
) -> list[tuple[int, Question]]:
    """Picks questions in groups: one text, asked once for each of its answers, each time about another scene.

    So the answers under each text are exactly uniform. The scenes least asked about are taken first.

    Args:
        pool: For each scene, its questions.
        quotas: Template -> about how many questions; rounded to whole groups, and short where scenes run out.
        rng: Order of the texts.

    Returns:
        (scene, question) pairs.
    """
    found: dict[str, dict[str, dict[str, list[int]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    asked_of: dict[tuple[int, str], Question] = {}
    for scene, questions in enumerate(pool):
        for question in questions:
            found[question.template][question.text][question.answer].append(scene)
            asked_of[scene, question.text] = question
    picked: list[tuple[int, Question]] = []
    load: Counter[int] = Counter()
    for template, quota in quotas.items():
        texts = [text for text, answers in found[template].items() if len(answers) > 1]
        rng.shuffle(texts)
        taken = 0
        while texts and taken < quota:
            for text in list(texts):
                scenes_of = found[template][text]
                if not all(scenes_of.values()):
                    texts.remove(text)
                elif taken < quota:
                    for scenes in scenes_of.values():
                        scene = min(scenes, key=lambda scene: (load[scene], rng.random()))
                        scenes.remove(scene)
                        load[scene] += 1
                        taken += 1
                        picked.append((scene, asked_of[scene, text]))
    return picked


def options_of(question: Question, rng: random.Random, letter: str | None = None) -> tuple[dict[str, str], str]:
    """Makes an open question multiple choice: letter -> option (at most four), and the right letter.

    The wrong options and the order are drawn; `letter`, if given, says where the right answer goes.
    """
    wrong = [choice for choice in question.choices if choice != question.answer]
    options = rng.sample(wrong, min(len(wrong), len(LETTERS) - 1))
    place = rng.randrange(len(options) + 1) if letter is None else LETTERS.index(letter)
    options.insert(place, question.answer)
    return dict(zip(LETTERS, options, strict=False)), LETTERS[place]


def choice_text(question: str, options: dict[str, str]) -> str:
    """The question with its options, character for character as the MMBench task asks it."""
    lines = "\n".join(f"{letter}. {option}" for letter, option in options.items())
    return f"{question} {OPTIONS_PROMPT}\n{lines}\n\n{CHOICE_PROMPT}"


def is_open(template: str) -> bool:
    """Whether its questions can become multiple choice: they are not yes or no, and of a kind MMBench asks."""
    kind, _, what = template.partition(".")
    return kind in CHOICE_KINDS and what != "verify"


def question_turns(scene: Scene, settings: ToyWorldSettings, balancer: Balancer, rng: random.Random) -> list[Pair]:
    """Asks `settings.turns` different questions of one scene; returns user and assistant texts, prompts included."""
    multiple = set(rng.sample(range(settings.turns), settings.choice_turns))
    names, weights = list(TEMPLATES), list(WEIGHTS.values())
    asked: set[str] = set()
    turns: list[Pair] = []
    prompted = False
    while len(turns) < settings.turns:
        name = rng.choices(names, weights)[0]
        is_choice = len(turns) in multiple
        if is_choice and not is_open(name):
            continue
        question = balancer.choose(entry for entry in TEMPLATES[name](scene, settings) if entry.text not in asked)
        if question is None:
            continue
        asked.add(question.text)
        if is_choice:
            options, letter = options_of(question, rng)
            turns.append((choice_text(question.text, options), letter))
        else:
            turns.append((question.text if prompted else f"{question.text}\n{SHORT_PROMPT}", question.answer))
            prompted = True
    return turns


def with_mark(text: str, rng: random.Random) -> str:
    """The text with the image's mark before it, or now and then after it."""
    return f"{text}\n{IMAGE_MARK}" if rng.random() < 0.25 else f"{IMAGE_MARK}\n{text}"


def row(record_id: str, turns: list[Pair], image: str | None = None) -> Row:
    """One record of LLaVA's JSON; text-only records have no `image`."""
    head: Row = {"id": record_id} if image is None else {"id": record_id, "image": image}
    conversations = []
    for user, assistant in turns:
        conversations += [{"from": "human", "value": user}, {"from": "gpt", "value": assistant}]
    return {**head, "conversations": conversations}


def caption_row(record_id: str, scene: Scene, image: str, rng: random.Random) -> Row:
    """An image and its caption, as in LLaVA's alignment data."""
    asked, described = _caption_turn(scene, rng)
    return row(record_id, [(with_mark(asked, rng), described)], image)


def instruct_row(
    record_id: str, scene: Scene, image: str, settings: ToyWorldSettings, balancer: Balancer, rng: random.Random
) -> Row:
    """An image, its questions, and last its caption, as LLaVA's instruction data mixes answers and descriptions."""
    (first, answer), *rest = question_turns(scene, settings, balancer, rng)
    return row(record_id, [(with_mark(first, rng), answer), *rest, _caption_turn(scene, rng)], image)


def described_row(
    record_id: str, scene: Scene, settings: ToyWorldSettings, balancer: Balancer, rng: random.Random
) -> Row:
    """Questions with the caption in the image's place: what a language model may know before it sees.

    The last turn asks for the caption, so that the words of captions are learned as answers too.
    """
    (first, answer), *rest = question_turns(scene, settings, balancer, rng)
    asked, described = _caption_turn(scene, rng)
    return row(record_id, [(f"{described}\n{first}", answer), *rest, (asked, described)])


def _caption_turn(scene: Scene, rng: random.Random) -> Pair:
    return rng.choice(CAPTION_PROMPTS), caption(scene, rng)


def text_row(record_id: str, settings: ToyWorldSettings, rng: random.Random) -> Row:
    """A few tasks that need no image."""
    tasks = rng.sample(TEXT_TASKS, min(TEXT_TURNS, len(TEXT_TASKS)))
    (first, answer), *rest = (task(settings, rng) for task in tasks)
    return row(record_id, [(f"{first}\n{SHORT_PROMPT}", answer), *rest])


def _words(settings: ToyWorldSettings, rng: random.Random, least: int, most: int) -> list[str]:
    return rng.choices(settings.color_names + settings.shape_names, k=rng.randint(least, most))


def _opposite(settings: ToyWorldSettings, rng: random.Random) -> Pair:
    one, other = rng.sample(rng.choice(OPPOSITES), 2)
    return f"What is the opposite of {one}?", other


def _repeat(settings: ToyWorldSettings, rng: random.Random) -> Pair:
    words = " ".join(_words(settings, rng, 1, 4))
    return f"Repeat: {words}", words


def _count_words(settings: ToyWorldSettings, rng: random.Random) -> Pair:
    words = _words(settings, rng, 1, 4)
    return f"How many words: {' '.join(words)}", str(len(words))


def _pick_word(settings: ToyWorldSettings, rng: random.Random) -> Pair:
    words = _words(settings, rng, 2, 4)
    which, index = rng.choice((("first", 0), ("last", -1)))
    return f"Which word is {which}: {' '.join(words)}", words[index]


def _kind_of_word(settings: ToyWorldSettings, rng: random.Random) -> Pair:
    kind, words = rng.choice((("color", settings.color_names), ("shape", settings.shape_names)))
    return f"Is {rng.choice(words)} a color or a shape?", kind


def _same_words(settings: ToyWorldSettings, rng: random.Random) -> Pair:
    one, other = rng.sample(settings.color_names + settings.shape_names, 2)
    if rng.random() < 0.5:
        other = one
    return f"Is {one} the same word as {other}?", "yes" if one == other else "no"


def _larger_number(settings: ToyWorldSettings, rng: random.Random) -> Pair:
    one, other = rng.sample(range(10), 2)
    return f"Which number is larger: {one} or {other}?", str(max(one, other))


TEXT_TASKS: tuple[Callable[[ToyWorldSettings, random.Random], Pair], ...] = (
    _opposite,
    _repeat,
    _count_words,
    _pick_word,
    _kind_of_word,
    _same_words,
    _larger_number,
)
