"""The losses on answer tokens: cross entropy with the labels, and KL divergence from a teacher.

The paper's objective is forward KL( p_teacher(y | V, T) || p_student(y | VoCo, T) ): the teacher reads the text with
the image visible, the student through VoCo tokens. Both losses are sums over trained tokens divided by the trained
tokens of the global batch.

Logits of all positions would be the largest tensors of a training step (a batch of 8 x 2048 positions with 32000
words: 2 GB in float32, several times over). So only trained tokens have any, and `Objective` makes them chunk by
chunk: each chunk's logits, the student's and the teacher's, are dropped after its forward pass and made again in the
backward pass. Peak memory grows with the chunk, not with the number of tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils.checkpoint import checkpoint

from voco_llama.tokens import IGNORE_INDEX


class TeacherTokens(Protocol):
    """What a teacher says about the trained tokens of a batch, in row-major order.

    Attributes:
        side_by_side: Readings of a token whose logits it needs at the same time.
        share: Of the tokens, the part that it teaches.
    """

    side_by_side: int
    share: float

    def __len__(self) -> int:
        """The number of tokens."""

    def repeated(self, times: int) -> "TeacherTokens":
        """The same said so many times over."""

    def divergence(self, tokens: slice, logits: Tensor, temperature: float) -> Tensor:
        """KL(teacher || student) summed over some of the tokens, in nats; a float32 scalar.

        `logits` are the student's, float32 `[tokens, vocabulary]`. Both sides' are divided by the temperature.
        """


@dataclass(frozen=True)
class TeacherStates:
    """A teacher at hand: its logits are made of its last hidden states when they are needed.

    Attributes:
        hidden_states: `[tokens, teacher's hidden size]`, without gradient.
        head: The teacher's language-model head.
    """

    hidden_states: Tensor
    head: Callable[[Tensor], Tensor]
    side_by_side: ClassVar[int] = 1
    share: ClassVar[float] = 1.0

    def __len__(self) -> int:
        return len(self.hidden_states)

    def repeated(self, times: int) -> "TeacherStates":
        return replace(self, hidden_states=self.hidden_states.repeat(times, 1))

    def divergence(self, tokens: slice, logits: Tensor, temperature: float) -> Tensor:
        with torch.no_grad():
            teacher = log_softmax(self.head(self.hidden_states[tokens]).float() / temperature, dim=-1)
        return kl_div(log_softmax(logits / temperature, dim=-1), teacher, reduction="sum", log_target=True)


@dataclass(frozen=True)
class TeacherTopK:
    """The k likeliest words of a teacher and their log-probabilities; all other words count as one.

    The divergence over these k + 1 outcomes is a lower bound of the full one: merging outcomes never raises a KL
    divergence (the log-sum inequality), and it loses just how the two differ inside the merged rest. With k = the
    vocabulary nothing is merged.

    Attributes:
        token_ids: int64 `[tokens, k]`.
        log_probs: float32 `[tokens, k]`, at the temperature they were made with, which must be the objective's.
    """

    token_ids: Tensor
    log_probs: Tensor
    side_by_side: ClassVar[int] = 1
    share: ClassVar[float] = 1.0

    def __len__(self) -> int:
        return len(self.token_ids)

    def repeated(self, times: int) -> "TeacherTopK":
        return TeacherTopK(self.token_ids.repeat(times, 1), self.log_probs.repeat(times, 1))

    def divergence(self, tokens: slice, logits: Tensor, temperature: float) -> Tensor:
        token_ids, teacher = self.token_ids[tokens], self.log_probs[tokens]
        logits = logits / temperature
        student = log_softmax(logits, dim=-1)
        total = kl_div(student.gather(-1, token_ids), teacher, reduction="sum", log_target=True)
        if token_ids.shape[-1] == logits.shape[-1]:
            return total
        rest = (1 - teacher.exp().sum(dim=-1)).clamp(min=0)
        student_rest = student.scatter(-1, token_ids, -torch.inf).logsumexp(dim=-1)
        return total + (torch.xlogy(rest, rest) - rest * student_rest).sum()


@dataclass(frozen=True)
class OwnReadings:
    """The student itself: what its last reading predicts, without gradient, teaches the others.

    Attributes:
        tokens: Of one reading.
        side_by_side: Readings of the batch.
    """

    tokens: int
    side_by_side: int = 1

    def __len__(self) -> int:
        return self.tokens * self.side_by_side

    @property
    def share(self) -> float:
        return 1 - 1 / self.side_by_side

    def repeated(self, times: int) -> "OwnReadings":
        return replace(self, side_by_side=self.side_by_side * times)

    def divergence(self, tokens: slice, logits: Tensor, temperature: float) -> Tensor:
        """As of any teacher; the readings of a token stand side by side, that of the teacher last."""
        said = log_softmax(logits / temperature, dim=-1).unflatten(0, (-1, self.side_by_side))
        others, teacher = said[:, :-1], said[:, -1:].detach()
        return kl_div(others, teacher.expand_as(others), reduction="sum", log_target=True)


class Losses(NamedTuple):
    """Scalars, float32. `total` has a gradient, what it is made of has none; None: there is no such term."""

    total: Tensor
    lm: Tensor
    kl: Tensor | None
    reconstruction: Tensor | None


@dataclass(frozen=True)
class Objective:
    """What a training step minimizes.

    `lm` x cross entropy + `kl` x temperature^2 x KL(teacher || student) + `reconstruction` x that of the image
    (`voco_llama.model.reconstruction`).

    Each term is a mean over trained tokens of the global batch in all readings of it: the cross entropy over those that
    the student did not write itself; the divergence over all, but in a reading that is the teacher.

    The factor temperature^2 keeps the size of the KL term's gradient comparable over temperatures (Hinton et al.,
    2015, "Distilling the Knowledge in a Neural Network", section 2).

    Attributes:
        lm: Weight of the cross entropy.
        kl: Weight of the KL divergence.
        temperature: Of the KL divergence.
        chunk_size: Tokens whose logits exist at the same time.
        teacher: None: there is no KL term.
        reconstruction: Weight of the reconstruction.
        own: bool `[tokens]`: which of the trained tokens the student wrote itself: they have no cross entropy. None:
            none is.
        num_labeled: Trained tokens of the global batch that are not its own; only with `own`.
    """

    lm: float = 1.0
    kl: float = 0.0
    temperature: float = 1.0
    chunk_size: int = 1024
    teacher: TeacherTokens | None = None
    reconstruction: float = 0.0
    own: Tensor | None = None
    num_labeled: Tensor | int | None = None

    def of_readings(self, times: int) -> "Objective":
        """For a batch that is read so many times over, one reading after the other."""
        if times == 1:
            return self
        teacher = None if self.teacher is None else self.teacher.repeated(times)
        if self.own is None:
            return replace(self, teacher=teacher)
        return replace(self, teacher=teacher, own=self.own.repeat(times), num_labeled=self.num_labeled * times)

    def __call__(
        self,
        head: nn.Module,
        hidden_states: Tensor,
        targets: Tensor,
        num_items_in_batch: Tensor | int | None,
        reconstruction: Tensor | None = None,
    ) -> Losses:
        """The losses of a batch.

        Args:
            head: The student's language-model head. Every process calls it the same number of times, with empty
                chunks where it has fewer tokens than another: ZeRO-3 gathers the head's weights at each call, and
                processes that called it unequally often would wait for each other forever.
            hidden_states: `[tokens, hidden]`, the last ones of the trained tokens' predecessors.
            targets: `[tokens]`, the trained tokens' ids; -100 where one is not trained after all.
            num_items_in_batch: Trained tokens of the global batch, of which there may be none; None: those of this
                batch.
            reconstruction: Its loss summed over trained tokens, a scalar; None: there is none.

        Raises:
            ValueError: The teacher spoke about another number of tokens.
        """
        if self.teacher is not None and len(self.teacher) != len(targets):
            raise ValueError(f"the teacher predicts {len(self.teacher)} tokens and the batch trains {len(targets)}")
        if num_items_in_batch is None:
            num_items_in_batch = (targets != IGNORE_INDEX).sum()
        number = num_labeled = torch.as_tensor(num_items_in_batch).clamp(min=1)
        if self.own is not None:
            targets = targets.masked_fill(self.own.to(targets.device), IGNORE_INDEX)
            num_labeled = torch.as_tensor(self.num_labeled).clamp(min=1)
        together = 1 if self.teacher is None else self.teacher.side_by_side
        if together > 1:
            hidden_states, targets = _side_by_side(hidden_states, together), _side_by_side(targets, together)
        sums, start = [], 0
        sizes = chunk_sizes(len(targets), max(self.chunk_size // together, 1) * together, targets.device)
        for chunk in hidden_states.split(sizes):
            tokens = slice(start, start + len(chunk))
            start = tokens.stop
            sums.append(
                checkpoint(
                    self._chunk, head, chunk, targets[tokens], tokens, use_reentrant=False, preserve_rng_state=False
                )
            )
        lm, kl = torch.stack(sums).sum(dim=0)
        lm = lm / num_labeled
        kl = kl / (number if self.teacher is None else number * self.teacher.share)
        total = self.lm * lm + self.kl * kl
        if reconstruction is not None:
            reconstruction = reconstruction / number
            total, reconstruction = total + self.reconstruction * reconstruction, reconstruction.detach()
        return Losses(total, lm.detach(), None if self.teacher is None else kl.detach(), reconstruction)

    def _chunk(self, head: nn.Module, hidden_states: Tensor, targets: Tensor, tokens: slice) -> Tensor:
        """`[2]` float32: cross entropy and scaled KL divergence, summed over the tokens of a chunk."""
        logits = head(hidden_states).float()
        lm = cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
        kl = torch.zeros_like(lm)
        if self.teacher is not None:
            kl = self.temperature**2 * self.teacher.divergence(tokens, logits, self.temperature)
        return torch.stack([lm, kl])


def _side_by_side(values: Tensor, readings: int) -> Tensor:
    """`[readings x tokens, ...]`, one reading after the other, with all readings of a token beside each other."""
    return values.unflatten(0, (readings, len(values) // readings)).transpose(0, 1).flatten(0, 1)


def chunk_sizes(num_tokens: int, chunk_size: int, device: torch.device) -> list[int]:
    """Sizes of the chunks of this process; all processes have as many as the one with the most tokens, at least 1."""
    sizes = [min(chunk_size, num_tokens - start) for start in range(0, num_tokens, chunk_size)]
    num_chunks = max(len(sizes), 1)
    if torch.distributed.is_initialized():
        agreed = torch.tensor(num_chunks, device=device)
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
        num_chunks = int(agreed)
    return sizes + [0] * (num_chunks - len(sizes))


def top_k(
    head: Callable[[Tensor], Tensor], hidden_states: Tensor, k: int, temperature: float, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The k likeliest next words after hidden states `[tokens, hidden]`, made chunk by chunk.

    Returns:
        Their ids, int64, and log-probabilities at the temperature, float32, both `[tokens, k]`, likeliest first.
    """
    ids, log_probs = [], []
    for chunk in hidden_states.split(chunk_size):
        values, indices = log_softmax(head(chunk).float() / temperature, dim=-1).topk(k, dim=-1)
        ids.append(indices)
        log_probs.append(values)
    return torch.cat(ids), torch.cat(log_probs)
