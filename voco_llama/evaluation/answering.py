"""Questions to answers: each image compressed once and read from the cache, or seen whole, or not seen at all.

Requests are worked through in windows that hold all questions of an image, so that an image is compressed once and
no more caches than a window's are in memory. Inside a window, questions of like length share a batch.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from voco_llama.data.records import IMAGE_MARK
from voco_llama.errors import SettingsError
from voco_llama.evaluation.benchmarks import Request
from voco_llama.model.cache import VoCoCache

if TYPE_CHECKING:
    from voco_llama.data.processor import VoCoProcessor
    from voco_llama.model.voco_llama import VoCoLlama

logger = logging.getLogger(__name__)

CONDITIONS = ("full", "voco", "blind")
WINDOW_BATCHES = 16


@dataclass(frozen=True)
class Answered:
    """Answers in request order, and how many images were compressed for them."""

    texts: list[str]
    num_compressed: int


@torch.inference_mode()
def answer(
    model: "VoCoLlama",
    processor: "VoCoProcessor",
    requests: Sequence[Request],
    condition: str,
    num_voco: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 16,
) -> Answered:
    """Answer every request, greedily.

    Args:
        model: In evaluation mode, on the device to use.
        processor: Saved with the model.
        requests: Questions; those with the same `image_key` share one compression.
        condition: `voco`: text reads the VoCo cache of the image, compressed beforehand. `full`: text sees the
            vision tokens. `blind`: there is no image.
        num_voco: VoCo tokens an image; the model's own number by default.
        batch_size: Questions, or images to compress, at a time.
        max_new_tokens: Length limit of an answer.

    Raises:
        DataError: An image cannot be decoded.
        SettingsError: The condition is unknown.
    """
    if condition not in CONDITIONS:
        raise SettingsError(f"condition {condition!r} is unknown: choose one of {', '.join(CONDITIONS)}")
    num_voco = model.config.num_voco if num_voco is None else num_voco
    texts = [""] * len(requests)
    num_compressed = num_done = 0
    for window in windows([request.image_key for request in requests], WINDOW_BATCHES * batch_size):
        cache, entry_of = None, {}
        if condition == "voco":
            cache, entry_of = _compress(model, processor, [requests[i] for i in window], num_voco, batch_size)
            num_compressed += len(entry_of)
        window = sorted(window, key=lambda i: len(requests[i].prompt))
        for batch in (window[start : start + batch_size] for start in range(0, len(window), batch_size)):
            asked = [requests[i] for i in batch]
            prompts = [
                request.prompt if condition == "blind" else f"{IMAGE_MARK}\n{request.prompt}" for request in asked
            ]
            images = [request.load_image() for request in asked] if condition == "full" else None
            laid_out = processor(
                text=prompts, images=images, condition="full" if condition == "full" else "voco", num_voco=num_voco
            )
            entries = None if cache is None else cache[[entry_of[request.image_key] for request in asked]]
            for i, text in zip(batch, generate_texts(model, processor, laid_out, entries, max_new_tokens), strict=True):
                texts[i] = text
        num_done += len(window)
        logger.info("%d of %d questions answered, %d images compressed", num_done, len(requests), num_compressed)
    return Answered(texts, num_compressed)


def generate_texts(
    model: "VoCoLlama",
    processor: "VoCoProcessor",
    laid_out: dict[str, Any],
    cache: VoCoCache | None,
    max_new_tokens: int,
) -> list[str]:
    """Greedy answers to a batch that the processor laid out, as text without special tokens."""
    batch = {name: v.to(model.device) if isinstance(v, torch.Tensor) else v for name, v in laid_out.items()}
    ids = model.generate(**batch, cache=cache, max_new_tokens=max_new_tokens, do_sample=False)
    return [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def windows(keys: Sequence[str], size: int) -> Iterator[list[int]]:
    """Indices in groups of at least `size` (the last may be smaller), equal keys never in two groups."""
    of_key: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        of_key.setdefault(key, []).append(index)
    window: list[int] = []
    for indices in of_key.values():
        window += indices
        if len(window) >= size:
            yield window
            window = []
    if window:
        yield window


def _compress(
    model: "VoCoLlama", processor: "VoCoProcessor", requests: Sequence[Request], num_voco: int, batch_size: int
) -> tuple[VoCoCache, dict[str, int]]:
    """The cache of the requests' distinct images, and the entry of each image."""
    first = {request.image_key: request for request in reversed(requests)}
    keys = list(first)
    caches = []
    for start in range(0, len(keys), batch_size):
        images = [first[key].load_image() for key in keys[start : start + batch_size]]
        caches.append(model.compress(processor.pixels(images).to(model.device), num_voco=num_voco))
    return VoCoCache.cat(caches), {key: entry for entry, key in enumerate(keys)}
