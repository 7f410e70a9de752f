"""A head that has learned nothing, but tells images apart."""

from itertools import pairwise

import torch

from voco_llama.model.quality import HeadShape, QualityHead, numbers_up_to
from voco_llama.model.voco_llama import VoCoLlama


def random_head(model: VoCoLlama, most: int, layer: int = 1, scale: float = 4.0, seed: int = 0) -> QualityHead:
    """Of a model; the same for the same seed."""
    torch.manual_seed(seed)
    _, heads, dimension = model.config.kv_shape
    head = QualityHead(HeadShape(numbers_up_to(most), layer, heads * dimension), model.fingerprint())
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(scale)
    return head.eval()


def telling_quality(model: VoCoLlama, head: QualityHead, pixels: torch.Tensor) -> float:
    """A quality at which some images get fewer tokens than others, as far as may be from where one would change."""
    with torch.no_grad():
        predicted = head(head.features(model.compress(pixels, head.shape.numbers[-1])))
    values = predicted.flatten().sort().values.tolist()
    between = [(after - before, (before + after) / 2) for before, after in pairwise(values)]
    telling = [(gap, q) for gap, q in between if len(set(model_choices(predicted, head, q))) > 2]
    assert telling, "all images are alike to this head"
    return max(telling)[1]


def model_choices(predicted: torch.Tensor, head: QualityHead, quality: float) -> list[int]:
    """By hand: the first number that is predicted to be within the quality, else all."""
    numbers = head.shape.numbers
    return [
        next((n for n, divergence in zip(numbers, row, strict=False) if divergence <= quality), numbers[-1])
        for row in predicted.tolist()
    ]
