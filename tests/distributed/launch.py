"""Starting the processes of a distributed test, and reading what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = 8
KILLED = 17  # exit status by which worker.py dies


def run(processes: int, overrides: list[str], kill_at: int = -1) -> int:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, str(Path(__file__).parent / "worker.py"), str(kill_at), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    if kill_at < 0:
        assert done.returncode == 0, done.stderr[-4000:]
    else:
        assert str(KILLED) in done.stderr, done.stderr[-4000:]
    return done.returncode


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((folder / "result.json").read_text())["loss_curve"]]
