"""Settings that were given on the command line and that the training would not read: each is refused, with the reason.

What one file of `configs/` sets and another supersedes is no mistake, so only overrides are looked at. Of the language
model that files name and a checkpoint stands for, it is said where the checkpoint's is another one (`named_otherwise`).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from voco_llama.config_files import CONFIG_DIR
from voco_llama.errors import CheckpointError, SettingsError, require
from voco_llama.files import read_json
from voco_llama.settings import TeacherSettings, TrainSettings
from voco_llama.training.loss_checks import has_term

logger = logging.getLogger(__name__)

NOTHING = ("", "null", "none")
SHAPES_DIR = CONFIG_DIR / "model_shapes"
"""Configurations of language models that are on the hub."""
SHAPE = ("hidden_size", "num_hidden_layers")
"""What tells one language model from another, of a `config.json`."""


@dataclass(frozen=True)
class Unread:
    """Settings, by patterns, that are not read where something holds; `why` is formatted with `settings`."""

    keys: tuple[str, ...]
    holds: Callable[[TrainSettings], bool]
    why: str


UNREAD = (
    Unread(
        ("model.vision*", "model.language*", "model.projector*", "model.tokenizer"),
        lambda settings: settings.model.checkpoint is not None,
        "model.checkpoint={settings.model.checkpoint} names the whole model: set model.checkpoint=null to build one of"
        " parts",
    ),
    Unread(
        ("model.lora.alpha", "model.lora.dropout", "model.lora.targets*"),
        lambda settings: settings.model.lora.rank == 0,
        "there are no adapters: set model.lora.rank",
    ),
    Unread(
        ("compression.q_former*",),
        lambda settings: settings.compression.compressor != "q_former",
        "compression.compressor is {settings.compression.compressor}: choose compression=q_former_N",
    ),
    Unread(
        ("compression.draw", "compression.readings"),
        lambda settings: settings.compression.num_voco_choices is None,
        "nothing is drawn: set compression.num_voco_choices",
    ),
    Unread(
        ("compression.draw",),
        lambda settings: settings.compression.readings in (2, len(set(settings.compression.num_voco_choices or ()))),
        "compression.readings={settings.compression.readings} draws nothing: give another, with more num_voco_choices",
    ),
    Unread(
        ("prompt.chat_template",),
        lambda settings: settings.prompt.template != "chat",
        "prompt.template is {settings.prompt.template}: set prompt.template=chat",
    ),
    Unread(
        ("data.shuffle_buffer",),
        lambda settings: not settings.data.streaming,
        "nothing is streamed, and all rows are shuffled: set data.streaming=true",
    ),
    Unread(
        ("loss.temperature",),
        lambda settings: not has_term(settings.loss, "kl"),
        "the loss has no KL term: choose loss=kl or loss=lm_kl",
    ),
    Unread(
        ("loss.reconstruction_layer", "loss.reconstruction_learning_rate"),
        lambda settings: not has_term(settings.loss, "reconstruction"),
        "the loss has no reconstruction: set loss.reconstruction",
    ),
    Unread(
        ("loss.own_answer_tokens",),
        lambda settings: settings.loss.own_answers == 0,
        "the student writes no answers: set loss.own_answers",
    ),
    Unread(
        ("loss.teacher_checkpoint",),
        lambda settings: settings.loss.teacher in ("none", "adapters_off", "most_voco"),
        "loss.teacher is {settings.loss.teacher}: choose loss=kl or loss=lm_kl",
    ),
    Unread(
        ("loss.top_k_folder",),
        lambda settings: settings.loss.teacher != "top_k",
        "loss.teacher is {settings.loss.teacher}: set loss.teacher=top_k",
    ),
    Unread(
        ("loss.lm", "loss.kl", "loss.reconstruction"),
        lambda settings: settings.loss.schedule is not None,
        "loss.schedule goes before: set loss.schedule=null",
    ),
    Unread(
        ("trainer.optim*",),
        lambda settings: settings.optimizer == "muon",
        "optimizer is muon: set optimizer=trainer",
    ),
    Unread(
        ("trainer.num_train_epochs",),
        lambda settings: _is_positive(settings.trainer.get("max_steps")),
        "trainer.max_steps={settings.trainer[max_steps]} goes before: set trainer.max_steps=-1",
    ),
)


def check_given(overrides: Sequence[str], settings: TrainSettings) -> None:
    """Refuse an override that nothing would read, most of all one that names another model than is trained.

    Raises:
        SettingsError: The first.
    """
    _check_read(overrides, settings, UNREAD)
    check_model_given(overrides, settings)
    if (otherwise := named_otherwise(settings)) is not None:
        logger.warning("%s", otherwise)


def check_model_given(overrides: Sequence[str], settings: TrainSettings) -> None:
    """Of `check_given`, what is about the model that is trained; the rest a sweep may have for some of its rows.

    Raises:
        SettingsError: The first.
    """
    _check_read(overrides, settings, UNREAD[:1])
    given, checkpoint, language = dict(_given(overrides)), settings.model.checkpoint, settings.model.language.pretrained
    follows = checkpoint is None or (language is not None and f"/{language}/" in checkpoint)
    require(
        "model" not in given or "model.checkpoint" in given or follows,
        f"model={given.get('model')} and model.checkpoint={checkpoint}, of the experiment, both name the model: set"
        " model.checkpoint=null, or leave model=... out",
    )


def _check_read(overrides: Sequence[str], settings: TrainSettings, unreads: Sequence[Unread]) -> None:
    for key, value in _given(overrides):
        for unread in unreads:
            is_for_teacher = isinstance(settings, TeacherSettings) and key.startswith("loss.")
            is_meant = not is_for_teacher and any(fnmatchcase(key, pattern) for pattern in unread.keys)
            if is_meant and unread.holds(settings):  # only then is there what `why` names
                why = unread.why.format(settings=settings)
                raise SettingsError(f"{key}={value} would not be read, for {why}, or leave it out")


def named_otherwise(settings: TrainSettings) -> str | None:
    """What is to be said where the settings name a language model and `model.checkpoint` holds one of another shape.

    None: it is of the same, or one of the two is not known here.
    """
    name, checkpoint = settings.model.language.pretrained or settings.model.language.config, settings.model.checkpoint
    if name is None or checkpoint is None:
        return None
    files = [Path(name), Path(name) / "config.json", SHAPES_DIR / f"{name}.json", Path(checkpoint) / "config.json"]
    named = next((file for file in files[:-1] if file.is_file()), None)
    try:
        there, held = read_json(named or files[0]), read_json(files[-1])
    except CheckpointError:
        return None
    held = held.get("text_config", held)
    shapes = [tuple(config.get(key) for key in SHAPE) for config in (there, held)]
    if any(None in shape for shape in shapes) or shapes[0] == shapes[1]:
        return None
    sizes = [f"{layers} layers of {width}" for width, layers in shapes]
    return (
        f"model.checkpoint={checkpoint} has a language model of {sizes[1]}, and {name}, which the settings name and"
        f" which is not read, has {sizes[0]}"
    )


def _given(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [override.lstrip("+").partition("=") for override in overrides if not override.startswith("~")]
    return [(key.strip(), value.strip()) for key, _, value in pairs if value.strip().lower() not in NOTHING]


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and value > 0
