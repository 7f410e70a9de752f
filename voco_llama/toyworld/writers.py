"""Writes training data in the layouts of the real sets: LLaVA's JSON, WebVid's CSV, Video-ChatGPT's JSON.

    pretrain/  chat.json, images/                    as LLaVA-CC3M-Pretrain
    instruct/  train.json, val.json, images/         as LLaVA's 665k instruction mix, some rows text-only
    text/      train.json                            the same layout, text only
    clips/     captions.csv, train.json, test.json, videos/    as WebVid and Video-ChatGPT

Image paths are relative to the `images/` beside the JSON; clips are `videos/{videoid}.mp4`.
"""

import csv
import json
import random
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from voco_llama.toyworld.balance import Balancer
from voco_llama.toyworld.clips import Clip, Twins
from voco_llama.toyworld.dialogues import TEXT_TASK_SHARE, caption_row, described_row, instruct_row, text_row
from voco_llama.toyworld.scenes import Scene, draw
from voco_llama.toyworld.settings import ToyWorldSettings

Row = dict[str, Any]
THREADS = 2
WEBVID_COLUMNS = ("videoid", "contentUrl", "duration", "page_dir", "name")
# Every frame is coded alone at a fixed quality, so that nothing in a frame tells when it was shown.
VIDEO_CODING = {"preset": "ultrafast", "g": "1", "qp": "12", "threads": "1"}


def choices_rng(settings: ToyWorldSettings, part: str) -> random.Random:
    """The random choices of one part of the world, independent of every other part's."""
    return random.Random(f"{settings.seed}/{part}")


def pixels_rng(settings: ToyWorldSettings, part: str) -> np.random.Generator:
    """The jitter and noise of one part of the world."""
    return np.random.default_rng([settings.seed, zlib.crc32(part.encode())])


def write_rows(file: Path, rows: Sequence[Any]) -> None:
    """Writes a JSON list, one record a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in rows)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def write_images(folder: Path, prefix: str, scenes: Iterable[Scene], settings: ToyWorldSettings) -> list[str]:
    """Draws scenes to `{prefix}_{number}.png` and returns the file names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = pixels_rng(settings, prefix)
    names, saved = [], []
    with ThreadPoolExecutor(THREADS) as pool:
        for number, scene in enumerate(scenes):
            names.append(f"{prefix}_{number:06d}.png")
            saved.append(pool.submit(draw(scene, settings, rng).save, folder / names[-1], compress_level=1))
    for result in saved:
        result.result()
    return names


def write_pretrain(root: Path, scenes: Sequence[Scene], settings: ToyWorldSettings) -> list[Row]:
    """Writes `pretrain/` and returns its rows."""
    names = write_images(root / "pretrain" / "images", "toy_pretrain", scenes, settings)
    rng = choices_rng(settings, "pretrain rows")
    rows = [caption_row(name.removesuffix(".png"), scene, name, rng) for name, scene in zip(names, scenes, strict=True)]
    write_rows(root / "pretrain" / "chat.json", rows)
    return rows


def write_instruct(
    root: Path, train: Sequence[Scene], val: Sequence[Scene], settings: ToyWorldSettings
) -> dict[str, list[Row]]:
    """Writes `instruct/` and returns the rows of each of its files; text-only rows stand among the image rows."""
    written = {}
    for split, scenes in (("train", train), ("val", val)):
        rng = choices_rng(settings, f"instruct {split} rows")
        balancer = Balancer(rng)
        names = write_images(root / "instruct" / "images", f"toy_{split}", scenes, settings)
        rows = [
            instruct_row(name.removesuffix(".png"), scene, name, settings, balancer, rng)
            for name, scene in zip(names, scenes, strict=True)
        ]
        text_only = round(settings.text_only_share * len(scenes))
        rows += [text_row(f"toy_{split}_text_{number:06d}", settings, rng) for number in range(text_only)]
        rng.shuffle(rows)
        write_rows(root / "instruct" / f"{split}.json", rows)
        written[split] = rows
    return written


def write_text(root: Path, scenes: Sequence[Scene], settings: ToyWorldSettings) -> list[Row]:
    """Writes `text/train.json`, captions with questions on them and tasks on words, and returns its rows."""
    rng = choices_rng(settings, "text rows")
    balancer = Balancer(rng)
    rows = []
    for number, scene in enumerate(scenes):
        record = f"toy_text_{number:06d}"
        is_task = rng.random() < TEXT_TASK_SHARE
        rows.append(
            text_row(record, settings, rng) if is_task else described_row(record, scene, settings, balancer, rng)
        )
    write_rows(root / "text" / "train.json", rows)
    return rows


def encode_video(file: Path, frames: Sequence[Image.Image], rate: int) -> None:
    """Writes an mp4 (H.264, no chroma subsampling).

    Args:
        file: Where to.
        frames: RGB images of one size.
        rate: Frames a second.
    """
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=VIDEO_CODING)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def write_clips(
    root: Path, train: Sequence[Twins], test: Sequence[Twins], settings: ToyWorldSettings
) -> dict[str, list[Row]]:
    """Writes `clips/` and returns the records of each of its files, the captions as `captions`.

    The test file asks only questions that need the order of the frames.
    """
    folder = root / "clips" / "videos"
    folder.mkdir(parents=True)
    captions: list[Row] = []
    written: dict[str, list[Row]] = {}
    for split, pairs in (("train", train), ("test", test)):
        shown = _encode_twins(folder, split, pairs, settings)
        questions = [
            {"q": question.text, "a": question.answer, "video_id": video}
            for video, clip in shown.items()
            for question in clip.questions
            if split == "train" or question.needs_order
        ]
        write_rows(root / "clips" / f"{split}.json", questions)
        written[split] = questions
        if split == "train":
            captions = [_webvid_row(video, clip.caption, settings) for video, clip in shown.items()]
    with (root / "clips" / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, WEBVID_COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(captions)
    return written | {"captions": captions}


def _encode_twins(folder: Path, split: str, pairs: Sequence[Twins], settings: ToyWorldSettings) -> dict[str, Clip]:
    """Writes both clips of every pair, of the very same frames, in a random order; returns video id -> clip, sorted."""
    rng = pixels_rng(settings, f"clips {split}")
    numbers = list(range(2 * len(pairs)))
    choices_rng(settings, f"clips {split} order").shuffle(numbers)
    shown: dict[str, Clip] = {}
    encoded: list[Future[None]] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for twins in pairs:
            frames = [draw(scene, settings, rng) for scene in twins[0].frames]
            for clip, ordered in zip(twins, (frames, frames[::-1]), strict=True):
                video = f"toy_{split}_{numbers.pop():06d}"
                shown[video] = clip
                encoded.append(pool.submit(encode_video, folder / f"{video}.mp4", ordered, settings.clip_rate))
    for result in encoded:
        result.result()
    return dict(sorted(shown.items()))


def _webvid_row(video: str, caption: str, settings: ToyWorldSettings) -> Row:
    minutes, seconds = divmod(max(1, round(settings.clip_frames / settings.clip_rate)), 60)
    duration = f"PT00H{minutes:02d}M{seconds:02d}S"
    return dict(zip(WEBVID_COLUMNS, (video, f"videos/{video}.mp4", duration, "", caption), strict=True))
