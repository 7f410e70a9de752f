"""Plans the synthetic world and writes it, whole or not at all."""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from voco_llama.data.prompts import ASSISTANT, USER, VICUNA_SYSTEM
from voco_llama.data.readers.caption_csv import INSTRUCTIONS
from voco_llama.data.records import IMAGE_MARK
from voco_llama.errors import SettingsError
from voco_llama.toyworld.benchmarks import NAMES, write_benchmarks
from voco_llama.toyworld.clips import Twins, draw_twins
from voco_llama.toyworld.models import write_json, write_models
from voco_llama.toyworld.questions import PHRASES
from voco_llama.toyworld.scenes import Scene, caption, draw_scenes, place_names
from voco_llama.toyworld.settings import ToyWorldSettings
from voco_llama.toyworld.writers import choices_rng, write_clips, write_instruct, write_pretrain, write_text
from voco_llama.toyworld.yes_no_benchmarks import MME_PROMPT

logger = logging.getLogger(__name__)

FORMAT = "voco-llama toy world"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
FINGERPRINTED = (".json", ".csv")


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

    Args:
        settings: Seed, difficulty, sizes.
        root: Folder to write.

    Raises:
        SettingsError: `root` holds something else than a toy world, or the world is too small for its sizes.
    """
    root = Path(root)
    if _is_written(settings, root):
        logger.info("toy world: %s is up to date", root)
        return
    started = time.monotonic()
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as folder:
        fresh = Path(folder) / "world"
        fresh.mkdir()
        _write_all(settings, fresh)
        if root.exists():
            root.rename(Path(folder) / "replaced")
        fresh.rename(root)
    logger.info("toy world: wrote %s in %.0f s", root, time.monotonic() - started)


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
    found = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    if found.get("format") != FORMAT:
        raise SettingsError(f"toy world: {root} exists and is no toy world; choose another folder or remove it")
    wanted = _manifest(settings)
    return {name: found.get(name) for name in wanted} == wanted and found.get("files") == _fingerprints(root)
