"""A checkpoint's weights and the optimizer's state brought into a training that runs, however that one is divided.

Every process reads every tensor, one at a time and mapped from disk, and keeps its piece.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import Optimizer

from voco_llama.sharding.live import whole
from voco_llama.sharding.states import MASTER, MOMENTS_OF_ADAM, SEPARATOR, STEP, States


@torch.no_grad()
def set_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers their values, by name; one that has none there (a tied one) stays as it is."""
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if name in weights:
            with whole(parameter, changed=True) as writes:
                if writes:
                    _put(parameter, weights[name])


def _put(target: Tensor, value: Tensor) -> None:
    """Into a tensor its values, or of one that FSDP has cut this process's piece of them."""
    target.data.copy_(_piece(target, value))


def _piece(target: Tensor, value: Tensor) -> Tensor:
    """Values as a tensor is divided, with its type and device."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.reshape(target.shape)
    if not isinstance(target, DTensor):
        return value.to(target.device, target.dtype, copy=True)
    value = value.to(target.device_mesh.device_type, target.dtype)
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def set_states(model: nn.Module, optimizer: Optimizer, states: States) -> None:
    """Give an optimizer of PyTorch its state, and weights their float32 values if there are such."""
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if name in states and parameter in groups:
            state = states[name]()
            if MASTER in state:
                _put(parameter, state[MASTER])
            group = groups[parameter]
            device = parameter.device if group.get("fused") or group.get("capturable") else "cpu"
            step = {STEP: state[STEP].to(device, torch.float32, copy=True)}
            optimizer.state[parameter] = step | {key: _piece(parameter, state[key]) for key in MOMENTS_OF_ADAM}


@torch.no_grad()
def set_zero_states(engine: Any, weights: Mapping[str, Tensor], states: States) -> None:
    """The same for an engine of DeepSpeed; `weights` are those of parameters without a float32 value of their own."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    zero = engine.optimizer
    is_cut = hasattr(zero, "fp32_partitioned_groups_flat")
    flats = zero.fp32_partitioned_groups_flat if is_cut else zero.single_partition_of_fp32_groups
    step = next(iter(states.values()))()[STEP]
    for flat in flats:
        moments = {key: torch.zeros_like(flat) for key in MOMENTS_OF_ADAM}
        zero.optimizer.state[flat] = {STEP: step.to(flat.device, torch.float32, copy=True), **moments}
    if not is_cut:
        zero._lazy_init_hp_params_optimizer_state()
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            state = states[name]() if name in states else {}
            values = {MASTER: state.get(MASTER, weights.get(name))} | {k: state[k] for k in MOMENTS_OF_ADAM if state}
            for key, value in values.items():
                if is_cut:
                    _set_local(parameter, value, key)
                elif key == MASTER:
                    safe_set_full_fp32_param(parameter, value.float())
                else:
                    safe_set_full_optimizer_state(parameter, value, key)


def _set_local(parameter: nn.Parameter, value: Tensor, key: str) -> None:
    """This process's piece of a parameter that ZeRO-3 has cut: pieces are of one length, the last one is filled up."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    rank, processes, length = (
        torch.distributed.get_rank(),
        torch.distributed.get_world_size(),
        parameter.ds_tensor.numel(),
    )
    filled = pad(value.flatten(), (0, length * processes - value.numel()))
    local = filled[rank * length : (rank + 1) * length]
    if key == MASTER:
        safe_set_local_fp32_param(parameter, local)
    else:
        safe_set_local_optimizer_state(parameter, local, key)


def fsdp_states(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """What FSDP keeps of each parameter that trains, in pieces: its weight, and the optimizer's state."""
    kept = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state = {MASTER: parameter.detach(), **optimizer.state.get(parameter, {})}
            kept |= {f"{name}{SEPARATOR}{key}": value for key, value in state.items()}
    return kept
