"""Questions about a scene, with their answers.

A template lists every question it can ask of a scene. Which of them is asked is decided in `dialogues`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import NamedTuple

from voco_llama.toyworld.scenes import Scene, Thing, place_name, place_names
from voco_llama.toyworld.settings import ToyWorldSettings

SHORT_PROMPT = "Answer the question using a single word or phrase."
OPTIONS_PROMPT = "There are several options:"
CHOICE_PROMPT = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCD"
PHRASES = (
    f"\n{SHORT_PROMPT}",
    OPTIONS_PROMPT,
    f"\n\n{CHOICE_PROMPT}",
    *(f"\n{letter}." for letter in LETTERS),
    *("Is there a", "Which shape is", "What color is the", "Where is the", "How many", "are there?", "Are there more"),
    *("Is there exactly 1", "Are there exactly", "Is the", "the same color as the", "left of the", "right of the"),
)
"""Fixed stretches of the questions' text; the tiny tokenizer has one token for each, which makes rows short."""
YES_NO = ("yes", "no")
MOST_COUNTED = 3
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


class Question(NamedTuple):
    """One question about one scene.

    Attributes:
        text: The question, without any prompt.
        answer: One word or a short phrase, lower case.
        template: Which template asks, such as `color.of_shape`; the part before the dot is its kind.
        choices: Every answer this question could have in some scene.
        subject: What it is about, the value asked for left out; a yes and a no on one subject make an MME pair.
    """

    text: str
    answer: str
    template: str
    choices: tuple[str, ...]
    subject: str

    @property
    def kind(self) -> str:
        """Such as `color`, `existence`, `relation`."""
        return self.template.partition(".")[0]


Template = Callable[[Scene, ToyWorldSettings], Iterator[Question]]
TEMPLATES: dict[str, Template] = {}
WEIGHTS: dict[str, float] = {}


def _template(name: str, weight: float) -> Callable[[Callable[..., Iterator[tuple]]], Template]:
    """Registers a generator of `(text, answer, choices[, subject])` as the template `name`, asked `weight` as often."""

    def register(ask: Callable[..., Iterator[tuple]]) -> Template:
        def questions(scene: Scene, settings: ToyWorldSettings) -> Iterator[Question]:
            for text, answer, choices, *subject in ask(scene, settings):
                yield Question(text, answer, name, tuple(choices), subject[0] if subject else text)

        TEMPLATES[name], WEIGHTS[name] = questions, weight
        return questions

    return register


def all_questions(scene: Scene, settings: ToyWorldSettings) -> list[Question]:
    """Every question every template can ask of a scene."""
    return [question for ask in TEMPLATES.values() for question in ask(scene, settings)]


def plural(shape: str) -> str:
    """Such as 'crosses'."""
    return f"{shape}es" if shape.endswith(("s", "x")) else f"{shape}s"


def _words(thing: Thing, scene: Scene) -> dict[str, str]:
    """What can be said of a thing."""
    place = place_name(int(thing.row), int(thing.col), scene.grid)
    return {"shape": thing.shape, "color": thing.color, "size": thing.size, "name": thing.name, "place": place}


def _lone(scene: Scene, word: str) -> list[Thing]:
    """The things that are the only one of their shape, color, name or place."""
    said = [_words(thing, scene)[word] for thing in scene.things]
    return [thing for thing, own in zip(scene.things, said, strict=True) if said.count(own) == 1]


def _yes(holds: bool) -> str:
    return YES_NO[0] if holds else YES_NO[1]


def _about_one(known: str, asked: str, text: str, subject: str | None = None) -> Callable[..., Iterator[tuple]]:
    """Questions on each thing that what is `known` of it tells apart: what `asked` is.

    With a `subject` they are answered yes or no, one for every `{value}` that what is asked could have.
    """

    def ask(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
        names = {"shape": settings.shape_names, "color": settings.color_names, "size": settings.size_names}
        values = names[asked] if asked in names else place_names(scene.grid)
        if len(values) == 1:
            return  # size is no attribute in this world
        for thing in _lone(scene, known):
            words = _words(thing, scene)
            if subject is None:
                yield text.format_map(words), words[asked], values
                continue
            for value in values:
                yield text.format(**words, value=value), _yes(value == words[asked]), YES_NO, subject.format_map(words)

    return ask


_template("color.of_shape", 2)(_about_one("shape", "color", "What color is the {shape}?"))
_template("color.at", 2)(_about_one("place", "color", "What color is the {place} shape?"))
_template("color.verify", 2)(_about_one("shape", "color", "Is the {shape} {value}?", "color of the {shape}"))
_template("shape.of_color", 2)(_about_one("color", "shape", "Which shape is {color}?"))
_template("shape.at", 2)(_about_one("place", "shape", "Which shape is {place}?"))
_template("shape.verify", 1)(_about_one("color", "shape", "Is the {color} shape a {value}?", "the {color} shape"))
_template("position.of_shape", 3)(_about_one("shape", "place", "Where is the {shape}?"))
_template("position.of_color", 1)(_about_one("color", "place", "Where is the {color} shape?"))
_template("position.of_thing", 1)(_about_one("name", "place", "Where is the {name}?"))
_template("position.verify", 2)(_about_one("shape", "place", "Is the {shape} {value}?", "place of the {shape}"))


@_template("count.all", 0.5)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    numbers = tuple(str(number) for number in range(1, scene.grid**2 + 1))
    yield "How many shapes are there?", str(len(scene.things)), numbers


def _counts(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple[str, str, int]]:
    """What can be counted: its name in the singular and the plural, and its number where that is small enough."""
    shapes = Counter(thing.shape for thing in scene.things)
    colors = Counter(thing.color for thing in scene.things)
    named = [(shape, plural(shape), shapes[shape]) for shape in settings.shape_names]
    named += [(f"{color} shape", f"{color} shapes", colors[color]) for color in settings.color_names]
    return (entry for entry in named if entry[2] <= MOST_COUNTED)


@_template("count.some", 1)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    numbers = tuple(str(number) for number in range(MOST_COUNTED + 1))
    for _, names, number in _counts(scene, settings):
        yield f"How many {names} are there?", str(number), numbers


@_template("count.verify", 0.5)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    for name, names, number in _counts(scene, settings):
        for asked in range(1, MOST_COUNTED + 1):
            what = f"Is there exactly 1 {name}?" if asked == 1 else f"Are there exactly {asked} {names}?"
            yield what, _yes(asked == number), YES_NO, f"number of {names}"


@_template("existence.thing", 3)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    present = {(thing.color, thing.shape) for thing in scene.things}
    for color in settings.color_names:
        for shape in settings.shape_names:
            yield f"Is there a {color} {shape}?", _yes((color, shape) in present), YES_NO, "existence"


@_template("existence.part", 1)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    colors, shapes = {thing.color for thing in scene.things}, {thing.shape for thing in scene.things}
    for color in settings.color_names:
        yield f"Is there a {color} shape?", _yes(color in colors), YES_NO, "existence"
    for shape in settings.shape_names:
        yield f"Is there a {shape}?", _yes(shape in shapes), YES_NO, "existence"


def _side(known: str, text: str) -> Callable[..., Iterator[tuple]]:
    """Whether one thing stands on a side of another, at any distance and height."""

    def ask(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
        for one, other in permutations(_lone(scene, known), 2):
            for side, (down, right) in SIDES.items():
                stands = (one.row - other.row) * down > 0 or (one.col - other.col) * right > 0
                asked = text.format(one=getattr(one, known), side=side, other=getattr(other, known))
                yield asked, _yes(stands), YES_NO

    return ask


_template("relation.shapes", 1)(_side("shape", "Is the {one} {side} the {other}?"))
_template("relation.colors", 0.5)(_side("color", "Is the {one} shape {side} the {other} shape?"))


@_template("relation.neighbor", 0.5)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    at = {(thing.row, thing.col): thing for thing in scene.things}
    for thing in _lone(scene, "shape"):
        others = tuple(shape for shape in settings.shape_names if shape != thing.shape)
        for side, (down, right) in SIDES.items():
            neighbor = at.get((thing.row + down, thing.col + right))
            if neighbor is not None:
                yield f"Which shape is {side} the {thing.shape}?", neighbor.shape, others


@_template("comparison.more", 0.5)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    shapes = Counter(thing.shape for thing in scene.things)
    colors = Counter(thing.color for thing in scene.things)
    for one, other in permutations(settings.shape_names, 2):
        yield f"Are there more {plural(one)} than {plural(other)}?", _yes(shapes[one] > shapes[other]), YES_NO
    for one, other in permutations(settings.color_names, 2):
        yield f"Are there more {one} than {other} shapes?", _yes(colors[one] > colors[other]), YES_NO


@_template("comparison.color", 0.5)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    for one, other in permutations(_lone(scene, "shape"), 2):
        yield f"Is the {one.shape} the same color as the {other.shape}?", _yes(one.color == other.color), YES_NO


_template("size.of_shape", 1)(_about_one("shape", "size", "What size is the {shape}?"))


@_template("size.compare", 1)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    if settings.sizes > 1:
        rank = settings.size_names.index
        for one, other in permutations(_lone(scene, "shape"), 2):
            larger = rank(one.size) > rank(other.size)
            yield f"Is the {one.shape} larger than the {other.shape}?", _yes(larger), YES_NO
