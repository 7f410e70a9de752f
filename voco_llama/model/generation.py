"""Generation on cached segments: prefill under the predicate, then transformers' own decoding.

Under `voco` the rows are first taken apart: VoCo tokens become slots that hold cached keys and values, moved to
their positions; text tokens remain; vision tokens are gone. One prefill runs all text but the last token under
the predicate (text before an image must not see it), and from there on `generate` of transformers goes on with
its defaults: VoCo and text tokens have contiguous positions, so counting attended tokens gives the right ones.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from voco_llama.choices import Condition
from voco_llama.model.cache import VoCoCache
from voco_llama.model.two_steps import TwoStepsMixin, left_gather, num_voco_of, slots_of
from voco_llama.visibility import FACTS, TokenFacts

_ALL_BUT_LAST = (slice(None), slice(None, -1))


class VoCoGeneration(TwoStepsMixin):
    """`generate` of `VoCoLlama`.

    It is no `GenerationMixin` of transformers (which goes by that name): the language model inside is, and decodes.
    """

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        cache: VoCoCache | None = None,
        condition: Condition | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Continue rows of text that look at images.

        The rows come from `VoCoProcessor`. Under `voco`, images are read through `cache`, or, if `pixel_values` are
        given instead, are compressed first. Rows with image marks consume the cache's entries in row order; if no row
        has a mark, every row reads the whole cache, placed before its text. Under `full` the images are not
        compressed and text sees their vision tokens.

        Args:
            input_ids: `[batch, length]`, padded on either side.
            pixel_values: `[images, 3, height, width]`.
            cache: From `compress`, of this model.
            condition: Overrides the configuration's.
            **kwargs: The rows' other fields (`segment`, `voco`, `position`, `document`), as `input_ids`. The rest is
                passed on to transformers (`max_new_tokens`, `do_sample`, `num_beams`, ...).

        Returns:
            The new token ids alone, `[batch x num_return_sequences, new]`.

        Raises:
            ValueError: The cache's entries and the rows' VoCo tokens do not agree, or the cache is another model's.
        """
        facts = TokenFacts.of_batch(kwargs)
        generation = {name: value for name, value in kwargs.items() if name not in FACTS}
        if (condition or self.config.condition) == "full":
            if cache is not None:
                raise ValueError("a cache is read under condition 'voco': pass pixel_values for condition 'full'")
            return self._generate_full(input_ids, facts, pixel_values, generation)
        if pixel_values is not None:
            if cache is not None:
                raise ValueError("pass either pixel_values or a cache, not both")
            cache = self.compress(pixel_values, num_voco_of(facts))
        elif cache is not None and cache.fingerprint != self.fingerprint():
            raise ValueError("the cache was made by another model: compress the images with this one")
        return self._generate_cached(input_ids, facts, cache, generation)

    def _generate_full(
        self, input_ids: Tensor, facts: TokenFacts, pixel_values: Tensor | None, generation: dict[str, Any]
    ) -> Tensor:
        embeddings = self.embed(input_ids, pixel_values)
        row, real = left_gather(facts, facts.document >= 0)
        embeddings = embeddings.gather(1, row.index[..., None].expand(-1, -1, embeddings.shape[-1]))
        past = DynamicCache(config=self.language_model.config)
        before_last = row.at(*_ALL_BUT_LAST)
        self.prefill(embeddings[:, :-1], before_last, before_last, past, "full")
        return self._decode(input_ids.gather(1, row.index), real, past, generation)

    def _generate_cached(
        self, input_ids: Tensor, facts: TokenFacts, cache: VoCoCache | None, generation: dict[str, Any]
    ) -> Tensor:
        slots, slot_facts, slot_real = slots_of(facts, cache, self.config.added_tokens)
        text, real = left_gather(facts, (facts.document >= 0) & (facts.segment == 0))
        text_ids = input_ids.gather(1, text.index)
        if not bool(facts.voco.any()):  # the slots stand before the text, which moves along
            text = replace(text, index=text.index + slots.shape[1], position=text.position + slots.shape[1])
        past = self.filled_cache(cache, slots, slot_facts.position)
        before_last = text.at(*_ALL_BUT_LAST)
        embeddings = self.get_input_embeddings()(text_ids[:, :-1])
        self.prefill(embeddings, before_last, slot_facts.followed_by(before_last), past, "voco")
        filler = torch.full_like(slots, self.config.voco_token_id)
        return self._decode(torch.cat([filler, text_ids], dim=1), torch.cat([slot_real, real], dim=1), past, generation)

    def _decode(self, input_ids: Tensor, real: Tensor, past: DynamicCache, generation: dict[str, Any]) -> Tensor:
        """Let transformers go on from a cache that holds all tokens of `input_ids` but the last."""
        defaults = generation.get("generation_config") or self.language_model.generation_config
        copies = max(generation.get(n) or getattr(defaults, n) or 1 for n in ("num_beams", "num_return_sequences"))
        if copies > 1 and past.get_seq_length() > 0:
            past.batch_repeat_interleave(copies)
        pad = self.language_model.config.pad_token_id
        generation = {"pad_token_id": self.config.image_token_id if pad is None else pad} | generation
        output = self.language_model.generate(
            input_ids, attention_mask=real.long(), past_key_values=past, use_cache=True, **generation
        )
        return output[:, input_ids.shape[1] :]
