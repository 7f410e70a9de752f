"""External compressors, segment attention and distinct embeddings: the project's equalities hold for each of them."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch

from tests.model.rows import answered, batch_of, one_pass_logits, random_images, two_step_logits
from tests.model.test_two_steps import BATCHES, CLOSE, IMAGE_SIZE, count_images
from tests.tiny import tiny_model, tiny_processor
from voco_llama import VoCoCache, VoCoLlama
from voco_llama.errors import SettingsError
from voco_llama.layout import truncate_voco
from voco_llama.model.parts import AveragePool, build_compressor

Q_FORMER = {"layers": 3, "width": 24, "heads": 2, "cross_attention_every": 2}
WAYS = {
    "bidirectional": {"segment_attention": "bidirectional"},
    "independent": {"segment_attention": "independent"},
    "distinct": {"voco_embeddings": "distinct"},
    "average_pool": {"compressor": "average_pool"},
    "q_former": {"compressor": "q_former", "q_former": Q_FORMER},
}
EXTERNAL = ("average_pool", "q_former")
LAYERS = 3
"""Text reads VoCo's output of one layer, VoCo the patches' of the layer before: fewer would hide their attention."""


@cache
def processor_and_model(way: str, num_voco: int, order: str = "inline"):
    processor = tiny_processor(num_voco=num_voco, order=order, image_size=IMAGE_SIZE)
    if way in EXTERNAL:
        processor = replace(processor, num_vision=0)
    model = tiny_model(processor, layers=LAYERS, **WAYS[way])
    if way == "distinct":
        torch.nn.init.normal_(model.voco_offsets.weight)
    return processor, model


@pytest.mark.parametrize("texts", [BATCHES["mixed"], BATCHES["several rows"]], ids=["mixed", "several rows"])
@pytest.mark.parametrize("num_voco", [1, 2, 4, 16])
@pytest.mark.parametrize("way", WAYS)
def test_two_steps_equal_one_pass(way, num_voco, texts):
    processor, model = processor_and_model(way, num_voco)
    batch = processor(texts, images=random_images(count_images(texts)))
    expected = one_pass_logits(model, batch)
    read = two_step_logits(model, processor(texts), cache=model.compress(batch["pixel_values"]))
    torch.testing.assert_close(read, expected, **CLOSE)
    torch.testing.assert_close(two_step_logits(model, batch), expected, **CLOSE)


@pytest.mark.parametrize("way", WAYS)
def test_two_steps_equal_one_pass_in_the_authors_order(way):
    processor, model = processor_and_model(way, 2, "authors")
    batch = processor(BATCHES["one image"], images=random_images(1))
    read = two_step_logits(model, processor(BATCHES["one image"]), cache=model.compress(batch["pixel_values"]))
    torch.testing.assert_close(read, one_pass_logits(model, batch), **CLOSE)


@pytest.mark.parametrize("way", WAYS)
def test_caches_of_images_compressed_apart_can_be_joined_and_moved(way):
    processor, model = processor_and_model(way, 2)
    text, images = ["Is <image> left of <image>?"], random_images(2)
    apart = VoCoCache.cat([model.compress(processor.pixels([image])) for image in images])
    expected = one_pass_logits(model, processor(text, images=images))
    torch.testing.assert_close(two_step_logits(model, processor(text), cache=apart), expected, **CLOSE)


@pytest.mark.parametrize("way", WAYS)
def test_saved_and_loaded_it_computes_the_same(way, tmp_path):
    processor, model = processor_and_model(way, 4)
    batch = processor(BATCHES["one image"], images=random_images(1))
    model.save_pretrained(tmp_path)
    # Copied: weights mapped from a file start at other addresses, by which AVX2 adds in another order.
    loaded = copy.deepcopy(VoCoLlama.from_pretrained(tmp_path).eval())
    assert torch.equal(one_pass_logits(loaded, batch), one_pass_logits(model, batch))
    assert loaded.fingerprint() == model.fingerprint()


def test_each_way_computes_something_else():
    text, image = BATCHES["one image"], random_images(1)
    seen = []
    for way in WAYS:
        processor, model = processor_and_model(way, 2)
        seen.append(one_pass_logits(model, processor(text, images=image)))
    processor = tiny_processor(order="inline", image_size=IMAGE_SIZE)
    seen.append(one_pass_logits(tiny_model(processor, layers=LAYERS), processor(text, images=image)))
    assert min(float((a - b).abs().max()) for i, a in enumerate(seen) for b in seen[:i]) > 1e-4


@pytest.mark.parametrize("way", ["bidirectional", "independent", "distinct"])
@pytest.mark.parametrize("kept", [1, 3])
def test_the_first_tokens_of_a_cache_are_the_cache_of_fewer(way, kept):
    processor, model = processor_and_model(way, 4)
    pixels = processor.pixels(random_images(3))
    fewer = model.compress(pixels, kept)
    torch.testing.assert_close(model.compress(pixels).truncate(kept).keys, fewer.keys, **CLOSE)
    torch.testing.assert_close(model.compress(pixels).truncate(kept).values, fewer.values, **CLOSE)


@pytest.mark.parametrize("way", ["bidirectional", "independent", "distinct"])
@pytest.mark.parametrize("condition", ["voco", "full"])
def test_truncated_rows_have_the_loss_of_rows_laid_out_with_fewer_tokens(way, condition):
    """Elastic training's rows, each with a number of its own."""
    processor, model = processor_and_model(way, 4)
    turns = [answered("Is <image> it, or <image>?"), answered("Why?"), answered("<image>\nWhat?", "A long answer.")]
    pixels, shapes = processor.pixels(random_images(3)), [processor.segment_shape(n) for n in (1, 4, 3)]
    whole = batch_of(processor, [processor.lay_out(t, condition=condition) for t in turns], "right", labels=True)
    fewer = [processor.lay_out(t, shape=s, condition=condition) for t, s in zip(turns, shapes, strict=True)]
    truncated = truncate_voco(whole, torch.tensor([1, 4, 3]), processor.tokens.pad)
    outputs = [
        model(**batch, pixel_values=pixels, condition=condition)
        for batch in (truncated, batch_of(processor, fewer, "right", labels=True))
    ]
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, **CLOSE)
    assert torch.equal(outputs[0].logits, outputs[1].logits)


# ---- segment attention


@pytest.mark.parametrize(
    ("way", "first", "last"), [("causal", False, True), ("bidirectional", True, True), ("independent", False, False)]
)
def test_which_patches_feel_the_others(way, first, last):
    processor = tiny_processor(num_voco=2, order="inline", image_size=IMAGE_SIZE)
    model = tiny_model(processor, layers=LAYERS, segment_attention=way)
    facts = {"segment": torch.ones(1, 18).long(), "voco": torch.arange(18)[None] >= 16}
    facts |= {"position": torch.arange(-16, 2)[None], "document": torch.zeros(1, 18).long()}
    ids = torch.where(facts["voco"], processor.tokens.voco, processor.tokens.image)
    pixels = processor.pixels(random_images(1))
    features = model.projector(model.vision(pixels)).detach().requires_grad_(True)
    embeddings = torch.cat([features, model.embed(ids, pixels).detach()[:, 16:]], dim=1)
    model.embed = lambda *_: embeddings
    for place, feels in ((0, first), (15, last), (16, True)):
        mask = torch.arange(18)[None] == place
        logits = model(ids, **facts, pixel_values=pixels, logits_mask=mask, condition="voco").logits
        (gradient,) = torch.autograd.grad(logits.sum(), features)
        felt = gradient[0].abs().sum(dim=-1) > 0
        others = torch.arange(16) != place
        assert felt[others].all() if feels else not felt[others].any()


def test_a_cache_of_the_other_segment_attention_is_another_models():
    processor, model = processor_and_model("bidirectional", 2)
    assert model.fingerprint() != tiny_model(processor, layers=LAYERS).fingerprint()


# ---- distinct embeddings


def test_distinct_embeddings_start_as_the_shared_one():
    processor = tiny_processor(num_voco=4, image_size=IMAGE_SIZE)
    shared, distinct = tiny_model(processor), tiny_model(processor, voco_embeddings="distinct")
    batch = processor(["<image>\nWhat?"], images=random_images(1))
    assert torch.equal(one_pass_logits(shared, batch), one_pass_logits(distinct, batch))


def test_each_voco_token_has_an_offset_of_its_own():
    processor, model = processor_and_model("distinct", 4)
    batch = processor(["a <image><image> b"], images=random_images(2))
    embedded = model.embed(batch["input_ids"], batch["pixel_values"])[batch["voco"]]
    row = model.get_input_embeddings().weight[processor.tokens.voco]
    torch.testing.assert_close(embedded, (row + model.voco_offsets.weight).repeat(2, 1))


def test_more_tokens_than_offsets_are_refused():
    processor, model = processor_and_model("distinct", 4)
    with pytest.raises(SettingsError, match="num_voco 5: this model has embeddings of its own for 4 VoCo tokens"):
        model.compress(processor.pixels(random_images(1)), 5)


# ---- external compressors


def test_average_pooling_is_the_mean_over_the_cells_of_a_grid():
    features = torch.arange(16.0)[None, :, None] * torch.tensor([1.0, -2.0])  # patches 0..15 in raster order
    for num_tokens, cells in {
        1: [7.5],
        2: [6.5, 8.5],
        4: [2.5, 4.5, 10.5, 12.5],
        8: [2.0, 3.0, 4.0, 5.0, 10.0, 11.0, 12.0, 13.0],
        16: list(range(16)),
    }.items():
        pooled = AveragePool(num_tokens)(features)
        assert pooled.shape == (1, num_tokens, 2)
        assert pooled[0, :, 0].tolist() == cells
        assert pooled[0, :, 1].tolist() == [-2 * cell for cell in cells]


def test_average_pooling_then_the_projector_is_the_paper_s_baseline():
    processor, model = processor_and_model("average_pool", 1)
    batch = processor(["<image>"], images=random_images(1))
    expected = model.projector(model.vision(batch["pixel_values"]).mean(dim=1))
    torch.testing.assert_close(model.embed(batch["input_ids"], batch["pixel_values"])[batch["voco"]], expected)


def test_a_q_former_attends_to_all_patches_and_to_none_in_its_other_layers():
    torch.manual_seed(0)
    compressor = build_compressor("q_former", 3, 16, Q_FORMER)
    assert [layer.has_cross_attention for layer in compressor.transformer.encoder.layer] == [True, False, True]
    features = torch.randn(2, 5, 16, requires_grad=True)
    tokens = compressor(features)
    assert tokens.shape == (2, 3, 16)
    (gradient,) = torch.autograd.grad(tokens[0].sum(), features)
    assert bool((gradient[0].abs().sum(dim=-1) > 0).all())
    assert bool((gradient[1] == 0).all())


def test_the_q_former_is_blip_2_s_by_default():
    """12 layers of 768, queries of the same width: BLIP-2 states 105M with its 32 queries (section 3.1)."""
    with torch.device("meta"):
        compressor = build_compressor("q_former", 32, 1408)
    assert sum(p.numel() for p in compressor.transformer.parameters()) == pytest.approx(105e6, rel=0.01)


def test_an_external_compressor_s_model_sees_no_vision_tokens():
    processor, model = processor_and_model("q_former", 4)
    row = processor.lay_out(answered("<image>\nWhat?"))
    assert int(row.voco.sum()) == 4
    assert processor.tokens.image not in row.input_ids
    assert model.config.segment_shape().num_vision == 0
    with pytest.raises(ValueError, match="the rows have 4 image tokens, but 2 images of 4 tokens fill 8"):
        model(**batch_of(processor, [row], labels=True), pixel_values=processor.pixels(random_images(2)))


@pytest.mark.parametrize("way", EXTERNAL)
def test_a_text_only_batch_touches_the_same_parameters_in_training(way):
    processor, model = processor_and_model(way, 2)
    model.train()
    try:
        batch = batch_of(processor, [processor.lay_out(answered("Why?"))], labels=True)
        model(**batch).loss.backward()
        outside = [*model.projector.parameters(), *model.compressor.parameters()]
        assert all(p.grad is not None and not p.grad.any() for p in outside)
    finally:
        model.eval()
        model.zero_grad()


@pytest.mark.parametrize("way", EXTERNAL)
def test_another_number_of_tokens_is_refused(way):
    processor, model = processor_and_model(way, 4)
    with pytest.raises(SettingsError, match=f"num_voco 2: this {way} makes 4 tokens, no other number"):
        model.compress(processor.pixels(random_images(1)), 2)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(SettingsError, match="5 heads do not divide a width of 24"):
        build_compressor("q_former", 1, 16, Q_FORMER | {"heads": 5})
