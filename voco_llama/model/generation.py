"""Generation on cached segments: prefill under the predicate, then transformers' own decoding.

Under `voco` the rows are first taken apart: VoCo tokens become slots that hold cached keys and values, moved to
their positions; text tokens remain; vision tokens are gone. One prefill runs all text but the last token under
the predicate (text before an image must not see it), and from there on `generate` of transformers goes on with
its defaults: VoCo and text tokens have contiguous positions, so counting attended tokens gives the right ones.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from voco_llama.choices import Condition
from voco_llama.layout import PADDING_DOCUMENT
from voco_llama.model.cache import VoCoCache, rotate_keys
from voco_llama.visibility import TokenFacts

if TYPE_CHECKING:
    from voco_llama.model.voco_llama import VoCoLlama


@torch.no_grad()
def generate(
    self: "VoCoLlama",
    input_ids: Tensor,
    segment: Tensor,
    voco: Tensor,
    position: Tensor,
    document: Tensor,
    pixel_values: Tensor | None = None,
    cache: VoCoCache | None = None,
    condition: Condition | None = None,
    **generation: Any,
) -> Tensor:
    """Continue rows of text that look at images.

    The rows come from `VoCoProcessor`. Under `voco`, images are read through `cache`, or, if `pixel_values` are
    given instead, are compressed first. Rows with image marks consume the cache's entries in row order; if no row
    has a mark, every row reads the whole cache, placed before its text. Under `full` the images are not
    compressed and text sees their vision tokens.

    Args:
        input_ids, segment, voco, position, document: `[batch, length]`, padded on either side.
        pixel_values: `[images, 3, height, width]`.
        cache: From `compress`, of this model.
        condition: Overrides the configuration's.
        **generation: Passed on to transformers (`max_new_tokens`, `do_sample`, `num_beams`, ...).

    Returns:
        The new token ids alone, `[batch x num_return_sequences, new]`.

    Raises:
        ValueError: The cache's entries and the rows' VoCo tokens do not agree, or the cache is another model's.
    """
    condition = condition or self.config.condition
    facts = TokenFacts.of_rows(segment, voco, document)
    if condition == "full":
        if cache is not None:
            raise ValueError("a cache is read under condition 'voco': pass pixel_values for condition 'full'")
        return _generate_full(self, input_ids, facts, position, pixel_values, generation)
    num_voco = _num_voco(facts)
    if pixel_values is not None:
        if cache is not None:
            raise ValueError("pass either pixel_values or a cache, not both")
        cache = self.compress(pixel_values, num_voco)
    if cache is not None and cache.fingerprint != self.fingerprint():
        raise ValueError("the cache was made by another model: compress the images with this one")
    return _generate_cached(self, input_ids, facts, position, cache, generation)


def _num_voco(facts: TokenFacts) -> int | None:
    """VoCo tokens of the rows' segments; None if no row has a segment."""
    if not bool(facts.voco.any()):
        return None
    row = facts.voco.any(dim=1).nonzero()[0, 0]
    return int((facts.voco[row] & (facts.segment[row] == facts.segment[row][facts.voco[row]][0])).sum())


def _left_gather(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Places `[batch, most kept]` of the True entries of `keep` `[batch, length]`, and which of them are real.

    Kept entries stay in order at the right end; what fills the left is marked False.
    """
    longest = int(keep.sum(dim=1).max())
    places = torch.argsort(keep.long(), dim=1, stable=True)[:, keep.shape[1] - longest :]
    return places, keep.gather(1, places)


def _gather_facts(facts: TokenFacts, places: Tensor, valid: Tensor) -> TokenFacts:
    return TokenFacts(
        places,
        facts.segment.gather(1, places),
        facts.voco.gather(1, places),
        facts.document.gather(1, places).masked_fill(~valid, PADDING_DOCUMENT),
    )


def _cat_facts(first: TokenFacts, second: TokenFacts) -> TokenFacts:
    names = ("index", "segment", "voco", "document")
    return TokenFacts(*(torch.cat([getattr(first, name), getattr(second, name)], dim=1) for name in names))


def _generate_full(
    model: "VoCoLlama",
    input_ids: Tensor,
    facts: TokenFacts,
    position: Tensor,
    pixel_values: Tensor | None,
    generation: dict[str, Any],
) -> Tensor:
    places, valid = _left_gather(facts.document >= 0)
    row_facts = _gather_facts(facts, places, valid)
    embeddings = model.embed(input_ids, pixel_values)
    embeddings = embeddings.gather(1, places[..., None].expand(-1, -1, embeddings.shape[-1]))
    past = DynamicCache(config=model.language_model.config)
    _prefill(model, embeddings[:, :-1], row_facts, row_facts, position.gather(1, places), past, "full")
    return _decode(model, input_ids.gather(1, places), valid, past, generation)


def _generate_cached(
    model: "VoCoLlama",
    input_ids: Tensor,
    facts: TokenFacts,
    position: Tensor,
    cache: VoCoCache | None,
    generation: dict[str, Any],
) -> Tensor:
    slots, slot_valid, slot_facts, slot_position = _slots(facts, position, cache)
    places, valid = _left_gather((facts.document >= 0) & (facts.segment == 0))
    text_facts = _gather_facts(facts, places, valid)
    text_position = position.gather(1, places)
    if slots is None:
        # Every row reads the whole cache: its slots stand before the text, which moves along.
        text_position = text_position + slot_valid.shape[1]
        text_facts = TokenFacts(
            text_facts.index + slot_valid.shape[1], text_facts.segment, text_facts.voco, text_facts.document
        )
    past = _filled_cache(model, cache, slots, slot_position)
    text_ids = input_ids.gather(1, places)
    keys = _cat_facts(slot_facts, text_facts)
    _prefill(model, model.get_input_embeddings()(text_ids[:, :-1]), text_facts, keys, text_position, past, "voco")
    filler = torch.full_like(slot_facts.index, model.config.voco_token_id)
    return _decode(model, torch.cat([filler, text_ids], dim=1), torch.cat([slot_valid, valid], dim=1), past, generation)


def _slots(
    facts: TokenFacts, position: Tensor, cache: VoCoCache | None
) -> tuple[Tensor | None, Tensor, TokenFacts, Tensor]:
    """Which cached VoCo token each slot of each row holds.

    Returns:
        Index into the cache's tokens `[batch, slots]` (None: all of them, in order), which slots are real, their
        facts, and their positions.
    """
    batch_size, num_cached = facts.segment.shape[0], 0 if cache is None else len(cache) * cache.num_voco
    num_placeholders = int(facts.voco.sum())
    if num_placeholders == 0:
        index = torch.arange(num_cached, device=position.device).expand(batch_size, -1)
        entry = index // (cache.num_voco if cache is not None else 1)
        valid = torch.ones_like(index, dtype=torch.bool)
        return None, valid, TokenFacts(index, entry + 1, valid, torch.zeros_like(index)), index
    if num_placeholders != num_cached or _num_voco(facts) != cache.num_voco:
        held = "no cache was passed" if cache is None else f"the cache has {len(cache)} entries of {cache.num_voco}"
        raise ValueError(
            f"the rows read {num_placeholders} VoCo tokens in segments of {_num_voco(facts)}, but {held}: pass one"
            " entry for each image mark, and lay the rows out with the cache's number of VoCo tokens"
        )
    places, valid = _left_gather(facts.voco)
    order = facts.voco.flatten().cumsum(0).view_as(facts.voco) - 1
    slots = order.gather(1, places).masked_fill(~valid, 0)
    return slots, valid, _gather_facts(facts, places, valid), position.gather(1, places)


def _filled_cache(
    model: "VoCoLlama", cache: VoCoCache | None, slots: Tensor | None, slot_position: Tensor
) -> DynamicCache:
    """A transformers cache that holds the slots' keys and values, `[batch, heads, slots, head_dim]` a layer."""
    config = model.language_model.config
    if cache is None or slot_position.shape[1] == 0:
        return DynamicCache(config=config)
    batch_size = slot_position.shape[0]
    if slots is None:
        slots = torch.arange(slot_position.shape[1], device=slot_position.device).expand(batch_size, -1)
    offset = slot_position - slots % cache.num_voco
    layers = []
    for keys, values in zip(cache.keys.to(model.dtype), cache.values.to(model.dtype), strict=True):
        # [entries, heads, N, head_dim] -> [entries x N, heads, head_dim] -> [batch, heads, slots, head_dim]
        keys, values = (t.transpose(1, 2).flatten(0, 1)[slots].transpose(1, 2) for t in (keys, values))
        layers.append((rotate_keys(keys, offset[:, None], model.inverse_frequency), values))
    return DynamicCache(layers, config=config)


def _prefill(
    model: "VoCoLlama",
    embeddings: Tensor,
    query: TokenFacts,
    keys: TokenFacts,
    position: Tensor,
    past: DynamicCache,
    condition: Condition,
) -> None:
    """Run all tokens but the last, whose facts and position come last in `query`, `keys` and `position`."""
    if embeddings.shape[1] == 0:
        return
    every = slice(None)
    mask = model.mask(query.at(every, slice(None, -1)), keys.at(every, slice(None, -1)), condition, embeddings.dtype)
    model.decoder(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=position[:, :-1],
        past_key_values=past,
        use_cache=True,
    )


def _decode(
    model: "VoCoLlama", input_ids: Tensor, valid: Tensor, past: DynamicCache, generation: dict[str, Any]
) -> Tensor:
    """Let transformers go on from a cache that holds all tokens of `input_ids` but the last."""
    defaults = generation.get("generation_config") or model.language_model.generation_config
    copies = max(generation.get(n) or getattr(defaults, n) or 1 for n in ("num_beams", "num_return_sequences"))
    if copies > 1 and past.get_seq_length() > 0:
        past.batch_repeat_interleave(copies)
    pad = model.language_model.config.pad_token_id
    generation.setdefault("pad_token_id", model.config.image_token_id if pad is None else pad)
    output = model.language_model.generate(
        input_ids, attention_mask=valid.long(), past_key_values=past, use_cache=True, **generation
    )
    return output[:, input_ids.shape[1] :]
