"""`voco-llama data preview`: some samples of a training as the model will see them, on one page.

They pass through the training's own processor and collator; no weights are loaded. The page depends on the settings
and the data alone. A record that cannot be used is shown as its error. It is one HTML file: pictures inside it, no
scripts, nothing from the net, all text of the data escaped.
"""

import base64
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from voco_llama.data.collate import Collator
from voco_llama.data.mixture import Mixture
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.records import Record, blaming_record, name_record
from voco_llama.data_tools.chunks import prompt_line
from voco_llama.data_tools.sample import (
    KINDS,
    UNPRINTABLE,
    Failure,
    Sample,
    entries_of,
    kinds_of,
    mask_note,
    mask_picture,
    summary_of,
)
from voco_llama.data_tools.settings import PreviewSettings, check_output, check_rows_named, writing
from voco_llama.errors import DataError, SettingsError
from voco_llama.files import write_atomically
from voco_llama.layout import ROW_FIELDS, truncate_voco
from voco_llama.training.build import build_processor, open_mixture
from voco_llama.training.elastic import ElasticDraw

logger = logging.getLogger(__name__)

PAGE = "preview.html"
BEGINNING = '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>What the model sees</title>'

TEMPLATE = Path(__file__).with_name("preview.html")


@dataclass(frozen=True)
class _Loaded:
    """A record, its row as the processor made it, and the tokens that `max_length` cut."""

    record: Record
    row: dict[str, Tensor]
    num_cut: int


def preview(settings: PreviewSettings, overrides: Sequence[str] | None = None) -> Path:
    """Write the page, an HTML file, for settings that `check_preview` has checked.

    Where the settings come of `overrides`, these must name a training, or its model.

    Raises:
        SettingsError: The settings name a record or a source that is not there.
        DataError: A data file cannot be read.
        CheckpointError: There is no tokenizer.
    """
    if overrides is not None:
        check_rows_named(overrides)
    page = Path(settings.output) / PAGE
    check_output("output", page, BEGINNING)
    mixture = open_mixture(settings)
    places = list(_places(settings, mixture))
    processor = build_processor(settings)
    loaded = [_load(mixture, place, processor) for place in places]
    samples = _samples(settings, processor, loaded)
    with writing("output", page):
        write_atomically(page, write_html(_notes(settings, processor), samples))
    num_failed = sum(isinstance(sample, Failure) for sample in samples)
    logger.info("%s: %d samples, %d of which cannot be used", page, len(samples), num_failed)
    return page


def _places(settings: PreviewSettings, mixture: Mixture) -> Iterator[tuple[int, int]]:
    """(source, record) of what is shown."""
    if settings.records is None:
        yield from (mixture.origin(index) for index in range(min(settings.samples, len(mixture))))
        return
    if not 0 <= settings.source < len(mixture.readers):
        raise SettingsError(f"source is {settings.source}: data.sources has {len(mixture.readers)}, counted from 0")
    reader = mixture.readers[settings.source]
    for record in settings.records:
        if not 0 <= record < len(reader):
            raise SettingsError(f"records names {record}: {reader.file} has {len(reader)} records, counted from 0")
        yield settings.source, record


def _load(mixture: Mixture, place: tuple[int, int], processor: VoCoProcessor) -> _Loaded | Failure:
    source, number = place
    reader = mixture.readers[source]
    try:
        with blaming_record(reader.file, number):
            record = reader[number]
            row = processor.row(record)
            return _Loaded(record, row, len(processor.lay_out_record(record)) - len(row["input_ids"]))
    except DataError as error:
        return Failure(name_record(reader.file, number), str(error))


def _samples(
    settings: PreviewSettings, processor: VoCoProcessor, loaded: list[_Loaded | Failure]
) -> list[Sample | Failure]:
    """What is shown of each: the rows are one batch, so that they have the padding of one."""
    usable = [one for one in loaded if isinstance(one, _Loaded)]
    rows = iter(_batch(settings, processor, usable) if usable else [])
    return [one if isinstance(one, Failure) else _sample(settings, processor, one, next(rows)) for one in loaded]


def _batch(settings: PreviewSettings, processor: VoCoProcessor, loaded: list[_Loaded]) -> list[dict[str, Tensor]]:
    """Fields of each row, padded; under elastic training with the VoCo tokens of the first step's first reading."""
    batch = Collator(processor.tokens)([one.row for one in loaded])
    compression = settings.compression
    if compression.num_voco_choices is not None:
        draw = ElasticDraw(
            compression.num_voco_choices, compression.draw, len(loaded), settings.seed, compression.readings
        )
        batch = truncate_voco(batch, draw(0, 0, len(loaded))[0], processor.tokens.pad)
    return [{name: batch[name][index] for name in ROW_FIELDS} for index in range(len(loaded))]


def _sample(settings: PreviewSettings, processor: VoCoProcessor, loaded: _Loaded, row: dict[str, Tensor]) -> Sample:
    kinds = kinds_of(row, processor.tokens)
    compression, pixels = settings.compression, loaded.row["pixel_values"]
    mask, drawn = mask_picture(row, kinds, compression.condition, compression.segment_attention)
    return Sample(
        title=loaded.record.source,
        summary=summary_of(kinds, len(pixels), loaded.num_cut, settings.data.max_length),
        entries=tuple(entries_of(row, kinds, processor.tokenizer)),
        pictures=tuple(processor.image_transform.to_image(picture) for picture in torch.unbind(pixels)),
        mask=mask,
        mask_note=mask_note(len(drawn), len(kinds)),
    )


def _notes(settings: PreviewSettings, processor: VoCoProcessor) -> tuple[str, ...]:
    """What holds for all samples."""
    compression = settings.compression
    num_voco = str(processor.num_voco)
    if compression.num_voco_choices is not None:
        drawn = f"elastic: {compression.readings} of {compression.num_voco_choices} a step, here the first of step 0"
        num_voco = f"1 to {num_voco} ({drawn})"
    return (
        f"condition {compression.condition}, {num_voco} VoCo tokens an image; {processor.num_vision} vision tokens of"
        f" {processor.image_transform.image_size} x {processor.image_transform.image_size} pixels,"
        f" {compression.segment_attention} among themselves; compressed by {compression.compressor}",
        f"{prompt_line(settings, processor)}; seed {settings.seed}; sources:"
        f" {', '.join(source.file for source in settings.data.sources)}",
        "mask: a row for each query, a column for each key, both from the row's first token on; dark = may attend",
    )


def write_html(notes: Sequence[str], samples: Sequence[Sample | Failure]) -> str:
    """The page: what holds for all samples, one line each, and the samples in order."""
    environment = Environment(autoescape=True, finalize=_printable, keep_trailing_newline=True)
    environment.filters["base64_png"] = _base64_png
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(kinds=KINDS, notes=notes, samples=samples)


def _printable(value: Any) -> Any:
    """A text with every character that is not for reading replaced: control, direction, lone surrogates."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() or c == "\n" else UNPRINTABLE for c in value)


def _base64_png(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
