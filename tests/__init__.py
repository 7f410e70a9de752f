"""Tests. The package is imported first: it makes torchvision importable beside a CPU-only torch."""

import voco_llama  # noqa: F401
