"""The vision tower: an open_clip vision transformer whose patch tokens of one layer are used."""

from typing import Any

import torch
from torch import Tensor, nn

from voco_llama.errors import SettingsError


class VisionTower(nn.Module):
    """Patch features of a chosen layer.

    Args:
        vision_config: open_clip model configuration (`embed_dim`, `quick_gelu`, `vision_cfg`).
        layer: Negative from the end; -2 is the layer before the last.

    Raises:
        SettingsError: The configuration is not a plain open_clip vision transformer, or lacks that layer.
    """

    def __init__(self, vision_config: dict[str, Any], layer: int) -> None:
        super().__init__()
        from open_clip.model import CLIPVisionCfg, _build_vision_tower
        from open_clip.transformer import VisionTransformer

        shape = CLIPVisionCfg(**vision_config["vision_cfg"])
        self.visual = _build_vision_tower(vision_config["embed_dim"], shape, vision_config.get("quick_gelu", False))
        if not isinstance(self.visual, VisionTransformer):
            raise SettingsError(f"the vision tower is a {type(self.visual).__name__}: choose an open_clip ViT model")
        if not -shape.layers <= layer < 0:
            raise SettingsError(
                f"vision layer {layer} does not exist in a tower of {shape.layers} layers: use -1 to -n"
            )
        self.layer = layer
        self.width: int = shape.width

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`[images, 3, height, width]`, normalized, to patch tokens `[images, patches, width]`."""
        frozen = not any(parameter.requires_grad for parameter in self.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features = self.visual.forward_intermediates(
                pixel_values.to(self.visual.conv1.weight.dtype),
                indices=[self.layer],
                output_fmt="NLC",
                intermediates_only=True,
                stop_early=True,
            )
        return features["image_intermediates"][0]
