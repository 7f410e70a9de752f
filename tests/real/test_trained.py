"""A training of the real language model leaves it able to speak; its two passes, and its cache, are the same."""

from pathlib import Path

import pytest
import torch

from tests.model.rows import answered, asked, batch_of, one_pass_logits, random_images, two_step_logits
from voco_llama.asking import AskSettings, ask
from voco_llama.inference import Inference

CAPITAL = "What is the capital of France?"
QUESTIONS = ("<image>\nWhat is in the picture?", "<image>\nHow many things are there, and of which color is each?")
TOLERANCE = 1e-4
"""Relative, in float32, over 30 layers."""


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("way", ["lora", "full"])
def test_trained_saved_and_read_back_it_still_says_paris_and_stops(trained, way):
    more = {"lora": ["model.lora.rank=8", "trainer.learning_rate=2e-4"], "full": ["trainer.learning_rate=1e-6"]}
    final: Path = trained(way, *more[way])
    settings = AskSettings(final, questions=[CAPITAL], condition="blind", max_new_tokens=20, device="cpu")
    assert ask(settings) == ["The capital of France is Paris."]  # 20 tokens would hold twice that


@pytest.fixture(scope="module")
def inference(trained) -> Inference:
    return Inference.load(trained("lora", "model.lora.rank=8", "trainer.learning_rate=2e-4"), "cpu")


def test_in_two_steps_it_computes_what_the_masked_pass_does(inference):
    model, processor = inference.model, inference.processor
    rows = [processor.lay_out(answered(text, "A red circle.")) for text in QUESTIONS]
    batch, pixels = batch_of(processor, rows, labels=True), processor.pixels(random_images(2))
    of = {}
    for two_steps in (False, True):
        model.zero_grad()
        found = model(**batch, pixel_values=pixels, two_steps=two_steps, with_logits=True)
        found.loss.backward()
        table = model.get_input_embeddings().weight.grad
        of[two_steps] = found.logits.detach(), table[model.config.voco_token_id].clone(), table.clone()
    model.zero_grad(set_to_none=True)
    differences = [relative(mine, theirs) for mine, theirs in zip(of[True], of[False], strict=True)]
    assert max(differences) < TOLERANCE, differences


def test_from_the_cache_it_says_what_it_says_without(inference):
    model, processor = inference.model, inference.processor
    images = random_images(2)
    batch = batch_of(processor, [processor.lay_out(asked(text)) for text in QUESTIONS])
    whole = one_pass_logits(model, batch, pixel_values=processor.pixels(images))
    cached = two_step_logits(model, batch, cache=inference.compress(images))
    assert relative(cached, whole) < TOLERANCE
    assert torch.equal(cached.argmax(-1), whole.argmax(-1))
