"""Compressing images, each alone: one causal pass over its segment, of which the VoCo tokens' keys and values remain.

`voco_llama.model.generation` reads them.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from voco_llama.errors import SettingsError
from voco_llama.model.cache import VoCoCache
from voco_llama.visibility import TokenFacts

if TYPE_CHECKING:
    from voco_llama.model.voco_llama import VoCoLlama


@torch.no_grad()
def compress(self: "VoCoLlama", pixel_values: Tensor, num_voco: int | None = None) -> VoCoCache:
    """Compress images, each alone.

    Args:
        pixel_values: `[images, 3, height, width]`, at least one image.
        num_voco: VoCo tokens an image; the number the model was trained with by default, and the only one of an
            external compressor.

    Returns:
        A cache with one entry an image.
    """
    shape, config = self.config.segment_shape(num_voco), self.config
    if not 1 <= shape.num_voco <= config.num_vision_tokens:
        raise SettingsError(
            f"num_voco {shape.num_voco} makes no sense for {config.num_vision_tokens} vision tokens: use 1 to that many"
        )
    if config.compresses_outside and shape.num_voco != config.num_voco:
        raise SettingsError(
            f"num_voco {shape.num_voco}: this {config.compressor} makes {config.num_voco} tokens, no other number:"
            " leave num_voco out"
        )
    if config.voco_embeddings == "distinct" and shape.num_voco > config.num_voco:
        raise SettingsError(
            f"num_voco {shape.num_voco}: this model has embeddings of its own for {config.num_voco} VoCo tokens:"
            " use at most as many"
        )
    before = [*shape.prefix, *[self.config.image_token_id] * shape.num_vision, *shape.infix]
    ids = torch.tensor([*before, *[self.config.voco_token_id] * shape.num_voco], device=pixel_values.device)
    input_ids = ids.expand(pixel_values.shape[0], -1)
    embeddings = self.embed(input_ids, pixel_values)
    position = torch.arange(-shape.num_compressed, shape.num_voco, device=ids.device).expand_as(input_ids)
    inside = torch.ones_like(input_ids)
    facts = TokenFacts.of_rows(inside, position >= 0, torch.zeros_like(inside))
    mask = self.mask(facts, facts, "full", embeddings.dtype)
    past = DynamicCache(config=self.language_model.config)
    self.decoder(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=position, past_key_values=past, use_cache=True
    )
    # Copied, so that the cache does not keep the whole prefix's storage alive.
    keys = torch.stack([layer.keys[:, :, -shape.num_voco :] for layer in past.layers])
    values = torch.stack([layer.values[:, :, -shape.num_voco :] for layer in past.layers])
    return VoCoCache(keys, values, self.fingerprint())
