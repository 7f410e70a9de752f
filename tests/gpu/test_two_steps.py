"""On a GPU: the pass in two steps is the CPU's masked one, on every backend, and does not wait for the device."""

from importlib.util import find_spec

import pytest
import torch

from tests.model.rows import random_images
from tests.model.test_forward import mixed_batch
from tests.tiny import tiny_model, tiny_processor, tiny_text_config
from voco_llama.layout import ROW_FIELDS, HostRows
from voco_llama.visibility import FACTS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SHAPE = dict(hidden_size=64)  # 16 a head: the least that FlexAttention's kernel takes


def on_host(batch) -> HostRows:
    return HostRows({name: batch[name] for name in ROW_FIELDS})


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
def test_loss_and_gradients_equal_the_cpus_masked_pass(backend):
    processor = tiny_processor(order="inline")
    batch, pixels = mixed_batch(processor), processor.pixels(random_images(3))
    reference = tiny_model(processor, text_config=tiny_text_config(**SHAPE), attention="eager")
    expected = reference(**batch, pixel_values=pixels)
    expected.loss.backward()
    model = tiny_model(processor, text_config=tiny_text_config(**SHAPE), attention=backend).cuda()
    out = model(rows=on_host(batch), pixel_values=pixels.cuda(), two_steps=True)
    out.loss.backward()
    torch.testing.assert_close(out.logits.cpu(), expected.logits, atol=1e-4, rtol=1e-4)
    for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        if other.grad is not None and other.grad.any():
            difference = (parameter.grad.cpu() - other.grad).norm() / other.grad.norm()
            assert difference < 1e-4, (name, float(difference))


@pytest.mark.parametrize("backend", ["sdpa", "flash_attention_2"])
def test_in_16_bits_it_is_as_close_as_the_masked_pass(backend):
    if backend == "flash_attention_2" and find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    processor = tiny_processor(order="inline")
    batch, pixels = mixed_batch(processor), processor.pixels(random_images(3))
    exact = tiny_model(processor, text_config=tiny_text_config(**SHAPE))(**batch, pixel_values=pixels).logits
    model = tiny_model(processor, text_config=tiny_text_config(**SHAPE), attention=backend).cuda().bfloat16()
    two = model(rows=on_host(batch), pixel_values=pixels.cuda(), two_steps=True).logits.float().cpu()
    model.language_model.set_attn_implementation("sdpa")
    masked = model(**{n: v.cuda() for n, v in batch.items()}, pixel_values=pixels.cuda()).logits.float().cpu()
    assert (two - exact).norm() < 2 * (masked - exact).norm()


def test_a_step_does_not_wait_for_the_device():
    """From rows on the host, forward and backward synchronize nowhere."""
    processor = tiny_processor(order="inline")
    batch, pixels = mixed_batch(processor), processor.pixels(random_images(3)).cuda()
    model = tiny_model(processor).cuda().train()
    step = dict(rows=on_host(batch), pixel_values=pixels, two_steps=True, num_items_in_batch=torch.tensor(7.0).cuda())
    model(**step).loss.backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**step).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compressing_and_answering_on_a_gpu(dtype):
    processor = tiny_processor()
    model = tiny_model(processor).cuda().to(dtype)
    pixels = processor.pixels(random_images(2)).cuda()
    cache = model.compress(pixels)
    batch = {
        name: v.cuda()
        for name, v in processor(["What is <image>?", "<image>?"]).items()
        if name in (*FACTS, "input_ids")
    }
    read = model.generate(**batch, cache=cache, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert read.shape == (2, 5)
    if dtype is torch.float32:
        expected = tiny_model(processor)
        cpu = expected.generate(
            **{name: value.cpu() for name, value in batch.items()},
            pixel_values=pixels.cpu(),
            max_new_tokens=5,
            min_new_tokens=5,
            do_sample=False,
        )
        assert torch.equal(read.cpu(), cpu)
