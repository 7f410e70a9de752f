"""`scripts/launch`: two machines that are one, exit statuses, signals, and a new start."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.distributed.launch import ENVIRONMENT, STEPS, TIME_LIMIT, losses, run
from tests.slurm import ROOT
from voco_llama.training.checkpoints import last_whole

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STAND_IN = """
import os, pathlib, signal, sys, time
rank, count, what = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], sys.argv[-1]
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(138))
pathlib.Path(f"started_{rank}_{count}").touch()
if rank == "1" and what == "lost" and count == "0":
    os.kill(os.getpid(), signal.SIGKILL)
if rank == "1" and what == "mistaken":
    sys.exit(2)
if what in ("lost", "done") and count == "1":
    sys.exit(0)
time.sleep(60)
"""
"""Of a training; its last word says how it ends."""


def starting(*options: str, folder=None, stand_in: bool = False) -> subprocess.Popen:
    """`scripts/launch`, or it with another program in place of ours, whose settings are not looked at."""
    begin = [str(ROOT / "scripts" / "launch")]
    if stand_in:
        code = f"import sys; from scripts import launch; launch.PROGRAM = ('-c', {STAND_IN!r})"
        begin = [sys.executable, "-c", f"{code}; sys.exit(launch.run(launch.read_options()))"]
    return subprocess.Popen(
        [*begin, *options], cwd=folder, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )


def ended(launcher: subprocess.Popen) -> tuple[int, str]:
    _, said = launcher.communicate(timeout=TIME_LIMIT)
    return launcher.returncode, said


def wait_until(holds) -> None:
    deadline = time.monotonic() + TIME_LIMIT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def test_two_machines_give_the_curve_of_one_process(overrides, start):
    one, by_one = overrides("machine", 1, start=start)
    run(1, one)
    two, by_two = overrides("machines", 2, start=start)
    meeting = ("--nodes", "2", "--rendezvous", f"localhost:{free_port()}")
    launchers = [starting(*meeting, "1", "train", *two, folder=by_one) for _ in range(2)]
    for status, said in map(ended, launchers):
        assert status == 0, said[-4000:]
        assert "global batch: 8 rows = 2 processes x 4 rows x 1 accumulated" in said
    np.testing.assert_allclose(losses(by_two), losses(by_one), rtol=1e-4)


def test_a_signal_to_one_machine_ends_both_with_a_checkpoint(overrides, start):
    settings, folder = overrides("preempted", 2, "trainer.max_steps=5000", start=start)
    settings.remove(f"trainer.max_steps={STEPS}")
    meeting = ("--nodes", "2", "--rendezvous", f"localhost:{free_port()}", "--max-restarts", "1")
    launchers = [starting(*meeting, "1", "train", *settings) for _ in range(2)]
    wait_until(lambda: (folder / "metrics.jsonl").is_file())
    launchers[1].send_signal(signal.SIGUSR1)
    for status, said in map(ended, launchers):
        assert status == 138, said[-4000:]
    assert last_whole(folder).name.startswith("checkpoint-")


@pytest.mark.parametrize(
    ("what", "options", "status", "starts"),
    [
        ("mistaken", ("--max-restarts", "2"), 2, 1),
        ("lost", (), 128 + signal.SIGKILL, 1),
        ("lost", ("--max-restarts", "1"), 0, 2),
    ],
)
def test_the_status_is_that_of_the_process_that_failed_and_only_a_loss_begins_again(
    tmp_path, what, options, status, starts
):
    found, said = ended(starting(*options, "2", what, folder=tmp_path, stand_in=True))
    assert found == status, said[-4000:]
    assert len(list(tmp_path.glob("started_1_*"))) == starts


def test_a_signal_reaches_every_process_and_ends_the_launcher_with_its_status(tmp_path):
    meeting = ("--nodes", "2", "--rendezvous", f"localhost:{free_port()}", "--max-restarts", "2")
    launchers = [starting(*meeting, "2", "waits", folder=tmp_path, stand_in=True) for _ in range(2)]
    wait_until(lambda: len(list(tmp_path.glob("started_*"))) == 4)
    for launcher in launchers:
        launcher.send_signal(signal.SIGUSR1)
    assert [ended(launcher)[0] for launcher in launchers] == [138, 138]
    assert len(list(tmp_path.glob("started_*"))) == 4
