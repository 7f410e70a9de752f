"""DeepSpeed's ZeRO: its configuration, what it refuses and needs, what its states weigh."""

import importlib
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from voco_llama.errors import SettingsError, did_you_mean, require, shown
from voco_llama.files import read_json
from voco_llama.sharding.base import FLOAT32, HALF, MOMENTS, Group, Sharding, Term, Units

OFFLOAD = " with offloading"
"""End of its label."""
_ZERO = "trainer.deepspeed.zero_optimization"
OFFLOADED = ("optimizer", "param")
"""What ZeRO can leave to the machine's memory: gradients, masters and moments; with level 3 the weights too."""

_INSTEAD = {
    "optimizer": "set optimizer, trainer.learning_rate and trainer.weight_decay",
    "scheduler": "set trainer.lr_scheduler_type and trainer.warmup_steps",
}
"""What DeepSpeed would make in place of ours, and what sets ours."""

MAX_LIVE = 1_000_000_000
"""DeepSpeed's `stage3_max_live_parameters`, and its `sub_group_size`, in parameters."""


@dataclass(frozen=True)
class Zero(Sharding):
    """DeepSpeed's ZeRO (arXiv 1910.02054, section 3).

    Attributes:
        level: Divided are 1: the optimizer, 2: gradients too, 3: weights too.
        offloads: Of `OFFLOADED`.
        max_live: Parameters that level 3 gathers at the same time.
        options: `zero_optimization` of the configuration.
        beside: The rest of it.
    """

    level: int = 2
    offloads: tuple[str, ...] = ()
    max_live: int = MAX_LIVE
    options: Mapping[str, Any] | None = None
    beside: Mapping[str, Any] | None = None

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
        beside = {key: value for key, value in deepspeed.items() if key != "zero_optimization"}
        return cls(level, offloads, live if isinstance(live, int) else MAX_LIVE, options, beside)

    @property
    def label(self) -> str:
        return super().label + (OFFLOAD if self.offloads else "")

    @property
    def cuts_weights(self) -> bool:
        return self.level == 3

    def check(self, random_weights: bool) -> None:
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        for key, instead in _INSTEAD.items():
            text = f"trainer.deepspeed.{key} would take the place of this package's: remove it, and {instead}"
            require(key not in self.beside, text)
        clipping = self.beside.get("gradient_clipping")
        text = f"trainer.deepspeed.gradient_clipping is {shown(clipping)}: give auto, and set trainer.max_grad_norm"
        require(clipping == "auto", text)
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
        _load_data_alone()
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

    def states(self, groups: Sequence[Group], processes: int, half: bool, units: Units) -> tuple[list[Term], int]:
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
        buckets = element * (2 * units.bucket + units.largest)  # both `auto` in our settings
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

    def exchanged(self, groups: Sequence[Group], half: bool, passes: int) -> int:
        """Level 3 gathers weights for each pass. Gradients that are divided are summed after each, else once a step.

        Below level 3 what trained comes back once a step.
        """
        element = HALF if half else FLOAT32
        trained = element * sum(group.trained for group in groups)
        if self.level == 3:
            return passes * (element * sum(group.gathers * group.all for group in groups) + trained)
        return trained * (passes if self.level == 2 else 1) + trained

    def saved(self, groups: Sequence[Group], half: bool) -> tuple[int, int]:
        """The weights twice (whole, for loading, and its own, for going on), and 12 bytes of each trained parameter."""
        final = (HALF if half else FLOAT32) * sum(group.all for group in groups)
        return final, 2 * final + 3 * FLOAT32 * sum(group.trained for group in groups)


def classes_of_states() -> list[Any]:
    """Of DeepSpeed's own, what its checkpoints hold; all else in them is data."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address]


def _load_data_alone() -> None:
    """Keep DeepSpeed from running what a checkpoint's pickles name: it opens them with `weights_only=False`."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals(classes_of_states())


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
