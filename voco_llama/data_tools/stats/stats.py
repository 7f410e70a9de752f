"""`data stats`: how much there is in a training's data, of each source and in an epoch.

Numbers of records, of text-only ones and of media are exact. Turns, tokens and image sizes are those of a sample, drawn
by the seed from what an epoch sees, without decoding an image; in the row of the whole epoch each source weighs as much
as it contributes.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainingArguments

from voco_llama.composition import to_plain
from voco_llama.data.media.headers import read_image_header
from voco_llama.data.mixture import Mixture
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.readers.opening import Reader
from voco_llama.data.records import Record
from voco_llama.data_tools.chunks import chunks_of, in_order
from voco_llama.data_tools.processor import find_processor
from voco_llama.data_tools.settings import DataStatsSettings
from voco_llama.errors import DataError, SettingsError
from voco_llama.files import write_atomically
from voco_llama.provenance import provenance
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.training.build import open_mixture

TOKEN_MEASURES = ("prompt_tokens", "answer_tokens", "vision_tokens", "voco_tokens", "row_tokens")
MEASURES = ("turns", *TOKEN_MEASURES)
SIZE_MEASURES = ("width", "height", "aspect")
QUANTILES = {"median": 0.5, "p95": 0.95}


@dataclass(frozen=True)
class Counted:
    """What a chunk of records holds.

    Attributes:
        rows: `[good records, MEASURES]` float64; tokens are NaN without a processor.
        sizes: `[images, SIZE_MEASURES]` float64: pixels, and width / height.
        num_bad: Records that cannot be read.
        num_bad_images: Images whose header cannot be read.
    """

    source: int
    rows: np.ndarray
    sizes: np.ndarray
    num_bad: int
    num_bad_images: int


@dataclass(frozen=True)
class Counter:
    """Counts records; picklable, for worker processes."""

    readers: Sequence[Reader]
    processor: VoCoProcessor | None

    def __call__(self, source: int, records: Sequence[int]) -> Counted:
        """Count some records of a source."""
        rows, sizes, num_bad, num_bad_images = [], [], 0, 0
        for index in records:
            try:
                record = self.readers[source][int(index)]
                rows.append([len(record.turns), *self._tokens(record)])
            except DataError:
                num_bad += 1
                continue
            for image in record.images:
                try:
                    header = read_image_header(image)
                    sizes.append([header.width, header.height, header.width / header.height])
                except DataError:
                    num_bad_images += 1
        return Counted(source, _table(rows, len(MEASURES)), _table(sizes, len(SIZE_MEASURES)), num_bad, num_bad_images)

    def _tokens(self, record: Record) -> list[float]:
        """In the order of `TOKEN_MEASURES`, before anything is cut."""
        if self.processor is None:
            return [math.nan] * len(TOKEN_MEASURES)
        row = self.processor.lay_out(record.turns, 1 if record.video is None else self.processor.num_frames)
        answer = row.labels != IGNORE_INDEX
        counts = (
            ((row.segment == 0) & ~answer).sum(),
            answer.sum(),
            (row.input_ids == self.processor.tokens.image).sum(),
            row.voco.sum(),
        )
        return [*(float(count) for count in counts), float(len(row))]


def _table(rows: list[list[float]], width: int) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, width)


def count_data(settings: DataStatsSettings) -> dict[str, Any]:
    """Count, and write the file that the settings ask for.

    Returns:
        `sources` (one entry each), `epoch` (all together, by weights and limits), `steps`, `lengths` (which tokenizer),
        `sample`.

    Raises:
        SettingsError: A setting is out of range, or the file cannot be written.
        DataError: A source cannot be opened.
    """
    for name, least in (("sample", 0), ("processes", 1)):
        if getattr(settings, name) < least:
            raise SettingsError(f"{name} is {getattr(settings, name)}: give {least} or more")
    mixture = open_mixture(settings)
    processor, lengths = find_processor(settings)
    sampled = [_sample(mixture, source, settings) for source in range(len(mixture.readers))]
    parts: list[list[Counted]] = [[] for _ in sampled]
    for counted in in_order(Counter(mixture.readers, processor), chunks_of(sampled), settings.workers, "data stats"):
        parts[counted.source].append(counted)
    batch = _batch(settings, len(mixture))
    entries = [
        _exact(mixture, source) | _measured([part], np.ones(1), settings.data.max_length)
        for source, part in enumerate(parts)
    ]
    for entry in entries:
        entry["records_a_step"] = batch["records_a_step"] * entry["epoch_records"] / len(mixture)
    weights = np.array(mixture.num_records) / [len(records) for records in sampled]
    result = {
        "sources": entries,
        "epoch": _exact(mixture, None) | _measured(parts, weights, settings.data.max_length),
        "steps": batch,
        "max_length": settings.data.max_length,
        "lengths": lengths,
        "sample": settings.sample,
    }
    if settings.output is not None:
        _write(settings, result)
    return result


def _sample(mixture: Mixture, source: int, settings: DataStatsSettings) -> np.ndarray:
    """Ascending records of a source, drawn from those that an epoch sees."""
    records = mixture.records_of(source)
    if not settings.sample or settings.sample >= len(records):
        return records
    generator = np.random.default_rng([settings.seed, source])
    return np.sort(generator.choice(records, settings.sample, replace=False))


def _exact(mixture: Mixture, source: int | None) -> dict[str, Any]:
    """What is known without reading records; of all sources together for None."""
    sources = range(len(mixture.readers)) if source is None else [source]
    media = np.concatenate([mixture.readers[i].sizes.media[mixture.records_of(i)] for i in sources])
    return {
        "name": "epoch" if source is None else str(mixture.readers[source].file),
        "records": sum(len(mixture.readers[i]) for i in sources),
        "epoch_records": len(media),
        "text_only": float((media == 0).mean()),
        "media": {"mean": float(media.mean()), "max": int(media.max())},
    }


def _measured(parts: Sequence[Sequence[Counted]], weights: np.ndarray, max_length: int) -> dict[str, Any]:
    """What the sample says.

    Args:
        parts: For each source its counted chunks.
        weights: For each source, of one of its records.
        max_length: Tokens of a row, for the share that is cut.
    """
    chunks = [(counted, weight) for part, weight in zip(parts, weights, strict=True) for counted in part]
    rows = np.concatenate([counted.rows for counted, _ in chunks])
    row_weights = np.concatenate([np.full(len(counted.rows), weight) for counted, weight in chunks])
    sizes = np.concatenate([counted.sizes for counted, _ in chunks])
    size_weights = np.concatenate([np.full(len(counted.sizes), weight) for counted, weight in chunks])
    lengths = rows[:, MEASURES.index("row_tokens")]
    known = len(rows) > 0 and not np.isnan(lengths).any()
    return {
        "sampled": sum(len(counted.rows) + counted.num_bad for counted, _ in chunks),
        "bad_records": sum(counted.num_bad for counted, _ in chunks),
        "bad_images": sum(counted.num_bad_images for counted, _ in chunks),
        "cut": float(np.average(lengths > max_length, weights=row_weights)) if known else None,
        **{name: _spread(rows[:, place], row_weights) for place, name in enumerate(MEASURES)},
        **{name: _spread(sizes[:, place], size_weights) for place, name in enumerate(SIZE_MEASURES)},
    }


def _spread(values: np.ndarray, weights: np.ndarray) -> dict[str, float] | None:
    """Mean, quantiles (each a value that occurs) and extremes; None of nothing, or of what was not measured."""
    if not len(values) or np.isnan(values).any():
        return None
    quantiles = np.quantile(values, list(QUANTILES.values()), weights=weights, method="inverted_cdf").tolist()
    mean = float(np.average(values, weights=weights))
    return {
        "mean": mean,
        **dict(zip(QUANTILES, quantiles, strict=True)),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def _batch(settings: DataStatsSettings, num_records: int) -> dict[str, int]:
    """The global batch, and the steps of an epoch, as the Trainer counts them."""

    def of_trainer(key: str) -> Any:
        return settings.trainer.get(key, TrainingArguments.__dataclass_fields__[key].default)

    a_batch = of_trainer("per_device_train_batch_size")
    batches = of_trainer("gradient_accumulation_steps") * settings.processes
    a_round = a_batch * settings.processes
    rounds = num_records // a_round if of_trainer("dataloader_drop_last") else math.ceil(num_records / a_round)
    return {
        "records_a_batch": a_batch,
        "batches_a_step": batches,
        "records_a_step": a_batch * batches,
        "steps_an_epoch": math.ceil(rounds / of_trainer("gradient_accumulation_steps")),
        "processes": settings.processes,
    }


def _write(settings: DataStatsSettings, result: dict[str, Any]) -> None:
    file = Path(settings.output)
    try:
        write_atomically(file, json.dumps({"settings": to_plain(settings), **provenance(), **result}, indent=2) + "\n")
    except OSError as error:
        raise SettingsError(f"output: {file} cannot be written ({error}); give a file elsewhere") from error
