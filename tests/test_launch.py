"""Launching: how a global batch divides is said before anything starts; a Slurm job comes back where it should."""

import signal
import subprocess

import pytest

from scripts import launch
from tests.slurm import ROOT, FakeJob
from voco_llama.errors import SettingsError

pytestmark = pytest.mark.slow  # shells and processes


def test_the_global_batch_is_that_of_all_processes():
    command = ["train", "experiment=voco_1", "trainer.per_device_train_batch_size=2"]
    assert launch.global_batch(command, 64) == "128 rows = 64 processes x 2 rows x 1 accumulated"
    assert launch.global_batch(["evaluate"], 8) is None
    with pytest.raises(SettingsError, match="global_batch_size is 128, which 6 processes of 2 rows do not divide"):
        launch.global_batch(command, 6)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["8"], "a command"),
        (["0", "train"], "from 1 on"),
        (["--nodes", "2", "8", "train"], "several machines need --rendezvous HOST:PORT"),
        (["eight", "train"], "invalid int value"),
    ],
)
def test_mistakes_in_the_options(arguments, text, capsys):
    with pytest.raises(SystemExit) as left:
        launch.read_options(arguments)
    assert left.value.code == launch.MISTAKE
    assert text in capsys.readouterr().err


def test_options_come_from_the_environment_too(monkeypatch):
    monkeypatch.setenv("VOCO_NODES", "2")
    monkeypatch.setenv("VOCO_RENDEZVOUS", "host:29500")
    options = launch.read_options(["--max-restarts", "3", "8", "train", "--config-dir", "mine", "~x", "+a=1"])
    assert (options.nodes, options.rendezvous, options.max_restarts) == (2, "host:29500", 3)
    assert options.command == ["train", "--config-dir", "mine", "~x", "+a=1"]


def test_the_script_works_from_any_folder(tmp_path):
    """And says a user's mistake in one line, before it starts a process."""
    script = ROOT / "scripts" / "launch"
    command = [str(script), "--nodes", "2", "--rendezvous", "localhost:1", "3", "train", "experiment=voco_1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: global_batch_size is 128, which 6 processes of 8 rows do not divide")
    assert done.stderr.count("\n") == 1


def test_a_job_starts_a_process_for_each_gpu(tmp_path):
    assert FakeJob(tmp_path, "0").end()[:2] == (0, [])
    for rank in range(2):
        facts = f"{rank} {rank} 2 1 node-a {20000 + 4711} -m voco_llama.cli train experiment=voco_1"
        assert (tmp_path / f"started_{rank}").read_text().strip() == facts
    assert (tmp_path / "batch").read_text().strip() == "train experiment=voco_1"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 138), (signal.SIGTERM, 143)])
def test_a_preempted_job_hands_the_signal_on_waits_and_is_queued_again_once(tmp_path, number, status):
    job = FakeJob(tmp_path, "waits")
    job.signal(number)
    ended, requeued, said = job.end()
    assert (ended, requeued) == (status, ["4711 after 2"])
    assert f"status {status}: queued again" in said


@pytest.mark.parametrize(
    ("training", "more", "requeued"),
    [
        ("0", {}, 0),
        ("1", {}, 0),
        ("2", {}, 0),
        ("75", {}, 1),
        ("137", {}, 1),
        ("138", {}, 1),
        ("143", {}, 1),
        ("143", {"state": "CANCELLED"}, 0),
        ("138", {"state": "COMPLETING"}, 0),
        ("138", {"SLURM_RESTART_COUNT": "2", "VOCO_MAX_REQUEUES": "3"}, 1),
        ("138", {"SLURM_RESTART_COUNT": "3", "VOCO_MAX_REQUEUES": "3"}, 0),
    ],
)
def test_a_job_is_queued_again_where_that_helps(tmp_path, training, more, requeued):
    ended, found, _ = FakeJob(tmp_path, training, **more).end()
    assert (ended, len(found)) == (int(training), requeued)


def test_a_job_that_makes_no_checkpoint_comes_back_once(tmp_path):
    """A mistake or a full disk that only some processes tell is no lost process."""
    run = tmp_path / "run"
    assert len(FakeJob(tmp_path, "75").end()[1]) == 1
    _, requeued, said = FakeJob(tmp_path, "75").end()
    assert len(requeued) == 1
    assert "no new checkpoint since it came back: not queued again" in said
    assert len(FakeJob(tmp_path, "75", SLURM_JOB_ID="4712").end()[1]) == 2
    for count, step in enumerate((9, 10), 3):
        (run / f"checkpoint-{step}").mkdir()
        assert len(FakeJob(tmp_path, "137").end()[1]) == count
    assert len(FakeJob(tmp_path, "75").end()[1]) == 4


def test_a_preempted_job_comes_back_without_a_new_checkpoint_too(tmp_path):
    FakeJob(tmp_path, "75").end()
    for count in (2, 3):
        for started in tmp_path.glob("started_*"):
            started.unlink()
        job = FakeJob(tmp_path, "waits")
        job.signal(signal.SIGUSR1)
        assert len(job.end()[1]) == count


def test_the_folder_of_a_run_is_on_the_output(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["launch", "--batch", "8", "train", "experiment=voco_1", "output_dir=there"])
    assert launch.main() == 0
    assert capsys.readouterr().out == "there\n"


def test_a_job_whose_batch_does_not_divide_starts_nothing(tmp_path):
    assert FakeJob(tmp_path, "0", batch=2).end()[:2] == (2, [])
    assert not list(tmp_path.glob("started_*"))


def test_a_mistake_of_the_settings_is_told_before_processes_are_started(monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv",
        [
            "launch",
            "2",
            "train",
            "experiment=toy/voco_1",
            "optimizer=muon",
            "trainer=zero2",
            "trainer.dataloader_num_workers=0",
        ],
    )
    monkeypatch.setattr(launch, "run", lambda options: pytest.fail("started"))
    assert launch.main() == 2
    assert "error: optimizer=muon needs whole matrices" in capsys.readouterr().err
