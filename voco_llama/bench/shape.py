"""A model of a given shape with random weights, built where it will run, and rows for it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LlamaConfig

from voco_llama.bench.measuring import find_dtype
from voco_llama.bench.settings import BenchSettings, ShapeSettings
from voco_llama.choices import Condition
from voco_llama.configuration import VoCoLlamaConfig
from voco_llama.inference import find_device
from voco_llama.layout import SegmentMark, SegmentShape, TextSpan, lay_out, pad_rows
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.tokens import TokenIds

PAD, BOS, EOS = range(3)
POSITIONS = 1 << 16
"""More than any row here has."""
TRAINED_SHARE = 0.5
"""Of a row's text, its end: the answers."""


def tokens_of(shape: ShapeSettings) -> TokenIds:
    """The last two ids of the vocabulary are ours, the first three are padding, beginning and end."""
    return TokenIds(shape.vocabulary - 2, shape.vocabulary - 1, BOS, EOS, PAD)


def config_of(shape: ShapeSettings) -> VoCoLlamaConfig:
    """The configuration of a model of that shape."""
    tokens = tokens_of(shape)
    text = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads or shape.heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=POSITIONS,
        pad_token_id=tokens.pad,
        bos_token_id=tokens.bos,
        eos_token_id=tokens.eos,
    )
    head_width = next(width for width in (64, 32, 16, 8, 1) if shape.tower_width % width == 0)
    tower = {"image_size": shape.image_size, "patch_size": shape.patch_size, "width": shape.tower_width}
    tower |= {"layers": shape.tower_layers, "head_width": head_width}
    return VoCoLlamaConfig(
        text_config=text,
        vision_config={"embed_dim": 64, "quick_gelu": True, "vision_cfg": tower},
        num_voco=shape.num_voco,
        condition="voco",
        image_token_id=tokens.image,
        voco_token_id=tokens.voco,
    )


def build_model(settings: BenchSettings) -> VoCoLlama:
    """The model, its weights drawn on its device in its type; tower frozen, in training mode."""
    device = find_device(settings.device)
    dtype, before = find_dtype(settings.dtype, device), torch.get_default_dtype()
    torch.manual_seed(settings.seed)
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = VoCoLlama(config_of(settings.shape)).to(dtype)
    finally:
        torch.set_default_dtype(before)
    model.vision.requires_grad_(False)
    return model.train()


def images(model: VoCoLlama, count: int) -> Tensor:
    """Random images, `[count, 3, size, size]`."""
    size = model.config.image_size
    return torch.randn(count, 3, size, size, device=model.device, dtype=model.dtype)


def rows(
    model: VoCoLlama,
    texts: Sequence[int],
    segments: int,
    condition: Condition = "voco",
    segment: SegmentShape | None = None,
) -> dict[str, Tensor]:
    """Rows of so many segments and then text, padded, on the CPU: fields `[rows, length]`.

    Args:
        model: Whose tokens they are of.
        texts: Text tokens of each row.
        segments: Of each row.
        condition: Decides the positions.
        segment: Shape of a segment; None: the model's.
    """
    tokens, config = model.config.added_tokens, model.config
    ids = TokenIds(tokens.image, tokens.voco, BOS, EOS, PAD)
    shape = config.segment_shape() if segment is None else segment
    parts: list[list[SegmentMark | TextSpan]] = []
    for text in texts:
        trained = max(1, round(TRAINED_SHARE * text))
        words = torch.randint(EOS + 1, tokens.image, (text,)).tolist()
        parts.append(
            [*[SegmentMark()] * segments, TextSpan(tuple(words), (False,) * (text - trained) + (True,) * trained)]
        )
    return pad_rows([lay_out(row, ids, shape, condition) for row in parts], ids)
