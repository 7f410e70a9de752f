"""Reconstruction: what it computes, the same in both passes, and what of it is left in a model."""

import pytest
import torch
from torch.nn.functional import layer_norm

from tests.model.rows import answered, batch_of, random_images
from tests.tiny import tiny_model, tiny_processor
from voco_llama.layout import HostRows, next_tokens
from voco_llama.model.losses import Objective
from voco_llama.model.reconstruction import Readings, ReconstructionDecoder, SegmentStates
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.packing import images_in_order
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.visibility import TokenFacts

TEXTS = {
    "sharing": (["<image>\nWhat?", "Oh.", "<image>\nHow many?", "<image>\n<image>\nWhich?"], [0, -1, 0, 1]),
    "text only": (["Why?", "Why is it so?"], [-1, -1]),
}
MEDIA = [[0, -1], [0, 1]]
NUMBERS = torch.tensor([[1, 1, 1, 1], [2, 3, 3, 2], [4, 4, 4, 4]])
OBJECTIVE = Objective(lm=0.5, reconstruction=0.3)


def model_of(processor, layer: int | None = None) -> VoCoLlama:
    model = tiny_model(processor).train()
    torch.manual_seed(1)
    model.add_reconstruction()
    model.reconstruction.layer = layer
    for parameter in model.reconstruction.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def inputs_of(processor, name: str = "sharing", num_voco: torch.Tensor = NUMBERS) -> dict:
    texts, medium = TEXTS[name]
    rows = [processor.lay_out(answered(text, "Yes." * (index + 1))) for index, text in enumerate(texts)]
    fields = batch_of(processor, rows, "right", labels=True)
    media = torch.tensor(MEDIA) if max(medium) >= 0 else torch.empty(0, 0, dtype=torch.long)
    read = HostRows(fields, media, torch.tensor(medium)).read_through(num_voco[:, : len(texts)], processor.tokens.pad)
    return {"rows": read, "pixel_values": processor.pixels(random_images(2 if len(media) else 0))}


def loss_and_gradients(model, inputs, **kwargs) -> tuple:
    model.zero_grad()
    output = model(**inputs, objective=OBJECTIVE, **kwargs)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(("order", "layer"), [("first", None), ("first", 1), ("authors", None), ("inline", 1)])
def test_both_passes_compute_the_same(order, layer, name):
    processor = tiny_processor(num_voco=4, order=order)
    model = model_of(processor, layer)
    inputs = inputs_of(processor, name)
    (masked, expected), (packed, found) = (loss_and_gradients(model, inputs, two_steps=way) for way in (False, True))
    torch.testing.assert_close(packed.loss, masked.loss)
    torch.testing.assert_close(packed.loss_reconstruction, masked.loss_reconstruction)
    torch.testing.assert_close(masked.loss, 0.5 * masked.loss_lm + 0.3 * masked.loss_reconstruction)
    used = {name for name, gradient in expected.items() if gradient.any()}
    for name in used:
        assert float((found[name] - expected[name]).norm()) < 1e-5 * float(expected[name].norm()), name
    assert not any(found[name].any() for name in found.keys() - used)
    of_decoder = {name for name in found if name.startswith("reconstruction.")}
    assert of_decoder == {f"reconstruction.{name}" for name, _ in model.reconstruction.named_parameters()}
    assert bool(of_decoder & used) == (masked.loss_reconstruction != 0)


def literally(model, inputs) -> torch.Tensor:
    """The definition, row by row and segment by segment."""
    fields, decoder = inputs["rows"].fields, model.reconstruction
    whole = {name: values for name, values in fields.items() if name != "labels"}
    states = model(
        rows=HostRows(whole, inputs["rows"].media, inputs["rows"].medium),
        pixel_values=inputs["pixel_values"],
        logits_mask=torch.ones_like(fields["voco"]),
        with_logits=False,
    )  # no logits, no labels: the last hidden states of all tokens
    states = told = states.hidden_states.view(*fields["voco"].shape, -1)
    if decoder.layer is not None:
        facts = TokenFacts.of_batch(fields)
        embeddings = model.embed(
            fields["input_ids"],
            inputs["pixel_values"],
            images_in_order(fields, inputs["rows"].media, inputs["rows"].medium),
        )
        mask = model.mask(facts, facts, "voco", embeddings.dtype)
        of_layers = model.decoder(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=facts.position, output_hidden_states=True
        )
        told = of_layers.hidden_states[decoder.layer]
    trained, total = (next_tokens(fields["labels"]) != IGNORE_INDEX).sum(dim=1), 0.0
    for row, segments in enumerate(fields["segment"].amax(dim=1).tolist()):
        for segment in range(1, segments + 1):
            inside = fields["segment"][row] == segment
            vision = states[row][inside & (fields["input_ids"][row] == model.config.image_token_id)].detach()
            keys, values = decoder.keys_and_values(normed(told[row][inside & fields["voco"][row]])).chunk(2, dim=-1)
            heads = [slice(at, at + decoder.head_dim) for at in range(0, keys.shape[-1], decoder.head_dim)]
            scores = [decoder.queries[:, h] @ keys[:, h].T / decoder.head_dim**0.5 for h in heads]
            read = torch.cat([s.softmax(-1) @ values[:, h] for s, h in zip(scores, heads, strict=True)], dim=-1)
            read = decoder.queries + decoder.attended(read)
            predicted = decoder.output(read + decoder.mlp(read))
            normal = torch.distributions.Normal(predicted, (3 * torch.tanh(decoder.variance * 10 / 6)).exp())
            constant = 0.5 * torch.log(torch.tensor(2 * torch.pi))
            nll = (-normal.log_prob(normed(vision)) - constant).mean()
            total = total + nll * trained[row] / segments
    return total / trained.sum()


def normed(states: torch.Tensor) -> torch.Tensor:
    return layer_norm(states, states.shape[-1:])


@pytest.mark.parametrize("layer", [None, 1])
def test_it_is_what_its_definition_says(layer):
    processor = tiny_processor(num_voco=4)
    model, inputs = model_of(processor, layer), inputs_of(processor)
    output, _ = loss_and_gradients(model, inputs, two_steps=True)
    model.zero_grad()
    expected = literally(model, inputs)
    torch.testing.assert_close(output.loss_reconstruction, expected.detach())
    (0.3 * expected).backward()
    alone = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    _, both = loss_and_gradients(model, inputs, two_steps=True)
    model.reconstruction, decoder = None, model.reconstruction
    _, without = loss_and_gradients(model, inputs, two_steps=True)
    model.reconstruction = decoder
    for name, gradient in alone.items():
        difference = both[name] - without.get(name, 0.0) - gradient
        assert float(difference.norm()) < 1e-4 * float(gradient.norm()) + 1e-7, name


@pytest.mark.parametrize("two_steps", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_nothing(use_reentrant, two_steps):
    processor = tiny_processor(num_voco=4)
    model, inputs = model_of(processor, layer=1), inputs_of(processor)
    plain, expected = loss_and_gradients(model, inputs, two_steps=two_steps)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    again, found = loss_and_gradients(model, inputs, two_steps=two_steps)
    assert again.loss == plain.loss
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_token_that_is_not_read_tells_nothing():
    decoder = ReconstructionDecoder(16, 4)
    states = SegmentStates(torch.randn(2, 4, 16), torch.randn(2, 3, 16))
    readings = Readings(torch.tensor([0, 1, 1]), torch.tensor([1, 2, 3]), torch.tensor([1.0, 0.0, 0.0]))
    other = states._replace(voco=states.voco.index_put((torch.tensor(0), torch.tensor([1, 2])), torch.randn(2, 16)))
    assert decoder(states, readings) == decoder(other, readings)
    assert decoder(states, readings._replace(num_voco=torch.tensor([2, 2, 3]))) != decoder(states, readings)


def test_it_is_summed_in_float32_where_the_rest_is_in_half_precision():
    decoder = ReconstructionDecoder(16, 4)
    states = SegmentStates(torch.randn(1, 4, 16), torch.randn(1, 3, 16))
    readings = Readings(torch.zeros(50, dtype=torch.long), torch.ones(50, dtype=torch.long), torch.full((50,), 257.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one = decoder(states, Readings(*(part[:1] for part in readings)))
        assert decoder(states, readings).dtype == torch.float32
        torch.testing.assert_close(decoder(states, readings), 50 * one, rtol=1e-5, atol=0)


def test_a_channel_that_never_varies_does_not_outweigh_all_others():
    decoder = ReconstructionDecoder(16, 4)
    torch.nn.init.constant_(decoder.variance, -100.0)
    readings = Readings(torch.tensor([0]), torch.tensor([1]), torch.ones(1))
    assert decoder(SegmentStates(torch.randn(1, 4, 16), torch.randn(1, 1, 16)), readings).isfinite()


def test_a_model_is_read_again_with_its_decoder_or_left_without(tmp_path):
    processor = tiny_processor(num_voco=4)
    model, inputs = model_of(processor), inputs_of(processor)
    model.save_pretrained(tmp_path / "with")
    again = VoCoLlama.from_pretrained(tmp_path / "with").train()
    (first, _), (second, _) = (loss_and_gradients(one, inputs) for one in (model, again))
    assert first.loss_reconstruction == second.loss_reconstruction
    again.remove_reconstruction()
    again.save_pretrained(tmp_path / "without")
    plain = VoCoLlama.from_pretrained(tmp_path / "without")
    assert plain.reconstruction is None
    assert plain.fingerprint() == tiny_model(processor).fingerprint()
