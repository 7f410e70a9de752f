"""Which cached tokens rows read, and where: rows taken apart into slots, which hold VoCo tokens, and text."""

import torch
from torch import Tensor

from voco_llama.errors import DataError
from voco_llama.layout import SegmentMark, SegmentShape, lay_out
from voco_llama.model.cache import VoCoCache
from voco_llama.tokens import AddedTokens
from voco_llama.visibility import TokenFacts


def counts_of(facts: TokenFacts) -> Tensor:
    """VoCo tokens of each of the rows' segments, in row order, int64 `[segments]` on the host."""
    row, place = facts.voco.nonzero(as_tuple=True)
    marks = torch.stack([row, facts.document[row, place], facts.segment[row, place]]).cpu()
    starts = (marks.diff(dim=1, prepend=torch.full((3, 1), -1)) != 0).any(dim=0).nonzero()[:, 0]
    return starts.diff(append=torch.tensor([marks.shape[1]]))


def all_before(slots: TokenFacts, slot_real: Tensor, text: TokenFacts, text_real: Tensor) -> bool:
    """Whether all slots of each row stand before its text, all `[batch, length]`; so too if there are none."""
    if slots.index.shape[1] == 0:
        return True
    last = slots.index.masked_fill(~slot_real, -1).amax(dim=1)
    return bool((last[:, None] < text.index.masked_fill(~text_real, torch.iinfo(torch.long).max)).all())


def left_gather(facts: TokenFacts, keep: Tensor) -> tuple[TokenFacts, Tensor]:
    """The kept tokens (bool `[batch, length]`) of each row, in order at the right end; the left becomes padding.

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
        DataError: The cache's entries and the rows' VoCo tokens do not agree.
    """
    held, asked = torch.zeros(0, dtype=torch.long) if cache is None else cache.counts, counts_of(facts)
    if len(asked) == 0:
        row = lay_out([SegmentMark(count) for count in held.tolist()], tokens, SegmentShape(0, 0), "voco")
        whole = TokenFacts.of_batch(row.repeated(len(facts.voco), facts.voco.device))
        return whole.index, whole, whole.voco
    if not torch.equal(asked, held):
        raise DataError(
            f"the rows read {_described(asked, 'segments')}, but"
            f" {'no cache was passed' if cache is None else 'the cache has ' + _described(held, 'entries')}: pass one"
            " entry for each image mark, and lay the rows out with the cache's numbers of VoCo tokens (its counts)"
        )
    slot_facts, real = left_gather(facts, facts.voco)
    order = facts.voco.flatten().cumsum(0).view_as(facts.voco) - 1
    return order.gather(1, slot_facts.index).masked_fill(~real, 0), slot_facts, real


def _described(counts: Tensor, what: str) -> str:
    """So many segments or entries, and their numbers of VoCo tokens where they fit in a line."""
    numbers = counts.unique().tolist() if len(counts.unique()) == 1 or len(counts) > 8 else counts.tolist()
    return f"{len(counts)} {what} of {', '.join(map(str, numbers))} VoCo tokens"
