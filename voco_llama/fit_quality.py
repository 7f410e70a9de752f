"""`voco-llama fit-quality`: how far fewer VoCo tokens lead a checkpoint's answers off, measured; a head fitted to it.

Each image of some rows of a training is compressed once, to N tokens, and each row's text is read through all N and
through the first n of them, for every n to choose from. What is compared are the model's own two predictions of each
answer token; whether an answer is right is not asked. A head (`voco_llama.model.quality`) learns to say from the VoCo
tokens alone what came out, and is saved into the checkpoint's folder.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import TrainingArguments

from voco_llama.data.mixture import LoadedMixture
from voco_llama.data.processor import VoCoProcessor
from voco_llama.errors import CheckpointError, DataError, SettingsError, require
from voco_llama.files import writing
from voco_llama.layout import ROW_FIELDS, Row, next_tokens, pad_rows, truncate_voco
from voco_llama.model.cache import VoCoCache
from voco_llama.model.quality import HeadShape, QualityHead, divergences, fit_head, numbers_up_to, outcome
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.provenance import provenance
from voco_llama.settings import FitQualitySettings
from voco_llama.sharding import undivided
from voco_llama.text import duration
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.training.arguments import training_arguments
from voco_llama.training.batch import world_size
from voco_llama.training.build import build_processor, open_mixture
from voco_llama.training.checks import check_settings

logger = logging.getLogger(__name__)

HELD_OUT = 10
"""One image in so many is left out of fitting, for what is said of the head; and as many to see when it is best."""
QUALITIES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Divergences allowed of which the command says what they lead to."""
FEWEST_ROWS, FEWEST_IMAGES = 10, 10
REPORTED_EVERY = 50
"""Batches."""


class Measured(NamedTuple):
    """Of some rows, each of which looks at one image.

    Attributes:
        features: float32 `[rows, N, width]`: what a head reads of its image.
        divergences: float32 `[rows, numbers - 1]`: means over its answer tokens, in nats.
        images: int64 `[rows]`: equal for rows about the same image.
    """

    features: Tensor
    divergences: Tensor
    images: Tensor


def fit_quality(settings: FitQualitySettings) -> Path:
    """Fit a head to `model.checkpoint` and save it there; one that was there is replaced.

    Returns:
        Its file.

    Raises:
        VoCoError: Settings, data or the checkpoint cannot be used.
    """
    settings = check_fit_quality(settings)
    folder = Path(settings.model.checkpoint)
    arguments = training_arguments(settings)
    processor, mixture = build_processor(settings), open_mixture(settings)
    model = VoCoLlama.from_pretrained(folder, dtype=settings.model.dtype, attn_implementation=settings.model.attention)
    asked, trained = settings.compression, model.config
    require(
        (asked.condition, asked.num_voco) == (trained.condition, trained.num_voco),
        f"{folder} was trained with compression.condition={trained.condition} and num_voco={trained.num_voco}, and the"
        f" settings have {asked.condition} and {asked.num_voco}: name that checkpoint's own experiment (the"
        " settings.yaml of its run is one)",
    )
    model.config.check_rows(processor.segment_shape(), processor.tokens, processor.condition, str(folder))
    model = model.to(arguments.device).eval()
    head = _new_head(settings, model, processor.num_voco)
    drawn = torch.randperm(len(mixture), generator=torch.Generator().manual_seed(settings.seed))[: settings.rows]
    loader = DataLoader(
        Subset(LoadedMixture(mixture, processor.row), drawn.tolist()),
        batch_size=arguments.per_device_train_batch_size,
        collate_fn=list,
        num_workers=arguments.dataloader_num_workers,
    )
    measured = measure(model, head, processor, loader, arguments)
    found = fit(head, measured, settings)
    with writing(folder, "name a checkpoint in a folder that can be written"):
        file = head.save(folder, found | {"settings": dataclasses.asdict(settings), "environment": provenance()})
    logger.info("%s: evaluate with quality=..., of which the table says what it leads to", file)
    return file


def check_fit_quality(settings: FitQualitySettings, paths: bool = True) -> FitQualitySettings:
    """The same without what only concerns training, if they are of no contradiction.

    Raises:
        SettingsError: The first that was found; with `paths` also of a file or folder that is not there.
    """
    require(settings.model.checkpoint is not None, "model.checkpoint is not set: name the checkpoint to fit a head to")
    require((world_size() or 1) == 1, "voco-llama fit-quality runs in one process: start it without torchrun")
    for name, least in (("rows", FEWEST_ROWS), ("steps", 1)):
        value = getattr(settings, name)
        require(value >= least, f"{name} must be at least {least}, not {value}")
    require(
        settings.compression.condition == "voco",
        f"compression.condition={settings.compression.condition}: numbers of VoCo tokens are chosen where text reads"
        " them: choose an experiment with condition voco",
    )
    nothing = "there is nothing to choose from by the image: leave quality out"
    require(settings.compression.num_voco > 1, f"compression.num_voco is 1: {nothing}")
    compressor = settings.compression.compressor
    require(
        compressor == "language_model", f"compression.compressor={compressor} makes one number of tokens: {nothing}"
    )
    settings = dataclasses.replace(settings, trainer=undivided(settings.trainer))
    check_settings(settings, paths)
    return settings


def _new_head(settings: FitQualitySettings, model: VoCoLlama, most: int) -> QualityHead:
    layers, heads, dimension = model.config.kv_shape
    layer = settings.layer + layers if settings.layer < 0 else settings.layer
    if not 0 <= layer < layers:
        raise SettingsError(
            f"layer={settings.layer}: the language model has {layers} layers: give {-layers} to {layers - 1}"
        )
    model.check_num_voco(most)
    torch.manual_seed(settings.seed)
    return QualityHead(HeadShape(numbers_up_to(most), layer, heads * dimension), model.fingerprint())


@torch.no_grad()
def measure(
    model: VoCoLlama, head: QualityHead, processor: VoCoProcessor, loader: DataLoader, arguments: TrainingArguments
) -> Measured:
    """Read the rows of a loader, lists of what `VoCoProcessor.row` gives.

    Raises:
        DataError: Too few of them look at one image and have an answer.
        CheckpointError: What the model predicts is no number.
    """
    found, started = [], time.perf_counter()
    dtype = torch.float16 if arguments.fp16 else torch.bfloat16
    for number, samples in enumerate(loader, start=1):
        if samples := [s for s in samples if len(s["pixel_values"]) == 1 and bool((s["labels"] != IGNORE_INDEX).any())]:
            with torch.autocast(arguments.device.type, dtype=dtype, enabled=arguments.bf16 or arguments.fp16):
                found.append(_measure_batch(model, head, processor, samples, arguments.device))
        if number % REPORTED_EVERY == 0 or number == len(loader):
            logger.info("read %d of %d batches  %s", number, len(loader), duration(time.perf_counter() - started))
    rows = sum(len(part.images) for part in found)
    if rows < FEWEST_ROWS:
        raise DataError(
            f"data.sources: only {rows} of the rows drawn look at one image and have an answer: a head needs"
            f" {FEWEST_ROWS}: name other data, or raise rows"
        )
    measured = Measured(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    if not all(bool(part.isfinite().all()) for part in (measured.features, measured.divergences)):
        raise CheckpointError("the checkpoint's VoCo tokens or answers are no numbers (nan, inf): train it again")
    return measured


def _measure_batch(
    model: VoCoLlama,
    head: QualityHead,
    processor: VoCoProcessor,
    samples: Sequence[dict[str, Tensor]],
    device: torch.device,
) -> Measured:
    pixels = torch.cat([sample["pixel_values"] for sample in samples]).to(device)
    rows = pad_rows([Row(**{name: sample[name] for name in ROW_FIELDS}) for sample in samples], processor.tokens)
    rows = {name: values.to(device) for name, values in rows.items()}
    cache = model.compress(pixels, head.shape.numbers[-1])
    row = (next_tokens(rows["labels"]) != IGNORE_INDEX).nonzero()[:, 0]
    whole, each = _logits(model, rows, cache), []
    for number in head.shape.numbers[:-1]:
        fewer = _logits(model, truncate_voco(rows, number, processor.tokens.pad), cache.truncate(number))
        sums = torch.zeros(len(samples), device=device).index_add(0, row, divergences(whole, fewer))
        each.append(sums / torch.bincount(row, minlength=len(samples)))
    images = torch.cat([sample["image_keys"] for sample in samples])
    return Measured(head.features(cache).cpu(), torch.stack(each, dim=1).cpu(), images)


def _logits(model: VoCoLlama, rows: dict[str, Tensor], cache: VoCoCache) -> Tensor:
    """Of the trained tokens, `[tokens, vocabulary]`."""
    facts = {name: values for name, values in rows.items() if name not in ("input_ids", "labels")}
    states = model.read(rows["input_ids"], cache, **facts)
    return model.get_output_embeddings()(states[next_tokens(rows["labels"]) != IGNORE_INDEX])


def fit(head: QualityHead, measured: Measured, settings: FitQualitySettings) -> dict[str, object]:
    """Fit a head, and say of images that it has not seen what it leads to.

    Raises:
        DataError: There are too few different images.
    """
    distinct, image = measured.images.unique(return_inverse=True)
    if len(distinct) < FEWEST_IMAGES:
        raise DataError(
            f"data.sources: the rows drawn look at {len(distinct)} different images, and a head needs {FEWEST_IMAGES}:"
            " name other data, or raise rows"
        )
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(settings.seed))
    part = max(1, len(distinct) // HELD_OUT)
    held, watched = order[image] < part, (order[image] < 2 * part)[order[image] >= part]
    learned = (measured.features[~held], measured.divergences[~held], watched)
    loss = fit_head(head, *learned, settings.steps, settings.seed)
    with torch.no_grad():
        predicted, real = head(measured.features[held]), measured.divergences[held]
    found = {"rows": len(image), "images": len(distinct), "held_out_rows": int(held.sum()), "loss": loss}
    for number, mean in zip(head.shape.numbers, real.mean(0).tolist(), strict=False):
        logger.info("the first %d tokens: %.4f nats", number, mean)
    found["mean_divergences"] = dict(zip(map(str, head.shape.numbers), real.mean(0).tolist(), strict=False))
    found["qualities"] = list(_outcomes(head, predicted, real))
    return found


def _outcomes(head: QualityHead, predicted: Tensor, real: Tensor) -> Iterator[dict[str, float]]:
    for quality in QUALITIES:
        found = outcome(predicted, real, head.shape.numbers, quality)
        logger.info("quality=%g: %.2f tokens an image, %.4f nats (dealt out at random: %.4f)", quality, *found)
        if found.divergence > quality:
            logger.warning("quality=%g allows less than it led to: read more rows, or choose another", quality)
        yield {"quality": quality, **found._asdict()}
