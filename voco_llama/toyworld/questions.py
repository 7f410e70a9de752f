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


def _lone(scene: Scene, key: Callable[[Thing], str]) -> list[Thing]:
    """The things that are the only one of their `key` in the scene."""
    seen = Counter(key(thing) for thing in scene.things)
    return [thing for thing in scene.things if seen[key(thing)] == 1]


def _lone_shapes(scene: Scene) -> list[Thing]:
    return _lone(scene, lambda thing: thing.shape)


def _lone_colors(scene: Scene) -> list[Thing]:
    return _lone(scene, lambda thing: thing.color)


def _place(thing: Thing, scene: Scene) -> str:
    return place_name(int(thing.row), int(thing.col), scene.grid)


def _yes(holds: bool) -> str:
    return YES_NO[0] if holds else YES_NO[1]


@_template("color.of_shape", 2)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    for thing in _lone_shapes(scene):
        yield f"What color is the {thing.shape}?", thing.color, settings.color_names


@_template("color.at", 2)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    for thing in scene.things:
        yield f"What color is the {_place(thing, scene)} shape?", thing.color, settings.color_names


@_template("color.verify", 2)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    for thing in _lone_shapes(scene):
        for color in settings.color_names:
            yield f"Is the {thing.shape} {color}?", _yes(color == thing.color), YES_NO, f"color of the {thing.shape}"


@_template("shape.of_color", 2)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    for thing in _lone_colors(scene):
        yield f"Which shape is {thing.color}?", thing.shape, settings.shape_names


@_template("shape.at", 2)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    for thing in scene.things:
        yield f"Which shape is {_place(thing, scene)}?", thing.shape, settings.shape_names


@_template("shape.verify", 1)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    for thing in _lone_colors(scene):
        for shape in settings.shape_names:
            yield (
                f"Is the {thing.color} shape a {shape}?",
                _yes(shape == thing.shape),
                YES_NO,
                f"the {thing.color} shape",
            )


@_template("position.of_shape", 3)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    for thing in _lone_shapes(scene):
        yield f"Where is the {thing.shape}?", _place(thing, scene), place_names(scene.grid)


@_template("position.of_color", 1)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    for thing in _lone_colors(scene):
        yield f"Where is the {thing.color} shape?", _place(thing, scene), place_names(scene.grid)


@_template("position.of_thing", 1)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    for thing in _lone(scene, lambda thing: thing.name):
        yield f"Where is the {thing.name}?", _place(thing, scene), place_names(scene.grid)


@_template("position.verify", 2)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    for thing in _lone_shapes(scene):
        for place in place_names(scene.grid):
            yield (
                f"Is the {thing.shape} {place}?",
                _yes(place == _place(thing, scene)),
                YES_NO,
                f"place of the {thing.shape}",
            )


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


def _stands(one: Thing, side: str, other: Thing) -> bool:
    """Whether `one` is on that side of `other`, at any distance and height."""
    down, right = SIDES[side]
    return (one.row - other.row) * down > 0 if down else (one.col - other.col) * right > 0


@_template("relation.shapes", 1)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    for one, other in permutations(_lone_shapes(scene), 2):
        for side in SIDES:
            yield f"Is the {one.shape} {side} the {other.shape}?", _yes(_stands(one, side, other)), YES_NO


@_template("relation.colors", 0.5)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    for one, other in permutations(_lone_colors(scene), 2):
        for side in SIDES:
            what = f"Is the {one.color} shape {side} the {other.color} shape?"
            yield what, _yes(_stands(one, side, other)), YES_NO


@_template("relation.neighbor", 0.5)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    at = {(thing.row, thing.col): thing for thing in scene.things}
    for thing in _lone_shapes(scene):
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
    for one, other in permutations(_lone_shapes(scene), 2):
        yield f"Is the {one.shape} the same color as the {other.shape}?", _yes(one.color == other.color), YES_NO


@_template("size.of_shape", 1)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    if settings.sizes > 1:
        for thing in _lone_shapes(scene):
            yield f"What size is the {thing.shape}?", thing.size, settings.size_names


@_template("size.compare", 1)
def _(scene: Scene, settings: ToyWorldSettings) -> Iterator[tuple]:
    if settings.sizes > 1:
        rank = settings.size_names.index
        for one, other in permutations(_lone_shapes(scene), 2):
            larger = rank(one.size) > rank(other.size)
            yield f"Is the {one.shape} larger than the {other.shape}?", _yes(larger), YES_NO
