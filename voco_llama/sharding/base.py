"""What a backend answers for, and the one that divides nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

FLOAT32, HALF = 4, 2
"""Bytes of an element."""

MOMENTS = ("tower", "head", "layer", "update")
"""Of a step, where its peak of memory may be (`voco_llama.preflight.memory`)."""


@dataclass(frozen=True)
class Group:
    """Parameters of one part and one element size, in elements.

    Attributes:
        element: Bytes of one as loaded.
        is_saved: Whether it is of the model that is trained.
    """

    part: str
    trained: int
    frozen: int
    element: int
    is_saved: bool = True

    @property
    def gathers(self) -> int:
        """How often a pass needs the weights: for its forward, and for its backward if gradients go through them."""
        return 1 if not self.trained and self.part in ("vision", "teacher") else 2

    @property
    def all(self) -> int:
        """Trained or not."""
        return self.trained + self.frozen


@dataclass(frozen=True)
class Units:
    """Elements of what is gathered or summed over processes at once.

    Attributes:
        bucket: Of gradients.
        largest: The largest weight that trains; 0 if the language model does not.
        table: Of words.
        layer: Of the language model.
    """

    bucket: int
    largest: int
    table: int
    layer: int


@dataclass(frozen=True)
class Term:
    """One line of an estimate of memory: bytes on each GPU, at which moments, and how they were counted."""

    name: str
    bytes: int
    moments: tuple[str, ...]
    formula: str


@dataclass(frozen=True)
class Sharding:
    """Nothing is divided: PyTorch alone, and DDP where there are several processes.

    Attributes:
        level: How much is divided, of a backend that has levels.
        cuts_matrices: Whether the optimizer sees pieces of matrices.
        cuts_weights: Whether a process holds pieces of them.
        keeps_masters: Whether weights of 16 bits have copies in float32, which are what is updated.
        needs_torchrun: Also for one process.
        casts: Whether `divide` gives weights their types; until then they are as stored, mapped from disk.
    """

    level: int = 0
    name: ClassVar[str] = "PyTorch"
    cuts_matrices: ClassVar[bool] = False
    cuts_weights: ClassVar[bool] = False
    keeps_masters: ClassVar[bool] = False
    needs_torchrun: ClassVar[bool] = False
    casts: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """Its name and level, as a checkpoint says what wrote it."""
        return f"{self.name} {self.level}" if self.level else self.name

    def check(self, random_weights: bool) -> None:
        """Raise a `SettingsError` if its settings contradict each other, or it cannot begin with random weights."""

    def completed(self, trainer: dict[str, Any]) -> dict[str, Any]:
        """Keys of `TrainingArguments` with what it needs besides."""
        return trainer

    def prepare(self, on_cpu: bool) -> None:
        """Get ready before processes are joined; raise a `SettingsError` if this one was not started as it needs."""

    def divide(self, model: "PreTrainedModel", arguments: "TrainingArguments", dtype: torch.dtype) -> None:
        """Leave each process its piece of the weights of a model that will train, unless they were built so.

        `dtype` is that of weights that do not train, of a backend that `casts`.
        """

    def lacking(self) -> str | None:
        """What its settings need and this machine has not."""

    def states(self, groups: Sequence[Group], processes: int, half: bool, units: Units) -> tuple[list[Term], int]:
        """Memory of weights, gradients and optimizer: on a GPU, and bytes in the machine's for each process.

        Gradients and AdamW's two moments are of the type of the weight; there are no masters.

        Args:
            groups: All parameters.
            processes: GPUs.
            half: Whether training is in bf16 or fp16.
            units: What is gathered or summed at once.
        """
        weights = sum(group.all * group.element for group in groups)
        gradients = sum(group.trained * group.element for group in groups)
        terms = [
            Term("weights", weights, MOMENTS, "as loaded"),
            Term("gradients", gradients, MOMENTS, "trained, of the weight's type"),
            Term("optimizer", 2 * gradients, MOMENTS, "AdamW: 2 moments of the weight's type"),
        ]
        if processes > 1:
            terms.append(Term("buckets", gradients, MOMENTS, "DDP: gradients once more, to be summed"))
        single = sum(group.trained for group in groups if group.element == FLOAT32)
        if half:
            moments = ("head", "layer")
            terms.append(Term("autocast copies", HALF * single, moments, "2 x trained float32 weights"))
        return terms, 0

    def exchanged(self, groups: Sequence[Group], half: bool, passes: int) -> int:
        """Bytes that go round in a step of so many passes, of which each of n processes gets (n - 1) / n.

        Gradients are summed once, which sends them twice: in pieces to whoever sums a piece, and back as sums.
        """
        return 2 * sum(group.element * group.trained for group in groups)

    def saved(self, groups: Sequence[Group], half: bool) -> tuple[int, int]:
        """Bytes on disk of the trained model, and of a checkpoint: the weights and two moments of their type."""
        final = sum(group.all * group.element for group in groups)
        return final, final + 2 * sum(group.trained * group.element for group in groups)
