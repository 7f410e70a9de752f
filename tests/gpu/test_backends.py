"""On a GPU: every backend gives the CPU's float32 logits, FlexAttention compiled and with gradients.

Run with `pytest -m gpu`. Deselected by default, and by CI, which has no GPU.
"""

import pytest
import torch

from tests.model.rows import random_images
from tests.model.test_forward import mixed_batch
from tests.tiny import tiny_model, tiny_processor, tiny_text_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
def test_logits_and_gradients_equal_the_cpus(backend):
    processor = tiny_processor(order="inline")
    shape = tiny_text_config(hidden_size=64)  # 16 a head: the least that FlexAttention's kernel takes
    batch = mixed_batch(processor)
    pixels = processor.pixels(random_images(3))
    reference = tiny_model(processor, text_config=shape, attention="eager")
    expected = reference(**batch, pixel_values=pixels)
    expected.loss.backward()
    model = tiny_model(processor, text_config=shape, attention=backend).cuda()
    out = model(**{name: value.cuda() for name, value in batch.items()}, pixel_values=pixels.cuda())
    out.loss.backward()
    torch.testing.assert_close(out.logits.cpu(), expected.logits, atol=1e-4, rtol=1e-4)
    for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(parameter.grad.cpu(), other.grad, atol=1e-4, rtol=1e-3, msg=name)
