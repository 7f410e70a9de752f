"""On a GPU: trainings from settings to a saved model (bf16, LoRA, ZeRO-3), and whether a step fits the estimate."""

import math
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.training.conftest import losses, one_thread, settings_in, world
from voco_llama.bench.settings import BenchSettings, ShapeSettings
from voco_llama.bench.shape import build_model, images, rows
from voco_llama.preflight.memory import Decoder, Pass, Plan, Tower, estimate
from voco_llama.preflight.plan import parameter_groups
from voco_llama.training.run import train

__all__ = ["one_thread", "world"]

pytestmark = pytest.mark.gpu

STEPS = 3
IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from tests.training.conftest import settings_in
from voco_llama.training.run import train
train(settings_in(Path(sys.argv[1]), Path(sys.argv[2]), "toy/voco_1", *sys.argv[3:]))
"""


def on(device: torch.device, *more: str) -> list[str]:
    """Overrides: mixed precision where there is a GPU."""
    is_cpu = device.type == "cpu"
    precision = [f"trainer.use_cpu={str(is_cpu).lower()}", f"trainer.bf16={str(not is_cpu).lower()}"]
    common = ["optimizer=trainer", "trainer.dataloader_num_workers=0", f"trainer.max_steps={STEPS}"]
    return [*more, *precision, *common]


def check(found: list[float], expected: list[float]) -> None:
    assert len(found) == STEPS
    assert found == pytest.approx(expected, rel=0.03)


@pytest.fixture(scope="module")
def start(world, tmp_path_factory) -> Path:
    """A checkpoint, since ZeRO-3 begins with one, made on the CPU."""
    folder = tmp_path_factory.mktemp("start")
    train(settings_in(world, folder, "toy/voco_1", *on(torch.device("cpu")), "trainer.max_steps=1"))
    return folder / "final"


@pytest.fixture(scope="module")
def expected(world, start, tmp_path_factory) -> list[float]:
    """The loss curve on the CPU, in float32 and one masked pass."""
    folder = tmp_path_factory.mktemp("expected")
    overrides = [f"model.checkpoint={start}", "two_steps=false"]
    train(settings_in(world, folder, "toy/voco_1", *on(torch.device("cpu")), *overrides))
    return losses(folder)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_a_training_has_the_curve_of_the_cpu(device, world, start, expected, tmp_path, checkpointing):
    trainer = f"trainer.gradient_checkpointing={str(checkpointing).lower()}"
    train(settings_in(world, tmp_path, "toy/voco_1", *on(device, trainer), f"model.checkpoint={start}"))
    check(losses(tmp_path), expected)


def test_adapters_train(device, world, start, expected, tmp_path):
    pytest.importorskip("peft")
    settings = settings_in(world, tmp_path, "toy/voco_1", *on(device), f"model.checkpoint={start}", "model.lora.rank=4")
    train(settings)
    assert losses(tmp_path)[0] == pytest.approx(expected[0], rel=0.03)  # they start as the identity
    assert all(math.isfinite(loss) for loss in losses(tmp_path))


def test_zero_3_in_one_process_has_the_curve_too(device, world, start, expected, tmp_path):
    if find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    overrides = [*on(device, "trainer=zero3"), f"model.checkpoint={start}"]
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, str(world), str(tmp_path), *overrides],
        env=os.environ | ranks,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    check(losses(tmp_path), expected)


SIZES = dict(vocabulary=32000, image_size=336, patch_size=14, tower_width=1024, tower_layers=6)
ROWS, TEXT = 4, 512


@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "plain"])
def test_a_step_takes_the_memory_that_was_estimated(device, checkpointing):
    """0.4 billion weights in float32, computed in bf16, AdamW: between 0.8 and 1.1 of the estimate."""
    is_cpu = device.type == "cpu"  # which counts nothing: then this only shows that it runs
    shape = ShapeSettings(
        **(SIZES | dict(hidden=2048, layers=6, heads=16, inner=5504))
        if not is_cpu
        else dict(hidden=32, layers=2, heads=4, inner=64, vocabulary=64, image_size=16, patch_size=8, tower_width=16,
                  tower_layers=2)
    )  # fmt: skip
    model = build_model(BenchSettings(Path(), shape, device=str(device), dtype="float32"))
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    batch = {name: field.to(device) for name, field in rows(model, [TEXT] * ROWS, 1).items()}
    pixels = images(model, ROWS)
    for _ in range(2):  # from the second one on, the optimizer's moments are there
        if not is_cpu:
            torch.cuda.reset_peak_memory_stats()
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(**batch, pixel_values=pixels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.isfinite(loss)
    text, config = model.language_model.config, model.config
    decoder = Decoder(shape.hidden, shape.inner, shape.layers, shape.heads, shape.heads, shape.hidden // shape.heads,
                      text.vocab_size)  # fmt: skip
    tower = Tower(shape.tower_width, config.num_vision_tokens + 1, config.image_size)
    length, labels = batch["input_ids"].shape[1], int((batch["labels"] >= 0).sum())
    work = Pass(ROWS, length, ROWS, labels, checkpointing=checkpointing)
    found = estimate(Plan(parameter_groups(model), decoder, tower, work))
    if not is_cpu:
        said = found.peak - found.of("CUDA context")
        allocated = torch.cuda.max_memory_allocated()
        assert 0.8 < allocated / said < 1.1, {term.name: term.bytes for term in found.terms} | {"allocated": allocated}
