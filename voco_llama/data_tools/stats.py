"""`data stats`: how much there is in a training's data, of each source and in an epoch.

Numbers of records, of text-only ones and of media are exact. Turns, tokens and image sizes are those of a sample, drawn
by the seed from what an epoch sees, without decoding an image; in the row of the whole epoch each source weighs as much
as it contributes.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voco_llama.composition import to_plain
from voco_llama.data.media.images import read_image_header
from voco_llama.data.mixture import Mixture
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.readers import Reader
from voco_llama.data.records import Record
from voco_llama.data_tools.chunks import chunks_of, find_processor, in_order
from voco_llama.data_tools.settings import DataStatsSettings
from voco_llama.errors import DataError, SettingsError, one_line
from voco_llama.files import write_atomically
from voco_llama.provenance import provenance
from voco_llama.text import aligned
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.build import open_mixture

TOKEN_MEASURES = ("prompt_tokens", "answer_tokens", "vision_tokens", "voco_tokens", "row_tokens")
MEASURES = ("turns", *TOKEN_MEASURES)
SIZE_MEASURES = ("width", "height", "aspect")
QUANTILES = {"median": 0.5, "p95": 0.95}
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
    if settings.sample < 0:
        raise SettingsError(f"sample is {settings.sample}: give 0 or more")
    batch = GlobalBatch.of(settings)
    mixture = open_mixture(settings)
    processor, lengths = find_processor(settings)
    sampled = [_sample(mixture, source, settings) for source in range(len(mixture.readers))]
    parts: list[list[Counted]] = [[] for _ in sampled]
    for counted in in_order(Counter(mixture.readers, processor), chunks_of(sampled), settings.workers, "data stats"):
        parts[counted.source].append(counted)
    entries = [
        _exact(mixture, source) | _measured([part], np.ones(1), settings.data.max_length)
        for source, part in enumerate(parts)
    ]
    for entry in entries:
        entry["records_a_step"] = batch.size * entry["epoch_records"] / len(mixture)
    weights = np.array(mixture.num_records) / [len(records) for records in sampled]
    result = {
        "sources": entries,
        "epoch": _exact(mixture, None) | _measured(parts, weights, settings.data.max_length),
        "steps": _steps(batch, len(mixture)),
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


def _write(settings: DataStatsSettings, result: dict[str, Any]) -> None:
    file = Path(settings.output)
    try:
        write_atomically(file, json.dumps({"settings": to_plain(settings), **provenance(), **result}, indent=2) + "\n")
    except OSError as error:
        raise SettingsError(f"output: {file} cannot be written ({one_line(error)}); give a file elsewhere") from error


def stats_table(stats: dict[str, Any]) -> str:
    """The result of `count_data` as text: a column for each source and one for the epoch, and the steps."""
    sources, epoch, steps = stats["sources"], stats["epoch"], stats["steps"]
    columns = [*sources, epoch]
    heads = [*(f"source {number}" for number in range(len(sources))), "epoch"]
    body = [[name, *(show(column) for column in columns)] for name, show in _rows(stats)]
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


def _rows(stats: dict[str, Any]) -> list[tuple[str, Callable[[dict[str, Any]], str]]]:
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("records", lambda column: str(column["records"])),
        ("records an epoch", lambda column: str(column["epoch_records"])),
        ("records a step", lambda column: _number(column.get("records_a_step", stats["steps"]["records_a_step"]))),
        ("text-only", lambda column: _percent(column["text_only"])),
        ("media a record", lambda column: f"{_number(column['media']['mean'])}, at most {column['media']['max']}"),
        ("records read", lambda column: str(column["sampled"])),
        ("  of them bad", lambda column: str(column["bad_records"])),
        ("images unreadable", lambda column: str(column["bad_images"])),
        ("turns", lambda column: _words(column["turns"])),
    ]
    rows += [(name.replace("_", " "), _shows(name)) for name in TOKEN_MEASURES]
    rows.append((f"longer than {stats['max_length']}", lambda column: _percent(column["cut"])))
    return rows + [(f"image {name}", _shows(name)) for name in SIZE_MEASURES]


def _shows(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda column: _words(column[name])


def _words(spread: dict[str, float] | None) -> str:
    return "-" if spread is None else ", ".join(_number(spread[key]) for key in ("mean", "median", "p95", "max"))


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
