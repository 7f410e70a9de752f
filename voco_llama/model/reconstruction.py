"""Reconstruction, in training only: what an image's vision tokens became, told from its VoCo tokens alone.

The language model's last hidden states of the vision tokens, layer-normed and without gradient, are what a small
decoder is to predict from the hidden states of the first n VoCo tokens, layer-normed too:

    queries [V, width], learned -> one cross-attention to n VoCo tokens -> one MLP -> [V, hidden]

as the mean of a normal distribution with a learned variance for each channel. VoCo tokens thus learn from 64 or 576
vectors an image, and not from the few words of an answer alone. The decoder is dropped when training ends.

Text reads a VoCo token's keys and values, and of the last layer these are made from what enters it: what a VoCo token
gathers in the last layer itself can be told from its last hidden state, and no text can read it. So the states may be
taken from below (`ReconstructionDecoder.layer`).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from voco_llama.layout import next_tokens
from voco_llama.packing import ShownSegments
from voco_llama.tokens import IGNORE_INDEX

HEADS = 8
MOST_WIDTH = 1024
"""The decoder is as wide as the language model, but no wider than this."""
MLP = 4
"""Inner size of the decoder's MLP, in widths."""
MOST_LOG_VARIANCE = 6.0
"""Of a channel, and its least with the sign changed: one that never varies must not outweigh all others."""
VARIANCE_SPEED = 10.0
"""What a variance's parameter is multiplied by: at the rate of the weights it would need thousands of steps to come to
the decoder's errors, and until then these weigh too little."""


def decoder_width(hidden_size: int) -> int:
    """Of the decoder beside a language model of this hidden size."""
    return min(hidden_size, MOST_WIDTH)


class SegmentStates(NamedTuple):
    """Last hidden states of vision tokens, `[segments, V, hidden]`, and states of VoCo tokens, `[segments, N, hidden]`.

    Where rows show fewer than N VoCo tokens of a segment, the others may be anything.
    """

    vision: Tensor
    voco: Tensor

    @classmethod
    def blank(cls, num_vision: int, like: Tensor) -> "SegmentStates":
        """One segment of zeros, of the dtype and width of other states."""
        return cls(like.new_zeros(1, num_vision, like.shape[-1]), like.new_zeros(1, 1, like.shape[-1]))


class Readings(NamedTuple):
    """What reads segments, `[readings]` each.

    Attributes:
        segment: int64: which of the segments.
        num_voco: int64: through how many of its VoCo tokens.
        weight: float32: how much it counts.
    """

    segment: Tensor
    num_voco: Tensor
    weight: Tensor

    @classmethod
    def of(cls, shown: ShownSegments, labels: Tensor, by_image: bool) -> "Readings":
        """Of rows: each row counts as much as it has trained tokens, divided among the segments it shows.

        Args:
            shown: By the rows.
            labels: `[rows, length]`.
            by_image: The segments are the images, each once; else each is there as often as it is shown.
        """
        trained = (next_tokens(labels) != IGNORE_INDEX).sum(dim=1)
        weight = trained[shown.row] / torch.bincount(shown.row, minlength=len(labels))[shown.row]
        if not by_image:
            return cls(torch.arange(len(shown.row), device=shown.row.device), shown.num_voco, weight)
        pairs, which = torch.stack([shown.image, shown.num_voco]).unique(dim=1, return_inverse=True)
        return cls(*pairs, weight.new_zeros(pairs.shape[1]).index_add(0, which, weight))

    def to(self, device: torch.device) -> "Readings":
        """On another device; the host does not wait for the copies."""
        return Readings(*(part.to(device, non_blocking=True) for part in self))


class ReconstructionDecoder(nn.Module):
    """See the module.

    Args:
        hidden_size: Of the language model.
        num_vision: Vision tokens of an image.

    Attributes:
        layer: How many of the language model's layers VoCo tokens have been through; None: all, and the norm.
    """

    def __init__(self, hidden_size: int, num_vision: int) -> None:
        super().__init__()
        self.layer: int | None = None
        width = decoder_width(hidden_size)
        heads = next(heads for heads in range(HEADS, 0, -1) if width % heads == 0)
        self.head_dim = width // heads
        self.queries = nn.Parameter(torch.empty(num_vision, width))
        # Not nn.MultiheadAttention, which takes weights of a layer without calling it: ZeRO-3 gathers what is called.
        self.keys_and_values = nn.Linear(hidden_size, 2 * width)
        self.attended = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, MLP * width), nn.GELU(), nn.Linear(MLP * width, width)
        )
        self.output = nn.Linear(width, hidden_size)
        self.variance = nn.Parameter(torch.zeros(hidden_size))
        nn.init.normal_(self.queries, std=0.02)
        for module in self.modules():  # all weights are what they should be: loading must not draw them anew
            module._is_hf_initialized = True

    def forward(self, states: SegmentStates, readings: Readings) -> Tensor:
        """Negative log-likelihoods, but for their constant, summed by weight; a float32 scalar.

        That of a reading is the mean over the image's vision tokens and their channels.
        """
        vision, num_voco = states.vision[readings.segment].detach(), states.voco.shape[1]
        voco = self.keys_and_values(layer_norm(states.voco, states.voco.shape[-1:]))
        keys, values = self._in_heads(voco[readings.segment]).chunk(2, dim=1)
        queries = self._in_heads(self.queries.to(keys.dtype)).expand(len(keys), -1, -1, -1)
        is_read = torch.arange(num_voco, device=vision.device) < readings.num_voco[:, None]
        read = scaled_dot_product_attention(queries, keys, values, attn_mask=is_read[:, None, None])
        read = self.queries + self.attended(read.transpose(1, 2).flatten(2))
        predicted = self.output(read + self.mlp(read)).float()
        target = layer_norm(vision.float(), vision.shape[-1:])
        log_variance = MOST_LOG_VARIANCE * torch.tanh(VARIANCE_SPEED / MOST_LOG_VARIANCE * self.variance.float())
        error = (predicted - target).square() * torch.exp(-log_variance)
        likelihoods = 0.5 * (error + log_variance).mean(dim=(1, 2))
        return (likelihoods * readings.weight).sum()  # not `@`, which autocast makes in half precision

    def _in_heads(self, states: Tensor) -> Tensor:
        """`[..., tokens, heads x head_dim]` to `[..., heads, tokens, head_dim]`."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)
