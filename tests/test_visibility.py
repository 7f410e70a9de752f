"""The predicate as literal matrices, in every form a backend takes."""

import pytest
import torch
from torch import Tensor

from tests.pictures import (
    FOUR_VOCO,
    FULL,
    FULL_BOTH_WAYS,
    FULL_INDEPENDENT,
    IMAGE,
    IMAGE_INSIDE,
    ONE_IMAGE,
    PADDED_LEFT,
    PADDED_RIGHT,
    TEXT_ONLY,
    THREE_FRAMES,
    TOKENS,
    TWO_DOCUMENTS,
    TWO_DOCUMENTS_BOTH_WAYS,
    TWO_DOCUMENTS_INDEPENDENT,
    TWO_IMAGES,
    TWO_IMAGES_BOTH_WAYS,
    TWO_IMAGES_INDEPENDENT,
    TWO_VOCO,
    picture,
    row,
    text,
)
from voco_llama.choices import BACKENDS
from voco_llama.errors import SettingsError
from voco_llama.layout import pack_rows, pad_rows
from voco_llama.visibility import TokenFacts, attention_mask, block_mask, check_backend, dense_mask

ROWS = {
    "one image": ([row(IMAGE, text(2))], [ONE_IMAGE]),
    "two VoCo tokens": ([row(IMAGE, text(2), voco=2)], [TWO_VOCO]),
    "four VoCo tokens": ([row(IMAGE, text(1), voco=4)], [FOUR_VOCO]),
    "two images": ([row(IMAGE, IMAGE, text(1))], [TWO_IMAGES]),
    "image inside a turn": ([row(text(2), IMAGE, text(1))], [IMAGE_INSIDE]),
    "text only": ([row(text(3))], [TEXT_ONLY]),
    "three frames": ([row(IMAGE, IMAGE, IMAGE, text(2), vision=1)], [THREE_FRAMES]),
    "two documents": ([pack_rows([row(IMAGE, text(2)), row(text(1), IMAGE, text(1))])], [TWO_DOCUMENTS]),
}
BATCHES = {name: (rows, drawn, "right") for name, (rows, drawn) in ROWS.items()} | {
    "mixed, padded left": ([row(IMAGE, text(2)), row(text(3))], [ONE_IMAGE, PADDED_LEFT], "left"),
    "mixed, padded right": ([row(IMAGE, text(2)), row(text(3))], [ONE_IMAGE, PADDED_RIGHT], "right"),
}


def facts_of(rows: list, side: str = "right") -> TokenFacts:
    batch = pad_rows(rows, TOKENS, side)
    return TokenFacts.of_batch(batch)


def all_pairs(mask_mod, batch_size: int, length: int) -> Tensor:
    """A FlexAttention mask function asked about every pair, `[batch, queries, keys]`."""
    batch, query, key = torch.meshgrid(*map(torch.arange, (batch_size, length, length)), indexing="ij")
    return mask_mod(batch, torch.zeros_like(batch), query, key)


@pytest.fixture(params=BATCHES.values(), ids=BATCHES.keys())
def case(request) -> tuple[TokenFacts, Tensor]:
    rows, drawn, side = request.param
    return facts_of(rows, side), torch.stack([picture(d) for d in drawn])


def test_dense_mask_is_the_picture(case):
    facts, drawn = case
    assert torch.equal(dense_mask(facts, facts, "voco"), drawn)


def test_every_backend_gets_the_picture_and_padding_sees_itself(case):
    facts, drawn = case
    padding = facts.document < 0
    expected = drawn | torch.diag_embed(padding)
    dense, additive, block = (
        attention_mask(b, facts, facts, "voco", torch.float32) for b in ("sdpa", "eager", "flex_attention")
    )
    assert dense.dtype == torch.bool
    assert torch.equal(dense[:, 0], expected)
    assert torch.equal(additive[:, 0] == 0, expected)
    assert bool((additive[:, 0][~expected] == torch.finfo(torch.float32).min).all())
    assert torch.equal(all_pairs(block.mask_mod, *facts.segment.shape), expected)


def test_full_is_causal_within_a_document():
    facts = facts_of([row(IMAGE, text(2))])
    assert torch.equal(dense_mask(facts, facts, "full")[0], picture(FULL))
    packed = facts_of([pack_rows([row(text(2)), row(text(1))])])
    assert dense_mask(packed, packed, "full")[0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]


WITHIN_SEGMENTS = {
    "two images": ([row(text(1), IMAGE, IMAGE, text(1), voco=2)], "voco", TWO_IMAGES_BOTH_WAYS, TWO_IMAGES_INDEPENDENT),
    "full": ([row(text(1), IMAGE, text(1))], "full", FULL_BOTH_WAYS, FULL_INDEPENDENT),
    "documents": (
        [pack_rows([row(IMAGE), row(IMAGE, text(1))]), row(text(8))],
        "voco",
        TWO_DOCUMENTS_BOTH_WAYS,
        TWO_DOCUMENTS_INDEPENDENT,
    ),
}


@pytest.mark.parametrize("attention", ["bidirectional", "independent"])
@pytest.mark.parametrize(
    ("rows", "condition", "both_ways", "independent"), WITHIN_SEGMENTS.values(), ids=WITHIN_SEGMENTS.keys()
)
def test_vision_tokens_of_a_segment_may_see_each_other_both_ways_or_not(
    rows, condition, both_ways, independent, attention
):
    facts, expected = facts_of(rows), picture(both_ways if attention == "bidirectional" else independent)
    assert torch.equal(dense_mask(facts, facts, condition, attention)[0], expected)
    forms = [
        attention_mask(backend, facts, facts, condition, torch.float32, attention)
        for backend in ("sdpa", "eager", "flex_attention")
    ]
    expected = expected | torch.diag(facts.document[0] < 0)
    assert torch.equal(forms[0][0, 0], expected)
    assert torch.equal(forms[1][0, 0] == 0, expected)
    assert torch.equal(all_pairs(forms[2].mask_mod, *facts.segment.shape)[0], expected)


def test_what_stands_in_a_segment_with_the_vision_tokens_is_as_invisible_as_they():
    segment, voco = torch.tensor([[1, 1, 1, 1, 0]]), torch.tensor([[False, False, False, True, False]])
    nothing = torch.zeros_like(segment)
    facts = TokenFacts.of_batch({"segment": segment, "voco": voco, "position": nothing, "document": nothing})
    assert dense_mask(facts, facts, "voco")[0, -1].int().tolist() == [0, 0, 0, 1, 1]


def test_keys_from_a_cache_need_not_lie_in_row_order():
    """`[t V C t]` read as text queries over the keys `[C t t]`: text before the image must not see it."""
    whole = facts_of([row(text(1), IMAGE, text(1), vision=1)])
    query, key = (whole.at(slice(None), places) for places in ([0, 3], [2, 0, 3]))
    assert dense_mask(query, key, "voco")[0].int().tolist() == [[0, 1, 0], [1, 1, 1]]
    assert torch.equal(
        all_pairs(block_mask(query, key, "voco").mask_mod, 1, 2)[0], torch.tensor([[False, True], [True, True]])
    )


def test_block_mask_skips_the_blocks_that_text_cannot_see():
    """The picture again, one block of 128 tokens a cell: two of vision, one of VoCo, two of text."""
    facts = facts_of([row(IMAGE, text(256), vision=256, voco=128)])
    block = block_mask(facts, facts, "voco")
    assert torch.equal(block.to_dense()[0, 0].bool(), picture(ONE_IMAGE))
    assert block.sparsity() == pytest.approx(100 * 14 / 25)


def test_additive_mask_keeps_its_dtype():
    facts = facts_of([row(text(2))])
    mask = attention_mask("eager", facts, facts, "voco", torch.bfloat16)
    assert mask.dtype == torch.bfloat16
    assert mask[0, 0].tolist() == [[0, torch.finfo(torch.bfloat16).min], [0, 0]]


@pytest.mark.parametrize("backend", ["flash_attention_2", "flash_attention_3", "paged|sdpa", ""])
def test_a_backend_that_would_drop_the_mask_is_refused(backend):
    facts = facts_of([row(text(2))])
    with pytest.raises(SettingsError, match=r"cannot express the VoCo mask.* eager, sdpa, flex_attention$") as refused:
        attention_mask(backend, facts, facts, "voco", torch.float32)
    assert repr(backend) in str(refused.value)
    for known in BACKENDS:
        check_backend(known)


def test_an_unknown_condition_is_refused():
    facts = facts_of([row(text(2))])
    with pytest.raises(SettingsError, match="condition is 'vocco': choose one of voco, full"):
        attention_mask("sdpa", facts, facts, "vocco", torch.float32)
