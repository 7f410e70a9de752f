"""Training in two steps: loss and all gradients are those of the masked pass, whatever the rows look like."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import GraniteConfig

from tests.model.rows import answered, batch_of, random_images
from tests.model.test_two_steps import BATCHES, CLOSE, LANGUAGE_MODELS
from tests.tiny import tiny_model, tiny_processor
from voco_llama.choices import ORDERS, SEGMENT_ATTENTIONS
from voco_llama.errors import SettingsError
from voco_llama.layout import HostRows, pack_rows, truncate_voco
from voco_llama.model.losses import Objective
from voco_llama.packing import pack, segments_alone


def loss_and_gradients(model, batch, **kwargs) -> dict[str, Tensor]:
    model.zero_grad()
    output = model(**batch, **kwargs)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": output.loss.detach()} | gradients


def check_equal(model, batch, other=None, **kwargs) -> None:
    masked = loss_and_gradients(model, batch, **kwargs)
    packed = loss_and_gradients(model, batch if other is None else other, two_steps=True, **kwargs)
    used = {name for name, gradient in masked.items() if gradient.any()}
    assert packed.keys() <= masked.keys()
    differences = {n: float((packed[n] - masked[n]).norm() / masked[n].norm()) for n in used}
    assert max(differences.values()) < 1e-5, differences
    assert not any(packed[name].any() for name in packed.keys() - used)


def rows_of(processor, texts: Sequence[str], side: str = "right", segments_per_mark: int = 1) -> dict[str, Tensor]:
    rows = [processor.lay_out(answered(text), segments_per_mark) for text in texts]
    count = sum(text.count("<image>") for text in texts) * segments_per_mark
    return batch_of(processor, rows, side, labels=True) | {"pixel_values": processor.pixels(random_images(count))}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("order", ORDERS)
def test_loss_and_gradients_are_those_of_the_masked_pass(order, name):
    processor = tiny_processor(order=order)
    check_equal(tiny_model(processor, layers=3).train(), rows_of(processor, BATCHES[name]))


@pytest.mark.parametrize("name", [name for name in LANGUAGE_MODELS if name != "llama"])
def test_every_language_model(name):
    processor = tiny_processor(order="inline")
    check_equal(
        tiny_model(processor, text_config=LANGUAGE_MODELS[name]()).train(), rows_of(processor, BATCHES["mixed"])
    )


@pytest.mark.parametrize(
    "kwargs",
    [
        {"attention": "eager"},
        {"attention": "eager", "segment_attention": "bidirectional"},
        {"segment_attention": "bidirectional"},
        {"attention": "eager", "segment_attention": "independent"},
        {"segment_attention": "independent"},
        {"voco_embeddings": "distinct"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["several images", "mixed", "text only"])
def test_every_way_of_compressing(kwargs, name):
    processor = tiny_processor(order="authors")
    model = tiny_model(processor, **kwargs).train()
    if model.voco_offsets is not None:
        torch.nn.init.normal_(model.voco_offsets.weight)
    check_equal(model, rows_of(processor, BATCHES[name]))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_row_of_attention_that_is_longer_than_all_packed_tokens(attention, monkeypatch):
    monkeypatch.setattr("voco_llama.model.passes.pack", lambda *args, **own: pack(*args, **{**own, "multiple": 256}))
    processor = tiny_processor(num_voco=1)
    check_equal(tiny_model(processor, attention=attention).train(), rows_of(processor, ["<image>\nWhat?"]))


def test_an_external_compressor_and_a_clip_of_frames():
    processor = tiny_processor(num_voco=4, num_frames=3)
    processor = copy.copy(processor)
    object.__setattr__(processor, "num_vision", 0)
    model = tiny_model(processor, compressor="average_pool").train()
    check_equal(model, rows_of(processor, ["<image>\nWhat?", "Oh."], segments_per_mark=3))


@pytest.mark.parametrize("order", ["first", "authors"])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("segment_attention", SEGMENT_ATTENTIONS)
def test_full_where_images_come_first(order, name, segment_attention):
    processor = tiny_processor(order=order, condition="full")
    model = tiny_model(processor, segment_attention=segment_attention).train()
    check_equal(model, rows_of(processor, BATCHES[name]))


def test_full_with_text_before_an_image_is_refused_with_the_reason():
    processor = tiny_processor(order="inline", condition="full")
    model = tiny_model(processor)
    with pytest.raises(SettingsError, match="text before an image.*two_steps=false"):
        model(**rows_of(processor, ["What is <image>?"]), two_steps=True)


def shared(batch: dict[str, Tensor], media: list[list[int]], medium: list[int], images: Tensor) -> dict:
    fields = {name: values for name, values in batch.items() if name != "pixel_values"}
    return {"rows": HostRows(fields, torch.tensor(media), torch.tensor(medium)), "pixel_values": images}


@pytest.mark.parametrize("condition", ["voco", "full"])
def test_an_image_that_several_rows_look_at_is_computed_once(condition):
    """Loss and gradients are those of rows that have it for themselves, in both passes."""
    texts = ["<image>\nWhat?", "Oh.", "<image>\nHow many?", "<image>\n<image>\nWhich?", "<image>\n<image>\nWhy?"]
    processor = tiny_processor(condition=condition)
    model = tiny_model(processor).train()
    batch = rows_of(processor, texts)
    images = processor.pixels(random_images(3))
    batch["pixel_values"] = images[[0, 0, 1, 2, 1, 2]]
    once = shared(batch, [[0, -1], [1, 2]], [0, -1, 0, 1, 1], images)
    seen = []
    model.vision.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    check_equal(model, batch, once)
    check_equal(model, batch, batch)
    assert seen == [6, 3, 6, 6]
    masked, expected = loss_and_gradients(model, once), loss_and_gradients(model, batch)
    assert all((masked[n] - value).norm() <= 1e-5 * value.norm() for n, value in expected.items())


def test_elastic_rows_read_the_first_tokens_of_what_was_compressed_once():
    processor = tiny_processor(num_voco=4, order="inline")
    model = tiny_model(processor).train()
    batch = rows_of(processor, ["Is <image> left of <image>?", "<image>\nWhat?", "Why?"])
    check_equal(model, truncate_voco(batch, torch.tensor([2, 3, 1]), processor.tokens.pad))


def test_packed_documents_are_rows_of_their_own():
    processor = tiny_processor(order="inline")
    model = tiny_model(processor).train()
    texts = ["Is <image> left of <image>?", "<image>\nWhat?", "Why?"]
    packed = pack_rows([processor.lay_out(answered(text)) for text in texts])
    batch = batch_of(processor, [packed, processor.lay_out(answered("Oh <image>"))], "left", labels=True)
    check_equal(model, batch | {"pixel_values": processor.pixels(random_images(4))})


def test_a_first_word_that_is_predicted_from_an_image():
    """Where text begins with what is trained, a segment's last token predicts it, and its last layer is needed."""
    for condition in ("voco", "full"):
        processor = tiny_processor(condition=condition)
        batch = rows_of(processor, ["<image>\nWhat?", "<image>\nWho?"])
        last = batch["segment"].ne(0).sum(dim=1)
        batch["labels"] = batch["labels"].scatter(1, last[:, None], batch["input_ids"].gather(1, last[:, None]))
        check_equal(tiny_model(processor).train(), batch)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_nothing(use_reentrant):
    processor = tiny_processor(order="inline")
    model, batch = tiny_model(processor, layers=3).train(), rows_of(processor, BATCHES["mixed"])
    expected = loss_and_gradients(model, batch, two_steps=True)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    found = loss_and_gradients(model, batch, two_steps=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **CLOSE)
    check_equal(model, batch)


def test_rows_of_attention_may_be_longer_than_the_longest(monkeypatch):
    monkeypatch.setattr(
        "voco_llama.model.passes.pack", lambda *args, **kwargs: pack(*args, **{**kwargs, "multiple": 64})
    )
    processor = tiny_processor(order="inline")
    check_equal(tiny_model(processor).train(), rows_of(processor, BATCHES["mixed"]))


def test_logits_are_those_of_the_masked_pass():
    processor = tiny_processor(order="llava")
    model, batch = tiny_model(processor), rows_of(processor, BATCHES["mixed"], side="left")
    torch.testing.assert_close(model(**batch, two_steps=True).logits, model(**batch).logits, **CLOSE)
    del batch["labels"]
    torch.testing.assert_close(model(**batch, two_steps=True).logits, model(**batch).logits, **CLOSE)
    asked = torch.zeros_like(batch["voco"])
    asked[:, -1] = True
    two = model(**batch, two_steps=True, logits_mask=asked).logits
    torch.testing.assert_close(two, model(**batch, logits_mask=asked).logits, **CLOSE)


def test_images_that_the_rows_do_not_show_are_refused():
    processor = tiny_processor()
    model, batch = tiny_model(processor), rows_of(processor, ["<image>\nWhat?"])
    with pytest.raises(ValueError, match="show 1 images and 2 are given"):
        model(**batch | {"pixel_values": batch["pixel_values"].repeat(2, 1, 1, 1)}, two_steps=True)


def test_a_model_that_scales_its_embeddings_is_refused():
    processor = tiny_processor()
    shape = dict(vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    model = tiny_model(processor, text_config=GraniteConfig(**shape, embedding_multiplier=2.0, pad_token_id=0))
    with pytest.raises(SettingsError, match="cannot be run layer by layer"):
        model(**rows_of(processor, ["<image>\nWhat?"]), two_steps=True)


@pytest.mark.parametrize("two_steps", [False, True])
@pytest.mark.parametrize(
    ("media", "medium"), [([[0]], [-1]), ([[0]], [0]), ([[0, -1]], [0])], ids=["none", "too few", "padding"]
)
def test_segments_that_no_image_of_the_medium_is_for_are_refused(media, medium, two_steps):
    """Never another image in their place."""
    processor = tiny_processor()
    batch = rows_of(processor, ["<image>\n<image>\nWhich?"])
    rows = shared(batch, media, medium, batch["pixel_values"][:1])
    with pytest.raises(ValueError, match="no image for"):
        tiny_model(processor)(**rows, two_steps=two_steps)


def test_an_objective_sees_the_same_tokens():
    processor = tiny_processor()
    check_equal(tiny_model(processor).train(), rows_of(processor, BATCHES["mixed"]), objective=Objective(chunk_size=3))


@pytest.mark.parametrize("condition", ["voco", "full"])
@pytest.mark.parametrize("two_steps", [False, True])
def test_modules_are_called_alike_with_images_and_without(condition, two_steps):
    """Or processes of ZeRO-3, which gather weights at each call, wait for each other forever."""
    processor, called = tiny_processor(condition=condition), []
    model = tiny_model(processor, layers=3).train()
    model.check_two_steps()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda module, args, name=name: called.append(name))
    orders = []
    for name in ("text only", "mixed"):
        called.clear()
        model(**rows_of(processor, BATCHES[name]), two_steps=two_steps).loss.backward()
        orders.append([*called])
    assert orders[0] == orders[1]


@pytest.mark.parametrize("segment_attention", SEGMENT_ATTENTIONS)
def test_nothing_waits_for_the_device(segment_attention):
    """The device `meta` holds no values: whatever asks for one (a count, a mask as an index, a copy) fails."""
    processor = tiny_processor(order="inline")
    model = tiny_model(processor, segment_attention=segment_attention)
    model.check_two_steps()
    batch, model = rows_of(processor, BATCHES["mixed"]), model.to("meta").train()
    pixels, trained = batch.pop("pixel_values").to("meta"), torch.tensor(9.0, device="meta")
    model(rows=HostRows(batch), pixel_values=pixels, two_steps=True, num_items_in_batch=trained).loss.backward()
    packing = segments_alone(model.config.segment_shape(), model.config.added_tokens, len(pixels))
    model.run_packed(packing.to(pixels.device), pixels, kept := [])
    assert [keys.shape for keys, _ in kept] == [(len(pixels), 2, 2, 8)] * 2


@pytest.mark.parametrize("order", ["first", "inline"])
@pytest.mark.parametrize("two_steps", [False, True])
def test_several_readings_of_one_compression_are_their_mean(order, two_steps, monkeypatch):
    """Loss and gradients are those of the same rows read alone, through each number of VoCo tokens in turn."""
    texts = ["<image>\nWhat?", "Oh.", "<image>\nHow many?", "<image>\n<image>\nWhich?"]
    processor = tiny_processor(num_voco=4, order=order)
    model = tiny_model(processor).train()
    batch, images = rows_of(processor, texts), processor.pixels(random_images(2))
    inputs = shared(batch, [[0, -1], [0, 1]], [0, -1, 0, 1], images)
    numbers = torch.tensor([[1, 1, 1, 1], [2, 3, 3, 2], [4, 4, 4, 4]])
    alone = [
        loss_and_gradients(model, inputs | {"rows": inputs["rows"].read_through(reading[None], processor.tokens.pad)})
        for reading in numbers
    ]
    mean = {name: sum(each[name] for each in alone) / len(alone) for name in alone[0]}
    encoded = []
    monkeypatch.setattr(
        model.vision, "forward", lambda pixels, run=model.vision.forward: encoded.append(pixels) or run(pixels)
    )
    rows = inputs["rows"].read_through(numbers, processor.tokens.pad)
    together = loss_and_gradients(model, {"rows": rows, "pixel_values": images}, two_steps=two_steps)
    assert [len(pixels) for pixels in encoded] == [2]
    for name, expected in mean.items():
        assert float((together[name] - expected).norm()) <= 1e-5 * float(expected.norm()) + 1e-9, name
