"""Batches for the model's tests, and the two ways of computing what must be equal."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.records import Turn
from voco_llama.layout import Row, pad_rows
from voco_llama.model.voco_llama import VoCoLlama


def random_images(count: int, seed: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)) for _ in range(count)]


def asked(text: str) -> list[Turn]:
    return [Turn("user", text)]


def answered(text: str, answer: str = "Yes.") -> list[Turn]:
    return [*asked(text), Turn("assistant", answer)]


def batch_of(processor: VoCoProcessor, rows: Sequence[Row], side: str = "left", labels: bool = False) -> dict:
    batch = pad_rows(rows, processor.tokens, side)
    if not labels:
        del batch["labels"]
    return batch


def last_token(document: Tensor) -> Tensor:
    """bool `[batch, length]`: the last token of each row that is not padding."""
    places = torch.arange(document.shape[1]) * (document >= 0)
    return torch.zeros_like(document, dtype=torch.bool).scatter(1, places.argmax(dim=1, keepdim=True), True)


@torch.no_grad()
def one_pass_logits(model: VoCoLlama, batch: dict, **kwargs) -> Tensor:
    """Logits of each row's last token from one masked pass, `[batch, vocabulary]`."""
    return model(**batch, logits_mask=last_token(batch["document"]), **kwargs).logits


def two_step_logits(model: VoCoLlama, batch: dict, **kwargs) -> Tensor:
    """Logits of each row's last token as `generate` sees them, `[batch, vocabulary]`."""
    seen = []
    hook = model.language_model.register_forward_hook(lambda module, args, output: seen.append(output.logits[:, -1]))
    try:
        model.generate(**batch, max_new_tokens=1, do_sample=False, **kwargs)
    finally:
        hook.remove()
    (logits,) = seen
    return logits


def extended(row: Row, token: int) -> Row:
    """The row with one more text token."""

    def append(values: Tensor, value: int) -> Tensor:
        return torch.cat([values, torch.tensor([value], dtype=values.dtype)])

    return Row(
        append(row.input_ids, token),
        append(row.labels, token),
        append(row.segment, 0),
        append(row.voco, False),
        append(row.position, int(row.position[-1]) + 1),
        append(row.document, 0),
    )


def greedy_from_scratch(
    model: VoCoLlama,
    processor: VoCoProcessor,
    rows: Sequence[Row],
    pixel_values: Tensor | None,
    steps: int,
    **kwargs,
) -> Tensor:
    """Greedy decoding that runs the whole masked pass for every token and keeps nothing, `[batch, steps]`."""
    rows, chosen = [replace(row) for row in rows], []
    for _ in range(steps):
        logits = one_pass_logits(model, batch_of(processor, rows), pixel_values=pixel_values, **kwargs)
        chosen.append(logits.argmax(dim=-1))
        rows = [extended(row, int(token)) for row, token in zip(rows, chosen[-1], strict=True)]
    return torch.stack(chosen, dim=1)
