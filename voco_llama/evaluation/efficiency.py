"""What an image costs to keep: the bytes of its keys and values, counted from the configuration."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def kv_bytes(text_config: "PreTrainedConfig", num_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of `num_tokens` tokens in all layers.

    `2 x layers x key-value heads x head dimension x tokens x bytes of a number`; a token of a 7B Llama in fp16 takes
    524,288 bytes.

    Args:
        text_config: The language model's configuration.
        num_tokens: Tokens that are kept.
        dtype: What the cache is kept in.
    """
    heads = text_config.num_attention_heads
    head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
    return 2 * text_config.num_hidden_layers * kv_heads * head_dim * num_tokens * dtype.itemsize
