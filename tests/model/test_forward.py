"""The one masked pass: backends, leaks, packing, loss, what the head is run on, checkpointing."""

import pytest
import torch
from torch.nn import functional

from tests.model.rows import answered, asked, batch_of, last_token, random_images
from tests.tiny import tiny_model, tiny_processor
from voco_llama.errors import SettingsError
from voco_llama.layout import pack_rows
from voco_llama.tokens import IGNORE_INDEX

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
MIXED = ("<image>\nWhat is it?", "Why?", "Left <image> or right <image>?")


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(order="inline")


@pytest.fixture(scope="module")
def model(processor):
    return tiny_model(processor)


@pytest.fixture(scope="module")
def pixels(processor):
    return processor.pixels(random_images(3))


def mixed_batch(processor, side: str = "right") -> dict:
    """A row with one image, one without any and one with two, answers and labels included."""
    rows = [processor.lay_out(answered(text, "Yes." * (1 + i))) for i, text in enumerate(MIXED)]
    return batch_of(processor, rows, side, labels=True)


def flat_gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


# ---- backends


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own compiler
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # meant: compiling takes 50 s
@pytest.mark.parametrize("condition", ["voco", "full"])
def test_backends_agree_on_a_ragged_mixed_batch(processor, pixels, condition):
    logits = {}
    for backend in ("eager", "sdpa", "flex_attention"):
        model = tiny_model(processor, attention=backend)
        assert model.attention_backend == backend
        for side in ("left", "right"):
            batch = mixed_batch(processor, side)
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                out = model(**batch, pixel_values=pixels, condition=condition)
            logits[backend, side] = out.logits
            assert not out.logits.isnan().any()
            if condition == "voco":
                with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                    logits[backend, side, "two steps"] = model(**batch, pixel_values=pixels, two_steps=True).logits
    first = logits.pop(("eager", "left"))
    for other in logits.values():
        torch.testing.assert_close(other, first, **CLOSE)


def test_the_backend_can_be_switched(processor, model, pixels):
    batch = mixed_batch(processor)
    switched = tiny_model(processor)
    switched.set_attn_implementation("eager")
    assert switched.attention_backend == "eager"
    with torch.no_grad():
        out, expected = (m(**batch, pixel_values=pixels) for m in (switched, model))
    torch.testing.assert_close(out.logits, expected.logits, **CLOSE)


def test_a_backend_that_would_drop_the_mask_is_refused(processor, pixels):
    model = tiny_model(processor)
    model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(SettingsError, match="'flash_attention_2' cannot express .* eager, sdpa, flex_attention"):
        model(**mixed_batch(processor), pixel_values=pixels)


def test_conditions_differ(processor, model, pixels):
    batch = mixed_batch(processor)
    with torch.no_grad():
        voco, full = (model(**batch, pixel_values=pixels, condition=c).logits for c in ("voco", "full"))
        assert torch.equal(model(**batch, pixel_values=pixels).logits, voco)
    assert (voco - full).abs().max() > 0.1


# ---- no leak


def text_logits_and_pixel_gradient(processor, layers: int, condition: str):
    model = tiny_model(processor, layers=layers)
    pixels = processor.pixels(random_images(3)).requires_grad_()
    batch = mixed_batch(processor)
    del batch["labels"]
    out = model(**batch, pixel_values=pixels, condition=condition)
    assert out.logits.shape[0] == int(((batch["segment"] == 0) & (batch["document"] >= 0)).sum())
    weights = torch.randn(out.logits.shape, generator=torch.Generator().manual_seed(1))
    (out.logits * weights).sum().backward()
    return out.logits.detach(), pixels.grad


@pytest.mark.parametrize("order", ["first", "authors", "llava", "inline"])
def test_in_one_layer_no_text_logit_feels_a_pixel(order):
    _, gradient = text_logits_and_pixel_gradient(tiny_processor(order=order), 1, "voco")
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(("layers", "condition"), [(2, "voco"), (1, "full")])
def test_through_voco_or_under_full_it_does(processor, layers, condition):
    _, gradient = text_logits_and_pixel_gradient(processor, layers, condition)
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize(("layers", "changes"), [(1, False), (2, True)])
def test_other_images_change_text_logits_only_through_a_second_layer(processor, pixels, layers, changes):
    model = tiny_model(processor, layers=layers)
    batch = mixed_batch(processor)
    with torch.no_grad():
        one, other = (model(**batch, pixel_values=p).logits for p in (pixels, processor.pixels(random_images(3, 9))))
    assert torch.equal(one, other) is not changes


def test_an_image_is_felt_by_the_text_after_it_alone(processor, model, pixels):
    """In `Left <image> or right <image>?` the second image changes nothing before it."""
    batch = batch_of(processor, [processor.lay_out(asked("Left <image> or right <image>?"))])
    with torch.no_grad():
        one = model(**batch, pixel_values=pixels[[0, 1]])
        other = model(**batch, pixel_values=pixels[[0, 2]])
    changed = torch.zeros_like(one.logits_mask)
    changed[one.logits_mask] = (one.logits != other.logits).any(dim=-1)
    first_changed = int(changed[0].nonzero()[0])
    assert first_changed == int((batch["segment"][0] == 2).nonzero()[-1]) + 1
    assert torch.equal(changed[0, first_changed:], one.logits_mask[0, first_changed:])


# ---- rows and batches


def test_a_row_does_not_feel_its_neighbors_or_its_padding(processor, model, pixels):
    with torch.no_grad():
        together = model(**mixed_batch(processor, "left"), pixel_values=pixels)
        alone = []
        for i, images in enumerate((pixels[:1], None, pixels[1:])):
            row = processor.lay_out(answered(MIXED[i], "Yes." * (1 + i)))
            alone.append(model(**batch_of(processor, [row], labels=True), pixel_values=images).logits)
    torch.testing.assert_close(together.logits, torch.cat(alone), **CLOSE)


def test_packed_documents_are_as_good_as_rows_of_their_own(processor, model, pixels):
    rows = [processor.lay_out(answered(text, "Yes." * (1 + i))) for i, text in enumerate(MIXED)]
    with torch.no_grad():
        packed = model(**batch_of(processor, [pack_rows(rows)], labels=True), pixel_values=pixels)
        apart = model(**batch_of(processor, rows, "right", labels=True), pixel_values=pixels)
    torch.testing.assert_close(packed.logits, apart.logits, **CLOSE)
    torch.testing.assert_close(packed.loss, apart.loss, **CLOSE)


@pytest.mark.parametrize("num_images", [0, 2, 4])
def test_images_and_image_tokens_must_agree_in_number(processor, model, num_images):
    images = processor.pixels(random_images(num_images))
    expected = f"12 image tokens, but {num_images} images of 4 tokens fill {4 * num_images}"
    with pytest.raises(ValueError, match=expected):
        model(**mixed_batch(processor), pixel_values=images)


# ---- loss and head


def manual_loss_sum(model, batch: dict, pixels) -> tuple[torch.Tensor, int]:
    """Cross entropy summed over trained tokens, from all logits, one token at a time."""
    everywhere = torch.ones_like(batch["document"], dtype=torch.bool)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, pixel_values=pixels, logits_mask=everywhere).logits.view(*everywhere.shape, -1)
    terms = [
        functional.cross_entropy(logits[b, t - 1], label)
        for b, row in enumerate(batch["labels"])
        for t, label in enumerate(row)
        if label != IGNORE_INDEX
    ]
    return torch.stack(terms).sum(), len(terms)


def test_the_loss_is_normalized_by_the_trained_tokens_of_the_global_batch(processor, model, pixels):
    batch = mixed_batch(processor)
    with torch.no_grad():
        total, count = manual_loss_sum(model, batch, pixels)
        assert count == int((batch["labels"] != IGNORE_INDEX).sum())
        torch.testing.assert_close(model(**batch, pixel_values=pixels).loss, total / count)
        for items in (100, torch.tensor(100)):
            out = model(**batch, pixel_values=pixels, num_items_in_batch=items)
            torch.testing.assert_close(out.loss, total / 100)
    assert out.loss.dtype == torch.float32


def test_accumulated_batches_have_the_gradient_of_the_whole(processor, pixels):
    model = tiny_model(processor).train()
    rows = [processor.lay_out(answered(text, "Yes." * (1 + i))) for i, text in enumerate(MIXED)]
    items = sum(row.num_trained for row in rows)
    model(**batch_of(processor, rows, labels=True), pixel_values=pixels).loss.backward()
    whole = flat_gradients(model)
    for part, images in (([rows[0]], pixels[:1]), (rows[1:], pixels[1:])):
        batch = batch_of(processor, part, "right", labels=True)
        model(**batch, pixel_values=images, num_items_in_batch=items).loss.backward()
    for name, gradient in flat_gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], atol=1e-5, rtol=1e-4, msg=name)


def test_the_head_runs_on_trained_tokens_alone(processor, model, pixels):
    seen = []
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:-1].numel()))
    batch = mixed_batch(processor)
    with torch.no_grad():
        out = model(**batch, pixel_values=pixels)
        wanted = last_token(batch["document"])
        last = model(**{**batch, "labels": None}, pixel_values=pixels, logits_mask=wanted)
    hook.remove()
    trained = int((batch["labels"] != IGNORE_INDEX).sum())
    assert seen == [trained, trained, 3]  # for the loss, for the logits, and for the last tokens
    assert out.logits.shape[0] == trained
    assert torch.equal(out.logits_mask[:, :-1], batch["labels"][:, 1:] != IGNORE_INDEX)
    assert last.loss is None
    assert last.logits_mask is wanted


def test_rows_without_a_fact_and_unknown_arguments_are_refused(processor, model, pixels):
    batch = mixed_batch(processor)
    lacking = {name: values for name, values in batch.items() if name not in ("position", "document")}
    with pytest.raises(TypeError, match="the rows lack position, document"):
        model(**lacking, pixel_values=pixels)
    with pytest.raises(TypeError, match="knows no argument pixels"):
        model(**batch, pixels=pixels)


def test_a_batch_without_a_trained_token_has_loss_zero(processor, model):
    batch = batch_of(processor, [processor.lay_out(asked("Why?"))], labels=True)
    out = model(**batch)
    assert out.loss.item() == 0
    out.loss.backward()
    model.zero_grad(set_to_none=True)


def test_a_text_only_batch_touches_the_same_parameters_in_training(processor, pixels):
    """Else processes whose batch has an image wait forever for those whose batch has none."""
    model = tiny_model(processor).train()
    batch = batch_of(processor, [processor.lay_out(answered("Why?"))], labels=True)
    no_images = pixels[:0]
    model(**batch, pixel_values=no_images).loss.backward()
    text_only = flat_gradients(model)
    model(**mixed_batch(processor), pixel_values=pixels).loss.backward()
    assert flat_gradients(model).keys() == text_only.keys()
    assert {name for name in text_only if name.startswith("projector")}
    for name, gradient in text_only.items():
        if name.startswith(("projector", "vision")):
            assert torch.equal(gradient, torch.zeros_like(gradient)), name
    with torch.no_grad():
        training = model(**batch, pixel_values=no_images).loss
        assert torch.equal(training, model.eval()(**batch).loss)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # 5.17 knows no other name
@pytest.mark.parametrize("frozen", [False, True], ids=["all trains", "projector trains"])
def test_gradient_checkpointing_changes_nothing(processor, pixels, frozen):
    model = tiny_model(processor).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith("projector"))
    batch = mixed_batch(processor)
    losses, gradients, layer_calls = [], [], []
    model.decoder.layers[0].self_attn.register_forward_hook(lambda *_: layer_calls.append(1))
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
        loss = model(**batch, pixel_values=pixels).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append(flat_gradients(model))
    assert len(layer_calls) == 1 + 2  # the second time the layer ran again in the backward pass
    torch.testing.assert_close(losses[0], losses[1])
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert any(gradient.abs().max() > 0 for name, gradient in gradients[0].items() if name.startswith("projector"))


def test_a_frozen_tower_keeps_no_graph(processor, pixels):
    model = tiny_model(processor)
    assert model.vision(pixels).requires_grad
    model.vision.requires_grad_(False)
    assert not model.vision(pixels).requires_grad


def test_logits_are_made_where_they_are_wanted(processor, pixels):
    """In training, labels alone make none; a mask that asks for them does, as without labels and in evaluation."""
    model = tiny_model(processor).train()
    batch = batch_of(processor, [processor.lay_out(answered("<image>\nWhat is it?"))], labels=True)
    everywhere = batch["document"] >= 0
    assert model(**batch, pixel_values=pixels[:1]).logits is None
    assert len(model(**batch, pixel_values=pixels[:1], logits_mask=everywhere).logits) == int(everywhere.sum())
    assert model.eval()(**batch, pixel_values=pixels[:1]).logits is not None
