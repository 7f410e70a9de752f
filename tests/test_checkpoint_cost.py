"""The script that measures what a checkpoint costs runs, at a size that says nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "checkpoint_cost.py"


@pytest.mark.slow
def test_what_a_checkpoint_costs_is_measured(tmp_path):
    small = ["--millions", "4", "--checkpoints", "2", "--every", "1", "--rows", "1", "--cpu", "--folder", str(tmp_path)]
    done = subprocess.run([sys.executable, SCRIPT, *small], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [each["name"] for each in found] == ["waiting", "thread"]
    assert all(each["gigabytes"] == pytest.approx(0.05, rel=0.01) for each in found)
    assert not list(tmp_path.iterdir())
