"""Scenes of the synthetic world: what is where, how it is said, how it is drawn, and which split it belongs to.

A scene is a grid of cells, each empty or holding one thing (a shape with a color and, if the settings ask for it, a
size). Its `description` is canonical: two scenes are the same exactly if their descriptions are. The split of a
scene is a pure function of its description, so no scene can be in two splits, however many are drawn.
"""

import hashlib
import math
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from voco_llama.errors import SettingsError
from voco_llama.toyworld.settings import ToyWorldSettings

RGB = {
    "red": (224, 40, 40),
    "green": (40, 176, 56),
    "blue": (48, 88, 240),
    "yellow": (240, 216, 40),
    "purple": (168, 56, 208),
    "cyan": (56, 208, 216),
    "orange": (248, 136, 24),
    "white": (240, 240, 240),
}
BACKGROUND = (56, 56, 56)
SPLITS = ["train"] * 55 + ["pretrain"] * 25 + ["val"] * 5 + ["test"] * 15
"""Each as often as its share of all scenes, percent."""
RADIUS = {"plain": 0.37, "small": 0.22, "medium": 0.31, "large": 0.41}
MAX_TRIES = 10_000


@dataclass(frozen=True, order=True)
class Thing:
    """One shape. `row` and `col` count cells from the top left; moving things stand between cells."""

    row: float
    col: float
    shape: str
    color: str
    size: str = "plain"

    @property
    def name(self) -> str:
        """Such as 'red circle', or 'small red circle' where size is an attribute."""
        return f"{self.color} {self.shape}" if self.size == "plain" else f"{self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """The things on a `grid` x `grid` board, in reading order."""

    grid: int
    things: tuple[Thing, ...]

    @property
    def description(self) -> str:
        """Canonical: the same for two scenes exactly if the same things stand in the same places."""
        return "; ".join(f"{thing.row:.3g},{thing.col:.3g} {thing.name}" for thing in sorted(self.things))

    @property
    def on_grid(self) -> bool:
        """Whether every thing stands in the middle of a cell."""
        return all(float(thing.row).is_integer() and float(thing.col).is_integer() for thing in self.things)


def choices_rng(settings: ToyWorldSettings, part: str) -> random.Random:
    """The random choices of one part of the world, independent of every other part's."""
    return random.Random(f"{settings.seed}/{part}")


def pixels_rng(settings: ToyWorldSettings, part: str) -> np.random.Generator:
    """The jitter and noise of one part of the world."""
    return np.random.default_rng([settings.seed, zlib.crc32(part.encode())])


def split_of(description: str) -> str:
    """The split that a scene or a clip belongs to, by the hash of its description."""
    return SPLITS[int.from_bytes(hashlib.blake2b(description.encode(), digest_size=8).digest()) % len(SPLITS)]


def sample_scene(settings: ToyWorldSettings, rng: random.Random) -> Scene:
    """A scene with at least one thing, of any split."""
    things: list[Thing] = []
    while not things:
        for cell in range(settings.grid**2):
            if rng.random() >= settings.empty:
                things.append(_sample_thing(settings, rng, *divmod(cell, settings.grid), things))
    return Scene(settings.grid, tuple(things))


def _sample_thing(settings: ToyWorldSettings, rng: random.Random, row: int, col: int, others: list[Thing]) -> Thing:
    """A thing for a cell; now and then it copies the color or the shape of one that is already there."""
    frequencies = [(1 - settings.skew) ** rank for rank in range(max(settings.shapes, settings.colors))]
    (shape,) = rng.choices(settings.shape_names, frequencies[: settings.shapes])
    (color,) = rng.choices(settings.color_names, frequencies[: settings.colors])
    if others and rng.random() < settings.companion:
        other = rng.choice(others)
        if rng.random() < 0.5:
            shape = other.shape
        else:
            color = other.color
    return Thing(row, col, shape, color, rng.choice(settings.size_names))


def draw_scenes(
    settings: ToyWorldSettings, split: str, count: int, rng: random.Random, unique: bool = False
) -> list[Scene]:
    """`count` scenes of one split; with `unique`, all different.

    Raises:
        SettingsError: If the world is too small to hold so many different scenes.
    """
    scenes: list[Scene] = []
    seen: set[str] = set()
    misses = 0
    while len(scenes) < count:
        scene = sample_scene(settings, rng)
        if split_of(scene.description) == split and not (unique and scene.description in seen):
            seen.add(scene.description)
            scenes.append(scene)
            misses = 0
        elif (misses := misses + 1) > MAX_TRIES:
            raise SettingsError(
                f"toy world: found only {len(scenes)} of {count} scenes for split {split!r}; "
                "use more colors, shapes or cells, or fewer images"
            )
    return scenes


def place_name(row: int, col: int, grid: int) -> str:
    """Such as 'top left' (2 x 2), 'middle center' (3 x 3), 'row 2 column 4' (larger boards)."""
    if grid > 3:
        return f"row {row + 1} column {col + 1}"
    rows, columns = ("top", "middle", "bottom"), ("left", "center", "right")
    return f"{rows[row * 2 // (grid - 1)]} {columns[col * 2 // (grid - 1)]}"


def place_names(grid: int) -> tuple[str, ...]:
    """The name of every cell, in reading order."""
    return tuple(place_name(row, col, grid) for row in range(grid) for col in range(grid))


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """Such as 'red circle top left, blue square bottom right', the things in reading order.

    `rng` shuffles the things, so that the words for their places must be seen and not counted off, and chooses which
    of color, shape and place is named first, second and third, so that things are found by each of them.
    """
    things = list(scene.things) if rng is None else rng.sample(scene.things, len(scene.things))
    order = range(3) if rng is None else rng.sample(range(3), 3)
    told = []
    for thing in things:
        place = place_name(int(thing.row), int(thing.col), scene.grid)
        parts = (thing.name.removesuffix(thing.shape).strip(), thing.shape, place)
        told.append(" ".join(parts[index] for index in order))
    return ", ".join(told)


def draw(scene: Scene, settings: ToyWorldSettings, rng: np.random.Generator) -> Image.Image:
    """Draws a scene, anti-aliased, with jitter and pixel noise: RGB, `image_size` x `image_size` pixels."""
    factor, size = settings.supersample, settings.image_size
    cell = size * factor / scene.grid
    shade = int(rng.integers(-8, 9))
    image = Image.new("RGB", (size * factor, size * factor), tuple(channel + shade for channel in BACKGROUND))
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        shift_x, shift_y = rng.uniform(-settings.jitter, settings.jitter, size=2)
        x, y = (thing.col + 0.5 + shift_x) * cell, (thing.row + 0.5 + shift_y) * cell
        radius = RADIUS[thing.size] * cell * rng.uniform(0.94, 1.06)
        fill = tuple(int(channel * rng.uniform(0.94, 1.0)) for channel in RGB[thing.color])
        OUTLINES[thing.shape](pen, x, y, radius, fill)
    pixels = np.asarray(image.reduce(factor), dtype=np.float32)
    pixels = pixels + rng.standard_normal(pixels.shape, dtype=np.float32) * settings.noise
    return Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))


Fill = tuple[int, ...]


def _circle(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: Fill) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _square(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: Fill) -> None:
    half = 0.9 * radius
    pen.rectangle((x - half, y - half, x + half, y + half), fill=fill)


def _cross(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: Fill) -> None:
    arm = 0.32 * radius
    pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
    pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)


def _polygon(corners: int, inner: float | None = None) -> Callable[..., None]:
    """A regular polygon standing on its axis; with `inner`, a star whose inner corners are at that fraction."""
    steps = corners if inner is None else 2 * corners

    def paint(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: Fill) -> None:
        points = []
        for step in range(steps):
            reach = 1.12 * radius * (inner if inner is not None and step % 2 else 1.0)
            angle = 2 * math.pi * step / steps
            points.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
        pen.polygon(points, fill=fill)

    return paint


OUTLINES: dict[str, Callable[..., None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _polygon(3),
    "cross": _cross,
    "star": _polygon(5, inner=0.42),
    "diamond": _polygon(4),
}
