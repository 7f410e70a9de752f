"""The language model: any causal language model of transformers with plain rotary attention."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from voco_llama.errors import SettingsError
from voco_llama.visibility import check_backend

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def build_language_model(
    pretrained: str | None, config: str | None, attention: str, dtype: torch.dtype
) -> PreTrainedModel:
    """A causal language model with its weights (`pretrained`), or a fresh one from a configuration folder."""
    if pretrained is not None:
        return AutoModelForCausalLM.from_pretrained(pretrained, attn_implementation=attention, dtype=dtype)
    return AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(config), attn_implementation=attention, dtype=dtype
    )


def check_language_config(config: Any) -> None:
    """Refuse language models whose attention or logits are more than the decoder and the head that we call.

    Args:
        config: The language model's configuration.

    Raises:
        SettingsError: What the model does that would be lost silently.
    """
    check_backend(config._attn_implementation)
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"} or getattr(config, "sliding_window", None):
        raise SettingsError(
            "the language model uses sliding-window attention, which the VoCo mask does not express: set its"
            " sliding_window to null (and use_sliding_window to false) if the rows fit the window"
        )
    if getattr(config, "final_logit_softcapping", None) or getattr(config, "logit_scale", None):
        raise SettingsError("the language model scales or caps its logits, which would be lost: use another model")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise SettingsError(
            "the language model rotates only a part of each head, which moving caches does not know of: use a model"
            " with plain rotary positions (Llama, Qwen2, Qwen3, Mistral)"
        )
    if rope.get("rope_type") in LENGTH_DEPENDENT_ROPE:
        raise SettingsError(
            f"rope type {rope['rope_type']!r} changes with the length, so that caches could not be moved: use"
            " another rope type"
        )
