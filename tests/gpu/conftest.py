"""Tests that need a CUDA device: `pytest -m gpu`. Deselected by default, and by CI, which has none.

With `VOCO_GPU_TESTS=cpu` they run on the CPU, which finds all mistakes in them but those of a GPU.
"""

import os

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    name = os.environ.get("VOCO_GPU_TESTS", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(name)


@pytest.fixture(autouse=True)
def float32_is_float32():
    """Convolutions too, whose inputs a GPU rounds to 10 bits by default."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Kernels that are compiled come last: after one that reads out of bounds nothing runs in a process."""
    items.sort(key=lambda item: "flex_attention" in item.name)
