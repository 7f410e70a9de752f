"""Rows: ids, labels, the four vectors, and positions, all written out."""

from dataclasses import replace

import pytest
import torch

from tests.pictures import IMAGE, TOKENS, row, text
from voco_llama.errors import DataError
from voco_llama.layout import (
    ROW_FIELDS,
    SegmentShape,
    TextSpan,
    lay_out,
    pack_rows,
    pad_rows,
    truncate_voco,
    voco_index,
)
from voco_llama.tokens import IGNORE_INDEX

X = IGNORE_INDEX


def shorten(text_ids: tuple[int, ...], trained: tuple[bool, ...], max_length: int | None):
    """A row `[V V C text]` cut to a length."""
    return lay_out([IMAGE, TextSpan(text_ids, trained)], TOKENS, SegmentShape(2, 1), "voco", max_length)


def test_a_row_states_four_facts_of_every_token():
    laid = row(text(1), IMAGE, text(2, trained=True), IMAGE, text(1), voco=2)
    assert laid.input_ids.tolist() == [10, 90, 90, 91, 91, 10, 11, 90, 90, 91, 91, 10]
    assert laid.labels.tolist() == [X, X, X, X, X, 10, 11, X, X, X, X, X]
    assert laid.segment.tolist() == [0, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 0]
    assert laid.voco.int().tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0]
    assert laid.document.tolist() == [0] * 12
    assert laid.voco.dtype == torch.bool
    assert {getattr(laid, name).dtype for name in ROW_FIELDS if name != "voco"} == {torch.int64}
    assert len(laid) == 12
    assert laid.num_trained == 2


@pytest.mark.parametrize(
    ("laid", "positions"),
    [
        (row(IMAGE, text(2)), [-2, -1, 0, 1, 2]),
        (row(IMAGE, text(2), voco=2), [-2, -1, 0, 1, 2, 3]),
        (row(IMAGE, text(1), voco=4), [-2, -1, 0, 1, 2, 3, 4]),
        (row(IMAGE, IMAGE, text(1)), [-2, -1, 0, -1, 0, 1, 2]),
        (row(text(2), IMAGE, text(1)), [0, 1, 0, 1, 2, 3]),
        (row(text(3)), [0, 1, 2]),
        (row(IMAGE, IMAGE, IMAGE, text(2), vision=3, voco=2), [-3, -2, -1, 0, 1, -1, 0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 7]),
        (row(text(1), IMAGE, text(1), condition="full"), [0, 1, 2, 3, 4]),
        (row(IMAGE, IMAGE, text(1), condition="full"), [0, 1, 2, 3, 4, 5, 6]),
        (row(IMAGE, text(2), voco=0, condition="full"), [0, 1, 2, 3]),
    ],
)
def test_only_voco_and_text_take_room_on_the_text_axis(laid, positions):
    assert laid.position.tolist() == positions


def test_a_prefix_and_an_infix_belong_to_the_segment():
    laid = lay_out([IMAGE, text(2)], TOKENS, SegmentShape(2, 2, prefix=(1,), infix=(13,)), "voco")
    assert laid.input_ids.tolist() == [1, 90, 90, 13, 91, 91, 10, 11]
    assert laid.segment.tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
    assert laid.voco.int().tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert laid.position.tolist() == [-4, -3, -2, -1, 0, 1, 2, 3]


def test_a_cached_segment_leaves_text_and_voco_where_they_are():
    shape = SegmentShape(3, 2, prefix=(1,), infix=(13,))
    parts = [text(2), IMAGE, text(1), IMAGE, text(2)]
    whole, cached = (lay_out(parts, TOKENS, s, "voco") for s in (shape, shape.cached))
    kept = (whole.segment == 0) | whole.voco
    assert all(torch.equal(getattr(whole, name)[kept], getattr(cached, name)) for name in ROW_FIELDS)


# ---- truncation


def test_text_is_cut_from_the_end():
    laid = shorten((10, 11, 12, 13), (False, True, True, True), 5)
    assert laid.input_ids.tolist() == [90, 90, 91, 10, 11]
    assert laid.labels.tolist() == [X, X, X, X, 11]
    assert {len(getattr(laid, name)) for name in ROW_FIELDS} == {5}
    assert laid.position.tolist() == [-2, -1, 0, 1, 2]


@pytest.mark.parametrize("max_length", [None, 7, 8])
def test_a_row_that_fits_is_left_alone(max_length):
    assert len(shorten((10, 11, 12, 13), (False, True, True, True), max_length)) == 7


def test_a_row_that_would_lose_a_voco_token_is_refused():
    with pytest.raises(DataError, match=r"6 tokens .* last image ends at 5.* max_length 4 would lose VoCo tokens"):
        lay_out([text(1), IMAGE, text(1, True)], TOKENS, SegmentShape(2, 2), "voco", 4)
    cut = lay_out([IMAGE, text(1), IMAGE, text(3)], TOKENS, SegmentShape(2, 2), "voco", 9)
    assert cut.input_ids.tolist() == [90, 90, 91, 91, 10, 90, 90, 91, 91]


def test_a_row_without_a_trained_token_left_is_refused():
    with pytest.raises(DataError, match=r"none of its trained tokens is left .* max_length 5"):
        shorten((10, 11, 12), (False, False, True), 5)
    assert shorten((10, 11, 12), (False, False, False), 5).num_trained == 0  # a question has none to lose


def test_the_first_token_is_never_trained_for_nothing_predicts_it():
    laid = row(text(3, trained=True))
    assert laid.labels.tolist() == [X, 11, 12]
    with pytest.raises(DataError, match="none of its trained tokens"):
        lay_out([text(3, trained=True)], TOKENS, SegmentShape(2, 1), "voco", 1)


# ---- several rows


def test_padding_belongs_to_no_document():
    long, short = row(IMAGE, text(2, True)), row(text(2, True))  # the first token of `short` cannot be trained
    left, right = (pad_rows([long, short], TOKENS, side) for side in ("left", "right"))
    assert left["input_ids"].tolist() == [[90, 90, 91, 10, 11], [0, 0, 0, 10, 11]]
    assert right["input_ids"].tolist() == [[90, 90, 91, 10, 11], [10, 11, 0, 0, 0]]
    assert left["labels"].tolist() == [[X, X, X, 10, 11], [X, X, X, X, 11]]
    assert right["labels"].tolist() == [[X, X, X, 10, 11], [X, 11, X, X, X]]
    assert left["document"].tolist() == [[0, 0, 0, 0, 0], [-1, -1, -1, 0, 0]]
    assert right["document"].tolist() == [[0, 0, 0, 0, 0], [0, 0, -1, -1, -1]]
    assert left["position"].tolist() == [[-2, -1, 0, 1, 2], [0, 0, 0, 0, 1]]
    assert right["segment"].tolist() == [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert right["voco"].int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert set(left) == set(right) == set(ROW_FIELDS)


def test_packed_documents_keep_their_own_positions_and_segments():
    packed = pack_rows([row(IMAGE, text(2, True)), row(text(1), IMAGE, text(1, True)), row(text(2, True))])
    assert packed.document.tolist() == [0] * 5 + [1] * 5 + [2] * 2
    assert packed.position.tolist() == [-2, -1, 0, 1, 2, 0, -1, 0, 1, 2, 0, 1]
    assert packed.segment.tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert packed.labels.tolist() == [X, X, X, 10, 11, X, X, X, X, 10, X, 11]


def test_packing_never_trains_the_first_token_of_a_document():
    laid = row(text(2, True))
    laid = replace(laid, labels=laid.input_ids.clone())
    assert pack_rows([laid, laid]).labels.tolist() == [X, 11, X, 11]


# ---- fewer VoCo tokens than were laid out

MANY = [
    [IMAGE, text(3, trained=True)],
    [text(2), IMAGE, text(1), IMAGE, text(2, trained=True)],
    [text(9, trained=True)],
    [IMAGE, IMAGE, IMAGE, text(1, trained=True)],
]


def padded(num_voco: list[int], condition: str, parts=MANY) -> dict[str, torch.Tensor]:
    shapes = [SegmentShape(3, n, prefix=(1,), infix=(13,)) for n in num_voco]
    rows = [lay_out(p, TOKENS, shape, condition) for p, shape in zip(parts, shapes, strict=True)]
    return pad_rows(rows, TOKENS)


@pytest.mark.parametrize("condition", ["voco", "full"])
@pytest.mark.parametrize("kept", [1, 2, 3, 4, [1, 4, 2, 3], [3, 1, 1, 1]])
def test_truncated_rows_are_those_laid_out_with_fewer_tokens(condition, kept):
    num_voco = kept if isinstance(kept, int) else torch.tensor(kept)
    truncated = truncate_voco(padded([4] * 4, condition) | {"pixel_values": torch.ones(6, 1)}, num_voco, TOKENS.pad)
    expected = padded([kept] * 4 if isinstance(kept, int) else kept, condition)
    assert torch.equal(truncated.pop("pixel_values"), torch.ones(6, 1))
    assert {name: value.tolist() for name, value in truncated.items()} == {n: v.tolist() for n, v in expected.items()}


def test_rows_without_labels_can_be_truncated():
    batch = padded([4] * 4, "voco")
    del batch["labels"]
    assert "labels" not in truncate_voco(batch, 1, TOKENS.pad)


def test_packed_documents_are_truncated_each():
    rows = [lay_out(parts, TOKENS, SegmentShape(3, n), "voco") for n in (4, 2) for parts in MANY]
    whole, fewer = (pad_rows([pack_rows(rows[start : start + 4])], TOKENS) for start in (0, 4))
    truncated = truncate_voco(whole, 2, TOKENS.pad)
    assert {name: value.tolist() for name, value in truncated.items()} == {n: v.tolist() for n, v in fewer.items()}


def test_voco_tokens_are_counted_in_their_segment():
    laid = row(text(1), IMAGE, IMAGE, text(1), voco=2)
    assert voco_index(laid.voco[None]).tolist() == [[-1, -1, -1, 0, 1, -1, -1, 0, 1, -1]]
