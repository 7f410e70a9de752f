"""Caches whose entries have unequal numbers of VoCo tokens: what they are, and that reading them is exact.

Held against the masked pass over rows laid out with those numbers, and against each entry read as a cache of its own.
"""

import pytest
import torch

from tests.model.rows import asked, batch_of, greedy_from_scratch, one_pass_logits, random_images, two_step_logits
from tests.tiny import tiny_model, tiny_processor
from voco_llama import VoCoCache
from voco_llama.errors import CheckpointError, DataError, SettingsError
from voco_llama.inference import Inference

CLOSE = dict(atol=1e-4, rtol=1e-4)
COUNTS = [3, 1, 4, 2]
TEXTS = ["Is <image> left of <image>, or not?", "Why is it so?", "<image>?", "And what of <image>?"]
"""Text before images, texts with none, rows of several: two, none, one and one."""
COUNTS_OF = [[3, 1], [], [4], [2]]
STEPS = 6


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(num_voco=4, order="inline")


def endless(processor, **kwargs):
    """A model that never says the end of sequence."""
    model = tiny_model(processor, **kwargs)
    model.language_model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def model(processor):
    return endless(processor)


@pytest.fixture(scope="module")
def images():
    return random_images(4)


@pytest.fixture(scope="module")
def pixels(processor, images):
    return processor.pixels(images)


@pytest.fixture(scope="module")
def whole(model, pixels):
    return model.compress(pixels)


@pytest.fixture(scope="module")
def cache(whole):
    return whole.truncate(COUNTS)


def rows_of(processor):
    return [processor.lay_out(asked(text), counts=counts) for text, counts in zip(TEXTS, COUNTS_OF, strict=True)]


# ---- what they are


def test_only_the_tokens_kept_take_memory(whole, cache, tmp_path):
    assert (len(cache), cache.counts.tolist(), cache.keys.shape) == (4, COUNTS, (2, sum(COUNTS), 2, 8))
    for states in (cache.keys, cache.values):
        assert states.untyped_storage().nbytes() == states.numel() * states.element_size()
    assert cache.num_bytes == whole.num_bytes * sum(COUNTS) // 16
    assert cache.bytes_per_entry == cache.num_bytes / 4
    for name, held in (("whole", whole), ("cache", cache)):
        held.save(tmp_path / name)
    assert (tmp_path / "whole").stat().st_size - (
        tmp_path / "cache"
    ).stat().st_size == whole.num_bytes - cache.num_bytes


def test_no_one_number_is_made_of_unequal_ones(cache):
    with pytest.raises(CheckpointError, match="entries of 1 to 4 VoCo tokens, no one number: use its counts"):
        cache.num_voco  # noqa: B018
    assert cache[[1, 1]].num_voco == 1
    assert repr(cache).startswith("VoCoCache(4 entries of 1 to 4 VoCo tokens, 2 layers, 2 heads of 8,")


def test_an_entry_is_that_of_its_own_number(model, pixels, cache):
    for place, count in enumerate(COUNTS):
        alone = model.compress(pixels[place : place + 1], count)
        for taken in (cache[place], cache[place : place + 1], cache[[place]], list(cache)[place]):
            assert taken.counts.tolist() == [count]
            torch.testing.assert_close(taken.keys, alone.keys, **CLOSE)
            torch.testing.assert_close(taken.values, alone.values, **CLOSE)


def test_entries_are_picked_and_joined(cache):
    for entries in ([2, 0, 2], slice(1, 3), slice(None, None, -1), [True, False, False, True], [], slice(3, 0)):
        picked, places = (
            cache[entries],
            torch.arange(4)[list(range(4))[entries]] if isinstance(entries, slice) else None,
        )
        places = (
            torch.tensor([0, 3] if entries == [True, False, False, True] else entries) if places is None else places
        )
        joined = [cache[int(place)] for place in places]
        assert picked.counts.tolist() == [COUNTS[place] for place in places]
        if joined:
            assert torch.equal(picked.keys, VoCoCache.cat(joined).keys)
            assert torch.equal(picked.values, VoCoCache.cat(joined).values)
            assert torch.equal(picked.counts, VoCoCache.cat(joined).counts)


def test_truncation_to_a_number_for_each(whole, cache):
    fewer = cache.truncate(torch.tensor([2, 1, 1, 2]))
    assert torch.equal(fewer.keys, whole.truncate([2, 1, 1, 2]).keys)
    assert torch.equal(cache.truncate(1).values, whole.truncate(1).values)
    assert torch.equal(cache.truncate(cache.counts.clamp(max=2)).keys, whole.truncate([2, 1, 2, 2]).keys)
    for numbers, complaint in (
        (2, r"cannot truncate 1 VoCo tokens to 2 \(entry 1\)"),
        ([3, 1, 5, 2], r"cannot truncate 4 VoCo tokens to 5 \(entry 2\)"),
        ([3, 1, 0, 2], r"to 0 \(entry 2\)"),
        ([1, 1], "2 numbers of VoCo tokens for 4 entries: give one an entry"),
    ):
        with pytest.raises(CheckpointError, match=complaint):
            cache.truncate(numbers)


def test_images_are_compressed_to_a_number_for_each(model, pixels, cache):
    made = model.compress(pixels, COUNTS)
    assert torch.equal(made.keys, cache.keys)
    assert torch.equal(made.counts, cache.counts)
    with pytest.raises(SettingsError, match="2 numbers of VoCo tokens for 4 images"):
        model.compress(pixels, [1, 2])
    with pytest.raises(SettingsError, match="num_voco 0 makes no sense"):
        model.compress(pixels, [1, 2, 0, 1])


def test_moved_and_loaded(model, cache, tmp_path):
    cache.to(torch.float64).save(tmp_path / "c")
    loaded = VoCoCache.load(tmp_path / "c", model)
    assert loaded.keys.dtype == torch.float64
    assert torch.equal(loaded.keys.float(), cache.keys)
    assert torch.equal(loaded.counts, cache.counts)


# ---- reading them


def test_rows_have_each_entrys_number(processor, cache):
    """As the masked pass has them, without vision tokens: same positions, segments and numbers of VoCo tokens."""
    whole, cached = batch_of(processor, rows_of(processor)), processor(TEXTS, num_voco=cache.counts)
    for row, short in zip(range(4), range(4), strict=True):
        kept = (whole["document"][row] >= 0) & ((whole["segment"][row] == 0) | whole["voco"][row])
        real = cached["document"][short] >= 0
        for name in ("input_ids", "segment", "voco", "position"):
            assert torch.equal(whole[name][row][kept], cached[name][short][real]), name
    assert [int(n) for n in cached["voco"].sum(dim=1)] == [4, 0, 4, 2]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])  # flex_attention compiles for 50 s
def test_reading_equals_the_masked_pass(processor, pixels, cache, attention):
    model = tiny_model(processor, attention=attention)
    expected = one_pass_logits(model, batch_of(processor, rows_of(processor)), pixel_values=pixels)
    read = two_step_logits(model, processor(TEXTS, num_voco=cache.counts), cache=cache)
    torch.testing.assert_close(read, expected, **CLOSE)
    right = batch_of(processor, rows_of_cached(processor), "right")
    torch.testing.assert_close(two_step_logits(model, right, cache=cache), expected, **CLOSE)
    even = two_step_logits(model, processor(TEXTS), cache=model.compress(pixels))
    assert not torch.allclose(even, expected, **CLOSE)


def rows_of_cached(processor):
    shape = processor.segment_shape().cached
    return [
        processor.lay_out(asked(text), shape=shape, counts=counts)
        for text, counts in zip(TEXTS, COUNTS_OF, strict=True)
    ]


@pytest.mark.parametrize("order", ["first", "authors", "llava"])
def test_the_same_in_other_orders(order, images):
    processor = tiny_processor(num_voco=4, order=order)
    model, pixels = tiny_model(processor), processor.pixels(images)
    expected = one_pass_logits(model, batch_of(processor, rows_of(processor)), pixel_values=pixels)
    read = two_step_logits(model, processor(TEXTS, num_voco=COUNTS), cache=model.compress(pixels, COUNTS))
    torch.testing.assert_close(read, expected, **CLOSE)


def greedy(model, batch, **kwargs):
    return model.generate(**batch, max_new_tokens=STEPS, do_sample=False, **kwargs)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_batch_equals_uniform_caches_read_one_by_one(processor, model, cache, num_beams):
    together = greedy(model, processor(TEXTS, num_voco=COUNTS), cache=cache, num_beams=num_beams)
    places = [[0, 1], [], [2], [3]]
    for text, its, row in zip(TEXTS, places, together, strict=True):
        own = cache[its]
        alone = greedy(model, processor(text, num_voco=own.counts), cache=own if its else None, num_beams=num_beams)
        assert torch.equal(row, alone[0]), text


def test_greedy_decoding_equals_recomputing_from_scratch(processor, model, images, pixels, cache):
    expected = greedy_from_scratch(model, processor, rows_of(processor), pixels, STEPS)
    batch = processor(TEXTS, num_voco=COUNTS)
    assert torch.equal(greedy(model, batch, cache=cache), expected)
    assert torch.equal(greedy(model, processor(TEXTS, images=images, num_voco=COUNTS)), expected)
    assert len({tuple(row.tolist()) for row in expected}) == 4


def test_questions_without_a_mark_read_all_of_it(processor, model, pixels, cache):
    """As the row does that has all images before its text."""
    row = processor.lay_out(asked("<image><image><image><image>What moves?"), counts=COUNTS)
    expected = one_pass_logits(model, batch_of(processor, [row]), pixel_values=pixels)
    texts = ["<image><image><image><image>What moves?"]
    torch.testing.assert_close(
        two_step_logits(model, processor(texts, num_voco=COUNTS), cache=cache), expected, **CLOSE
    )
    unmarked = greedy(model, processor(["What moves?", "And what does not?"]), cache=cache)
    for text, row in zip(["What moves?", "And what does not?"], unmarked, strict=True):
        assert torch.equal(row, greedy(model, processor(text), cache=cache)[0])
    first = tiny_processor(num_voco=4)  # images first: as a row without any mark has them
    its_model = endless(first)
    its_cache = its_model.compress(pixels, COUNTS)
    facts = its_model.generate(**first("What?"), cache=its_cache, max_new_tokens=STEPS, do_sample=False)
    again = its_model.generate(**first("What?"), cache=its_cache[:], max_new_tokens=STEPS, do_sample=False)
    assert torch.equal(facts, again)


def test_numbers_must_be_those_of_the_entries(processor, model, cache):
    with pytest.raises(DataError, match="read 4 segments of 3, 1, 4, 1 VoCo tokens, .* 4 entries of 3, 1, 4, 2 VoCo"):
        greedy(model, processor(TEXTS, num_voco=[3, 1, 4, 1]), cache=cache)
    with pytest.raises(DataError, match="read 4 segments of 1, 3, 4, 2 VoCo"):
        greedy(model, processor(TEXTS, num_voco=[1, 3, 4, 2]), cache=cache)
    with pytest.raises(DataError, match="have 4 <image> marks and there are 3 numbers of VoCo tokens"):
        processor(TEXTS, num_voco=[1, 3, 4])
    with pytest.raises(DataError, match="give one of at least 1"):
        processor(TEXTS, num_voco=[1, 3, 4, 0])


def test_answers_from_an_inference(processor, model, images, cache):
    """Entries repeated and shared, marks or not, questions on different numbers of images."""
    inference = Inference(model, processor)
    more = {"max_new_tokens": STEPS}
    together = inference.answer(["<image>?"] * 4, cache, **more)
    assert together == [inference.answer("<image>?", cache[i], **more)[0] for i in range(4)]
    assert together == [
        inference.answer("<image>?", images=images[i], num_voco=n, **more)[0] for i, n in enumerate(COUNTS)
    ]
    some = inference.answer(["What?", "Oh.", "Why?"], cache, counts=[3, 0, 1], **more)
    assert some == [inference.answer("What?", cache[:3], **more)[0], *inference.answer("Oh.", **more),
                    inference.answer("Why?", cache[3], **more)[0]]  # fmt: skip
    every = inference.answer(["What?", "Why?"], cache, **more)
    assert every == [inference.answer(text, cache, **more)[0] for text in ("What?", "Why?")]
    with pytest.raises(DataError, match="segments of 2 VoCo tokens, but the cache has 4 entries of 3, 1, 4, 2"):
        inference.answer(["<image>?"] * 4, cache, num_voco=2, **more)
