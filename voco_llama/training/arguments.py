"""From settings to `transformers.TrainingArguments`, and with them the processes and their device."""

from copy import deepcopy

from transformers import TrainingArguments

from voco_llama.errors import SettingsError, one_line
from voco_llama.settings import TrainSettings
from voco_llama.sharding import sharding_of
from voco_llama.training.batch import GlobalBatch, world_size

_NEW_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Keys that transformers renamed within the range of versions we support; the old name works everywhere here."""


def training_arguments(settings: TrainSettings) -> TrainingArguments:
    """Build the arguments; under torchrun this joins the process group, and gets ready to divide a training.

    Must run before a model is built: `from_pretrained` divides weights over processes only if it knows of it.

    Raises:
        SettingsError: A value that TrainingArguments refuses, or a launch that does not fit the settings.
    """
    known = TrainingArguments.__dataclass_fields__
    values = {
        new if (new := _NEW_NAMES.get(key, key)) in known else key: deepcopy(value)  # its constructor changes some
        for key, value in settings.trainer.items()
    }
    if settings.global_batch_size is not None:
        values["gradient_accumulation_steps"] = GlobalBatch.of(settings, world_size() or 1).accumulation
    if values.get("dataloader_pin_memory", True) and not values.get("use_cpu"):
        values.setdefault("accelerator_config", {"non_blocking": True})  # no step waits until its batch is copied
    sharding = sharding_of(values)
    sharding.prepare(on_cpu=bool(values.get("use_cpu")))
    values = sharding.completed(values)
    try:
        arguments = TrainingArguments(
            output_dir=settings.output_dir, seed=settings.seed, remove_unused_columns=False, **values
        )
    except Exception as error:  # whatever its constructor meets a value with
        raise SettingsError(f"trainer: {one_line(error)}") from error
    if settings.model.attention == "flex_attention" and arguments.device.type == "cpu":
        raise SettingsError("model.attention=flex_attention has no backward pass on a CPU: use sdpa")
    if arguments.n_gpu > 1:
        raise SettingsError(
            f"this process sees {arguments.n_gpu} GPUs: start one process for each with torchrun --nproc_per_node"
            f" {arguments.n_gpu} -m voco_llama.cli train ..., or set CUDA_VISIBLE_DEVICES to one"
        )
    return arguments
