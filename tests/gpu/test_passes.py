"""On a GPU: both passes on every backend give what the CPU's masked pass gives, and that in two steps never waits."""

import traceback
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.rows import random_images
from tests.model.test_forward import mixed_batch
from tests.tiny import tiny_model, tiny_processor, tiny_text_config
from voco_llama.layout import ROW_FIELDS, HostRows

pytestmark = [
    pytest.mark.gpu,
    # What torch's own compiler says while it compiles FlexAttention.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
]

BACKENDS = ["eager", "sdpa", "flex_attention"]
SHAPE = dict(hidden_size=64)  # 16 a head: the least that FlexAttention's kernel takes
CLOSE = 1e-4
"""Of the norm of a gradient or of the logits; eager and sdpa differ by 2e-6 on a CPU, and by 9e-6 from float64."""


def built(backend: str):
    processor = tiny_processor(order="inline")
    model = tiny_model(processor, text_config=tiny_text_config(**SHAPE), attention=backend)
    return model, mixed_batch(processor), processor.pixels(random_images(3))


def run(model, batch, pixels, two_steps: bool):
    device = model.device
    pixels = pixels.to(device, model.dtype)
    if two_steps:
        return model(rows=HostRows({name: batch[name] for name in ROW_FIELDS}), pixel_values=pixels, two_steps=True)
    return model(**{name: value.to(device) for name, value in batch.items()}, pixel_values=pixels)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach().float().cpu() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's compiler
@pytest.mark.parametrize("two_steps", [False, True], ids=["masked", "two_steps"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_and_gradients_equal_the_cpus_masked_pass(device, backend, two_steps):
    if backend == "flex_attention" and device.type == "cpu":
        pytest.skip("FlexAttention has no backward pass on a CPU")
    reference, batch, pixels = built("eager")
    expected = run(reference, batch, pixels, two_steps=False)
    expected.loss.backward()
    model = built(backend)[0].to(device)
    out = run(model, batch, pixels, two_steps)
    out.loss.backward()
    found = {"logits": difference(out.logits, expected.logits)}
    for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        if other.grad is not None and other.grad.any():
            found[name] = difference(parameter.grad, other.grad)
    far = {name: value for name, value in found.items() if not value < CLOSE}
    assert not far, far


@pytest.mark.parametrize("backend", [*BACKENDS, "flash_attention_2"])
def test_in_16_bits_two_steps_are_as_close_as_the_masked_pass(device, backend):
    if backend == "flash_attention_2" and find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    if backend == "flex_attention" and device.type == "cpu":
        pytest.skip("compiling it for a CPU takes 50 s")
    exact = run(*built("eager"), two_steps=False).logits
    model, batch, pixels = built(backend)
    model = model.to(device, torch.bfloat16)
    with torch.no_grad():
        two = difference(run(model, batch, pixels, two_steps=True).logits, exact)
        model.language_model.set_attn_implementation("sdpa")
        masked = difference(run(model, batch, pixels, two_steps=False).logits, exact)
    assert two < 2 * masked < 0.2, (two, masked)


class Watch(TorchDispatchMode):
    """Notes each operation that makes the host wait for the device, and the line of ours that it is called from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError as error:
            if "synchronizing CUDA operation" not in str(error):
                raise
        ours = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()[:-1]]
        ours = [line for line in ours if "voco_llama/" in line and "/tests/" not in line]
        self.seen.append(f"{func} at {ours[-1] if ours else 'backward'}")
        with waiting("default"):
            return func(*args, **(kwargs or {}))


@contextmanager
def waiting(mode: str):
    """What happens when the host waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_a_step_does_not_wait_for_the_device(device):
    """From rows on the host, forward and backward pass synchronize nowhere."""
    if device.type == "cpu":
        pytest.skip("only a CUDA device is waited for")
    model, batch, pixels = built("sdpa")
    model, pixels, trained = model.to(device).train(), pixels.to(device), torch.tensor(7.0).to(device)
    rows = HostRows({name: batch[name] for name in ROW_FIELDS})

    def step() -> None:
        model(rows=rows, pixel_values=pixels, two_steps=True, num_items_in_batch=trained).loss.backward()

    step()
    torch.cuda.synchronize()
    with waiting("error"), Watch() as watch, torch.autograd.set_multithreading_enabled(False):
        step()
    assert not watch.seen, watch.seen
