"""Answers come in request order, each image is compressed once, and batching changes no answer."""

import pytest
import torch
from PIL import Image

from tests.tiny import tiny_model, tiny_processor
from voco_llama.errors import SettingsError
from voco_llama.evaluation import answering
from voco_llama.evaluation.answering import answer, windows
from voco_llama.evaluation.benchmarks import Request
from voco_llama.evaluation.efficiency import kv_bytes

NUM_NEW = 5


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(num_voco=2)


@pytest.fixture(scope="module")
def model(processor):
    return tiny_model(processor)


@pytest.fixture(scope="module")
def requests():
    """Seven questions of unequal length on three images, the images' questions mixed."""
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=generator).numpy() for _ in range(3)]
    images = [Image.fromarray(array) for array in pixels]
    shown = [0, 1, 0, 2, 1, 0, 2]
    return [
        Request("GQA", str(i), f"image {k}", lambda k=k: images[k], f"What{' ever' * (i % 4)} is {i}?", ("red",))
        for i, k in enumerate(shown)
    ]


@pytest.mark.parametrize("condition", ["voco", "full", "blind"])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batched_answers_are_those_of_single_questions_in_order(model, processor, requests, condition, batch_size):
    single = [answer(model, processor, [r], condition, max_new_tokens=NUM_NEW).texts[0] for r in requests]
    batched = answer(model, processor, requests, condition, batch_size=batch_size, max_new_tokens=NUM_NEW)
    assert batched.texts == single
    assert len(set(single)) > 1  # else nothing is seen of their order


def test_each_image_is_compressed_once(model, processor, requests, monkeypatch):
    monkeypatch.setattr(answering, "WINDOW_BATCHES", 1)
    sizes = []
    compress = type(model).compress
    monkeypatch.setattr(
        type(model), "compress", lambda self, pixels, **kw: sizes.append(len(pixels)) or compress(self, pixels, **kw)
    )
    answered = answer(model, processor, requests, "voco", batch_size=2, max_new_tokens=1)
    assert answered.num_compressed == sum(sizes) == 3
    sizes.clear()
    for condition in ("full", "blind"):
        assert answer(model, processor, requests, condition, max_new_tokens=1).num_compressed == 0
    assert sizes == []


def test_condition_decides_what_is_seen(model, processor, requests):
    swapped = [Request(r.benchmark, r.id, "other", lambda: Image.new("RGB", (16, 16)), r.prompt, ()) for r in requests]
    for condition, changes in (("voco", True), ("full", True), ("blind", False)):
        one, other = (answer(model, processor, r, condition, max_new_tokens=NUM_NEW).texts for r in (requests, swapped))
        assert (one != other) == changes


def test_fewer_voco_tokens_are_the_cache_cut_short(model, processor, requests):
    """num_voco reaches both the compression and the layout of the rows."""
    one = answer(model, processor, requests[:1], "voco", num_voco=1, max_new_tokens=NUM_NEW).texts
    cache = model.compress(processor.pixels([requests[0].load_image()]), num_voco=2).truncate(1)
    laid_out = processor(text=[f"<image>\n{requests[0].prompt}"], num_voco=1)
    assert one == answering.generate_texts(model, processor, laid_out, cache, NUM_NEW)


def test_windows_keep_an_images_questions_together():
    keys = ["a", "b", "a", "c", "b", "a", "d"]
    groups = list(windows(keys, 3))
    assert groups == [[0, 2, 5], [1, 4, 3], [6]]


def test_unknown_condition(model, processor, requests):
    with pytest.raises(SettingsError, match="choose one of full, voco, blind"):
        answer(model, processor, requests, "lower")


def test_kv_bytes_are_those_of_the_cache(model, processor, requests):
    pixels = processor.pixels([requests[0].load_image()])
    for num_voco in (1, 2):
        cache = model.compress(pixels, num_voco=num_voco)
        assert kv_bytes(model.config.text_config, num_voco, torch.float32) == cache.bytes_per_entry
    from transformers import LlamaConfig

    assert kv_bytes(LlamaConfig(), 1, torch.float16) == 524_288  # a 7B Llama, paper.md
