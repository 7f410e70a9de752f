"""Plans the synthetic world and writes it, whole or not at all.

Training data is in the layouts of the real sets, LLaVA's JSON, WebVid's CSV, Video-ChatGPT's JSON:

    tokenizer/ clip/ language/                       a tiny tokenizer, open_clip and Llama (`models`)
    pretrain/  chat.json, images/                    as LLaVA-CC3M-Pretrain
    instruct/  train.json, val.json, images/         as LLaVA's 665k instruction mix, some rows text-only
    text/      train.json                            the same layout, text only
    clips/     captions.csv, train.json, test.json, videos/    as WebVid and Video-ChatGPT
    benchmarks/lmms-lab-encoder/{name}/              five benchmarks as parquet (`benchmarks`)
    scenes.json                                      part -> description of each scene; the parts share none
    manifest.json                                    format version, settings, fingerprints of the text files

Image paths are relative to the `images/` beside the JSON; clips are `videos/{videoid}.mp4`.
"""

import csv
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import av
from PIL import Image

from voco_llama.composition import difference
from voco_llama.data.prompts import ASSISTANT, USER, VICUNA_SYSTEM
from voco_llama.data.readers.caption_csv import INSTRUCTIONS
from voco_llama.data.records import IMAGE_MARK
from voco_llama.errors import SettingsError
from voco_llama.files import read_json, writing
from voco_llama.toyworld.benchmarks import MME_PROMPT, NAMES, write_benchmarks
from voco_llama.toyworld.clips import Clip, Twins, draw_twins
from voco_llama.toyworld.dialogues import (
    TEXT_TASK_SHARE,
    Balancer,
    Row,
    caption_row,
    described_row,
    instruct_row,
    text_row,
)
from voco_llama.toyworld.models import write_json, write_models
from voco_llama.toyworld.questions import PHRASES
from voco_llama.toyworld.scenes import Scene, caption, choices_rng, draw, draw_scenes, pixels_rng, place_names
from voco_llama.toyworld.settings import ToyWorldSettings

logger = logging.getLogger(__name__)

FORMAT = "voco-llama toy world"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
FINGERPRINTED = (".json", ".csv")
THREADS = 2
WEBVID_COLUMNS = ("videoid", "contentUrl", "duration", "page_dir", "name")
# Every frame is coded alone at a fixed quality, so that nothing in a frame tells when it was shown.
VIDEO_CODING = {"preset": "ultrafast", "g": "1", "qp": "12", "threads": "1"}


@dataclass(frozen=True)
class World:
    """Everything that will be shown, before it is drawn.

    Attributes:
        scenes: Part -> its scenes: `pretrain`, `text`, `train`, `val`, and `benchmark {name}` for each benchmark.
        clips: `train` and `test` -> pairs of clips.
    """

    scenes: dict[str, list[Scene]]
    clips: dict[str, list[Twins]]


def plan_world(settings: ToyWorldSettings) -> World:
    """Draws the scenes and clips of every part; parts of different splits share none.

    Raises:
        SettingsError: The world is too small for so many scenes or clips.
    """
    sparse = replace(settings, empty=settings.pretrain_empty)
    parts = {
        "pretrain": ("pretrain", settings.pretrain_images, sparse),
        "text": ("pretrain", settings.text_rows, settings),
        "train": ("train", settings.instruct_images, settings),
        "val": ("val", settings.val_images, settings),
    }
    scenes = {
        part: draw_scenes(difficulty, split, count, choices_rng(settings, f"scenes {part}"))
        for part, (split, count, difficulty) in parts.items()
    }
    tested = settings.benchmark_images * len(NAMES)
    held_out = draw_scenes(settings, "test", tested, choices_rng(settings, "scenes test"), unique=True)
    for number, name in enumerate(NAMES):
        scenes[f"benchmark {name}"] = held_out[number :: len(NAMES)]
    clips = {
        split: draw_twins(settings, split, count // 2, choices_rng(settings, f"clips {split}"))
        for split, count in (("train", settings.clips_train), ("test", settings.clips_test))
    }
    return World(scenes, clips)


def write_toyworld(settings: ToyWorldSettings, root: Path) -> None:
    """Writes the world to `root`, or does nothing if it is there already.

    The world is written beside `root` and moved there when it is complete. A world of other settings is replaced.

    Raises:
        SettingsError: `root` holds something else than a toy world, or the world is too small for its sizes.
    """
    root = Path(root)
    if _is_written(settings, root):
        logger.info("toy world: %s is up to date", root)
        return
    started = time.monotonic()
    with writing(root.parent, "make room, or choose another root"):
        _write_beside(settings, root)
    logger.info("toy world: wrote %s in %.0f s", root, time.monotonic() - started)


def _write_beside(settings: ToyWorldSettings, root: Path) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as folder:
        fresh = Path(folder) / "world"
        fresh.mkdir()
        _write_all(settings, fresh)
        if root.exists():
            root.rename(Path(folder) / "replaced")
        if root.exists():  # two at once: the other's is as good
            raise SettingsError(f"toy world: another process has just written {root}: give the same command again")
        fresh.rename(root)


def _write_all(settings: ToyWorldSettings, root: Path) -> None:
    logger.info("toy world: planning scenes and clips")
    world = plan_world(settings)
    logger.info("toy world: drawing %d images with captions", len(world.scenes["pretrain"]))
    rows = write_pretrain(root, world.scenes["pretrain"], settings)
    logger.info("toy world: drawing %d images with questions", len(world.scenes["train"]) + len(world.scenes["val"]))
    instruct = write_instruct(root, world.scenes["train"], world.scenes["val"], settings)
    rows += instruct["train"] + instruct["val"]
    rows += write_text(root, world.scenes["text"], settings)
    logger.info("toy world: encoding %d clips", settings.clips_train + settings.clips_test)
    records = write_clips(root, world.clips["train"], world.clips["test"], settings)
    logger.info("toy world: drawing %d benchmarks of %d images", len(NAMES), settings.benchmark_images)
    write_benchmarks(root, {name: world.scenes[f"benchmark {name}"] for name in NAMES}, settings)
    logger.info("toy world: training the tokenizer")
    captions = {caption(scene) for part in ("pretrain", "train", "val") for scene in world.scenes[part]}
    phrases = (*PHRASES, *place_names(settings.grid))
    write_models(root, _texts(rows, records), captions, settings, phrases)
    described = {part: [scene.description for scene in scenes] for part, scenes in world.scenes.items()}
    for split, pairs in world.clips.items():
        described[f"clips {split}"] = [clip.description for clip, _ in pairs]
    write_json(root / "scenes.json", described)
    write_json(root / MANIFEST, _manifest(settings) | {"files": _fingerprints(root)})


def write_rows(file: Path, rows: Sequence[Any]) -> None:
    """Writes a JSON list, one record a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in rows)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def write_images(folder: Path, prefix: str, scenes: Sequence[Scene], settings: ToyWorldSettings) -> list[str]:
    """Draws scenes to `{prefix}_{number}.png` and returns the file names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = pixels_rng(settings, prefix)
    names = [f"{prefix}_{number:06d}.png" for number in range(len(scenes))]
    images = (draw(scene, settings, rng) for scene in scenes)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda name, image: image.save(folder / name, compress_level=1), names, images))
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
        record, is_task = f"toy_text_{number:06d}", rng.random() < TEXT_TASK_SHARE
        rows.append(
            text_row(record, settings, rng) if is_task else described_row(record, scene, settings, balancer, rng)
        )
    write_rows(root / "text" / "train.json", rows)
    return rows


def encode_video(file: Path, frames: Sequence[Image.Image], rate: int) -> None:
    """Writes RGB images of one size as an mp4 (H.264, no chroma subsampling) of `rate` frames a second."""
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
    pairs = {"train": train, "test": test}
    shown = {split: _encode_twins(folder, split, pairs[split], settings) for split in pairs}
    written: dict[str, list[Row]] = {}
    for split, clips in shown.items():
        written[split] = [
            {"q": question.text, "a": question.answer, "video_id": video}
            for video, clip in clips.items()
            for question in clip.questions
            if split == "train" or question.needs_order
        ]
        write_rows(root / "clips" / f"{split}.json", written[split])
    written["captions"] = [_webvid_row(video, clip.caption, settings) for video, clip in shown["train"].items()]
    with (root / "clips" / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, WEBVID_COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(written["captions"])
    return written


def _encode_twins(folder: Path, split: str, pairs: Sequence[Twins], settings: ToyWorldSettings) -> dict[str, Clip]:
    """Writes both clips of every pair, of the very same frames, in a random order; returns video id -> clip, sorted."""
    rng = pixels_rng(settings, f"clips {split}")
    numbers = list(range(2 * len(pairs)))
    choices_rng(settings, f"clips {split} order").shuffle(numbers)
    videos = [f"toy_{split}_{number:06d}" for number in reversed(numbers)]

    def drawn() -> Iterator[list[Image.Image]]:
        for clip, _ in pairs:
            frames = [draw(scene, settings, rng) for scene in clip.frames]
            yield from (frames, frames[::-1])

    files = [folder / f"{video}.mp4" for video in videos]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(encode_video, files, drawn(), repeat(settings.clip_rate)))
    return dict(sorted(zip(videos, chain.from_iterable(pairs), strict=True)))


def _webvid_row(video: str, caption: str, settings: ToyWorldSettings) -> Row:
    minutes, seconds = divmod(max(1, round(settings.clip_frames / settings.clip_rate)), 60)
    duration = f"PT00H{minutes:02d}M{seconds:02d}S"
    return dict(zip(WEBVID_COLUMNS, (video, f"videos/{video}.mp4", duration, "", caption), strict=True))


def _texts(rows: Iterable[dict[str, Any]], records: dict[str, list[dict[str, Any]]]) -> set[str]:
    """Everything a model of this world will read or write, in the pieces in which the prompt template has it."""
    texts = {*INSTRUCTIONS, VICUNA_SYSTEM, f" {ASSISTANT}", f" {MME_PROMPT}"}
    for row in rows:
        for turn in row["conversations"]:
            said = turn["value"].replace(IMAGE_MARK, "").strip()
            texts.add(f"{USER} {said}" if turn["from"] == "human" else f" {said}")
    for record in records["train"] + records["test"]:
        texts |= {f"{USER} {record['q']}", f" {record['a']}"}
    return texts | {record["name"] for record in records["captions"]}


def _manifest(settings: ToyWorldSettings) -> dict[str, Any]:
    return {"format": FORMAT, "format_version": FORMAT_VERSION, "settings": asdict(settings)}


def _fingerprints(root: Path) -> dict[str, str]:
    """SHA-256 of every JSON and CSV file but the manifest, by path."""
    files = sorted(file for file in root.rglob("*") if file.suffix in FINGERPRINTED and file.name != MANIFEST)
    return {file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _is_written(settings: ToyWorldSettings, root: Path) -> bool:
    """Whether `root` already holds this very world.

    Raises:
        SettingsError: `root` is taken by something else, which must not be replaced.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    manifest = root / MANIFEST
    advice = "choose another folder or remove it"
    found = read_json(manifest, SettingsError, advice) if manifest.is_file() else {}
    if found.get("format") != FORMAT:
        raise SettingsError(f"toy world: {root} exists and is no toy world; {advice}")
    wanted = _manifest(settings)
    there = found.get("settings")
    if differing := difference(there if isinstance(there, dict) else {}, wanted["settings"]):
        logger.warning("toy world: %s holds a world of other settings, which is replaced: %s", root, differing)
    return {name: found.get(name) for name in wanted} == wanted and found.get("files") == _fingerprints(root)
