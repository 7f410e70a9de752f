"""Every setting of every command, by what a user can do wrong with it.

A setting that may hold text is either a path (`PATHS`) or named in `TEXTS`: a new one that is neither fails a test, so
that whoever adds a path adds what is good for it.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args, get_origin

from tests.rules.commands import Place
from voco_llama import cli

FILE, FOLDER, CHECKPOINT, OUTPUT, OUTPUT_FILE = "file", "folder", "checkpoint", "output", "output_file"

Good = Callable[[Place], Path]


@dataclasses.dataclass(frozen=True)
class PathSetting:
    """A setting that names a path.

    Attributes:
        kind: What it should be.
        good: One that is right, where damage begins with; None: there is none.
        with_it: Other settings that it needs to be read.
    """

    kind: str
    good: Good | None = None
    with_it: tuple[str, ...] = ()


def _checkpoint(place: Place) -> Path:
    return place.checkpoint


def _in(*parts: str) -> Good:
    return lambda place: place.root.joinpath(*parts)


_OF_A_TRAINING = {
    "model.checkpoint": PathSetting(CHECKPOINT, _checkpoint),
    "model.vision.name": PathSetting(FILE, _in("toyworld", "clip", "tiny_clip.json")),
    "model.vision.pretrained": PathSetting(
        FILE, _in("checkpoint", "model.safetensors"), ("model.vision.name=ViT-B-32",)
    ),
    "model.language.pretrained": PathSetting(CHECKPOINT, _in("toyworld", "language"), ("model.language.config=null",)),
    "model.language.config": PathSetting(
        FILE, _in("toyworld", "language", "config.json"), ("model.language.pretrained=null",)
    ),
    "model.projector_weights": PathSetting(FILE, _in("checkpoint", "model.safetensors")),
    "model.tokenizer": PathSetting(CHECKPOINT, _in("toyworld", "tokenizer")),
    "data.sources.file": PathSetting(FILE, _in("toyworld", "instruct", "train.json")),
    "data.sources.media_folder": PathSetting(FOLDER, _in("toyworld", "instruct", "images")),
    "data.sources.archives": PathSetting(FILE),
    "data.index_folder": PathSetting(OUTPUT),
    "loss.teacher_checkpoint": PathSetting(CHECKPOINT, _checkpoint, ("loss=kl", "loss.teacher=checkpoint")),
    "loss.top_k_folder": PathSetting(FOLDER, None, ("loss=kl", "loss.teacher=top_k")),
    "prompt.chat_template": PathSetting(FILE, _in("vicuna.jinja"), ("prompt.template=chat",)),
    "trainer.deepspeed": PathSetting(FILE),
    "trainer.fsdp_config": PathSetting(FILE, with_it=("trainer.fsdp=full_shard",)),
    "paths.data": PathSetting(FOLDER),
    "paths.toyworld": PathSetting(FOLDER),
    "paths.runs": PathSetting(OUTPUT),
    "output_dir": PathSetting(OUTPUT),
    "resume": PathSetting(CHECKPOINT, _in("first", "run", "checkpoint-1")),
}
_ROOTS = {key: _OF_A_TRAINING[key] for key in ("paths.data", "paths.toyworld", "paths.runs")}
_ANSWERS = {"checkpoint": PathSetting(CHECKPOINT, _checkpoint), "output": PathSetting(OUTPUT), **_ROOTS}

PATHS: dict[str, dict[str, PathSetting]] = {
    "toyworld": {"root": PathSetting(OUTPUT), **_ROOTS},
    "data-prepare": {
        "folder": PathSetting(FOLDER),
        "hub": PathSetting(OUTPUT),
        "archives": PathSetting(FOLDER, None, ("set=mix665k", "annotations=null", "videos=null")),
        "annotations": PathSetting(FILE, _in("test_qa.json")),
        "videos": PathSetting(FOLDER, _in("videos")),
        "answers": PathSetting(FILE, _in("test_qa.json")),
        "mapping": PathSetting(FILE, _in("test_qa.json"), ("set=msvd_qa",)),
        **_ROOTS,
    },
    "data-check": {
        **_OF_A_TRAINING,
        "report": PathSetting(OUTPUT_FILE),
        "cleaned": PathSetting(OUTPUT),
    },
    "data-stats": {**_OF_A_TRAINING, "output": PathSetting(OUTPUT_FILE)},
    "data-preview": {**_OF_A_TRAINING, "output": PathSetting(OUTPUT)},
    "train": _OF_A_TRAINING,
    "status": {"runs": PathSetting(FOLDER, _in("first", "run")), **_ROOTS},
    "doctor": _OF_A_TRAINING,
    "teacher": _OF_A_TRAINING | {"loss.top_k_folder": PathSetting(OUTPUT)},
    "fit-quality": _OF_A_TRAINING,
    "evaluate": {
        **_ANSWERS,
        "runs": PathSetting(FOLDER),
        "hub": PathSetting(FOLDER, _in("toyworld", "benchmarks")),
        "datasets_cache": PathSetting(OUTPUT),
    },
    "evaluate-clips": {
        **_ANSWERS,
        "questions": PathSetting(FILE, _in("toyworld", "clips", "test.json")),
        "videos": PathSetting(FOLDER, _in("toyworld", "clips", "videos")),
    },
    "evaluate-text": {**_ANSWERS, "texts": PathSetting(FILE, _in("text.txt"))},
    "sweep": {
        "runs": PathSetting(OUTPUT),
        "results": PathSetting(OUTPUT),
        "hub": PathSetting(FOLDER, _in("toyworld", "benchmarks")),
        **_ROOTS,
    },
    "report": {
        "results": PathSetting(FOLDER, _in("results")),
        "output": PathSetting(OUTPUT),
        "table": PathSetting(FILE),
        **_ROOTS,
    },
    "export": {**_ANSWERS, "vision_tower": PathSetting(CHECKPOINT)},
    "convert-gguf": {
        "source": PathSetting(FILE, _in("model.gguf")),
        "output": PathSetting(OUTPUT),
        **_ROOTS,
    },
    "ask": {
        "checkpoint": PathSetting(CHECKPOINT, _checkpoint),
        "image": PathSetting(FILE, lambda place: next(place.root.glob("image.*"))),
        "video": PathSetting(FILE, _in("videos", "video7010.mp4"), ("image=null",)),
        "history": PathSetting(FILE, _in("history.json")),
        **_ROOTS,
    },
    "bench": {
        "output": PathSetting(OUTPUT),
        "startup.scratch": PathSetting(OUTPUT, None, ("kind=startup", "startup.records=2", "startup.members=2")),
        **_ROOTS,
    },
}
"""Of each command the settings that name a file or a folder."""

TEXTS = {
    "*": ("device", "dtype", "seed", "condition"),
    "train": (
        "data.sources.format", "data.sources.options", "model.lora.targets", "prompt.system", "stage.trains", "trainer",
    ),
    "data-prepare": ("set",),
    "data-check": ("drop",),
    "evaluate": ("row", "condition", "suite", "tasks"),
    "evaluate-clips": ("row",),
    "evaluate-text": ("row",),
    "sweep": (
        "base", "rows", "folder", "only", "skip", "overrides", "trainings", "suite", "evaluate", "train", "launcher",
        "job",
    ),
    "report": ("reference", "paper", "upper", "lower"),
    "ask": ("questions",),
    "bench": ("train.workloads", "train.variants", "answer.asked", "evaluate"),
}  # fmt: skip
"""Settings that hold text and name no path; `train`: of all commands that have the settings of a training."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A setting by its dotted key."""

    key: str
    type: Any
    choices: tuple[str, ...]

    @property
    def may_hold_text(self) -> bool:
        """Of its own choosing; a choice is not."""
        kinds = {str, Path, dict, list}
        return not self.choices and any(kind in kinds or get_origin(kind) in kinds for kind in self._kinds())

    def _kinds(self) -> Iterator[Any]:
        for kind in get_args(self.type) if get_origin(self.type) not in (None, list, dict) else (self.type,):
            if get_origin(kind) is list and get_args(kind)[0] in (int, float):
                continue
            yield kind


def leaves(schema: type, at: str = "") -> Iterator[Leaf]:
    """Every setting of a schema, those of the items of its lists of dataclasses too."""
    for entry in dataclasses.fields(schema):
        key = f"{at}{entry.name}"
        inner = next((t for t in (entry.type, *get_args(entry.type)) if dataclasses.is_dataclass(t)), None)
        if inner is None:
            inner = next((i for t in get_args(entry.type) for i in get_args(t) if dataclasses.is_dataclass(i)), None)
        if inner is not None and get_origin(entry.type) is not dict:
            yield from leaves(inner, f"{key}.")
        else:
            yield Leaf(key, entry.type, tuple(entry.metadata.get("choices", ())))


def settings_of(command: str) -> list[Leaf]:
    """Of a command, by its schema."""
    return list(leaves(resolve_name(cli.COMMANDS[command].schema)))


def is_of_a_training(command: str) -> bool:
    """Whether a command has the settings of a training."""
    return "model.checkpoint" in PATHS[command]
