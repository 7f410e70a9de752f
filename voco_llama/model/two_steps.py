"""The two steps of inference: compress each image alone, then read its VoCo tokens' keys and values under the text.

Compressing is one causal pass over an image's segment, of which the keys and values of the VoCo tokens remain. Reading
puts them into slots, moved to their positions, before the keys and values of the text.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from voco_llama.choices import Condition
from voco_llama.errors import SettingsError
from voco_llama.layout import SegmentMark, SegmentShape, lay_out
from voco_llama.model.cache import VoCoCache, rotate_keys
from voco_llama.tokens import AddedTokens
from voco_llama.visibility import TokenFacts


class TwoStepsMixin:
    """What `VoCoLlama` does with images and caches."""

    @torch.no_grad()
    def compress(self, pixel_values: Tensor, num_voco: int | None = None) -> VoCoCache:
        """Compress images, each alone.

        Args:
            pixel_values: `[images, 3, height, width]`, at least one image.
            num_voco: VoCo tokens an image; the number the model was trained with by default, and the only one of an
                external compressor.

        Returns:
            A cache with one entry an image.

        Raises:
            SettingsError: The model cannot make that number.
        """
        shape = self.config.segment_shape(num_voco)
        _check_num_voco(shape, self.config)
        fingerprint = self.fingerprint()  # first: it waits for the device, and has nothing to wait for yet
        row = lay_out([SegmentMark()], self.config.added_tokens, shape, "voco")
        batch = row.repeated(len(pixel_values), pixel_values.device)
        past = DynamicCache(config=self.language_model.config)
        facts = TokenFacts.of_batch(batch)
        self.prefill(self.embed(batch["input_ids"], pixel_values), facts, facts, past, "full")
        # Copied, so that the cache does not keep the whole prefix's storage alive.
        keys = torch.stack([layer.keys[:, :, -shape.num_voco :] for layer in past.layers])
        values = torch.stack([layer.values[:, :, -shape.num_voco :] for layer in past.layers])
        return VoCoCache(keys, values, fingerprint)

    def prefill(
        self, embeddings: Tensor, query: TokenFacts, keys: TokenFacts, past: DynamicCache, condition: Condition
    ) -> None:
        """Run tokens under the predicate and add their keys and values to a cache.

        Args:
            embeddings: `[batch, length, hidden]`.
            query: Facts of these tokens.
            keys: Facts of what the cache holds already, and then of these tokens.
            past: Changed in place.
            condition: Decides who sees whom.
        """
        if embeddings.shape[1] == 0:
            return
        self.decoder(
            inputs_embeds=embeddings,
            attention_mask=self.mask(query, keys, condition, embeddings.dtype),
            position_ids=query.position,
            past_key_values=past,
            use_cache=True,
        )

    def filled_cache(self, cache: VoCoCache | None, slots: Tensor, position: Tensor) -> DynamicCache:
        """A transformers cache that holds cached tokens, `[batch, heads, slots, head_dim]` a layer.

        Args:
            cache: None: there are no slots.
            slots: int64 `[batch, slots]`, which of the cache's tokens each slot holds, entry after entry.
            position: Of the slots; the keys are moved there.
        """
        config = self.language_model.config
        if cache is None or slots.shape[1] == 0:
            return DynamicCache(config=config)
        offset = position - slots % cache.num_voco
        layers = []
        for keys, values in zip(cache.keys.to(self.dtype), cache.values.to(self.dtype), strict=True):
            # [entries, heads, N, head_dim] -> [entries x N, heads, head_dim] -> [batch, heads, slots, head_dim]
            keys, values = (t.transpose(1, 2).flatten(0, 1)[slots].transpose(1, 2) for t in (keys, values))
            layers.append((rotate_keys(keys, offset[:, None], self.inverse_frequency), values))
        return DynamicCache(layers, config=config)


def _check_num_voco(shape: SegmentShape, config: Any) -> None:
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


def num_voco_of(facts: TokenFacts) -> int | None:
    """VoCo tokens of the rows' segments; None if no row has a segment."""
    if not bool(facts.voco.any()):
        return None
    row = facts.voco.any(dim=1).nonzero()[0, 0]
    return int((facts.voco[row] & (facts.segment[row] == facts.segment[row][facts.voco[row]][0])).sum())


def left_gather(facts: TokenFacts, keep: Tensor) -> tuple[TokenFacts, Tensor]:
    """The kept tokens of each row, in order at the right end; what fills the left becomes padding.

    Args:
        facts: Of whole rows.
        keep: bool `[batch, length]`.

    Returns:
        Their facts, whose `index` says where they stood, and which of them are real, both `[batch, most kept]`.
    """
    longest = int(keep.sum(dim=1).max())
    places = torch.argsort(keep.long(), dim=1, stable=True)[:, keep.shape[1] - longest :]
    return facts.gather(places, keep.gather(1, places)), keep.gather(1, places)


def slots_of(facts: TokenFacts, cache: VoCoCache | None, tokens: AddedTokens) -> tuple[Tensor, TokenFacts, Tensor]:
    """Which cached VoCo token each slot of each row holds.

    Rows with VoCo tokens read the cache's entries in row order. If no row has one, every row reads the whole cache,
    whose slots stand before all else.

    Returns:
        Index into the cache's tokens, the slots' facts, and which slots are real, all `[batch, slots]`.

    Raises:
        ValueError: The cache's entries and the rows' VoCo tokens do not agree.
    """
    entries, num_voco = (0, 0) if cache is None else (len(cache), cache.num_voco)
    num_placeholders = int(facts.voco.sum())
    if num_placeholders == 0:
        row = lay_out([SegmentMark()] * entries, tokens, SegmentShape(0, num_voco), "voco")
        whole = TokenFacts.of_batch(row.repeated(len(facts.voco), facts.voco.device))
        return whole.index, whole, whole.voco
    if num_placeholders != entries * num_voco or num_voco_of(facts) != num_voco:
        held = "no cache was passed" if cache is None else f"the cache has {entries} entries of {num_voco}"
        raise ValueError(
            f"the rows read {num_placeholders} VoCo tokens in segments of {num_voco_of(facts)}, but {held}: pass one"
            " entry for each image mark, and lay the rows out with the cache's number of VoCo tokens"
        )
    slot_facts, real = left_gather(facts, facts.voco)
    order = facts.voco.flatten().cumsum(0).view_as(facts.voco) - 1
    return order.gather(1, slot_facts.index).masked_fill(~real, 0), slot_facts, real
