"""Liger's kernels (RMSNorm, SwiGLU, rotary positions) in the language model of a training, if asked for.

`trainer.use_liger_kernel` is a key of TrainingArguments, whose Trainer knows no model of ours: it is taken from it and
done here. The losses stay ours, which never hold all logits; Liger's would be called by nobody.
"""

import torch
from transformers import TrainingArguments
from transformers.utils import is_liger_kernel_available

from voco_llama.errors import SettingsError, require
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.settings import TrainSettings

KEY = "trainer.use_liger_kernel"
LOSSES_OFF = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def check_liger(settings: TrainSettings) -> None:
    """Refuse kernels for what has no language model, or for losses (`SettingsError`)."""
    trainer = settings.trainer
    if trainer.get("use_liger_kernel"):
        require(settings.stage.name != "clip", f"{KEY} is for language models: stage clip has none, set it to false")
        config = trainer.get("liger_kernel_config") or {}
        require(isinstance(config, dict), f"trainer.liger_kernel_config is {config}: give names with true or false")
        losses = [name for name in LOSSES_OFF if config.get(name)]
        require(not losses, f"trainer.liger_kernel_config has {', '.join(losses)}: leave it out, the losses are ours")


def check_liger_is_here(settings: TrainSettings) -> None:
    """Refuse kernels that cannot run here (`SettingsError`)."""
    has_gpu = torch.cuda.is_available() and not settings.trainer.get("use_cpu")
    require(
        not settings.trainer.get("use_liger_kernel") or (is_liger_kernel_available() and has_gpu),
        f"{KEY} needs the package liger-kernel and a GPU, which are not here: set it to false",
    )


def use_liger(model: VoCoLlama, arguments: TrainingArguments) -> None:
    """Put the kernels into the language model, if the arguments ask for them, and have the Trainer not do it.

    Raises:
        SettingsError: Liger has none for this language model.
    """
    if arguments.use_liger_kernel:
        put_into(model, **(arguments.liger_kernel_config or {}))
        arguments.use_liger_kernel = False


def put_into(model: VoCoLlama, **chosen: bool) -> None:
    """Put Liger's kernels into the language model; `chosen` are arguments of Liger's function.

    Raises:
        SettingsError: The package is not here, or has none for this language model.
    """
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance
    except ImportError as error:
        raise SettingsError(
            "Liger's kernels need the package liger-kernel, which is not here: leave them out"
        ) from error
    kind = model.language_model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise SettingsError(f"{KEY}: liger-kernel has no kernels for a language model of type {kind}: set it to false")
    _apply_liger_kernel_to_instance(model=model.language_model, **(chosen | LOSSES_OFF))
