"""A short seeded training against a curve that is kept beside this file: whatever moves a loss has to say so.

Made again with `VOCO_WRITE_CURVE=1 pytest tests/training/test_loss_curve.py`, by who knows why it moved.
"""

import json
import os
from pathlib import Path

import pytest

from tests.training.conftest import losses

CURVE = Path(__file__).parent / "data" / "loss_curve.json"
STEPS = 20
"""Of 40: rounding differs between processors, and training makes more and more of it."""


def test_losses_are_the_kept_ones(upper, plain):
    curves = {"instruct": losses(upper.parent)[:STEPS], "voco_1": plain}
    if os.environ.get("VOCO_WRITE_CURVE"):
        CURVE.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(CURVE.read_text(encoding="utf-8"))
    for name, curve in curves.items():
        assert curve == pytest.approx(kept[name], rel=1e-4), name
