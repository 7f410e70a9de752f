"""Generation from a cache: token for token what single rows and a model without any cache would say."""

import pytest
import torch
from transformers import GenerationConfig

from tests.model.rows import asked, greedy_from_scratch, random_images
from tests.tiny import tiny_model, tiny_processor

TEXTS = ["Why is it so, and not otherwise?", "<image>?", "Is <image> left of <image>?", "Oh."]
IMAGES_OF = [[], [0], [1, 2], []]
STEPS = 8


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(order="inline")


@pytest.fixture(scope="module")
def model(processor):
    """Never says the end of sequence, so that every row has all its tokens."""
    model = tiny_model(processor)
    model.language_model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def images():
    return random_images(3)


@pytest.fixture(scope="module")
def cache(processor, model, images):
    return model.compress(processor.pixels(images))


def greedy(model, batch, **kwargs):
    return model.generate(**batch, max_new_tokens=STEPS, do_sample=False, **kwargs)


def test_new_tokens_alone_are_returned(processor, model, cache):
    ids = greedy(model, processor(TEXTS), cache=cache)
    assert ids.shape == (4, STEPS)
    assert len({tuple(row.tolist()) for row in ids}) == 4


@pytest.mark.parametrize("condition", ["voco", "full"])
def test_greedy_decoding_equals_recomputing_from_scratch(processor, model, images, condition):
    batch = processor(TEXTS, images=images, condition=condition)
    rows = [processor.lay_out(asked(text), condition=condition) for text in TEXTS]
    pixels = processor.pixels(images)
    expected = greedy_from_scratch(model, processor, rows, pixels, STEPS, condition=condition)
    assert torch.equal(greedy(model, batch), expected)


@pytest.mark.parametrize("order", ["first", "authors"])
def test_the_same_in_the_papers_orders(order, images):
    processor = tiny_processor(order=order)
    model = tiny_model(processor)
    model.language_model.generation_config.eos_token_id = None
    rows = [processor.lay_out(asked(text)) for text in TEXTS]
    expected = greedy_from_scratch(model, processor, rows, processor.pixels(images), STEPS)
    assert torch.equal(greedy(model, processor(TEXTS, images=images)), expected)


def test_full_without_voco_tokens(processor, model, images):
    """The upper bound: what LLaVA does."""
    batch = processor(TEXTS, images=images, condition="full", num_voco=0)
    shape = processor.segment_shape(0)
    rows = [processor.lay_out(asked(text), shape=shape, condition="full") for text in TEXTS]
    expected = greedy_from_scratch(model, processor, rows, processor.pixels(images), STEPS, condition="full")
    assert torch.equal(greedy(model, batch), expected)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_batch_equals_its_rows(processor, model, cache, num_beams):
    together = greedy(model, processor(TEXTS), cache=cache, num_beams=num_beams)
    for text, places, row in zip(TEXTS, IMAGES_OF, together, strict=True):
        alone = greedy(model, processor(text), cache=cache[places] if places else None, num_beams=num_beams)
        assert torch.equal(row, alone[0]), text


@pytest.mark.parametrize("num_beams", [1, 2])
def test_full_a_batch_equals_its_rows(processor, model, images, num_beams):
    together = greedy(model, processor(TEXTS, images=images, condition="full"), num_beams=num_beams)
    for text, places, row in zip(TEXTS, IMAGES_OF, together, strict=True):
        its_images = [images[place] for place in places] or None
        alone = greedy(model, processor(text, images=its_images, condition="full"), num_beams=num_beams)
        assert torch.equal(row, alone[0]), text


def test_beams_may_come_from_a_generation_config(processor, model, cache):
    batch = processor(TEXTS)
    expected = greedy(model, batch, cache=cache, num_beams=3)
    config = GenerationConfig(num_beams=3, max_new_tokens=STEPS, do_sample=False)
    assert torch.equal(model.generate(**batch, cache=cache, generation_config=config), expected)
    assert not torch.equal(expected, greedy(model, batch, cache=cache))


def test_several_samples_of_a_row(processor, model, cache):
    torch.manual_seed(0)
    ids = model.generate(**processor(TEXTS), cache=cache, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert ids.shape == (12, 4)
    assert model.generate(
        **processor(TEXTS), cache=cache, max_new_tokens=4, do_sample=False, num_beams=4, num_return_sequences=2
    ).shape == (8, 4)


def test_a_row_that_has_ended_is_padded(processor, model, cache):
    free = greedy(model, processor(TEXTS), cache=cache)
    end = int(free[1, 2])
    stopped = greedy(model, processor(TEXTS), cache=cache, eos_token_id=end)
    for before, after in zip(free.tolist(), stopped.tolist(), strict=True):
        length = before.index(end) + 1 if end in before else STEPS
        assert after == before[:length] + [processor.tokens.pad] * (STEPS - length)
    assert stopped[1, -1] == processor.tokens.pad


def test_questions_without_a_mark_share_the_whole_cache(processor, model, cache):
    texts = ["What moves?", "And what does not?"]
    together = greedy(model, processor(texts), cache=cache)
    for text, row in zip(texts, together, strict=True):
        assert torch.equal(row, greedy(model, processor(text), cache=cache)[0])
    assert not torch.equal(together, greedy(model, processor(texts)))


def test_text_alone_needs_no_cache(processor, model):
    rows = [processor.lay_out(asked(text)) for text in ("Why?", "Because of what?")]
    expected = greedy_from_scratch(model, processor, rows, None, STEPS)
    assert torch.equal(greedy(model, processor(["Why?", "Because of what?"])), expected)


def test_the_eager_backend_says_the_same(processor, model, images):
    other = tiny_model(processor, attention="eager")
    other.language_model.generation_config.eos_token_id = None
    batch = processor(TEXTS, images=images)
    assert torch.equal(greedy(other, batch), greedy(model, batch))


def test_generation_leaves_the_cache_as_it_was(processor, model, cache):
    keys, values = cache.keys.clone(), cache.values.clone()
    greedy(model, processor(TEXTS), cache=cache)
    assert torch.equal(cache.keys, keys)
    assert torch.equal(cache.values, values)


@pytest.mark.parametrize(
    ("texts", "places", "num_voco", "complaint"),
    [
        (["<image>?"], None, 2, r"read 2 VoCo tokens in segments of 2, but no cache was passed"),
        (["<image>?"], [0, 1], 2, r"but the cache has 2 entries of 2: pass one entry for each image mark"),
        (["<image>?", "<image>"], [0], 2, r"read 4 VoCo tokens .* has 1 entries of 2"),
        (["<image>?"], [0, 1], 4, r"read 4 VoCo tokens in segments of 4, but the cache has 2 entries of 2"),
        (["<image><image>?"], [0], 1, r"read 2 VoCo tokens in segments of 1, but the cache has 1 entries of 2"),
    ],
)
def test_marks_and_entries_must_agree(processor, model, cache, texts, places, num_voco, complaint):
    with pytest.raises(ValueError, match=complaint):
        greedy(model, processor(texts, num_voco=num_voco), cache=None if places is None else cache[places])


def test_what_does_not_go_together_is_refused(processor, model, cache, images):
    batch = processor("<image>?", images=images[0])
    with pytest.raises(ValueError, match="either pixel_values or a cache, not both"):
        greedy(model, batch, cache=cache)
    with pytest.raises(ValueError, match="a cache is read under condition 'voco'"):
        greedy(model, processor("Why?", condition="full"), cache=cache)
    with pytest.raises(ValueError, match="the cache was made by another model"):
        greedy(tiny_model(processor, seed=1), processor("<image>?"), cache=cache[0])


def test_the_lower_bound_reads_caches_of_weights_trained_with_full(images):
    processor = tiny_processor(condition="full", order="inline")
    model = tiny_model(processor)
    assert model.config.condition == "full"
    cache = model.compress(processor.pixels(images))
    ids = greedy(model, processor(TEXTS, condition="voco"), cache=cache)
    batch = processor(TEXTS, images=images, condition="voco")
    assert torch.equal(ids, greedy(model, batch))
    assert not torch.equal(ids, greedy(model, processor(TEXTS, images=images)))
