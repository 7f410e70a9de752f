"""`data stats`: how much there is in a training's data, of each source and in an epoch.

Numbers of records, of text-only ones, of media and of conversations about the same (an image, several, a clip) are
exact; what sharing saves is an upper bound, reached where no medium's records are cut. Turns, tokens and image sizes
are those of a sample, drawn by the seed from what an epoch sees, without decoding an image; in the row of the whole
epoch each source weighs as much as it contributes.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from voco_llama.composition import to_plain
from voco_llama.data.media.images import read_image_header
from voco_llama.data.mixture import Mixture
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.readers import Reader
from voco_llama.data.records import Record, blaming_record
from voco_llama.data_tools.chunks import Chunk, chunks_of, find_processor, in_order
from voco_llama.data_tools.settings import (
    JSON_BEGINNING,
    DataStatsSettings,
    check_data_settings,
    check_output,
    writing,
)
from voco_llama.errors import DataError, SettingsError
from voco_llama.files import write_atomically
from voco_llama.provenance import provenance
from voco_llama.text import aligned
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.build import open_mixture
from voco_llama.training.sharing import num_encoded

TOKEN_MEASURES = ("prompt_tokens", "answer_tokens", "vision_tokens", "voco_tokens", "row_tokens")
MEASURES = ("turns", *TOKEN_MEASURES)
SIZE_MEASURES = ("width", "height", "aspect")
QUANTILES = {"median": 0.5, "p95": 0.95}
SHARED = (2, 4, 8)
"""Values of `data.share_media` whose saving is told."""

LEGEND = "mean, median, 95 %, max"


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

    def __call__(self, chunk: Chunk) -> Counted:
        """Count some records of a source."""
        source, records = chunk
        rows, sizes, num_bad, num_bad_images = [], [], 0, 0
        for index in map(int, records):
            blaming = partial(blaming_record, self.readers[source].file, index)
            try:
                with blaming():
                    record = self.readers[source][index]
                    rows.append([len(record.turns), *self._tokens(record)])
            except DataError:
                num_bad += 1
                continue
            for image in record.images:
                try:
                    with blaming():
                        header = read_image_header(image)
                        sizes.append([header.width, header.height, header.width / header.height])
                except DataError:
                    num_bad_images += 1
        tables = (
            np.array(found, dtype=np.float64).reshape(-1, len(names))
            for found, names in ((rows, MEASURES), (sizes, SIZE_MEASURES))
        )
        return Counted(source, *tables, num_bad, num_bad_images)

    def _tokens(self, record: Record) -> list[float]:
        """In the order of `TOKEN_MEASURES`, before anything is cut."""
        if self.processor is None:
            return [math.nan] * len(TOKEN_MEASURES)
        row = self.processor.lay_out_record(record)
        answer = row.labels != IGNORE_INDEX
        counts = (
            ((row.segment == 0) & ~answer).sum(),
            answer.sum(),
            (row.input_ids == self.processor.tokens.image).sum(),
            row.voco.sum(),
        )
        return [*(float(count) for count in counts), float(len(row))]


def count_data(settings: DataStatsSettings, overrides: Sequence[str] | None = None) -> dict[str, Any]:
    """Count, and write the file that the settings ask for; `overrides` as `find_processor` takes them.

    Returns:
        `sources` (one entry each), `epoch` (all together, by weights and limits), `steps`, `lengths` (which tokenizer),
        `sample`.

    Raises:
        SettingsError: A setting is out of range, or the file cannot be written.
        DataError: A source cannot be opened.
    """
    if settings.sample < 0:
        raise SettingsError(f"sample is {settings.sample}: give 0 or more")
    check_data_settings(settings)
    if settings.output is not None:
        check_output("output", Path(settings.output), JSON_BEGINNING)
    batch = GlobalBatch.of(settings)
    mixture = open_mixture(settings)
    processor, lengths = find_processor(settings, overrides)
    sampled = [_sample(mixture, source, settings) for source in range(len(mixture.readers))]
    counter = Counter(mixture.readers, processor)
    counted = list(in_order(counter, chunks_of(sampled), settings.workers, "data stats"))
    max_length = settings.data.max_length
    entries = []
    for source in range(len(sampled)):
        own = [chunk for chunk in counted if chunk.source == source]
        entry = _exact(mixture, source) | _measured(own, np.ones(len(sampled)), max_length)
        entries.append(entry | {"records_a_step": batch.size * entry["epoch_records"] / len(mixture)})
    weights = np.array(mixture.num_records) / [len(records) for records in sampled]
    result = {
        "sources": entries,
        "epoch": _exact(mixture, None) | _measured(counted, weights, max_length),
        "steps": _steps(batch, len(mixture)),
        "max_length": max_length,
        "lengths": lengths,
        "sample": settings.sample,
    }
    if settings.output is not None:
        text = json.dumps({"settings": to_plain(settings), **provenance(), **result}, indent=2) + "\n"
        with writing("output", Path(settings.output)):
            write_atomically(Path(settings.output), text)
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
    parts = list(mixture.entries_of_sources())
    entries = np.concatenate([parts[i][0] for i in sources])
    media, medium = mixture.media[entries], mixture.medium
    return {
        "name": "epoch" if source is None else str(mixture.readers[source].file),
        "records": sum(len(mixture.readers[i]) for i in sources),
        "epoch_records": len(media),
        "text_only": float((media == 0).mean()),
        "media": {"mean": float(media.mean()), "max": int(media.max())},
        **_shared(None if medium is None else medium[entries], media),
    }


def _shared(medium: np.ndarray | None, media: np.ndarray) -> dict[str, Any]:
    """Conversations about the same, and the share of images or clips not computed if so many share one."""
    if medium is None or not medium.any():
        return {"conversations_an_image": None, "saved_by_sharing": None}
    conversations = np.unique(medium[medium != 0], return_counts=True)[1]
    alone = num_encoded(medium, media, 1)
    return {
        "conversations_an_image": _spread(conversations, np.ones(len(conversations))),
        "saved_by_sharing": {str(number): 1 - num_encoded(medium, media, number) / alone for number in SHARED},
    }


def _measured(counted: Sequence[Counted], weights: np.ndarray, max_length: int) -> dict[str, Any]:
    """What chunks say, a record of each source weighing as `weights` says; rows beyond `max_length` are cut."""
    of_chunks = weights[[chunk.source for chunk in counted]]
    rows = np.concatenate([chunk.rows for chunk in counted])
    row_weights = np.repeat(of_chunks, [len(chunk.rows) for chunk in counted])
    sizes = np.concatenate([chunk.sizes for chunk in counted])
    size_weights = np.repeat(of_chunks, [len(chunk.sizes) for chunk in counted])
    lengths, num_bad = rows[:, MEASURES.index("row_tokens")], sum(chunk.num_bad for chunk in counted)
    known = len(rows) > 0 and not np.isnan(lengths).any()
    return {
        "sampled": len(rows) + num_bad,
        "bad_records": num_bad,
        "bad_images": sum(chunk.num_bad_images for chunk in counted),
        "cut": float(np.average(lengths > max_length, weights=row_weights)) if known else None,
        **{name: _spread(values, row_weights) for name, values in zip(MEASURES, rows.T, strict=True)},
        **{name: _spread(values, size_weights) for name, values in zip(SIZE_MEASURES, sizes.T, strict=True)},
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


def _steps(batch: GlobalBatch, num_records: int) -> dict[str, int]:
    """The global batch, and the steps of an epoch: none where the records fill no batch."""
    too_few = batch.drop_last and num_records < batch.a_pass
    return {
        "records_a_batch": batch.rows,
        "batches_a_step": batch.processes * batch.accumulation,
        "records_a_step": batch.size,
        "steps_an_epoch": 0 if too_few else batch.steps_an_epoch(num_records),
        "processes": batch.processes,
    }


def stats_table(stats: dict[str, Any]) -> str:
    """The result of `count_data` as text: a column for each source and one for the epoch, and the steps."""
    sources, epoch, steps = stats["sources"], stats["epoch"], stats["steps"]
    columns = [_column(column, stats) for column in (*sources, epoch)]
    heads = [*(f"source {number}" for number in range(len(sources))), "epoch"]
    body = [[name, *(column[name] for column in columns)] for name in columns[0]]
    sampled = "all records of an epoch" if not stats["sample"] else f"at most {stats['sample']} records of a source"
    lines = [
        *(f"source {number}: {source['name']}" for number, source in enumerate(sources)),
        "",
        aligned(["", *heads], body),
        "",
        f"spreads are {LEGEND}; read: {sampled}",
        f"row lengths: {stats['lengths']}",
        f"a step: {steps['records_a_step']} records, {steps['batches_a_step']} batches of {steps['records_a_batch']}"
        f" (hardware.num_processes={steps['processes']}); an epoch: {steps['steps_an_epoch']} steps",
    ]
    return "\n".join(lines) + "\n"


def _column(column: dict[str, Any], stats: dict[str, Any]) -> dict[str, str]:
    """The cells of a source or of the epoch, by the names of their rows."""
    media = column["media"]
    return {
        "records": str(column["records"]),
        "records an epoch": str(column["epoch_records"]),
        "records a step": _number(column.get("records_a_step", stats["steps"]["records_a_step"])),
        "text-only": _percent(column["text_only"]),
        "media a record": f"{_number(media['mean'])}, at most {media['max']}",
        "conversations an image": _words(column["conversations_an_image"]),
        **{
            f"saved by share_media={number}": _percent((column["saved_by_sharing"] or {}).get(str(number)))
            for number in SHARED
        },
        "records read": str(column["sampled"]),
        "  of them bad": str(column["bad_records"]),
        "images unreadable": str(column["bad_images"]),
        **{name.replace("_", " "): _words(column[name]) for name in MEASURES},
        f"longer than {stats['max_length']}": _percent(column["cut"]),
        **{f"image {name}": _words(column[name]) for name in SIZE_MEASURES},
    }


def _words(spread: dict[str, float] | None) -> str:
    return "-" if spread is None else ", ".join(_number(spread[key]) for key in ("mean", "median", "p95", "max"))


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
