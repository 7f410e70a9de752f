"""Muon, for models that learn from scratch in minutes: the toy experiments' choice (`optimizer=muon`).

The 7B recipes keep TrainingArguments' own optimizer, AdamW. A tiny language model from random weights sits on
plateaus under AdamW (it tells what is in a picture long before it tells where) and leaves them much sooner with
orthogonalized steps: docs/results/quickstart/README.md has both, side by side.
"""

import torch
from timm.optim.muon import zeropower_via_newtonschulz
from torch import Tensor, nn

MOMENTUM = 0.95
NEWTON_SCHULZ = [(3.4445, -4.7750, 2.0315)]
"""Coefficients of the quintic iteration (Jordan et al., 2024, "Muon: an optimizer for hidden layers")."""
NEWTON_SCHULZ_STEPS = 5
ADAM_RMS = 0.2
"""Size of an AdamW step, root mean square in units of the learning rate; Muon's steps are scaled to it (Liu et al.,
2025, arXiv 2502.16982, section 2.2), so that both kinds of parameters share one learning rate."""


class MuonAdamW(torch.optim.AdamW):
    """Muon for the parameter groups marked `muon: True`, AdamW for the others; one learning rate, one state.

    The momentum of a matrix, Nesterov's way, is replaced by the nearest orthogonal matrix before it is applied.

    torch and timm have Muon too, both in bfloat16 only: on a CPU without AVX-512 their step takes 20 times longer
    than in float32 (470 ms for the tiny model, several times all the rest of a training step).
    """

    @torch.no_grad()
    def step(self, closure=None):
        """One step; the gradients of matrices are consumed by it.

        Raises:
            ValueError: A closure is given.
        """
        if closure is not None:
            raise ValueError("MuonAdamW takes no closure")
        for group in self.param_groups:
            if group.get("muon"):
                self._step_matrices(group)
        super().step()

    def _step_matrices(self, group: dict) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in group["params"]:
            if matrix.grad is not None:
                by_shape.setdefault(matrix.shape, []).append(matrix)
        for matrices in by_shape.values():
            directions = orthogonalized(torch.stack([self._nesterov(matrix) for matrix in matrices]))
            scale = ADAM_RMS * max(matrices[0].shape) ** 0.5
            for matrix, direction in zip(matrices, directions, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-group["lr"] * scale)
                matrix.grad = None  # so that AdamW leaves it alone

    def _nesterov(self, matrix: nn.Parameter) -> Tensor:
        """The gradient looked at from where momentum will have carried the matrix, float32."""
        state = self.state[matrix]
        if "momentum" not in state:
            state["step"] = torch.zeros(())  # AdamW looks for one in every state that it loads
            state["momentum"] = torch.zeros_like(matrix, dtype=torch.float32)
        gradient = matrix.grad.float()
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(state["momentum"], MOMENTUM)


def orthogonalized(matrices: Tensor) -> Tensor:
    """`[count, rows, columns]` float32: about U V^T of each matrix's singular value decomposition U S V^T."""
    return zeropower_via_newtonschulz(matrices, NEWTON_SCHULZ_STEPS, NEWTON_SCHULZ, dtype=torch.float32)


def muon(model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float], eps: float) -> MuonAdamW:
    """The optimizer of what trains in `model`: Muon for the matrices between the layers, AdamW for all else.

    Embeddings and the head are tables of words rather than maps between features, so AdamW has them. Weight decay is
    decoupled and of the matrices alone.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if model.get_output_embeddings() is not None:
        tables.add(id(model.get_output_embeddings().weight))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim == 2 and id(parameter) not in tables]
    inside = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in trained if id(parameter) not in inside]
    groups = [
        {"params": matrices, "muon": True, "weight_decay": weight_decay},
        {"params": rest, "muon": False, "weight_decay": 0.0},
    ]
    return MuonAdamW([group for group in groups if group["params"]], lr=lr, betas=betas, eps=eps)
