"""How a training's weights, gradients and optimizer are divided over its processes: all that knows DeepSpeed.

`sharding_of` reads it off the settings, and what it returns answers for the rest: which settings it refuses, what it
needs before a training begins, what its states weigh. Another backend is another subclass of `Sharding`.
"""

import importlib
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from voco_llama.errors import SettingsError, did_you_mean, require
from voco_llama.files import read_json

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainingArguments

FLOAT32, HALF = 4, 2
"""Bytes of an element."""

MOMENTS = ("tower", "head", "layer", "update")
"""Of a step, where its peak of memory may be (`voco_llama.preflight.memory`)."""

_ZERO = "trainer.deepspeed.zero_optimization"
OFFLOADED = ("optimizer", "param")
"""What ZeRO can leave to the machine's memory: gradients, masters and moments; with level 3 the weights too."""

MAX_LIVE = 1_000_000_000
"""DeepSpeed's `stage3_max_live_parameters`, and its `sub_group_size`, in parameters."""


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
    def all(self) -> int:
        """Trained or not."""
        return self.trained + self.frozen


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
        unmodelled: What the estimate of memory does not know of it; None: nothing.
    """

    level: int = 0
    name: ClassVar[str] = "PyTorch"
    cuts_matrices: ClassVar[bool] = False
    cuts_weights: ClassVar[bool] = False
    keeps_masters: ClassVar[bool] = False
    needs_torchrun: ClassVar[bool] = False
    unmodelled: ClassVar[str | None] = None

    def check(self, random_weights: bool) -> None:
        """Raise a `SettingsError` if its settings contradict each other, or it cannot begin with random weights."""

    def prepare(self, on_cpu: bool) -> None:
        """Get ready before processes are joined; raise a `SettingsError` if this one was not started as it needs."""

    def lacking(self) -> str | None:
        """What its settings need and this machine has not."""

    def states(
        self, groups: Sequence[Group], processes: int, half: bool, bucket: int, largest: int
    ) -> tuple[list[Term], int]:
        """Memory of weights, gradients and optimizer: on a GPU, and bytes in the machine's for each process.

        Gradients and AdamW's two moments are of the type of the weight; there are no masters.

        Args:
            groups: All parameters.
            processes: GPUs.
            half: Whether training is in bf16 or fp16.
            bucket: Elements of a bucket of gradients.
            largest: Elements of the largest weight that trains.
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

    def saved(self, groups: Sequence[Group], half: bool) -> tuple[int, int]:
        """Bytes on disk of the trained model, and of a checkpoint: the weights and two moments of their type."""
        final = sum(group.all * group.element for group in groups)
        return final, final + 2 * sum(group.trained * group.element for group in groups)


@dataclass(frozen=True)
class Fsdp(Sharding):
    """PyTorch's FSDP, as transformers runs it."""

    name: ClassVar[str] = "FSDP"
    cuts_matrices: ClassVar[bool] = True
    cuts_weights: ClassVar[bool] = True
    unmodelled: ClassVar[str | None] = "FSDP is not modelled: memory is counted as if each GPU held everything"


@dataclass(frozen=True)
class Zero(Sharding):
    """DeepSpeed's ZeRO (arXiv 1910.02054, section 3).

    Attributes:
        level: Divided are 1: the optimizer, 2: gradients too, 3: weights too.
        offloads: Of `OFFLOADED`.
        max_live: Parameters that level 3 gathers at the same time.
        options: `zero_optimization` of the configuration.
    """

    level: int = 2
    offloads: tuple[str, ...] = ()
    max_live: int = MAX_LIVE
    options: Mapping[str, Any] | None = None

    name: ClassVar[str] = "DeepSpeed"
    cuts_matrices: ClassVar[bool] = True
    keeps_masters: ClassVar[bool] = True
    needs_torchrun: ClassVar[bool] = True

    @classmethod
    def of(cls, deepspeed: Any) -> "Zero":
        """Read DeepSpeed's configuration: a dictionary, or the path of a JSON file.

        Raises:
            SettingsError: It cannot be read, or names no level.
        """
        if isinstance(deepspeed, str):
            deepspeed = read_json(Path(deepspeed), SettingsError, "trainer.deepspeed names a configuration in JSON")
        options = deepspeed.get("zero_optimization") if isinstance(deepspeed, dict) else None
        level = options.get("stage") if isinstance(options, dict) else None
        require(level in (1, 2, 3), f"{_ZERO}.stage is {level}: give 1, 2 or 3, or deepspeed=null")
        devices = {part: (options.get(f"offload_{part}") or {}).get("device", "none") for part in OFFLOADED}
        offloads = tuple(part for part, device in devices.items() if device != "none")
        live = options.get("stage3_max_live_parameters", MAX_LIVE)
        return cls(level, offloads, live if isinstance(live, int) else MAX_LIVE, options)

    @property
    def cuts_weights(self) -> bool:
        return self.level == 3

    def check(self, random_weights: bool) -> None:
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        known = {name for key, entry in DeepSpeedZeroConfig.model_fields.items() for name in (key, entry.alias) if name}
        for key in self.options:
            require(key in known, f"unknown setting '{_ZERO}.{key}'{did_you_mean(key, sorted(known))}")
            is_fit = self.level == 3 or not key.startswith("stage3_")
            require(is_fit, f"{_ZERO}.{key} is for stage 3, but stage is {self.level}: remove it")
        if self.level == 3:
            gather = "stage3_gather_16bit_weights_on_model_save"
            text = f"{_ZERO}.{gather} must be true: without it the trained weights stay in pieces"
            require(bool(self.options.get(gather)), text)
            require(
                not random_weights,
                "model.language.config (random weights) with ZeRO-3 would skip their initialization: use"
                " trainer=zero2, or start from a checkpoint",
            )

    def prepare(self, on_cpu: bool) -> None:
        require(
            "RANK" in os.environ,
            "trainer.deepspeed needs torchrun, also for one process: torchrun --nproc_per_node N -m voco_llama.cli"
            " train ...",
        )
        # DeepSpeed's own calls, thousands of times.
        warnings.filterwarnings("ignore", category=FutureWarning, message="`torch.distributed")
        if on_cpu:
            import deepspeed
            from deepspeed.ops import __compatible_ops__

            # Else the first collective compiles a kernel for minutes; gloo does without.
            __compatible_ops__["deepspeed_shm_comm"] = False
            deepspeed.init_distributed("gloo")

    def lacking(self) -> str | None:
        if not self.offloads or shutil.which("ninja") is not None:
            return None
        return f"{', '.join(f'offload_{part}' for part in self.offloads)} compiles a kernel, and ninja is not on PATH"

    def overrides(self, now: Sharding) -> tuple[str, ...]:
        """What to give the command line to come to this from what a training has now."""
        is_there = isinstance(now, Zero) and now.level == self.level
        level = () if is_there else (f"trainer=zero{self.level}",)
        return (*level, *(f"{_ZERO}.offload_{part}.device=cpu" for part in self.offloads))

    def states(
        self, groups: Sequence[Group], processes: int, half: bool, bucket: int, largest: int
    ) -> tuple[list[Term], int]:
        """16-bit weights and gradients, and of what trains float32 masters and moments, divided."""
        n, element = processes, HALF if half else FLOAT32
        trained, everything = sum(group.trained for group in groups), sum(group.all for group in groups)
        cut_weights, cut_gradients = (n if self.level == 3 else 1), (n if self.level >= 2 else 1)
        weights, gradients = element * everything // cut_weights, element * trained // cut_gradients
        optimizer = 3 * FLOAT32 * trained // n
        update = FLOAT32 * trained // n if self.level < 3 else min(FLOAT32 * trained // n, FLOAT32 * MAX_LIVE)
        host = 0
        if "optimizer" in self.offloads:
            host, optimizer, update, gradients = host + optimizer + update + gradients, 0, 0, 0
        if "param" in self.offloads and self.level == 3:
            host, weights = host + weights, 0
        buckets = element * (2 * bucket + largest)  # both `auto` in our settings
        terms = [
            Term("weights", weights, MOMENTS, f"{element} x all / {cut_weights}"),
            Term("gradients", gradients, MOMENTS, f"{element} x trained / {cut_gradients}"),
            Term("optimizer", optimizer, MOMENTS, f"(4 master + 8 AdamW) x trained / {n}"),
            Term("float32 gradients", update, ("update",), f"4 x trained / {n}, while DeepSpeed updates"),
            Term("buckets", buckets, ("layer",), "2 of hidden^2, and the largest weight's gradient"),
        ]
        if self.level == 3:
            live = element * min(self.max_live, everything)
            terms.append(Term("gathered weights", live, MOMENTS[:3], "stage3_max_live_parameters at most"))
        return terms, host

    def saved(self, groups: Sequence[Group], half: bool) -> tuple[int, int]:
        """The weights twice (whole, for loading, and its own, for going on), and 12 bytes of each trained parameter."""
        final = (HALF if half else FLOAT32) * sum(group.all for group in groups)
        return final, 2 * final + 3 * FLOAT32 * sum(group.trained for group in groups)


def sharding_of(trainer: Mapping[str, Any]) -> Sharding:
    """What the keys of `TrainingArguments` choose.

    Raises:
        SettingsError: They name a configuration that cannot be read.
    """
    if trainer.get("deepspeed") is not None:
        return Zero.of(trainer["deepspeed"])
    return Fsdp() if trainer.get("fsdp") else Sharding()


def undivided(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys of `TrainingArguments` for one process."""
    return {**trainer, "deepspeed": None, "fsdp": None, "fsdp_config": None}


def expect_no_accelerator() -> None:
    """On a machine without one: say so to DeepSpeed, which else warns that it looked for one in vain."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def installation() -> tuple[str, str, str, str]:
    """What `doctor` finds, of a level: can it be imported, and compile what some settings need? And its advice."""
    from torch.utils.cpp_extension import CUDA_HOME

    version = importlib.import_module("deepspeed").__version__
    if shutil.which("ninja") is None:
        advice = "pip install ninja, and start from the environment's bin folder on PATH"
        return "warning", "deepspeed", f"{version}, but no ninja to compile its kernels", advice
    if torch.cuda.is_available() and CUDA_HOME is None:
        text = f"{version}, but no CUDA compiler (nvcc): fused kernels and offloading cannot be built"
        return "note", "deepspeed", text, "set CUDA_HOME if you need them"
    return "ok", "deepspeed", version, ""


def weights_are_divided() -> bool:
    """Whether models that are built now have their weights divided over the processes (ZeRO-3)."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return is_deepspeed_zero3_enabled()


def num_elements(parameter: nn.Parameter) -> int:
    """Of the whole parameter, also where this process holds a piece of it."""
    return getattr(parameter, "ds_numel", parameter.numel())


@contextmanager
def whole(parameters: nn.Parameter | Sequence[nn.Parameter], changed: bool = False) -> Iterator[bool]:
    """Within it, parameters are whole in every process; what the first writes is kept everywhere if they are `changed`.

    Yields:
        Whether this process is to write: all are if nothing is divided, else the first one.
    """
    if not weights_are_divided():
        yield True
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if changed else None):
        yield torch.distributed.get_rank() == 0


def place_frozen(model: nn.Module, accelerator: "Accelerator", arguments: "TrainingArguments") -> nn.Module:
    """Bring a model that only reads to where another one trains: divided as that one is, else onto the device."""
    if not weights_are_divided():
        return model.to(arguments.device)
    import deepspeed

    zero = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    config = {
        "train_micro_batch_size_per_gpu": arguments.per_device_train_batch_size,
        "zero_optimization": {k: v for k, v in zero.items() if v != "auto" and k != "offload_optimizer"},
        "bf16": {"enabled": arguments.bf16},
        "fp16": {"enabled": arguments.fp16},
    }
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()  # which returns nothing
    return engine
