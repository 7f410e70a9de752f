"""Scenes: canonical, drawn the same from the same seed, and in one split only."""

import random
from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest

from voco_llama.errors import SettingsError
from voco_llama.toyworld import ToyWorldSettings, World, clips, plan_world, scenes
from voco_llama.toyworld.scenes import Scene, Thing, caption, draw, draw_scenes, place_name, sample_scene

SMALL = ToyWorldSettings(
    pretrain_images=300, instruct_images=600, val_images=40, text_rows=300, clips_train=80, clips_test=40,
    benchmark_images=30,
)  # fmt: skip
NARROW = ToyWorldSettings(
    colors=3, shapes=3, pretrain_images=300, instruct_images=300, val_images=100, text_rows=0, clips_train=200,
    clips_test=20, benchmark_images=20,
)  # fmt: skip
# Parts that one split serves: both are for training.
SAME_SPLIT = {("pretrain", "text")}


def shared_scenes(world: World) -> dict[tuple[str, str], set[str]]:
    """The descriptions that two parts of different splits have in common, by the parts' names."""
    described = {part: {scene.description for scene in found} for part, found in world.scenes.items()}
    pairs = [pair for pair in combinations(described, 2) if pair not in SAME_SPLIT]
    return {pair: both for pair in pairs if (both := described[pair[0]] & described[pair[1]])}


def shared_clips(world: World) -> set[str]:
    train, test = ({clip.description for clip, _ in world.clips[split]} for split in ("train", "test"))
    return train & test


def leaked_frames(world: World) -> set[str]:
    """Validation and benchmark scenes that a training clip shows."""
    frames = {frame.description for twins in world.clips["train"] for frame in twins[0].frames}
    held_out = [part for part in world.scenes if part == "val" or part.startswith("benchmark")]
    return frames & {scene.description for part in held_out for scene in world.scenes[part]}


@pytest.mark.parametrize("settings", [SMALL, NARROW], ids=["default difficulty", "few scenes"])
def test_splits_are_disjoint(settings: ToyWorldSettings) -> None:
    world = plan_world(settings)
    assert [len(world.scenes[part]) for part in ("pretrain", "train", "val")] == [
        settings.pretrain_images,
        settings.instruct_images,
        settings.val_images,
    ]
    assert shared_scenes(world) == {}
    assert shared_clips(world) == set()
    assert leaked_frames(world) == set()


def test_a_broken_split_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above fail where the split does not depend on the scene."""
    rng = random.Random(0)

    def any_split(description: str) -> str:
        return rng.choice(scenes.SPLITS)

    monkeypatch.setattr(scenes, "split_of", any_split)
    monkeypatch.setattr(clips, "split_of", any_split)
    world = plan_world(NARROW)
    assert shared_scenes(world)
    assert leaked_frames(world)


def test_benchmark_scenes_are_all_different() -> None:
    world = plan_world(SMALL)
    tested = [scene.description for part, found in world.scenes.items() if "benchmark" in part for scene in found]
    assert len(tested) == len(set(tested)) == 5 * SMALL.benchmark_images


def test_every_split_is_used() -> None:
    rng = random.Random(0)
    drawn = [scenes.split_of(scenes.sample_scene(SMALL, rng).description) for _ in range(4000)]
    shares = Counter(scenes.SPLITS)
    assert shares == {"train": 55, "pretrain": 25, "val": 5, "test": 15}
    for split, share in shares.items():
        assert drawn.count(split) / len(drawn) == pytest.approx(share / 100, abs=0.03)


def test_description_is_canonical() -> None:
    one, other = Thing(0, 1, "circle", "red"), Thing(1, 0, "square", "blue")
    assert Scene(2, (one, other)).description == Scene(2, (other, one)).description == "0,1 red circle; 1,0 blue square"
    assert Scene(2, (Thing(0, 1 / 3, "circle", "red"),)).description == "0,0.333 red circle"


def test_caption() -> None:
    scene = Scene(2, (Thing(0, 1, "circle", "red"), Thing(1, 0, "square", "blue", "small")))
    assert caption(scene) == "red circle top right, small blue square bottom left"


def test_place_names() -> None:
    assert [place_name(1, 1, 2), place_name(1, 1, 3), place_name(0, 3, 4)] == [
        "bottom right",
        "middle center",
        "row 1 column 4",
    ]


def test_drawing_follows_from_its_seed() -> None:
    scene = draw_scenes(SMALL, "train", 1, random.Random(0))[0]
    one, again, other = (np.asarray(draw(scene, SMALL, np.random.default_rng(seed))) for seed in (0, 0, 1))
    assert one.shape == (32, 32, 3)
    assert (one == again).all()
    assert (one != other).any()


@pytest.mark.parametrize("shape", scenes.OUTLINES)
@pytest.mark.parametrize("color", scenes.RGB)
def test_a_shape_is_where_it_should_be(shape: str, color: str) -> None:
    settings = ToyWorldSettings(colors=8, shapes=6, noise=0, jitter=0)
    scene = Scene(2, (Thing(1, 0, shape, color),))
    pixels = np.asarray(draw(scene, settings, np.random.default_rng(0)), dtype=float)
    assert np.abs(pixels[24, 8] - scenes.RGB[color]).max() < 16
    others = [pixels[:16, :16], pixels[:16, 16:], pixels[16:, 16:]]
    assert all(np.ptp(cell, axis=(0, 1)).max() == 0 for cell in others)


def test_shapes_do_not_look_alike() -> None:
    """Of one color and size, any two shapes differ in a good part of their cell."""
    settings = ToyWorldSettings(shapes=6, noise=0, jitter=0)
    drawn = {
        shape: np.asarray(draw(Scene(2, (Thing(0, 0, shape, "red"),)), settings, np.random.default_rng(0)), dtype=float)
        for shape in scenes.OUTLINES
    }
    for one, other in combinations(drawn.values(), 2):
        assert np.abs(one - other)[:16, :16].max(axis=-1).mean() > 10


def test_companions_make_shapes_alike() -> None:
    """The setting raises how often two things of a scene share their color."""

    def alike(companion: float) -> float:
        rng, settings = random.Random(0), ToyWorldSettings(colors=6, empty=0.0, companion=companion)
        drawn = [scenes.sample_scene(settings, rng).things for _ in range(500)]
        return sum(things[0].color == things[1].color for things in drawn) / len(drawn)

    assert alike(0.0) < 0.25 < alike(1.0)


@pytest.mark.slow
def test_too_small_a_world_is_refused() -> None:
    settings = ToyWorldSettings(colors=2, shapes=2, empty=0.0, benchmark_images=200)
    with pytest.raises(SettingsError, match="found only .* use more colors, shapes or cells"):
        plan_world(settings)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"grid": 1}, "grid=1"),
        ({"colors": 9}, "colors=9"),
        ({"image_size": 31}, "image_size=31"),
        ({"patch_size": 5}, "patch_size=5"),
        ({"choice_turns": 9}, "choice_turns=9"),
        ({"clips_train": 3}, "clips_train=3"),
        ({"vision_heads": 5}, "vision_heads=5"),
        ({"val_images": -1}, "val_images=-1 .use 0 or more"),
    ],
)
def test_settings_are_checked(values: dict, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        ToyWorldSettings(**values)


def test_captions_name_color_shape_and_place_in_any_order_but_one_for_all_things() -> None:
    scene = Scene(2, (Thing(0, 0, "circle", "red"), Thing(1, 1, "square", "blue")))
    kinds = {"red": "c", "blue": "c", "circle": "s", "square": "s", "top left": "p", "bottom right": "p"}
    found = set()
    for seed in range(200):
        described = caption(scene, random.Random(seed))
        orders = set()
        for told in described.split(", "):
            parts = sorted((told.index(word), kind) for word, kind in kinds.items() if word in told)
            orders.add("".join(kind for _, kind in parts))
            assert sorted(told.split()) in (["circle", "left", "red", "top"], ["blue", "bottom", "right", "square"])
        assert len(orders) == 1
        found |= {(described.index("circle") < described.index("square"), *orders)}
    assert found == {(first, "".join(order)) for first in (True, False) for order in permutations("csp")}
    assert caption(scene) == "red circle top left, blue square bottom right"


def test_names_that_come_first_are_more_frequent() -> None:
    settings = ToyWorldSettings(skew=0.3, companion=0.0, colors=3, shapes=3)
    rng = random.Random(0)
    things = [thing for _ in range(4000) for thing in sample_scene(settings, rng).things]
    for names, of in ((settings.color_names, "color"), (settings.shape_names, "shape")):
        counted = Counter(getattr(thing, of) for thing in things)
        for one, other in pairwise(names):
            assert 0.6 < counted[other] / counted[one] < 0.8


def test_captioned_images_are_as_sparse_as_set_and_others_are_not() -> None:
    planned = plan_world(replace(SMALL, pretrain_empty=0.9, clips_train=0, clips_test=0)).scenes
    filled = {part: sum(len(scene.things) for scene in scenes) / len(scenes) for part, scenes in planned.items()}
    assert filled.pop("pretrain") < 1.5
    assert min(filled.values()) > 2.5
