"""The two steps of inference: compress each image alone, then read its VoCo tokens' keys and values under the text.

Compressing is the first half of a pass in two steps (`voco_llama.model.two_steps`), of which the keys and values of
the VoCo tokens remain. To generate, the rows are first taken apart: VoCo tokens become slots that hold cached keys and
values, moved to their positions; text tokens remain; vision tokens are gone. Where text stands before an image, which
it must not see, one prefill runs all of it but the last token under the predicate. From there on `generate` of
transformers goes on with its defaults: VoCo and text tokens have contiguous positions, so counting attended tokens
gives the right ones.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList
from transformers.cache_utils import DynamicCache
from transformers.utils import ModelOutput

from voco_llama.choices import Condition, check_quality
from voco_llama.configuration import max_positions
from voco_llama.errors import CheckpointError, DataError, SettingsError, VoCoError
from voco_llama.layout import SegmentShape
from voco_llama.model.cache import VoCoCache, places_in_entries, rotate_keys
from voco_llama.model.decoding import LastPosition, NewTokens
from voco_llama.model.quality import Choosing
from voco_llama.model.slots import all_before, counts_of, left_gather, slots_of
from voco_llama.model.two_steps import KeptKeys, attention_named
from voco_llama.packing import segments_alone
from voco_llama.visibility import FACTS, TokenFacts

_ALL_BUT_LAST = (slice(None), slice(None, -1))
_OURS = ("attention_mask", "position_ids", "inputs_embeds", "past_key_values", "use_cache")
"""Arguments of transformers' `generate` that the rows and the cache stand for."""


class VoCoGeneration(Choosing):
    """What `VoCoLlama` does with images and caches.

    It is no `GenerationMixin` of transformers (which goes by that name): the language model inside is, and decodes.
    """

    @torch.no_grad()
    def compress(
        self, pixel_values: Tensor, num_voco: int | Sequence[int] | None = None, quality: float | None = None
    ) -> VoCoCache:
        """Compress images, each alone.

        Args:
            pixel_values: `[images, 3, height, width]`, at least one image.
            num_voco: VoCo tokens an image, or a number for each image; the number the model was trained with by
                default, and the only one of an external compressor. With `quality`, the most an image may have.
            quality: Keep of each image the fewest VoCo tokens whose answers stay close to those of all: by how much
                they may differ, in nats an answer token (0.05: closely; 0: keep all). The checkpoint needs a head that
                foresees it (`voco-llama fit-quality`).

        Returns:
            A cache with one entry an image. Weights trained with condition `full` make one too, the lower bound: their
            VoCo tokens have learned nothing.

        Raises:
            SettingsError: The model cannot make that number, or has fewer positions than a segment; or it has no head.
            CheckpointError: The head was fitted to other weights.
        """
        if isinstance(num_voco, Sequence) and len(num_voco) != len(pixel_values):
            raise SettingsError(
                f"there are {len(num_voco)} numbers of VoCo tokens for {len(pixel_values)} images: give each one"
            )
        if quality is not None:
            return self._compress_to(quality, pixel_values, num_voco)
        if isinstance(num_voco, Sequence):
            for number in set(num_voco):
                self.check_num_voco(number)
            return self.compress(pixel_values, max(num_voco)).truncate(num_voco)
        self.check_num_voco(num_voco)
        shape = self.config.segment_shape(num_voco)
        fingerprint = self.fingerprint()  # first: it waits for the device, and has nothing to wait for yet
        packing = segments_alone(shape, self.config.added_tokens, len(pixel_values)).to(pixel_values.device)
        layers: KeptKeys = []
        self.run_packed(packing, pixel_values, layers)
        # [images, heads, N, head_dim] a layer -> [layers, images x N, heads, head_dim]
        keys, values = (
            torch.stack([s.transpose(1, 2).flatten(0, 1) for s in states]) for states in zip(*layers, strict=True)
        )
        return VoCoCache(keys, values, torch.full((len(pixel_values),), shape.num_voco), fingerprint)

    def _compress_to(self, quality: float, pixel_values: Tensor, most: int | Sequence[int] | None) -> VoCoCache:
        """As few tokens as a quality allows, at most so many an image."""
        check_quality(quality, "voco")
        head = self.check_quality_head(quality)
        cache = self.compress(pixel_values, head.shape.numbers[-1])
        self.check_quality_head(quality, cache.fingerprint)
        chosen = torch.tensor(head.choose(cache, quality))
        return cache.truncate(chosen if most is None else chosen.minimum(torch.tensor(most)))

    def prefill(
        self, embeddings: Tensor, query: TokenFacts, keys: TokenFacts, past: DynamicCache, condition: Condition
    ) -> Tensor:
        """Run tokens under the predicate and add their keys and values to a cache, `past`; their last hidden states.

        Flash attention cannot express it; sdpa stands in for it.

        Embeddings are `[batch, length, hidden]`, `query` the facts of these tokens, and `keys` those of what the cache
        holds already, and then of these tokens.
        """
        if embeddings.shape[1] == 0:
            return embeddings
        config = self.language_model.config
        backend = "sdpa" if config._attn_implementation == "flash_attention_2" else config._attn_implementation
        with attention_named(config, backend):
            return self.decoder(
                inputs_embeds=embeddings,
                attention_mask=self.mask(query, keys, condition, embeddings.dtype),
                position_ids=query.position,
                past_key_values=past,
                use_cache=True,
            ).last_hidden_state

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
        offset = position - places_in_entries(cache.counts).to(slots.device)[slots]
        layers = []
        for keys, values in zip(cache.keys.to(self.dtype), cache.values.to(self.dtype), strict=True):
            # [tokens, heads, head_dim] -> [batch, heads, slots, head_dim]
            keys, values = (states[slots].transpose(1, 2) for states in (keys, values))
            layers.append((rotate_keys(keys, offset[:, None], self.inverse_frequency), values))
        return DynamicCache(layers, config=config)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        *,
        pixel_values: Tensor | None = None,
        cache: VoCoCache | None = None,
        condition: Condition | None = None,
        **kwargs: Any,
    ) -> Tensor | ModelOutput:
        """Continue rows of text that look at images.

        The rows come from `VoCoProcessor`. Under `voco`, images are read through `cache`, or, if `pixel_values` are
        given instead, are compressed first. Rows with image marks consume the cache's entries in row order; if no row
        has a mark, every row reads the whole cache, placed before its text. Under `full` the images are not
        compressed and text sees their vision tokens. Answers end at what `eos_token_id` of the configuration names, at
        `max_new_tokens`, and at the last position that the language model was made for.

        Args:
            input_ids: `[batch, length]`, padded on either side.
            pixel_values: `[images, 3, height, width]`.
            cache: From `compress`, of this model.
            condition: Overrides the configuration's.
            **kwargs: The rows' other fields (`segment`, `voco`, `position`, `document`), as `input_ids`. The rest is
                passed on to transformers (`max_new_tokens`, `do_sample`, `num_beams`, ...).

        Returns:
            The new token ids alone, `[batch x num_return_sequences, new]`; with `return_dict_in_generate=True`, what
            transformers returns (`scores`, ...), whose `sequences` they are.

        Raises:
            DataError: The cache's entries and the rows' VoCo tokens do not agree, or a row is longer than the language
                model has positions.
            CheckpointError: The cache is another model's.
            SettingsError: Arguments contradict each other.
        """
        facts = TokenFacts.of_batch(kwargs)
        generation = {name: value for name, value in kwargs.items() if name not in FACTS}
        if owned := [name for name in _OURS if name in generation]:
            raise SettingsError(f"generate takes no {owned[0]}: the rows and the cache stand for it: leave it out")
        if (condition or self.config.condition) == "full":
            if cache is not None:
                raise SettingsError("a cache is read under condition 'voco': pass pixel_values for condition 'full'")
            return self._generate_full(input_ids, facts, pixel_values, generation)
        if pixel_values is not None:
            if cache is not None:
                raise SettingsError("pass either pixel_values or a cache, not both")
            counts = counts_of(facts).tolist()
            cache = self.compress(pixel_values, counts if len(set(counts)) > 1 else next(iter(counts), None))
        elif cache is not None and cache.fingerprint != self.fingerprint():
            raise CheckpointError("the cache was made by another model: compress the images with this one")
        return self._generate_cached(input_ids, facts, cache, generation)

    @torch.no_grad()
    def read(self, input_ids: Tensor, cache: VoCoCache, **row: Tensor) -> Tensor:
        """Read text on top of a cache, without generating: the last hidden states, `[batch, length, hidden]`.

        Args:
            input_ids: `[batch, length]`, padded on either side.
            cache: One entry for each of the rows' segments.
            **row: The rows' other fields.

        Returns:
            Those of text; 0 elsewhere.

        Raises:
            DataError: The cache's entries and the rows' VoCo tokens do not agree.
        """
        facts = TokenFacts.of_batch(row)
        slots, slot_facts, _ = slots_of(facts, cache, self.config.added_tokens)
        text, real = left_gather(facts, (facts.document >= 0) & (facts.segment == 0))
        past = self.filled_cache(cache, slots, slot_facts.position)
        embeddings = self.get_input_embeddings()(input_ids.gather(1, text.index))
        states = self.prefill(embeddings, text, slot_facts.followed_by(text), past, "voco")
        found = states.new_zeros(*input_ids.shape, states.shape[-1])
        index = text.index[..., None].expand(-1, -1, states.shape[-1])
        return found.scatter_add(1, index, states * real[..., None])

    def _generate_full(
        self, input_ids: Tensor, facts: TokenFacts, pixel_values: Tensor | None, generation: dict[str, Any]
    ) -> Tensor | ModelOutput:
        row, real = left_gather(facts, facts.document >= 0)
        self._check_rows(real, "or condition=voco")
        embeddings = self.embed(input_ids, pixel_values)
        embeddings = embeddings.gather(1, row.index[..., None].expand(-1, -1, embeddings.shape[-1]))
        past = DynamicCache(config=self.language_model.config)
        before_last = row.at(*_ALL_BUT_LAST)
        self.prefill(embeddings[:, :-1], before_last, before_last, past, "full")
        return self._decode(input_ids.gather(1, row.index), real, past, generation)

    def _generate_cached(
        self, input_ids: Tensor, facts: TokenFacts, cache: VoCoCache | None, generation: dict[str, Any]
    ) -> Tensor | ModelOutput:
        slots, slot_facts, slot_real = slots_of(facts, cache, self.config.added_tokens)
        text, real = left_gather(facts, (facts.document >= 0) & (facts.segment == 0))
        attended = torch.cat([slot_real, real], dim=1)
        self._check_rows(attended, "or fewer VoCo tokens (num_voco)")
        text_ids = input_ids.gather(1, text.index)
        if not bool(facts.voco.any()):  # the slots stand before the text, which moves along
            text = replace(text, index=text.index + slots.shape[1], position=text.position + slots.shape[1])
        past = self.filled_cache(cache, slots, slot_facts.position)
        if not all_before(slot_facts, slot_real, text, real):  # else the first pass of decoding reads all text at once
            before_last = text.at(*_ALL_BUT_LAST)
            embeddings = self.get_input_embeddings()(text_ids[:, :-1])
            self.prefill(embeddings, before_last, slot_facts.followed_by(before_last), past, "voco")
        filler = torch.full_like(slots, self.config.voco_token_id)
        return self._decode(torch.cat([filler, text_ids], dim=1), attended, past, generation)

    def _decode(
        self, input_ids: Tensor, real: Tensor, past: DynamicCache, generation: dict[str, Any]
    ) -> Tensor | ModelOutput:
        """Let transformers go on from a cache of the first tokens of `input_ids`; those after see all before them."""
        defaults = self.language_model.generation_config
        given = generation.get("generation_config") or defaults
        copies = max(
            generation.get(n) or getattr(given, n) or getattr(defaults, n) or 1
            for n in ("num_beams", "num_return_sequences")
        )
        if copies > 1 and past.get_seq_length() > 0:
            past.batch_repeat_interleave(copies)
        pad, length = self.language_model.config.pad_token_id, input_ids.shape[1]
        generation = {"pad_token_id": self.config.image_token_id if pad is None else pad} | generation
        if (limit := max_positions(self.language_model.config)) is not None:
            theirs = generation.get("stopping_criteria") or ()
            generation["stopping_criteria"] = StoppingCriteriaList([*theirs, LastPosition(real, limit)])
        if generation.get("streamer") is not None:
            generation["streamer"] = NewTokens(generation["streamer"])
        output = self.language_model.generate(
            input_ids, attention_mask=real.long(), past_key_values=past, use_cache=True, **generation
        )
        if isinstance(output, Tensor):
            return output[:, length:]
        output.sequences = output.sequences[:, length:]
        return output

    def check_num_voco(self, num_voco: int | None = None) -> None:
        """Refuse a number of VoCo tokens an image that the model cannot make.

        Raises:
            SettingsError: The model cannot make that number, or has fewer positions than a segment.
        """
        shape = self.config.segment_shape(num_voco)
        _check_num_voco(shape, self.config)
        self._check_positions(
            shape.num_compressed + shape.num_voco, "an image", "use another tower or model", SettingsError
        )

    def _check_rows(self, attended: Tensor, otherwise: str) -> None:
        """Refuse rows longer than the language model has positions; bool `[batch, length]`."""
        longest = int(attended.sum(dim=1).max())
        self._check_positions(
            longest, "a question, with its images,", f"use fewer images or frames, {otherwise}", DataError
        )

    def _check_positions(self, tokens: int, what: str, advice: str, error: type[VoCoError]) -> None:
        limit = max_positions(self.language_model.config)
        if limit is not None and tokens > limit:
            raise error(
                f"{what} takes {tokens:,} tokens, and the language model was made for {limit:,}"
                f" (max_position_embeddings): {advice}"
            )


def _check_num_voco(shape: SegmentShape, config: Any) -> None:
    if shape.num_voco == 0 == config.num_voco:
        raise SettingsError(
            "the model was made without VoCo tokens (a LLaVA): set condition=full, or num_voco for the lower bound"
        )
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
