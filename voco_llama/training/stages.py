"""Which parameters train: the one function that decides it, the table that says so, and a learning rate for a part.

stage               vision   projector, compressor   language_model, voco_offsets
clip                trains   (is not there: stage clip trains a tower alone)
language            frozen   frozen                  trains
align               frozen   trains                  frozen
instruct/voco/video frozen   trains                  trains

With adapters (`voco_llama.training.lora`), they and VoCo's embedding are what trains of the language model.
An external compressor belongs to the projector, the offsets of distinct VoCo embeddings to the language model. The
decoder of the reconstruction, where there is one, always trains.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import indent

from torch import nn
from torch.optim import Optimizer

from voco_llama.sharding import num_elements
from voco_llama.text import aligned

MODULES = {
    "vision": ("vision",),
    "projector": ("projector", "compressor"),
    "language": ("language_model", "voco_offsets"),
}
"""The modules of a model that a part of `stage.trains` means, as far as the model has them."""
ALWAYS = ("reconstruction",)
"""Modules that train in every stage, as far as the model has them."""
PARTS = MODULES | {module: (module,) for module in ALWAYS}
"""The modules of all that may have a learning rate of its own."""


@dataclass(frozen=True)
class ModuleCount:
    """Parameters of one module; a tied weight counts where it stands first."""

    module: str
    trained: int
    frozen: int


def set_trainable(
    model: nn.Module, trains: Sequence[str], adapters: Sequence[nn.Parameter] | None = None
) -> list[ModuleCount]:
    """Let the parts that `trains` names train, and freeze all else; what trains now is returned.

    Of the language model its adapters alone train, if there are any.
    """
    trained_modules = {*ALWAYS, *(module for part in trains for module in MODULES[part])}
    for name, module in model.named_children():
        module.requires_grad_(name in trained_modules)
    if adapters is not None and "language_model" in trained_modules:
        model.language_model.requires_grad_(False)
        for parameter in adapters:
            parameter.requires_grad_(True)
    return count_parameters(model)


def part_parameters(model: nn.Module, part: str) -> list[nn.Parameter]:
    """Parameters of the modules of one of `PARTS`, as far as the model has them."""
    modules = (getattr(model, name, None) for name in PARTS[part])
    return [parameter for module in modules if module is not None for parameter in module.parameters()]


def trained_parts(model: nn.Module) -> list[str]:
    """The parts of `stage.trains` whose parameters train, all of them; a language model with adapters is none."""
    parts = {part: part_parameters(model, part) for part in MODULES}
    return [part for part, own in parts.items() if own and all(parameter.requires_grad for parameter in own)]


def give_learning_rate(optimizer: Optimizer, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
    """Put parameters into groups of their own with another learning rate; what else their groups say stays.

    To be called before a scheduler is made of the optimizer, which then scales both rates alike.
    """
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            optimizer.add_param_group({**group, "params": moved, "lr": learning_rate})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def count_parameters(model: nn.Module) -> list[ModuleCount]:
    """Trained and frozen parameters of each child of `model`, then its own; whole ones, where this process has a piece.

    A tied weight counts where it stands first.
    """
    counts = {name: [0, 0] for name, _ in model.named_children()}
    for name, parameter in model.named_parameters():
        module = name.partition(".")[0]
        counts.setdefault(module, [0, 0])[0 if parameter.requires_grad else 1] += num_elements(parameter)
    return [ModuleCount(name, *numbers) for name, numbers in counts.items()]


def format_table(counts: Sequence[ModuleCount]) -> str:
    """The table as text, with a line of sums."""
    total = ModuleCount("all", sum(count.trained for count in counts), sum(count.frozen for count in counts))
    rows = [(count.module, f"{count.trained:,}", f"{count.frozen:,}") for count in [*counts, total]]
    return indent(aligned(("module", "trained", "frozen"), rows), "  ")
