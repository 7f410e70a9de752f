"""Who may attend to whom: one predicate, and the forms that attention backends want of it.

True = may attend, everywhere. Drawn for `[V V C T T]` (V = vision, C = VoCo, T = text), query by row:

        V V C T T
    V   1 0 0 0 0
    V   1 1 0 0 0
    C   1 1 1 0 0
    T   0 0 1 1 0
    T   0 0 1 1 1

With segment attention `bidirectional`, beyond the paper, the vision tokens of a segment see each other both ways:

        V V C T T
    V   1 1 0 0 0
    V   1 1 0 0 0
    C   1 1 1 0 0
    T   0 0 1 1 0
    T   0 0 1 1 1

With `independent`, none of them sees another:

        V V C T T
    V   1 0 0 0 0
    V   0 1 0 0 0
    C   1 1 1 0 0
    T   0 0 1 1 0
    T   0 0 1 1 1

VoCo tokens stay causal, so that a cache can still be truncated and moved. This is the only place of the project that
knows the rule (section 3.1, equation 3 of the paper).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from voco_llama.choices import BACKENDS, CONDITIONS, Condition, SegmentAttention, require_choice
from voco_llama.errors import SettingsError
from voco_llama.layout import PADDING_DOCUMENT


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """What is known of tokens beside their ids; every field is `[batch, length]`.

    Attributes:
        index: The token's place in its row. It is kept apart from the place in the tensor because keys read from a
            cache need not lie in row order.
        segment, voco, position, document: See `voco_llama.layout`. The predicate does not ask for the position.
    """

    index: Tensor
    segment: Tensor
    voco: Tensor
    position: Tensor
    document: Tensor

    @classmethod
    def of_batch(cls, batch: Mapping[str, Tensor]) -> "TokenFacts":
        """Facts of whole rows, whose tensors are in row order; other entries of the batch are left alone.

        Raises:
            TypeError: The batch lacks one of them.
        """
        check_facts(batch)
        index = torch.arange(batch["segment"].shape[1], device=batch["segment"].device)
        return cls(index=index.expand_as(batch["segment"]), **{name: batch[name] for name in FACTS})

    def map(self, change: Callable[[Tensor], Tensor]) -> "TokenFacts":
        """The facts with every field changed alike."""
        return TokenFacts(**{name: change(getattr(self, name)) for name in ("index", *FACTS)})

    def at(self, *place: object) -> "TokenFacts":
        """The facts indexed like a tensor, for example `facts.at(slice(None), slice(0, 4))`."""
        return self.map(lambda values: values[place])

    def gather(self, places: Tensor, real: Tensor) -> "TokenFacts":
        """The facts at `places` (int64 `[batch, kept]`); where `real` (bool) is False, they are those of padding."""
        taken = self.map(lambda values: values.gather(1, places))
        return replace(taken, document=taken.document.masked_fill(~real, PADDING_DOCUMENT))

    def followed_by(self, others: "TokenFacts") -> "TokenFacts":
        """These tokens and then others of the same rows."""
        names = ("index", *FACTS)
        return TokenFacts(**{n: torch.cat([getattr(self, n), getattr(others, n)], dim=1) for n in names})


FACTS = tuple(field.name for field in fields(TokenFacts) if field.name != "index")
"""What a row brings (`voco_llama.layout`); a fact is added there and in `TokenFacts`, all else passes it on."""


def check_facts(batch: Mapping[str, Tensor]) -> None:
    """Refuse rows that lack a fact (`TypeError`)."""
    if missing := [name for name in FACTS if name not in batch]:
        raise TypeError(f"the rows lack {', '.join(missing)}: pass all that VoCoProcessor or lay_out makes")


def visible(
    query: TokenFacts, key: TokenFacts, condition: Condition, segment_attention: SegmentAttention = "causal"
) -> Tensor:
    """The predicate, elementwise over broadcastable facts; a bool tensor of the broadcast shape.

    causal, and within one document that is not padding, and -- under `voco` -- within one segment (text with
    text, a segment with itself) or from text to a VoCo token. Under `full` the first two alone. With segment attention
    `bidirectional`, a segment's tokens see all of its tokens that are no VoCo tokens, later ones too; with
    `independent`, those that are no VoCo tokens see themselves alone of their segment.
    """
    allowed = key.index <= query.index
    if segment_attention == "bidirectional":
        allowed = allowed | ((query.segment == key.segment) & (key.segment > 0) & ~key.voco)
    if segment_attention == "independent":
        allowed = allowed & (
            query.voco | (query.segment != key.segment) | (key.segment == 0) | (query.index == key.index)
        )
    allowed = allowed & (query.document == key.document) & (key.document >= 0)
    if condition == "full":
        return allowed
    return allowed & ((query.segment == key.segment) | ((query.segment == 0) & key.voco))


def dense_mask(
    query: TokenFacts, key: TokenFacts, condition: Condition, segment_attention: SegmentAttention = "causal"
) -> Tensor:
    """The predicate for all pairs, bool `[batch, queries, keys]`. The row of a padding query is empty."""
    return visible(query.at(..., None), key.at(slice(None), None), condition, segment_attention)


def _visible_or_itself(
    query: TokenFacts, key: TokenFacts, condition: Condition, segment_attention: SegmentAttention
) -> Tensor:
    """The predicate, and a padding query sees itself, so that no softmax runs over an empty row."""
    return visible(query, key, condition, segment_attention) | ((query.document < 0) & (query.index == key.index))


def block_mask(
    query: TokenFacts, key: TokenFacts, condition: Condition, segment_attention: SegmentAttention = "causal"
) -> BlockMask:
    """The predicate as a FlexAttention `BlockMask`, for `[batch, any head, queries, keys]`.

    The facts of a single row serve a batch of any size, whose numbers the kernel hands to the predicate.
    """
    batch_size, num_queries = query.segment.shape

    def mask_mod(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        row = batch % batch_size
        return _visible_or_itself(query.at(row, q), key.at(row, k), condition, segment_attention)

    return create_block_mask(mask_mod, batch_size, None, num_queries, key.segment.shape[1], query.segment.device)


def attention_mask(
    backend: str,
    query: TokenFacts,
    key: TokenFacts,
    condition: Condition,
    dtype: torch.dtype,
    segment_attention: SegmentAttention = "causal",
) -> Tensor | BlockMask:
    """The mask in the form that an attention backend takes as a ready-made mask.

    Args:
        backend: One of `BACKENDS`.
        query, key: Facts of the queries, `[batch, queries]`, and of the keys, `[batch, keys]`.
        condition, segment_attention: As in `visible`.
        dtype: Of the hidden states; only the additive form has one.

    Returns:
        sdpa: bool `[batch, 1, queries, keys]`. eager: 0 for True, the most negative number of `dtype` for False.
        flex_attention: a `BlockMask`.

    Raises:
        SettingsError: The backend cannot express the mask.
    """
    check_backend(backend)
    require_choice("condition", condition, CONDITIONS)
    if backend == "flex_attention":
        return block_mask(query, key, condition, segment_attention)
    mask = _visible_or_itself(query.at(..., None), key.at(slice(None), None), condition, segment_attention)[:, None]
    if backend == "sdpa":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def check_backend(backend: str) -> None:
    """Refuse an attention backend that would drop the mask silently.

    Raises:
        SettingsError: It names the backends that can express the mask.
    """
    if backend not in BACKENDS:
        raise SettingsError(
            f"attention backend {backend!r} cannot express the VoCo mask: set model.attention to one of"
            f" {', '.join(BACKENDS)}"
        )
