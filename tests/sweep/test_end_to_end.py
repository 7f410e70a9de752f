"""Real sweeps on a world of a few scenes: processes that train for two steps, and are stopped in the midst of more.

What can be shown without the imports of further processes (10 s each) is shown by sweeps in this one.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from tests.training.conftest import WORLD
from voco_llama.cli import main

pytestmark = pytest.mark.slow

TRAIN = [
    "stage=voco",
    "prompt=no_system",
    "trainer=cpu",
    "data.keep_in_memory=true",
    "model.vision.name=${paths.toyworld}/clip/tiny_clip.json",
    "trainer.per_device_train_batch_size=4",
    "trainer.save_steps=2",
    "trainer.report_to=none",
]
FEW = ["trainer.max_steps=2"]
LONG_ENOUGH_TO_BE_STOPPED = ["trainer.max_steps=100000"]


def listed(values) -> str:
    """A list of strings as Hydra reads it; `${...}` is left to the command that gets it."""
    return "[" + ",".join(json.dumps(value).replace("${", r"\${") for value in values) + "]"


def overrides(root: Path, *more: str) -> list[str]:
    world = listed(["toyworld", *(f"{key}={value}" for key, value in asdict(WORLD).items() if key != "seed")])
    two = f"{{train:{listed(['compression=voco_2', *TRAIN])},evaluate:{{voco_2:[],voco_2_at_1:['num_voco=1']}}}}"
    return [
        f"runs={root}/runs",
        f"results={root}/results",
        f"base=[{world}]",
        f"++rows={{voco_1:{{train:{listed(['compression=voco_1', *TRAIN])}}},voco_2:{two}}}",
        "evaluate=['tasks=[\"gqa\",\"pope\"]','batch_size=8','max_new_tokens=4','device=cpu']",
        *more,
    ]


@pytest.fixture
def sweep():
    """Starts sweeps; what still runs at the end is stopped."""
    started = []

    def start(root: Path, *more: str) -> subprocess.Popen:
        started.append(_started(root, *more))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait()
        process.stdout.close()


@pytest.fixture
def swept(capsys, caplog):
    """Runs a sweep in this process; its exit status, and what it says."""

    def run(root: Path, *more: str) -> tuple[int, str]:
        caplog.clear()
        status = main(["sweep", *overrides(root, *more), "processes=0"])
        return status, caplog.text + capsys.readouterr().out

    return run


def _started(root: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "voco_llama.cli", "sweep", *overrides(root, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen) -> tuple[int, str]:
    text, _ = process.communicate(timeout=300)
    return process.returncode, text


def starts(text: str) -> list[str]:
    return [line.partition(": starts (")[0].split()[-1] for line in text.splitlines() if ": starts (" in line]


def test_each_row_once_whatever_fails_or_is_missing(sweep, swept, tmp_path):
    few = f"overrides={listed(FEW)}"
    broken = listed(["compression=voco_1", *TRAIN, "trainer.per_device_train_batch_size=1000"])
    status, text = finished(sweep(tmp_path, few, "processes=2", f"rows.voco_1.train={broken}"))
    assert status == 2
    assert starts(text) == ["seed_0/base", "seed_0/voco_1", "seed_0/voco_2"]
    assert "seed_0/voco_1: FAILED after" in text
    assert "    error: the data set has " in text
    assert f"  more in {tmp_path}/runs/seed_0/logs/voco_1.log" in text
    assert text.splitlines()[-1] == (
        "error: 1 of 3 jobs failed: seed_0/voco_1 (status 2): the same command tries them again"
    )

    status, text = swept(tmp_path, few)
    assert status == 0, text
    assert starts(text) == ["seed_0/voco_1"]
    results = tmp_path / "results/seed_0"
    made = {file.name: json.loads(file.read_text()) for file in results.glob("*.benchmarks.json")}
    assert {name: result["num_voco"] for name, result in made.items()} == {
        "voco_1.benchmarks.json": 1,
        "voco_2.benchmarks.json": 2,
        "voco_2_at_1.benchmarks.json": 1,
    }
    two = made["voco_2.benchmarks.json"]
    assert two["checkpoint_fingerprint"] == made["voco_2_at_1.benchmarks.json"]["checkpoint_fingerprint"]
    assert "trained:" in (tmp_path / "runs/seed_0/logs/voco_2.log").read_text()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if not file.name.startswith(".")}

    status, text = swept(tmp_path, few)
    assert (status, starts(text)) == (0, [])
    assert text.endswith(f"2 rows: 2 were finished, 0 made in 0s; results in {tmp_path}/results\n")
    after = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if not file.name.startswith(".")}
    assert after == before

    removed = results / "voco_2_at_1.benchmarks.json"
    removed.unlink()
    status, text = swept(tmp_path, few)
    assert (status, starts(text)) == (0, ["seed_0/voco_2"])
    written = {file.name for file in results.iterdir() if file.stat().st_mtime_ns != before.get(file)}
    assert written - {".sweep.lock"} == {
        "voco_2_at_1.benchmarks.json", "voco_2_at_1.benchmarks.answers.jsonl", "voco_2.sweep.json", "base.sweep.json"
    }  # fmt: skip
    assert (tmp_path / "runs/seed_0/voco_2/result.json").stat().st_mtime_ns == before[
        tmp_path / "runs/seed_0/voco_2/result.json"
    ]


def test_a_stopped_sweep_leaves_no_process_and_goes_on(sweep, tmp_path):
    long = f"overrides={listed(LONG_ENOUGH_TO_BE_STOPPED)}"
    process = sweep(tmp_path, long, "only=[voco_1]")
    run = tmp_path / "runs/seed_0/voco_1"
    deadline = time.monotonic() + 240
    while not list(run.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGTERM)
    status, text = finished(process)
    assert status == 130
    assert text.endswith("interrupted: the same command again goes on from what is finished and saved\n")
    assert not [child for child in children if child.is_running()]

    reached = max(int(file.name.partition("-")[2]) for file in run.glob("checkpoint-*"))
    process = sweep(tmp_path, long, "only=[voco_1]")
    log = tmp_path / "runs/seed_0/logs/voco_1.log"
    while f"going on from {run}/checkpoint-" not in log.read_text():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert finished(process)[0] == 130
    assert reached >= 2
