"""Distillation on the student's own answers, so that it is taught where its own words lead it.

Of a part of the rows the student writes an answer itself, and the KL term compares what it predicts there with what the
teacher does: on-policy distillation (Agarwal et al., 2024, "On-policy distillation of language models", arXiv
2306.13649), with greedy answers and the forward divergence.

Which rows those are, which of a row's answers is written anew (the row ends with it), and through how many VoCo tokens,
is a pure function of the seed, the step and a row's place in the global batch. An answer is written through as many as
the row is read through afterwards; of several readings, through those of one, drawn.

The new row is what the processor lays out for the conversation with that answer, up to the token that ends it, of the
tokens that the student chose. What stands before the answer stays as it is. No cross entropy is taken of such a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.records import Record, Turn
from voco_llama.layout import ROW_FIELDS, HostRows, Row, next_tokens, pad_rows, truncate_voco
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.packing import images_in_order, images_of_rows
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.training.elastic import ElasticDraw

OWN_ROWS = "own_rows"
"""Of a batch: its `OwnRows`."""
_STREAM = 1
"""Tells these random numbers from those of `ElasticDraw`."""


@dataclass(frozen=True)
class OwnRows:
    """Which rows of a batch end with an answer of the student's own, bool `[rows]`. As `HostRows` it stays here."""

    rows: Tensor

    def tokens(self, labels: Tensor) -> Tensor:
        """Of the trained tokens of `labels` `[rows, length]`, in row-major order, those of such rows; bool."""
        return self.rows.repeat_interleave((next_tokens(labels.cpu()) != IGNORE_INDEX).sum(dim=1))

    def others(self, labels: Tensor) -> Tensor:
        """The labels without those of such rows."""
        return labels.masked_fill(self.rows.to(labels.device)[:, None], IGNORE_INDEX)


@dataclass(frozen=True)
class OwnDraw:
    """Draws which rows of a global batch get an answer of the student's own.

    Attributes:
        share: Chance of a row.
        group_size: Rows of a global batch.
        seed: Of the run.
    """

    share: float
    group_size: int
    seed: int

    def __call__(self, step: int, first: int, count: int) -> np.ndarray:
        """For `count` rows of a global batch from its `first`-th on, after `step` steps.

        Returns:
            float64 `[3, count]`, from 0 to 1: a row is chosen below `share`; then the choice among its answers, and
            among its readings.
        """
        return np.random.default_rng([self.seed, step, _STREAM]).random((3, self.group_size))[:, first : first + count]


class OwnAnswers:
    """Lets the student write answers into the batches of a step.

    Args:
        draw: Which rows.
        processor: That laid the rows out.
        most_tokens: That an answer may have, its end included; None: as many as the longest of the step.
    """

    def __init__(self, draw: OwnDraw, processor: VoCoProcessor, most_tokens: int | None) -> None:
        self.draw, self.processor, self.most_tokens = draw, processor, most_tokens
        self.only_last = not _cuts_anywhere(processor)

    def of_step(
        self,
        student: VoCoLlama,
        batches: Sequence[dict[str, Any]],
        step: int,
        firsts: Sequence[int],
        elastic: ElasticDraw | None,
        most: int,
    ) -> list[dict[str, Any]]:
        """The batches of a step as `write` makes them; the places of their first rows are `firsts`."""
        was_training, written = student.training, []
        student.eval()
        for batch, first in zip(batches, firsts, strict=True):
            count = len(batch["labels"])
            num_voco = elastic(step, first, count) if elastic else torch.full((1, count), student.config.num_voco)
            written.append(self.write(student, batch, step, first, num_voco, most))
        student.train(was_training)
        return written

    def longest(self, batches: Sequence[dict[str, Any]]) -> int:
        """Tokens of the longest answer in some batches; 0 if there is none."""
        lengths = [
            end - start
            for batch in batches
            for labels in HostRows.of_batch(batch).fields["labels"].cpu()
            for start, end in answers_of(labels)
        ]
        return max(lengths, default=0)

    @torch.no_grad()
    def write(
        self, student: VoCoLlama, batch: dict[str, Any], step: int, first: int, num_voco: Tensor, most: int
    ) -> dict[str, Any]:
        """The batch in which the rows that are drawn end with an answer of the student's own, and its `OwnRows`.

        Args:
            student: In evaluation mode.
            batch: From a `Collator`, padded on the right.
            step: Steps done.
            first: Place of its first row in the global batch.
            num_voco: int64 `[readings, rows]`: VoCo tokens that each reading of a row keeps.
            most: Tokens that an answer may have.
        """
        host = HostRows.of_batch(batch)
        host = HostRows({name: values.cpu() for name, values in host.fields.items()}, *_on_host(host))
        rows = rows_of(host.fields)
        chance, which_answer, which_reading = self.draw(step, first, len(rows))
        answers = [answers_of(row.labels)[-1 if self.only_last else 0 :] for row in rows]
        chosen = [n for n, found in enumerate(answers) if found and chance[n] < self.draw.share]
        is_own = torch.zeros(len(rows), dtype=torch.bool).index_fill(0, torch.tensor(chosen, dtype=torch.long), True)
        if not chosen:
            return {**batch, OWN_ROWS: OwnRows(is_own)}
        starts = [answers[n][int(which_answer[n] * len(answers[n]))][0] for n in chosen]
        prompts = [_cut(rows[n], start) for n, start in zip(chosen, starts, strict=True)]
        through = num_voco[(which_reading[chosen] * len(num_voco)).astype(int), chosen]
        medium = None if host.medium is None else host.medium[chosen]
        written = self._answers(student, prompts, through, batch.get("pixel_values"), host.media, medium, most)
        for number, prompt, ids in zip(chosen, prompts, written, strict=True):
            room = most if self.processor.max_length is None else min(most, self.processor.max_length - len(prompt))
            rows[number] = with_answer(prompt, ids[:room])
        return self._batch(batch, rows, host) | {OWN_ROWS: OwnRows(is_own)}

    def _answers(
        self,
        student: VoCoLlama,
        prompts: Sequence[Row],
        num_voco: Tensor,
        pixel_values: Tensor | None,
        media: Tensor | None,
        medium: Tensor | None,
        most: int,
    ) -> list[Tensor]:
        """What the student goes on with, each up to its end; int64 on the host."""
        fields = pad_rows(prompts, self.processor.tokens)
        order = images_in_order(fields, media, medium)
        whose = torch.arange(len(prompts)).repeat_interleave(torch.tensor([int(row.segment.max()) for row in prompts]))
        fields = truncate_voco(fields, num_voco, self.processor.tokens.pad)
        del fields["labels"]
        cache = None
        if len(order):
            seen, order = order.unique(return_inverse=True)
            read = num_voco[whose]
            cache = student.compress(pixel_values[seen.to(pixel_values.device)], int(read.max()))[order].truncate(read)
        ids = student.generate(
            **{name: values.to(student.device) for name, values in fields.items()},
            cache=cache,
            condition="voco",
            do_sample=False,
            max_new_tokens=most,
            suppress_tokens=[self.processor.tokens.image, self.processor.tokens.voco],
        )
        return [up_to_end(answer, student.config.eos_token_id) for answer in ids.cpu()]

    def _batch(self, batch: dict[str, Any], rows: Sequence[Row], host: HostRows) -> dict[str, Any]:
        """The batch with other rows; images that no row shows any more are left away."""
        fields, media, pixels = pad_rows(rows, self.processor.tokens), host.media, batch.get("pixel_values")
        shown = images_of_rows(fields, media, host.medium)
        shown = shown[shown >= 0].unique()
        if pixels is not None and len(shown) < len(pixels):
            number = torch.full((len(pixels) + 1,), -1).index_put((shown,), torch.arange(len(shown)))
            media, pixels = number[media], pixels[shown.to(pixels.device)]
        device = batch["labels"].device
        laid_out: dict[str, Any] = {name: values.to(device) for name, values in fields.items()}
        if "rows" in batch:
            laid_out = {"labels": laid_out["labels"], "rows": HostRows(fields, media, host.medium)}
        elif media is not None:
            laid_out |= {"media": media.to(batch["media"].device), "medium": batch["medium"]}
        return {**batch, **laid_out, "pixel_values": pixels}


def answers_of(labels: Tensor) -> list[tuple[int, int]]:
    """Where the answers of a row, `[length]`, begin and end: each run of trained tokens."""
    trained = torch.nn.functional.pad((labels != IGNORE_INDEX).long(), (1, 1))
    changes = trained.diff()
    return list(zip((changes > 0).nonzero()[:, 0].tolist(), (changes < 0).nonzero()[:, 0].tolist(), strict=True))


def rows_of(fields: dict[str, Tensor]) -> list[Row]:
    """The rows of a batch, padded on the right, without padding."""
    lengths = (fields["document"] >= 0).sum(dim=1).tolist()
    return [
        Row(**{name: fields[name][number, :length] for name in ROW_FIELDS}) for number, length in enumerate(lengths)
    ]


def with_answer(prompt: Row, ids: Tensor) -> Row:
    """A row that goes on with an answer, int64 `[tokens]`, all of which is trained."""
    text = torch.zeros_like(ids)
    after = {
        "input_ids": ids,
        "labels": ids,
        "segment": text,
        "voco": text.bool(),
        "position": prompt.position[-1] + 1 + torch.arange(len(ids)),
        "document": text,
    }
    return Row(**{name: torch.cat([getattr(prompt, name), after[name]]) for name in ROW_FIELDS})


def up_to_end(ids: Tensor, ends: int | Sequence[int] | None) -> Tensor:
    """An answer, `[tokens]`, up to the first of the tokens that end one, that token included."""
    is_end = torch.isin(ids, torch.tensor([] if ends is None else ends, dtype=ids.dtype))
    return ids[: int(is_end.long().argmax()) + 1] if bool(is_end.any()) else ids


def _cut(row: Row, end: int) -> Row:
    return Row(**{field.name: getattr(row, field.name)[:end] for field in fields(row)})


def _on_host(rows: HostRows) -> tuple[Tensor | None, Tensor | None]:
    return tuple(None if values is None else values.cpu() for values in (rows.media, rows.medium))


def _cuts_anywhere(processor: VoCoProcessor) -> bool:
    """Whether the row of a conversation begins as that of its first turns.

    Chat templates that write earlier answers otherwise than the last one (Qwen3's) make rows that end nowhere else.
    """
    turns = (Turn("user", "a"), Turn("assistant", "b"))
    once, twice = (processor.lay_out_record(Record("", turns * times)) for times in (1, 2))
    (_, end), *_ = answers_of(once.labels) or [(0, 0)]
    return torch.equal(once.input_ids[:end], twice.input_ids[:end])
