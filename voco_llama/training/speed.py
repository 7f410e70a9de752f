"""How fast a training is: what its batches asked for, in how much time, and how long it waited for them.

All that is counted of rows is summed where the rows are, on the host in two steps, and read when the log is written: no
step waits for the device. The time is that between two log entries, at each of which the Trainer itself waits.
"""

import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

from voco_llama.choices import Condition, SegmentAttention
from voco_llama.configuration import VoCoLlamaConfig
from voco_llama.layout import PADDING_DOCUMENT
from voco_llama.model.flops import HALF, Work, flops_of_work
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.training.log_entries import IMAGES, IMAGES_SHOWN, PADDING, SEGMENT_SPEED, TEXT_SPEED, UTILIZATION

T = TypeVar("T")

PEAK_SIZES = {"cuda": 8192, "cpu": 1024}
"""Side of the square matrices whose product shows what a device can do."""
PEAK_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of rows, whole numbers, or tensors of one.

    Attributes:
        text, trained: Tokens.
        text_before, read_before: For all text tokens, the text and the read tokens of segments before them.
        segment_tokens, read: Tokens of segments as the rows show them, and those of them that text reads.
        segment_before: For all tokens of segments, what they see before them.
        shown: Images that the rows show.
        images: Distinct ones, which are encoded.
        filled, places: Of the padded rows (`PADDING`).
    """

    text: int | Tensor
    trained: int | Tensor
    text_before: int | Tensor
    read_before: int | Tensor
    segment_tokens: int | Tensor
    read: int | Tensor
    segment_before: int | Tensor
    shown: int | Tensor
    images: int | Tensor
    filled: int | Tensor
    places: int | Tensor

    @property
    def shared(self) -> float:
        """What of the shown images is computed."""
        return self.images / max(self.shown, 1)

    def work(self) -> Work:
        """The work that they are, where each distinct image is computed once."""
        return Work(
            text=self.text,
            text_pairs=self.text_before + HALF * self.text,
            read_pairs=self.read_before,
            segment_tokens=self.shared * self.segment_tokens,
            segment_pairs=self.shared * (self.segment_before + HALF * self.segment_tokens),
            kept=self.shared * self.read,
            trained=self.trained,
            images=self.images,
        )


def count(
    rows: Mapping[str, Tensor],
    images: int,
    condition: Condition,
    two_steps: bool,
    segment_attention: SegmentAttention = "causal",
) -> Tensor:
    """The `Counts` of a batch, int64 `[counts]`, on the device of the rows, which is not waited for.

    Args:
        rows: Fields of `Row`, each `[rows, length]`.
        images: Distinct ones of the batch.
        condition: Decides what text reads of a segment, and what a segment's tokens see.
        two_steps: Whether padded rows hold what text reads alone, each document as a row of its own.
        segment_attention: Where a segment's tokens are independent, its VoCo tokens alone see others.
    """
    document, segment = rows["document"], rows["segment"]
    real = document > PADDING_DOCUMENT
    text, in_segment = real & (segment == 0), real & (segment > 0)
    new_document = document.diff(dim=1, prepend=document[:, :1] - 1) != 0
    new_segment = new_document | (segment.diff(dim=1, prepend=segment[:, :1]) != 0)
    read = in_segment & rows["voco"] if condition == "voco" else in_segment
    seen = _before(in_segment, new_segment) if condition == "voco" else _before(real, new_document)
    asking = in_segment & rows["voco"] if segment_attention == "independent" else in_segment
    kept = text | read if two_steps else real
    longest = (_before(kept, new_document) + 1).masked_fill(~kept, 0).max()
    counted = Counts(
        text=text.sum(),
        trained=(rows["labels"][:, 1:] != IGNORE_INDEX).sum(),
        text_before=_before(text, new_document).masked_fill(~text, 0).sum(),
        read_before=_before(read, new_document).masked_fill(~text, 0).sum(),
        segment_tokens=in_segment.sum(),
        read=read.sum(),
        segment_before=seen.masked_fill(~asking, 0).sum(),
        shown=(in_segment & new_segment).sum(),
        images=torch.full_like(document[0, 0], images),
        filled=kept.sum(),
        places=(real & new_document).sum() * longest if two_steps else torch.full_like(document[0, 0], real.numel()),
    )
    return torch.stack([getattr(counted, field.name) for field in fields(Counts)])


def _before(mask: Tensor, starts: Tensor) -> Tensor:
    """How many True stand before each place since the last start, int64 `[rows, length]`."""
    before = mask.cumsum(dim=1) - mask.long()
    return before - before.masked_fill(~starts, 0).cummax(dim=1).values


class Speed:
    """Sums up the batches of a process, and says of a stretch of training how fast it was.

    Args:
        config: Of the model.
        trains: Parts of the model whose weights train, all of them.
        peak: FLOPs a second of one process's device.
        processes: That train.
    """

    def __init__(self, config: VoCoLlamaConfig, trains: Collection[str], peak: float, processes: int) -> None:
        self.config, self.trains, self.peak, self.processes = config, trains, peak, processes
        self._sum: Tensor | None = None
        self._in_two_steps = False
        self._flops = 0
        self.start(0)

    def start(self, step: int) -> None:
        """Begin a stretch after so many steps."""
        self._before = None if self._sum is None else self._sum.clone()
        self._began, self._step = time.perf_counter(), step

    def add(self, rows: Mapping[str, Tensor], images: int, two_steps: bool) -> None:
        """Count a batch; arguments as of `count`."""
        counted = count(rows, images, self.config.condition, two_steps, self.config.segment_attention)
        self._sum = counted if self._sum is None else self._sum + counted
        self._in_two_steps = two_steps

    def new_flops(self) -> int:
        """FLOPs that this process's batches needed since this was asked last."""
        before = self._flops
        self._flops = 0 if self._sum is None else self._flops_of(_read(self._sum))
        return self._flops - before

    def take(self, step: int, sum_over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The entries of `SPEED`, but the last, of the stretch up to `step` steps done, where another one begins."""
        if self._sum is None:
            return {}
        counted = _read(sum_over_processes(self._sum if self._before is None else self._sum - self._before))
        seconds, steps = time.perf_counter() - self._began, max(step - self._step, 1)
        self.start(step)
        segment_tokens = counted.segment_tokens * (counted.shared if self._in_two_steps else 1)
        taken = {
            TEXT_SPEED: counted.text / seconds,
            SEGMENT_SPEED: segment_tokens / seconds,
            UTILIZATION: self._flops_of(counted) / seconds / (self.peak * self.processes),
            PADDING: 1 - counted.filled / max(counted.places, 1),
            IMAGES: counted.images / steps,
            IMAGES_SHOWN: counted.shown / steps,
        }
        return {name: round(value, 4) for name, value in taken.items()}

    def _flops_of(self, counted: Counts) -> int:
        return flops_of_work(self.config, counted.work(), self.trains)


def _read(counted: Tensor) -> Counts:
    return Counts(**dict(zip((field.name for field in fields(Counts)), counted.tolist(), strict=True)))


@functools.cache
def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of the best of some products of large square matrices: what utilization is measured against.

    Measured once a process, in a fraction of a second; the state of random numbers stays as it is.
    """
    size, generator = PEAK_SIZES.get(device.type, PEAK_SIZES["cpu"]), torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, dtype=dtype, generator=generator) for _ in range(2))

    def seconds() -> float:
        began = time.perf_counter()
        left @ right
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - began

    seconds()
    return 2 * size**3 / min(seconds() for _ in range(PEAK_ROUNDS))


class DataWait:
    """Measures the host's time between asking for a batch and getting it, against all time that passes."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin anew: what has passed until now does not count."""
        self._begun = self._last = time.perf_counter()
        self._waited = self._waited_before = 0.0

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches, the time for each measured."""
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - asked
            yield batch

    def take(self) -> float:
        """The share since the last call, from 0 to 1."""
        share = self._share_since(self._last, self._waited_before)
        self._last, self._waited_before = time.perf_counter(), self._waited
        return share

    @property
    def share(self) -> float:
        """The share since `start`, from 0 to 1."""
        return self._share_since(self._begun, 0.0)

    def _share_since(self, begun: float, waited_before: float) -> float:
        passed = time.perf_counter() - begun
        return (self._waited - waited_before) / passed if passed else 0.0
