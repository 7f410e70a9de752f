"""How long a training is: rows, tokens, steps and learning rates, from the data if it is here."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, get_scheduler

from voco_llama.errors import SettingsError, VoCoError, one_line
from voco_llama.settings import TrainSettings
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.build import open_mixture
from voco_llama.training.checks import segments_a_row
from voco_llama.training.inputs import list_inputs
from voco_llama.training.run import CHARACTERS_PER_TOKEN
from voco_llama.training.sharing import num_encoded

SHOWN_AT = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Fractions of a training whose learning rates are shown, besides the end of the warm-up."""


@dataclass(frozen=True)
class Epoch:
    """What one pass over the data holds, and what that is known from; None: not known.

    Attributes:
        images: Images, or frames of clips; if the data is not here, as many as there may be at most.
        encoded: How often one is computed, where records share it as `data.share_media` says.
        tokens: Of the rows as laid out, estimated from their characters.
    """

    rows: int | None
    images: int | None
    encoded: int | None
    tokens: int | None
    source: str


@dataclass(frozen=True)
class Length:
    """Of a training, in optimizer steps; None: not known."""

    steps_an_epoch: int | None
    steps: int | None
    warmup: int | None
    learning_rates: tuple[tuple[int, float], ...]


def count_epoch(settings: TrainSettings, tokens_a_segment: int) -> Epoch:
    """Count the data that is here, or take what its publishers say; nothing is decoded, sets of the hub not opened.

    An index folder that is there already may be added to, as by any command that opens the data.
    """
    data = settings.data
    if all(entry.is_here and not entry.is_hub for entry in list_inputs(settings) if entry.part == "data"):
        if data.index_folder is not None and not Path(data.index_folder).is_dir():
            settings = replace(settings, data=replace(data, index_folder=None))
        try:
            mixture = open_mixture(settings)
        except VoCoError as error:
            return Epoch(None, None, None, None, f"the data cannot be read: {error}")
        frames = settings.data.num_frames if settings.stage.name == "video" else 1
        segments = mixture.media.astype(np.int64) * frames
        lengths = mixture.characters / CHARACTERS_PER_TOKEN + segments * tokens_a_segment
        tokens = int(np.minimum(lengths, settings.data.max_length).sum())
        share, medium = data.share_media, None if data.share_media == 1 else mixture.medium
        encoded = int(segments.sum()) if medium is None else num_encoded(medium, segments, share)
        return Epoch(len(mixture), int(segments.sum()), encoded, tokens, "the data, opened")
    return _published_epoch(settings, tokens_a_segment)


def _published_epoch(settings: TrainSettings, tokens_a_segment: int) -> Epoch:
    """By what is said of data that is not here; each record is taken to show as many images as one may."""
    data, segments, rows, tokens = settings.data, segments_a_row(settings), 0, 0
    for source in data.sources:
        if source.published_records is None:
            text = f"{source.file} is not counted here: steps unknown unless trainer.max_steps is set"
            return Epoch(None, None, None, None, text)
        records = round(source.weight * min(source.limit or source.published_records, source.published_records))
        characters = math.inf if source.assumed_characters is None else source.assumed_characters
        length = min(characters / CHARACTERS_PER_TOKEN + segments * tokens_a_segment, data.max_length)
        rows, tokens = rows + records, tokens + records * length
    names = ", ".join(Path(source.file).name for source in data.sources)
    text = f"not here: the published number of records of {names}"
    is_assumed = all(source.assumed_characters is not None for source in data.sources)
    if is_assumed:
        listed = ", ".join(f"{source.assumed_characters:,}" for source in data.sources)
        text += f", each taken to have {listed} characters (data.sources.N.assumed_characters)"
    return Epoch(rows, rows * segments, rows * segments, round(tokens) if is_assumed else None, text)


def count_steps(settings: TrainSettings, epoch: Epoch) -> Length:
    """Steps, as the Trainer counts them, and the schedule of the learning rate."""
    trainer = settings.trainer
    an_epoch = None if epoch.rows is None else GlobalBatch.of(settings).steps_an_epoch(epoch.rows)
    steps = trainer.get("max_steps", -1)
    if steps <= 0:
        steps = None if an_epoch is None else math.ceil(trainer.get("num_train_epochs", 3.0) * an_epoch)
    if steps is None:
        return Length(an_epoch, None, None, ())
    # Below 1 it is a fraction: the rule of `TrainingArguments`, which is not built here since it joins processes.
    warmup = TrainingArguments.get_warmup_steps(SimpleNamespace(warmup_steps=trainer.get("warmup_steps", 0)), steps)
    return Length(an_epoch, steps, warmup, _learning_rates(trainer, warmup, steps))


def _learning_rates(trainer: dict[str, Any], warmup: int, steps: int) -> tuple[tuple[int, float], ...]:
    rate = trainer.get("learning_rate", TrainingArguments.learning_rate)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    try:
        schedule = get_scheduler(
            trainer.get("lr_scheduler_type", "linear"),
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=steps,
            scheduler_specific_kwargs=trainer.get("lr_scheduler_kwargs"),
        )
    except (ValueError, TypeError) as error:
        raise SettingsError(f"trainer.lr_scheduler_type: {one_line(error)}") from error
    if not isinstance(schedule, LambdaLR):
        return ()  # follows what happens in training
    (factor,) = schedule.lr_lambdas
    at = sorted({warmup, *(round(fraction * steps) for fraction in SHOWN_AT)})
    return tuple((step, rate * factor(step)) for step in at)
