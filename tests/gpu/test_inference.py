"""On a GPU: images are compressed and questions answered as on the CPU."""

import pytest
import torch

from tests.model.rows import random_images
from tests.tiny import tiny_model, tiny_processor
from voco_llama.visibility import FACTS

pytestmark = pytest.mark.gpu

GREEDY = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False)


def asked(processor, device: torch.device) -> dict[str, torch.Tensor]:
    rows = processor(["What is <image>?", "<image>?"])
    return {name: rows[name].to(device) for name in ("input_ids", *FACTS)}


def test_what_is_compressed_is_the_cpus_cache_and_answers_as_it(device):
    processor = tiny_processor()
    pixels, reference = processor.pixels(random_images(2)), tiny_model(processor)
    expected = reference.compress(pixels)
    answers = reference.generate(**asked(processor, torch.device("cpu")), cache=expected, **GREEDY)
    model = tiny_model(processor).to(device)
    cache, rows = model.compress(pixels.to(device)), asked(processor, device)
    torch.testing.assert_close(cache.keys.cpu(), expected.keys, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cache.values.cpu(), expected.values, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.generate(**rows, cache=cache, **GREEDY).cpu(), answers)
    assert torch.equal(model.generate(**rows, pixel_values=pixels.to(device), **GREEDY).cpu(), answers)


def test_in_16_bits_too(device):
    processor = tiny_processor()
    pixels = processor.pixels(random_images(2)).to(device)
    exact = tiny_model(processor).compress(pixels.cpu()).keys
    model = tiny_model(processor).to(device, torch.bfloat16)
    cache = model.compress(pixels.bfloat16())
    assert (cache.keys.float().cpu() - exact).norm() < 0.05 * exact.norm()
    assert model.generate(**asked(processor, device), cache=cache, **GREEDY).shape == (2, 5)


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
def test_entries_of_unequal_numbers_answer_as_on_the_cpu(device, backend):
    if backend == "flex_attention" and device.type == "cpu":
        pytest.skip("compiling it for a CPU takes 50 s")
    processor = tiny_processor(num_voco=4, order="inline")
    pixels, numbers = processor.pixels(random_images(3)), [3, 1, 4]
    rows = processor(["Is <image> left of <image>?", "<image>?"], num_voco=numbers)
    rows = {name: rows[name] for name in ("input_ids", *FACTS)}
    reference = tiny_model(processor)
    expected = reference.generate(**rows, cache=reference.compress(pixels, numbers), **GREEDY)
    model = tiny_model(processor, attention=backend).to(device)
    cache = model.compress(pixels.to(device), 4).truncate(numbers)
    moved = {name: values.to(device) for name, values in rows.items()}
    assert torch.equal(model.generate(**moved, cache=cache, **GREEDY).cpu(), expected)
    assert torch.equal(model.generate(**moved, cache=cache[[0, 1, 2]].to(device), **GREEDY).cpu(), expected)
