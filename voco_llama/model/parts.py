"""The parts beside the language model: vision tower, projector, and the external compressors of the paper's baselines.

An external compressor makes the VoCo tokens of an image outside the language model; it stands between the vision tower
and the projector. What comes out takes the places of the VoCo tokens of a segment without vision tokens, so that all
else (mask, positions, caches, the price of an image) is the method's own:

    method            [V V V V C]   the language model fills C, from V
    average pooling   [C]           C = projector(mean of the patch features)
    Q-Former          [C]           C = projector(Q-Former(patch features))

The projector is the linear layer of the paper's "AvgPool + Linear" (`projector_type=linear`, or LLaVA-1.5's two).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from voco_llama.errors import SettingsError

DEFAULT_Q_FORMER = {"layers": 12, "width": 768, "heads": 12, "cross_attention_every": 2}
"""BLIP-2's shape (arXiv 2301.12597, section 3.1)."""


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


def build_projector(projector_type: str, vision_width: int, hidden_size: int) -> nn.Module:
    """`[..., vision_width]` to `[..., hidden_size]`: `linear` (the paper, section 4.1) or `mlp2x_gelu` (LLaVA-1.5)."""
    if projector_type == "linear":
        return nn.Linear(vision_width, hidden_size)
    return nn.Sequential(nn.Linear(vision_width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))


class AveragePool(nn.Module):
    """Mean over the cells of a coarse grid; no parameters.

    The grid is the most square one of `num_tokens` cells (1 x 1, 1 x 2, 2 x 2, 2 x 4, ...), laid over the patches by
    adaptive pooling.
    """

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        rows = next(n for n in range(math.isqrt(num_tokens), 0, -1) if num_tokens % n == 0)
        self.grid = (rows, num_tokens // rows)

    def forward(self, features: Tensor) -> Tensor:
        """`[images, patches, width]`, a square grid of patches in raster order, to `[images, num_tokens, width]`."""
        side = math.isqrt(features.shape[1])
        image = features.transpose(1, 2).unflatten(2, (side, side))
        return nn.functional.adaptive_avg_pool2d(image, self.grid).flatten(2).transpose(1, 2)


class QFormer(nn.Module):
    """Learned queries that attend to the patch features: BLIP-2's Q-Former, of transformers.

    Args:
        num_tokens: Queries, and tokens an image becomes.
        vision_width: Width of the patch features, and of what comes out.
        layers, width, heads: Of the transformer.
        cross_attention_every: Every so many layers, from the first on, attend to the image.
    """

    def __init__(
        self, num_tokens: int, vision_width: int, layers: int, width: int, heads: int, cross_attention_every: int
    ) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        self.queries = nn.Parameter(torch.empty(1, num_tokens, width))
        self.transformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                cross_attention_frequency=cross_attention_every,
                encoder_hidden_size=vision_width,
                hidden_dropout_prob=0.0,  # as all else here: a run is repeatable, and resumes, without dropout's state
                attention_probs_dropout_prob=0.0,
            )
        )
        self.output = nn.Linear(width, vision_width)
        nn.init.normal_(self.queries, std=self.transformer.config.initializer_range)
        for module in self.modules():  # all weights are what they should be: loading must not draw them anew
            module._is_hf_initialized = True

    def forward(self, features: Tensor) -> Tensor:
        """`[images, patches, vision_width]` to `[images, num_tokens, vision_width]`."""
        queries = self.queries.expand(features.shape[0], -1, -1)
        attended = self.transformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
        return self.output(attended.to(self.output.weight.dtype))


def build_compressor(
    compressor: str, num_tokens: int, vision_width: int, q_former: dict[str, int] | None = None
) -> nn.Module | None:
    """The module between vision tower and projector; None if the language model compresses.

    Args:
        compressor: One of `voco_llama.choices.COMPRESSORS`.
        num_tokens, vision_width: Tokens an image becomes, and width of the patch features.
        q_former: Shape of the Q-Former; what is missing is BLIP-2's.

    Raises:
        SettingsError: The heads do not divide the Q-Former's width.
    """
    if compressor == "language_model":
        return None
    if compressor == "average_pool":
        return AveragePool(num_tokens)
    shape = DEFAULT_Q_FORMER | (q_former or {})
    if shape["width"] % shape["heads"]:
        raise SettingsError(
            f"compression.q_former: {shape['heads']} heads do not divide a width of {shape['width']}: change one"
        )
    return QFormer(num_tokens, vision_width, **shape)
