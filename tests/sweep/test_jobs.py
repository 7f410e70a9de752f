"""Locks between processes, the variables of a job, and the end of a job with all that it started."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest

from voco_llama.errors import SettingsError
from voco_llama.files import locked
from voco_llama.sweep import jobs
from voco_llama.sweep import run as run_module
from voco_llama.sweep.jobs import JobProcess, environment, terminated_as_interrupted
from voco_llama.sweep.run import LOCK_FILE, sweep
from voco_llama.sweep.settings import RowSettings

DEAD = 2**22 + 1
"""No process has this id: it is above the largest that Linux gives."""
HOLDER = """
import sys, time
from pathlib import Path
from voco_llama.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder():
    """A process that holds a lock."""
    held = []

    def hold(file):
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True)
        held.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in held:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
def test_a_folder_is_taken_by_one_sweep(run, holder, tmp_path, fake):
    (tmp_path / "runs").mkdir()
    process = holder(tmp_path / "runs" / LOCK_FILE)
    message = f"process {process.pid} is at work in {tmp_path}/runs .it holds {LOCK_FILE}.: wait for it, or stop it"
    with pytest.raises(SettingsError, match=message):
        run()
    assert fake.take() == []
    process.kill()
    process.wait()
    assert run()
    assert (tmp_path / "runs" / LOCK_FILE).read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("folder", ["runs", "results"])
def test_the_file_of_a_dead_process_is_taken_over(run, tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / LOCK_FILE).write_text(f"{DEAD}\n")
    assert run()


def test_a_row_is_taken_by_one_process(holder, settings, fake, tmp_path):
    """Left behind by a killed sweep, it may still be training."""
    (tmp_path / "runs/seed_0/toy").mkdir(parents=True)
    process = holder(tmp_path / "runs/seed_0/toy/.upper.lock")
    settings.job = "seed_0/upper"
    with pytest.raises(SettingsError, match=f"process {process.pid} is at work"):
        sweep(settings, [], fake.runners)


def test_two_locks_of_one_process(tmp_path):
    with locked(tmp_path / "a"), locked(tmp_path / "b"), pytest.raises(SettingsError), locked(tmp_path / "a"):
        pass
    with locked(tmp_path / "a"):
        pass


def test_environment(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")

    def variables(*args):
        found = environment(*args)
        return found["CUDA_VISIBLE_DEVICES"], found.get("OMP_NUM_THREADS")

    assert [variables(slot, 3, ["4", "6"]) for slot in range(3)] == [("4", None), ("6", None), ("4", None)]
    assert variables(0, 2, []) == ("4,6", "1")
    assert variables(0, 1, []) == ("4,6", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert variables(0, 2, []) == ("4,6", "3")


@pytest.mark.parametrize(
    ("named", "count", "expected"), [(None, 2, ["0", "1"]), ("4, 6", 2, ["4", "6"]), ("", 0, []), ("4,6", 0, [])]
)
def test_devices(monkeypatch, named, count, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert jobs.devices() == expected


CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


@pytest.fixture
def job(monkeypatch, tmp_path):
    """A job whose command is Python code."""

    def start(code):
        started = subprocess.Popen
        monkeypatch.setattr(
            jobs.subprocess, "Popen", lambda command, **options: started([sys.executable, "-c", code], **options)
        )
        process = JobProcess([], "seed_0/a", tmp_path / "logs/a.log", os.environ)
        monkeypatch.undo()
        return process

    return start


def test_a_failed_job_says_its_last_lines(job, tmp_path):
    process = job("import sys; print(*range(9), sep='\\n\\n'); print('error: x'); sys.exit(2)")
    words = ["    5", "    6", "    7", "    8", "    error: x", f"  more in {tmp_path}/logs/a.log"]
    assert process.failure() == ("status 2", "\n".join(words))
    assert job("print('again')").failure() is None
    assert (tmp_path / "logs/a.log").read_text().endswith("error: x\nagain\n")


def stopped(process):
    """How a job ended that was stopped while a thread waits for it, as in a sweep."""
    with ThreadPoolExecutor() as pool:
        future = pool.submit(process.failure)
        process.stop()
        process.wait()
        return future.result()[0]


def test_a_stopped_job_leaves_no_process(job):
    process = job(CHILD)
    parent = psutil.Process(process._process.pid)
    while not parent.children():
        time.sleep(0.02)
    (child,) = parent.children()
    assert stopped(process) == f"status {-signal.SIGTERM}"
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()


def test_a_job_that_does_not_stop_is_killed(job, monkeypatch):
    process = job(STUBBORN)
    time.sleep(0.3)
    monkeypatch.setattr(jobs, "STOP_SECONDS", 0.3)
    assert stopped(process) == f"status {-signal.SIGKILL}"


def test_an_interrupt_stops_all_that_run(settings, fake, monkeypatch):
    """Of three jobs side by side, one is interrupted while it starts."""
    events = []

    class Endless:
        def __init__(self, overrides, name, log, environment):
            if len(events) == 2:
                raise KeyboardInterrupt
            events.append(name)
            self.ended = threading.Event()

        def failure(self):
            self.ended.wait()

        def stop(self):
            events.append("stop")

        def wait(self):
            events.append("wait")
            self.ended.set()

    monkeypatch.setattr(run_module, "JobProcess", Endless)
    rows = {name: RowSettings(train=["experiment=toy/voco_4"]) for name in "abc"}
    with pytest.raises(KeyboardInterrupt):
        sweep(replace(settings, rows=rows, base=[], processes=3), [], fake.runners)
    assert events == ["seed_0/a", "seed_0/b", "stop", "stop", "wait", "wait"]


def test_termination_is_an_interrupt_within_the_sweep_only():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminated_as_interrupted():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
