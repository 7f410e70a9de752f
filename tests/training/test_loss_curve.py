"""Two short seeded trainings against the curves that are kept beside this file: whatever moves a loss has to say so.

Made again by `VOCO_WRITE_CURVE=1 pytest tests/training/test_loss_curve.py`, once it is known why they moved. Other
instruction sets and numbers of threads move the losses by 2e-7; a learning rate 0.1 % higher by 5e-4, Muon's momentum
0.1 % higher by 3e-5.
"""

import json
import os
from pathlib import Path

import pytest

from tests.training.conftest import losses

CURVES = Path(__file__).parent / "data" / "loss_curve.json"


@pytest.mark.parametrize("name", ["instruct", "voco_1"])
def test_losses_are_the_kept_ones(name, upper, plain):
    curve = {"instruct": losses(upper.parent), "voco_1": plain}[name]
    kept = json.loads(CURVES.read_text(encoding="utf-8"))
    if os.environ.get("VOCO_WRITE_CURVE"):
        CURVES.write_text(json.dumps(kept | {name: curve}, indent=1) + "\n", encoding="utf-8")
    else:
        assert curve == pytest.approx(kept[name], rel=1e-5)
