"""The central equality: one masked pass over images and text = compress the images, then read the text."""

from functools import cache

import pytest
import torch
from transformers import MistralConfig, Qwen2Config, Qwen3Config

from tests.model.rows import asked, batch_of, one_pass_logits, random_images, two_step_logits
from tests.tiny import tiny_model, tiny_processor, tiny_text_config
from voco_llama import VoCoCache
from voco_llama.choices import ORDERS
from voco_llama.errors import SettingsError

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
IMAGE_SIZE = 32  # 16 vision tokens, so that up to 16 VoCo tokens make sense
BATCHES = {
    "one image": ["<image>\nWhat is it?"],
    "several images": ["<image>\nOr <image>?\n<image>"],
    "several rows": ["<image>\nWhat?", "A longer question: <image>\nor <image>?"],
    "text only": ["Why?", "Why is it so?"],
    "mixed": ["Why is it so, and not otherwise?", "<image>?", "Is <image> left of <image>?", "Oh."],
}


@cache
def processor_of(order: str):
    return tiny_processor(order=order, image_size=IMAGE_SIZE)


@cache
def model_of(order: str, name: str = "llama"):
    return tiny_model(processor_of(order), text_config=LANGUAGE_MODELS[name]())


def qwen(config_class):
    shape = {**tiny_text_config().to_dict(), "max_window_layers": 0}
    for name in ("model_type", "architectures", "rope_parameters"):
        shape.pop(name)
    return config_class(**shape, use_sliding_window=False)


def mistral(sliding_window: int | None = None):
    shape = tiny_text_config().to_dict()
    for name in ("model_type", "architectures", "rope_parameters"):
        shape.pop(name)
    return MistralConfig(**shape, sliding_window=sliding_window)


def llama(**rope):
    return lambda: tiny_text_config(rope_parameters={"rope_theta": 10000.0, **rope})


LANGUAGE_MODELS = {
    "llama": tiny_text_config,
    "qwen2": lambda: qwen(Qwen2Config),
    "qwen3": lambda: qwen(Qwen3Config),
    "mistral": mistral,
    "llama, linear rope": llama(rope_type="linear", factor=4.0),
    "llama, yarn": llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=128),
    "llama 3 rope": llama(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    ),
}


def count_images(texts) -> int:
    return sum(text.count("<image>") for text in texts)


def check_equal(order: str, texts: list[str], num_voco: int, name: str = "llama") -> None:
    processor, model = processor_of(order), model_of(order, name)
    images = random_images(count_images(texts))
    if not images:
        expected = one_pass_logits(model, processor(texts))
        torch.testing.assert_close(two_step_logits(model, processor(texts)), expected, **CLOSE)
        return
    batch = processor(texts, images=images, num_voco=num_voco)
    expected = one_pass_logits(model, batch)
    cache = model.compress(batch["pixel_values"], num_voco)
    assert (len(cache), cache.num_voco) == (len(images), num_voco)
    read = two_step_logits(model, processor(texts, num_voco=num_voco), cache=cache)
    torch.testing.assert_close(read, expected, **CLOSE)
    torch.testing.assert_close(two_step_logits(model, batch), expected, **CLOSE)  # `generate` compresses by itself


@pytest.mark.parametrize("texts", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("order", ORDERS)
def test_two_steps_equal_one_pass(order, texts):
    check_equal(order, texts, 2)


@pytest.mark.parametrize("num_voco", [1, 4, 16])
@pytest.mark.parametrize("order", ["first", "inline"])
def test_two_steps_equal_one_pass_for_any_number_of_voco_tokens(order, num_voco):
    check_equal(order, BATCHES["mixed"], num_voco)


@pytest.mark.parametrize("name", [name for name in LANGUAGE_MODELS if name != "llama"])
def test_other_language_models_work_by_configuration_alone(name):
    check_equal("inline", BATCHES["mixed"], 2, name)


def test_the_equality_is_not_empty():
    """The logits compared do depend on each image, on where it stands, and on the number of VoCo tokens."""
    processor, model = processor_of("inline"), model_of("inline")
    texts, images = BATCHES["mixed"], random_images(3)

    def logits(images, num_voco=2):
        return one_pass_logits(model, processor(texts, images=images, num_voco=num_voco))

    base = logits(images)
    for changed in (logits(images, 1), logits([images[0], images[2], images[1]]), logits(random_images(3, 5))):
        difference = (changed - base).abs().amax(dim=1)
        assert difference[2] > 1e-2
        assert (difference[[0, 3]] < 1e-5).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("num_frames", [3, 8])
def test_a_clip_read_by_several_questions(order, num_frames):
    """One mark for all frames in each row, and every row looks at the same clip."""
    processor, model = processor_of(order), model_of(order)
    texts = ["<image>\nWhat moves?", "What is left at the end of <image>?"]
    pixels = processor.pixels(random_images(num_frames))
    shape = processor.segment_shape()
    rows, cached = (
        [processor.lay_out(asked(text), segments_per_mark=num_frames, shape=s) for text in texts]
        for s in (shape, shape.cached)
    )
    expected = one_pass_logits(model, batch_of(processor, rows), pixel_values=pixels.repeat(2, 1, 1, 1))
    clip = model.compress(pixels)
    read = two_step_logits(model, batch_of(processor, cached), cache=VoCoCache.cat([clip, clip]))
    torch.testing.assert_close(read, expected, **CLOSE)


def test_questions_without_a_mark_read_the_whole_cache():
    """As if the images stood before each of them, whatever the length of the rows."""
    processor, model = processor_of("first"), model_of("first")
    texts = ["What moves?", "And what does not move at all?", "Oh."]
    pixels = processor.pixels(random_images(3))
    rows = [processor.lay_out(asked(f"<image><image><image>\n{text}")) for text in texts]
    expected = one_pass_logits(model, batch_of(processor, rows), pixel_values=pixels.repeat(3, 1, 1, 1))
    cache = model.compress(pixels)
    torch.testing.assert_close(two_step_logits(model, processor(texts), cache=cache), expected, **CLOSE)
    right = batch_of(processor, [processor.lay_out(asked(text)) for text in texts], "right")
    torch.testing.assert_close(two_step_logits(model, right, cache=cache), expected, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_either_side_of_padding(side):
    processor, model = processor_of("inline"), model_of("inline")
    texts, shape = BATCHES["mixed"], processor.segment_shape()
    pixels = processor.pixels(random_images(3))
    rows, cached = ([processor.lay_out(asked(t), shape=s) for t in texts] for s in (shape, shape.cached))
    expected = one_pass_logits(model, batch_of(processor, rows, side), pixel_values=pixels)
    read = two_step_logits(model, batch_of(processor, cached, side), cache=model.compress(pixels))
    torch.testing.assert_close(read, expected, **CLOSE)


def test_random_layouts():
    """Texts of random lengths with images at random places, some rows without any; either padding."""
    processor, model = processor_of("inline"), model_of("inline")
    generator = torch.Generator().manual_seed(0)

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    for trial in range(6):
        texts = ["".join("<image>" if draw(4) == 0 else "ab" * draw(4) for _ in range(draw(7))) for _ in range(4)]
        texts.append("x<image>")
        shape, side = processor.segment_shape(1 + draw(4)), ("left", "right")[draw(2)]
        pixels = processor.pixels(random_images(count_images(texts), seed=trial))
        rows, cached = ([processor.lay_out(asked(t), shape=s) for t in texts] for s in (shape, shape.cached))
        expected = one_pass_logits(model, batch_of(processor, rows, side), pixel_values=pixels)
        cache = model.compress(pixels, shape.num_voco)
        read = two_step_logits(model, batch_of(processor, cached, side), cache=cache)
        torch.testing.assert_close(read, expected, **CLOSE, msg=lambda m, texts=texts: f"{texts}: {m}")


# ---- what may be done to a cache


@pytest.fixture(scope="module")
def stage():
    """A processor, a model, the pixels of four images, and their cache of four tokens an image."""
    processor, model = processor_of("inline"), model_of("inline")
    pixels = processor.pixels(random_images(4))
    return processor, model, pixels, model.compress(pixels, 4)


def read_and_expected(stage, texts, cache: VoCoCache, pixels) -> tuple[torch.Tensor, torch.Tensor]:
    processor, model, _, _ = stage
    shape = processor.segment_shape(cache.num_voco)
    rows = [processor.lay_out(asked(text), shape=shape) for text in texts]
    read = two_step_logits(model, processor(texts, num_voco=cache.num_voco), cache=cache)
    return read, one_pass_logits(model, batch_of(processor, rows), pixel_values=pixels)


@pytest.mark.parametrize("places", [[3, 0, 2], [1, 1, 1], [-1, -4, 0]], ids=["moved", "repeated", "from the end"])
def test_entries_can_stand_anywhere(stage, places):
    """Compressed once, at positions 0..N-1, an entry is read at whatever position its mark has."""
    read, expected = read_and_expected(
        stage, ["Long before <image> and <image>", "<image>"], stage[3][places], stage[2][places]
    )
    torch.testing.assert_close(read, expected, **CLOSE)


@pytest.mark.parametrize("entries", [slice(1, 3), slice(None, None, 2), slice(-2, None)])
def test_slices(stage, entries):
    read, expected = read_and_expected(stage, ["<image> or <image>?"], stage[3][entries], stage[2][entries])
    torch.testing.assert_close(read, expected, **CLOSE)


def test_caches_compressed_apart_can_be_concatenated(stage):
    _, model, pixels, together = stage
    apart = VoCoCache.cat([model.compress(pixels[i : i + 1], 4) for i in (2, 0, 3)])
    read, expected = read_and_expected(stage, ["<image>?", "<image><image>"], apart, pixels[[2, 0, 3]])
    torch.testing.assert_close(read, expected, **CLOSE)
    torch.testing.assert_close(apart.keys, together[[2, 0, 3]].keys, **CLOSE)
    torch.testing.assert_close(apart.values, together[[2, 0, 3]].values, **CLOSE)


@pytest.mark.parametrize("num_voco", [1, 3, 4])
def test_the_first_of_the_tokens_are_the_cache_of_so_many(stage, num_voco):
    texts = ["Is <image> left of <image>?", "Oh.", "<image><image>"]
    read, expected = read_and_expected(stage, texts, stage[3].truncate(num_voco), stage[2])
    torch.testing.assert_close(read, expected, **CLOSE)


def test_saved_and_loaded(stage, tmp_path):
    stage[3].save(tmp_path / "images.voco")
    loaded = VoCoCache.load(tmp_path / "images.voco", stage[1])
    read, expected = read_and_expected(stage, ["<image>", "a <image><image><image>"], loaded, stage[2])
    torch.testing.assert_close(read, expected, **CLOSE)


def test_compress_refuses_a_senseless_number_of_tokens(stage):
    _, model, pixels, _ = stage
    for num_voco in (0, 17):
        with pytest.raises(SettingsError, match=f"num_voco {num_voco} makes no sense for 16 vision tokens"):
            model.compress(pixels, num_voco)


@pytest.mark.parametrize("make", [lambda: mistral(8), lambda: qwen_with_window()], ids=["mistral", "qwen2"])
def test_sliding_windows_are_refused(make):
    with pytest.raises(SettingsError, match="sliding-window attention.* set its sliding_window to null"):
        tiny_model(processor_of("first"), text_config=make())


def qwen_with_window():
    config = qwen(Qwen2Config).to_dict()
    for name in ("model_type", "architectures", "layer_types", "use_sliding_window", "sliding_window"):
        config.pop(name, None)
    return Qwen2Config(**config, use_sliding_window=True, sliding_window=8)


def test_length_dependent_rope_is_refused():
    config = tiny_text_config(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    with pytest.raises(SettingsError, match="rope type 'dynamic' changes with the length"):
        tiny_model(processor_of("first"), text_config=config)


def test_partial_rotation_is_refused():
    config = tiny_text_config(
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    )
    with pytest.raises(SettingsError, match="rotates only a part of each head"):
        tiny_model(processor_of("first"), text_config=config)
