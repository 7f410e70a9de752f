"""Clips: the questions on order need the order, and nothing else in a clip tells it."""

import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from voco_llama.data.media.video import read_frames
from voco_llama.toyworld import ToyWorldSettings
from voco_llama.toyworld.clips import KINDS, Clip, draw_twins
from voco_llama.toyworld.world import write_clips

SETTINGS = ToyWorldSettings(clips_train=16, clips_test=16)


def answers(clip: Clip) -> dict[str, str]:
    return {question.text: question.answer for question in clip.questions if question.needs_order}


@pytest.mark.parametrize("settings", [SETTINGS, ToyWorldSettings(grid=3, image_size=48, clip_frames=5, sizes=2)])
def test_twins_differ_in_order_only(settings: ToyWorldSettings) -> None:
    for clip, twin in draw_twins(settings, "train", 80, random.Random(0)):
        assert clip.frames == twin.frames[::-1]
        assert len(clip.frames) == settings.clip_frames
        assert clip.description == twin.description
        assert clip.caption != twin.caption
        assert answers(clip).keys() == answers(twin).keys() != set()
        assert all(answers(clip)[text] != answers(twin)[text] for text in answers(clip))
        still = [question for question in clip.questions if not question.needs_order]
        assert still == [question for question in twin.questions if not question.needs_order] != []


def test_answers_are_right() -> None:
    """Against the frames themselves, by another way than the one that made them."""
    for pair in draw_twins(SETTINGS, "train", 80, random.Random(1)):
        for clip in pair:
            first, last = clip.frames[0].things, clip.frames[-1].things
            gone, come = (
                [thing for thing in one if thing not in other] for one, other in ((first, last), (last, first))
            )
            for text, answer in answers(clip).items():
                match text.split():
                    case ["Which", "way", *_]:
                        down, right = come[0].row - gone[0].row, come[0].col - gone[0].col
                        assert answer == {(1, 0): "down", (-1, 0): "up", (0, 1): "right", (0, -1): "left"}[down, right]
                    case ["Which", what, "came", "first?"]:
                        assert answer == getattr(gone[0], what)
                    case ["Which", what, "came", "last?"]:
                        assert answer == getattr(come[0], what)
                    case ["Does", "the", shape, *_]:
                        assert answer == ("appear" if come else "leave")
                        assert shape == (come or gone)[0].shape
                    case _:
                        raise AssertionError(text)


def test_all_kinds_are_shown_equally_often() -> None:
    texts = Counter()
    for clip, _ in draw_twins(SETTINGS, "test", 4 * 20, random.Random(0)):
        texts[" ".join(next(iter(answers(clip))).split()[:2])] += 1
    assert len(KINDS) == len(texts) == 4
    assert set(texts.values()) == {20}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    train, test = (draw_twins(SETTINGS, split, 8, random.Random(0)) for split in ("train", "test"))
    write_clips(root, train, test, SETTINGS)
    return root / "clips"


def test_shuffled_frames_cannot_answer(clips: Path) -> None:
    """Of the decoded test clips: whoever sees only which frames there are is right on half of the questions at most."""
    seen: dict[tuple, Counter[str]] = defaultdict(Counter)
    asked = json.loads((clips / "test.json").read_text())
    for record in asked:
        frames = read_frames(clips / "videos" / f"{record['video_id']}.mp4", SETTINGS.clip_frames)
        unordered = tuple(sorted(frame.tobytes() for frame in frames))
        seen[record["q"], unordered][record["a"]] += 1
    assert sum(max(given.values()) for given in seen.values()) / len(asked) == 0.5
    assert all(len(given) == 2 for given in seen.values())


def test_video_keeps_the_pixels(clips: Path) -> None:
    """Compression is mild: a frame is not far from one that was never encoded, its colors included."""
    frames = read_frames(clips / "videos" / "toy_test_000000.mp4", SETTINGS.clip_frames)
    assert len(frames) == SETTINGS.clip_frames
    pixels = np.stack([np.asarray(frame, dtype=float) for frame in frames])
    assert pixels.shape == (SETTINGS.clip_frames, 32, 32, 3)
    noise = pixels[:, 15:17, 15:17].std()
    assert 2 < noise < 20
    assert np.ptp(pixels, axis=-1).max() > 100
