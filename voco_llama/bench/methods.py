"""Ways of answering questions on images: without a cache, from a full cache, from a VoCo cache.

    no_cache     [V x 576, question] is read anew for every question
    full_cache   the keys and values of an image's 576 vision tokens are kept, and read under the question
    voco         those of its VoCo tokens are

All go through the same prefill of the question and the same greedy decoding of transformers, on rows of one length. The
full cache is copied for each question that reads it, as the VoCo cache is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from voco_llama.bench.shape import rows
from voco_llama.layout import SegmentMark, SegmentShape, lay_out
from voco_llama.model.cache import VoCoCache
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.visibility import FACTS, TokenFacts


def greedily(new: int) -> dict[str, Any]:
    """Arguments of `generate` for answers of exactly so many tokens."""
    return {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}


@dataclass(frozen=True)
class Asking:
    """A model in evaluation mode, and questions of `text` tokens."""

    model: VoCoLlama
    text: int

    @property
    def whole(self) -> SegmentShape:
        """An image as its vision tokens alone."""
        return SegmentShape(self.model.config.num_vision_tokens, 0)

    def _rows(self, count: int, segment: SegmentShape, condition: str) -> dict[str, Tensor]:
        made = rows(self.model, [self.text] * count, 1, condition, segment)
        return {name: made[name].to(self.model.device) for name in ("input_ids", *FACTS)}

    def no_cache(self, pixel_values: Tensor, new: int) -> Tensor:
        """Answers, `[images, new]`, to a question on each image, `[images, 3, height, width]`."""
        asked = self._rows(len(pixel_values), self.whole, "full")
        return self.model.generate(**asked, pixel_values=pixel_values, condition="full", **greedily(new))

    @torch.no_grad()
    def fill(self, pixel_values: Tensor) -> DynamicCache:
        """The keys and values of all vision tokens of each image."""
        row = lay_out([SegmentMark()], self.model.config.added_tokens, self.whole, "full")
        batch = row.repeated(len(pixel_values), self.model.device)
        past, facts = DynamicCache(config=self.model.language_model.config), TokenFacts.of_batch(batch)
        self.model.prefill(self.model.embed(batch["input_ids"], pixel_values), facts, facts, past, "full")
        return past

    @torch.no_grad()
    def full_cache(self, filled: DynamicCache, entries: Sequence[int], new: int) -> Tensor:
        """Answers, `[questions, new]`, to questions that read these entries of what `fill` made."""
        asked = self._rows(len(entries), self.whole, "full")
        config, before = self.model.language_model.config, self.whole.num_vision
        places = torch.tensor(entries, device=self.model.device)
        past = DynamicCache([(layer.keys[places], layer.values[places]) for layer in filled.layers], config=config)
        facts = TokenFacts.of_batch(asked).at(slice(None), slice(None, -1))
        question = facts.at(slice(None), slice(before, None))
        embeddings = self.model.get_input_embeddings()(asked["input_ids"][:, before:-1])
        self.model.prefill(embeddings, question, facts, past, "full")
        every = torch.ones_like(asked["input_ids"])
        written = self.model.language_model.generate(
            asked["input_ids"], attention_mask=every, past_key_values=past, use_cache=True, **greedily(new)
        )
        return written[:, every.shape[1] :]

    def voco(self, cache: VoCoCache, entries: Sequence[int], new: int) -> Tensor:
        """Answers, `[questions, new]`, to questions that read these entries of a VoCo cache."""
        asked = self._rows(len(entries), SegmentShape(0, cache.num_voco), "voco")
        return self.model.generate(**asked, cache=cache[entries], **greedily(new))


def bytes_of(filled: DynamicCache) -> int:
    """Of the keys and values of one entry."""
    return sum(2 * layer.keys[:1].numel() * layer.keys.element_size() for layer in filled.layers)
