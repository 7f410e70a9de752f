"""From the vision tower's width to the language model's."""

from torch import nn


def build_projector(projector_type: str, vision_width: int, hidden_size: int) -> nn.Module:
    """`[..., vision_width]` to `[..., hidden_size]`.

    Args:
        projector_type: `linear` (the paper, section 4.1) or `mlp2x_gelu` (LLaVA-1.5).
        vision_width: Width of the patch features.
        hidden_size: Width of the language model.
    """
    if projector_type == "linear":
        return nn.Linear(vision_width, hidden_size)
    return nn.Sequential(nn.Linear(vision_width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
