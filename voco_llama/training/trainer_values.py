"""Whether values of `trainer.*` are such as `transformers.TrainingArguments` takes.

Its constructor converts and checks little, joins processes and looks for devices, so that a dry run cannot call it: the
values are held against the types of its fields, and against the least that makes sense.
"""

import inspect
import types
from collections.abc import Mapping
from dataclasses import Field
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from voco_llama.errors import SettingsError, refused_as, require, shown

POSITIVE = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "logging_steps",
    "save_steps",
    "adam_epsilon",
    "dataloader_prefetch_factor",
    "torch_empty_cache_steps",
    "ddp_timeout",
)
NOT_NEGATIVE = (
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "max_grad_norm",
    "neftune_noise_alpha",
    "save_total_limit",
    "dataloader_num_workers",
)
FRACTIONS = ("adam_beta1", "adam_beta2")
"""From 0 to below 1."""
_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "{key: value}",
    list: "[a, b]",
}


def check_trainer_values(trainer: Mapping[str, Any]) -> None:
    """Refuse the first value that `TrainingArguments` could not use; every key is one of its.

    Raises:
        SettingsError: It says what the key takes.
    """
    from transformers.training_args import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    for key, value in trainer.items():
        allowed = _alternatives(hints[key])
        choices = _choices(TrainingArguments.__dataclass_fields__[key], allowed)
        fits = value in choices if choices and isinstance(value, str) else any(_is(value, kind) for kind in allowed)
        require(fits, f"trainer.{key} is {_shown(value)}: {_takes(key, value, allowed, choices)}")
        if isinstance(value, int | float):
            _check_range(key, value)
    _check_schedule(trainer)
    _check_what_is_there(trainer)


def _check_range(key: str, value: float) -> None:
    says = f"trainer.{key} is {value}: give"
    require(key not in POSITIVE or value > 0, f"{says} a number above 0")
    require(key not in NOT_NEGATIVE or value >= 0, f"{says} 0 or more")
    require(key not in FRACTIONS or 0 <= value < 1, f"{says} 0 or more, and less than 1")
    require(key != "label_smoothing_factor" or value == 0, f"{says} 0: the model's own loss smooths no labels")
    require(key != "max_steps" or value == -1 or value > 0, f"{says} 1 or more, or -1 to train num_train_epochs")


def _check_schedule(trainer: Mapping[str, Any]) -> None:
    """Some schedules of the learning rate need `lr_scheduler_kwargs`, and each takes its own."""
    import torch
    from transformers import TrainingArguments, get_scheduler

    name = trainer.get("lr_scheduler_type", TrainingArguments.lr_scheduler_type)
    options = trainer.get("lr_scheduler_kwargs")
    if options is None or isinstance(options, dict):
        with refused_as(SettingsError, f"trainer.lr_scheduler_type={name} with lr_scheduler_kwargs={options}"):
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            get_scheduler(name, optimizer, 0, 1, scheduler_specific_kwargs=options)


def _check_what_is_there(trainer: Mapping[str, Any]) -> None:
    """Refuse what the Trainer, PyTorch or Accelerate would refuse only when the model is loaded."""
    require(
        trainer.get("save_strategy") != "best", "trainer.save_strategy is best, and nothing is evaluated: give steps"
    )
    require(
        not trainer.get("dataloader_persistent_workers") or bool(trainer.get("dataloader_num_workers")),
        "trainer.dataloader_persistent_workers is true without workers: set trainer.dataloader_num_workers",
    )
    options = trainer.get("optim_args") or ""
    require(
        all(option.count("=") == 1 for option in options.split(",")) or not options,
        f"trainer.optim_args is {shown(options)}: give name=value, with commas between",
    )
    for key in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        for name in trainer.get(key) or {}:
            _check_choice(f"{key} names", name, _checkpointing_options())
    if (backend := trainer.get("torch_compile_backend")) is not None:
        from accelerate.utils import DynamoBackend

        _check_choice("torch_compile_backend is", backend, [one.value.lower() for one in DynamoBackend])
    if (mode := trainer.get("torch_compile_mode")) is not None:
        import torch._inductor

        _check_choice("torch_compile_mode is", mode, list(torch._inductor.list_mode_options()))


def _check_choice(what: str, name: str, known: list[str]) -> None:
    require(name in known, f"trainer.{what} {shown(name)}: choose one of {', '.join(known)}")


def _checkpointing_options() -> list[str]:
    from torch.utils.checkpoint import checkpoint

    keywords = [name for name, one in inspect.signature(checkpoint).parameters.items() if one.kind is one.KEYWORD_ONLY]
    return [*keywords, "preserve_rng_state"]


def _takes(key: str, value: Any, allowed: tuple[Any, ...], choices: list[str]) -> str:
    """What to give in place of a value."""
    null = ", or null" if type(None) in allowed else ""
    if choices:
        return f"choose one of {', '.join(choices)}{null}"
    takes = " or ".join(dict.fromkeys(_NAMES[kind] for kind in map(_plain, allowed) if kind in _NAMES))
    spelled = f", as trainer.{key}='\"{value}\"'" if str in allowed and isinstance(value, int | float) else ""
    return f"give {takes or 'another value'}{spelled}{null}"


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _plain(kind: Any) -> Any:
    return get_origin(kind) or kind


def _choices(field: Field, allowed: tuple[Any, ...]) -> list[str]:
    """The texts that a key takes, where only some are."""
    enums = [kind for kind in allowed if isinstance(kind, type) and issubclass(kind, Enum)]
    return [member.value for kind in enums for member in kind] or list(field.metadata.get("choices") or ())


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(value is one for one in get_args(kind))
    kind = _plain(kind)
    if kind is Any:
        return True
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _shown(value: Any) -> str:
    return "null" if value is None else shown(value)
