"""Short clips and questions on them, half of which only the order of the frames can answer.

Every clip comes with its time-reversed twin: the same frames, the same questions, another answer to each question on
order. So a model that sees the frames shuffled cannot tell the twins apart and is right on at most half of those
questions, however well it sees. (What it can see is which two answers are possible.)

Kinds of clips, each with a resting thing beside the actors now and then:

    move      a shape crosses the board                 'Which way does the circle move?'
    recolor   a shape changes its color                 'Which color came first?', 'Which color came last?'
    change    one shape gives way to another            'Which shape came first?', 'Which shape came last?'
    appear    a shape appears beside one, or leaves it  'Does the square appear or leave?'
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from voco_llama.errors import SettingsError
from voco_llama.toyworld.scenes import MAX_TRIES, Scene, Thing, split_of
from voco_llama.toyworld.settings import ToyWorldSettings

RESTING = 0.5


@dataclass(frozen=True)
class ClipQuestion:
    """A question on a clip. `needs_order`: shuffled frames cannot answer it."""

    text: str
    answer: str
    needs_order: bool


@dataclass(frozen=True)
class Clip:
    """Frames in order of time, a caption, and questions."""

    frames: tuple[Scene, ...]
    caption: str
    questions: tuple[ClipQuestion, ...]

    @property
    def description(self) -> str:
        """Canonical, and blind to the order of the frames, so that twins are one."""
        return " | ".join(sorted(frame.description for frame in self.frames))


Twins = tuple[Clip, Clip]


def draw_twins(settings: ToyWorldSettings, split: str, count: int, rng: random.Random) -> list[Twins]:
    """`count` clips of one split, each with its time-reversed twin.

    Clips to train on show no still scene that is kept for validation or test.

    Raises:
        SettingsError: If the world is too small for so many.
    """
    drawn: dict[str, Twins] = {}
    misses = 0
    held_back = {"val", "test"} if split == "train" else set()
    while len(drawn) < count:
        twins = KINDS[len(drawn) % len(KINDS)](settings, rng)
        clip = twins[0]
        shown = {split_of(frame.description) for frame in clip.frames if frame.on_grid}
        if split_of(clip.description) == split and clip.description not in drawn and not shown & held_back:
            drawn[clip.description] = twins
            misses = 0
        elif (misses := misses + 1) > MAX_TRIES:
            raise SettingsError(
                f"toy world: found only {len(drawn)} of {count} pairs of clips for split {split!r}; "
                "use more colors, shapes or cells, or fewer clips"
            )
    return list(drawn.values())


def _twins(
    frames: list[list[Thing]],
    settings: ToyWorldSettings,
    captions: tuple[str, str],
    ordered: list[tuple[str, str, str]],
    plain: tuple[str, str],
) -> Twins:
    """The clip and its reversal, from the frames, the caption of each, and the answers of each."""
    scenes = tuple(Scene(settings.grid, tuple(sorted(things))) for things in frames)
    still = ClipQuestion(*plain, needs_order=False)

    def clip(turn: int) -> Clip:
        on_order = (ClipQuestion(text, answers[turn], needs_order=True) for text, *answers in ordered)
        return Clip(scenes[::-1] if turn else scenes, captions[turn], (*on_order, still))

    return clip(0), clip(1)


def _cells(settings: ToyWorldSettings) -> list[tuple[int, int]]:
    return [(row, col) for row in range(settings.grid) for col in range(settings.grid)]


def _resting(settings: ToyWorldSettings, rng: random.Random, actors: list[Thing], path: list) -> list[Thing]:
    """Half of the time one thing off the path that shares neither color nor shape with the actors."""
    free = [cell for cell in _cells(settings) if cell not in path]
    shapes = [shape for shape in settings.shape_names if shape not in {actor.shape for actor in actors}]
    colors = [color for color in settings.color_names if color not in {actor.color for actor in actors}]
    if rng.random() >= RESTING or not (free and shapes and colors):
        return []
    return [Thing(*rng.choice(free), rng.choice(shapes), rng.choice(colors), rng.choice(settings.size_names))]


def _turning(
    settings: ToyWorldSettings, rng: random.Random, before: list[Thing], after: list[Thing]
) -> list[list[Thing]]:
    """Frames of one state and then of the other: at least one of each, as likely early as late."""
    turn = rng.randrange(1, settings.clip_frames)
    return [before] * turn + [after] * (settings.clip_frames - turn)


def _move(settings: ToyWorldSettings, rng: random.Random) -> Twins:
    shape, color = rng.choice(settings.shape_names), rng.choice(settings.color_names)
    size, line, last = rng.choice(settings.size_names), rng.randrange(settings.grid), settings.grid - 1
    across = rng.random() < 0.5
    path = [(line, step) if across else (step, line) for step in range(settings.grid)]
    ways = ("right", "left") if across else ("down", "up")
    actor = Thing(0, 0, shape, color, size)
    rest = _resting(settings, rng, [actor], path)
    frames = []
    for number in range(settings.clip_frames):
        along = last * number / (settings.clip_frames - 1)
        row, col = (line, along) if across else (along, line)
        frames.append([Thing(row, col, shape, color, size), *rest])
    captions = (f"the {actor.name} moves {ways[0]}", f"the {actor.name} moves {ways[1]}")
    ordered = [(f"Which way does the {shape} move?", *ways)]
    return _twins(frames, settings, captions, ordered, (f"What color is the {shape}?", color))


def _recolor(settings: ToyWorldSettings, rng: random.Random) -> Twins:
    shape, (one, other) = rng.choice(settings.shape_names), rng.sample(settings.color_names, 2)
    size, cell = rng.choice(settings.size_names), rng.choice(_cells(settings))
    before, after = Thing(*cell, shape, one, size), Thing(*cell, shape, other, size)
    rest = _resting(settings, rng, [before, after], [cell])
    frames = _turning(settings, rng, [before, *rest], [after, *rest])
    captions = (f"the {shape} turns from {one} to {other}", f"the {shape} turns from {other} to {one}")
    ordered = [("Which color came first?", one, other), ("Which color came last?", other, one)]
    return _twins(frames, settings, captions, ordered, ("Which shape changes color?", shape))


def _change(settings: ToyWorldSettings, rng: random.Random) -> Twins:
    one, other = rng.sample(settings.shape_names, 2)
    color, size, cell = rng.choice(settings.color_names), rng.choice(settings.size_names), rng.choice(_cells(settings))
    before, after = Thing(*cell, one, color, size), Thing(*cell, other, color, size)
    rest = _resting(settings, rng, [before, after], [cell])
    frames = _turning(settings, rng, [before, *rest], [after, *rest])
    captions = (f"the {before.name} turns into a {other}", f"the {after.name} turns into a {one}")
    ordered = [("Which shape came first?", one, other), ("Which shape came last?", other, one)]
    return _twins(frames, settings, captions, ordered, (f"What color is the {rng.choice((one, other))}?", color))


def _appear(settings: ToyWorldSettings, rng: random.Random) -> Twins:
    shape, other_shape = rng.sample(settings.shape_names, 2)
    color, other_color = rng.sample(settings.color_names, 2)
    cell, other_cell = rng.sample(_cells(settings), 2)
    guest = Thing(*cell, shape, color, rng.choice(settings.size_names))
    host = Thing(*other_cell, other_shape, other_color, rng.choice(settings.size_names))
    frames = _turning(settings, rng, [host], [host, guest])
    captions = (f"the {guest.name} appears", f"the {guest.name} leaves")
    ordered = [(f"Does the {shape} appear or leave?", "appear", "leave")]
    return _twins(frames, settings, captions, ordered, (f"What color is the {other_shape}?", other_color))


KINDS: tuple[Callable[[ToyWorldSettings, random.Random], Twins], ...] = (_move, _recolor, _change, _appear)
