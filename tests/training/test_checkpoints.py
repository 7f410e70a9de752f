"""Runs that were cut off anywhere, torn checkpoints, one process a folder, and a disk that takes nothing more."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Trainer

from tests.training.conftest import losses, settings_in
from voco_llama.errors import SettingsError
from voco_llama.files import locked
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.training import run as run_module
from voco_llama.training.checkpoints import UNFINISHED, damage, publish
from voco_llama.training.manifest import MANIFEST_FILE, SIZES_FILE, Manifest
from voco_llama.training.run import train
from voco_llama.training.run_files import by_step
from voco_llama.training.run_folder import LOCK_FILE, RunFolder
from voco_llama.training.trainer import VoCoTrainer

STEPS = ("trainer.max_steps=6", "trainer.save_strategy=steps", "trainer.save_steps=2", "trainer.save_total_limit=2")


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


@contextmanager
def killed_in(owner, name: str, call: int):
    """The `call`-th call of a method, from 1, is where the kill comes: after what the method does."""
    method, calls = getattr(owner, name), []

    def dies(*args, **kwargs):
        result = method(*args, **kwargs)
        calls.append(None)
        if len(calls) == call:
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dies)
        try:
            yield
        except Killed:
            return
    raise AssertionError(f"{name} was not called so often")


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Path:
    """A run of six steps, uninterrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(settings_in(world, run, "toy/voco_1", *STEPS))
    return run


@pytest.fixture(scope="module")
def cut(world, tmp_path_factory) -> Path:
    """The same, killed after step 5: it has checkpoints 2 and 4."""
    run = tmp_path_factory.mktemp("cut") / "run"
    with killed_in(VoCoTrainer, "training_step", 5):
        train(settings_in(world, run, "toy/voco_1", *STEPS))
    return run


@pytest.fixture
def settings(settings_for):
    return settings_for("toy/voco_1", *STEPS)


@pytest.fixture
def folder(cut, settings) -> Path:
    """This test's copy of `cut`."""
    return Path(shutil.copytree(cut, settings.output_dir))


def same_end(run: Path, whole: Path) -> bool:
    weights = [(each / "final" / "model.safetensors").read_bytes() for each in (run, whole)]
    return losses(run) == losses(whole) and weights[0] == weights[1]


def shorten(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


TORN = {
    "model.safetensors": shorten,
    "optimizer.pt": lambda file: file.write_bytes(b""),
    "scheduler.pt": Path.unlink,
    "rng_state.pth": Path.unlink,
    "trainer_state.json": shorten,
    "config.json": None,  # without a list of files nobody misses it
}


def age(checkpoint: Path, has_sizes: bool) -> None:
    """As it was before there were manifests, or even sizes."""
    files = json.loads((checkpoint / MANIFEST_FILE).read_text())["files"]
    (checkpoint / MANIFEST_FILE).unlink()
    if has_sizes:
        (checkpoint / SIZES_FILE).write_text(json.dumps({name: entry["bytes"] for name, entry in files.items()}))


@pytest.mark.parametrize("listed", ["manifest", "sizes", "nothing"])
@pytest.mark.parametrize("name", TORN)
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(folder, settings, name, listed, caplog):
    last = folder / "checkpoint-4"
    assert damage(last) is None
    if listed != "manifest":
        for checkpoint in folder.glob("checkpoint-*"):
            age(checkpoint, has_sizes=listed == "sizes")
    assert RunFolder(settings).checkpoint() == last
    (TORN[name] or Path.unlink)(last / name)
    if listed == "nothing" and TORN[name] is None:
        return
    assert RunFolder(settings).checkpoint() == folder / "checkpoint-2"
    assert "checkpoint-4 was not written to its end, or is damaged (" in caplog.text
    assert name.partition(".")[0] in caplog.text
    settings.resume = str(last)
    with pytest.raises(SettingsError, match=r"^resume=\S+checkpoint-4 is damaged \(.+\): name another checkpoint"):
        RunFolder(settings).checkpoint()
    (folder / "checkpoint-2" / "model.safetensors").write_bytes(b"")
    settings.resume = "auto"
    assert RunFolder(settings).checkpoint() is None
    assert "has no whole checkpoint: the training starts anew" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_flipped_bit_is_found_and_passed_over(folder, settings, name, caplog, whole):
    """Nothing but its hash tells it: the file has its size and opens."""
    file = folder / "checkpoint-4" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert damage(folder / "checkpoint-4") is None
    assert RunFolder(settings).checkpoint() == folder / "checkpoint-2"
    (line,) = caplog.messages
    assert line.endswith(
        f"checkpoint-4 was not written to its end, or is damaged ({name} is not what was written): passed over"
    )
    settings.resume = str(folder / "checkpoint-4")
    with pytest.raises(SettingsError, match=rf"^resume=\S+checkpoint-4 is damaged \({name} is not what was written\)"):
        RunFolder(settings).checkpoint()
    settings.resume = "auto"
    train(settings)
    assert same_end(folder, whole)


def test_a_manifest_says_what_made_a_checkpoint_and_where_it_stands(cut):
    """42 rows make 5 steps of 8, the last two rows dropped: step 4 is in the first epoch."""
    text = json.loads((cut / "checkpoint-4" / MANIFEST_FILE).read_text())
    assert (text["version"], text["step"], text["position"]) == (1, 4, {"epoch": 0, "rows": 32})
    origin = text["origin"]
    assert (origin["backend"], origin["rows_an_epoch"], origin["seed"]) == ("PyTorch", 40, 0)
    assert origin["batch"] == {"processes": 1, "rows": 8, "accumulation": 1, "drop_last": True}
    assert origin["versions"]["torch"]
    assert len(origin["settings"]) == 64
    there = {path.relative_to(cut / "checkpoint-4").as_posix() for path in (cut / "checkpoint-4").rglob("*")}
    assert there == text["files"].keys() | {MANIFEST_FILE}
    assert Manifest.read(cut / "checkpoint-4").position() == text["position"]


MANIFESTS = ["{}", "[]", '{"version": 2}', '{"version": 1, "origin": 3}', "[" * 100_000]


@pytest.mark.parametrize("content", MANIFESTS)
def test_a_manifest_that_is_none_is_passed_over(folder, settings, content, caplog):
    (folder / "checkpoint-4" / MANIFEST_FILE).write_text(content)
    assert RunFolder(settings).checkpoint() == folder / "checkpoint-2"
    assert MANIFEST_FILE in caplog.text


@pytest.mark.parametrize("name", [*TORN, "manifest.json"])
def test_a_checkpoint_of_zeros_is_passed_over(folder, settings, name, caplog):
    file = folder / "checkpoint-4" / name
    file.write_bytes(bytes(file.stat().st_size))
    assert RunFolder(settings).checkpoint() == folder / "checkpoint-2"
    assert name in caplog.text
    assert "weights_only" not in caplog.text


@pytest.mark.parametrize("state", ["{}", '{"global_step": "4"}', '{"global_step": 2}', "[" * 100_000])
def test_a_state_that_is_not_of_its_step_is_passed_over(folder, settings, state):
    age(folder / "checkpoint-4", has_sizes=False)
    (folder / "checkpoint-4" / "trainer_state.json").write_text(state)
    assert RunFolder(settings).checkpoint() == folder / "checkpoint-2"


def test_the_run_goes_on_from_the_one_before_to_the_same_weights(folder, settings, whole):
    shorten(folder / "checkpoint-4" / "model.safetensors")
    train(settings)
    assert same_end(folder, whole)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert damage(folder / "checkpoint-4") is None


MOMENTS = {
    "in a checkpoint, weights written": (Trainer, "_save", 2),
    "in a checkpoint, all but its state": (Trainer, "_save_rng_state", 2),
    "before a checkpoint gets its name": (Manifest, "write", 2),
    "in the model that is trained": (VoCoLlama, "save_pretrained", 4),
    "before the model gets its name": (run_module, "write_card", 1),
    "before the result": (RunFolder, "place_final", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment_leaves_nothing_half_written(settings, whole, moment):
    with killed_in(*MOMENTS[moment]):
        train(settings)
    run = Path(settings.output_dir)
    assert (run / UNFINISHED).exists() == (moment != "before the result")
    assert all(damage(path) is None for path in run.glob("checkpoint-*"))
    assert not (run / "final").exists() or moment == "before the result"
    train(settings)
    assert same_end(run, whole)
    assert not (run / UNFINISHED).exists()


@pytest.mark.parametrize("name", ["result.json", "environment.json"])
@pytest.mark.parametrize("content", ["", '{"stage": '])
def test_a_torn_file_of_a_finished_run_is_written_again(whole, settings, name, content):
    run = Path(shutil.copytree(whole, settings.output_dir))
    (run / name).write_text(content)
    (run / "result.json").write_text(content)
    train(settings)
    assert same_end(run, whole)
    assert json.loads((run / "environment.json").read_text())[-1]["seed"] == 0


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"stage": "voco"}'])
def test_a_result_that_is_none_or_has_no_model_is_no_end(whole, settings, content):
    run = Path(shutil.copytree(whole, settings.output_dir))
    assert RunFolder(settings).is_finished()
    if content[0] == "{":
        shutil.rmtree(run / "final")
    (run / "result.json").write_text(content)
    (run / "environment.json").write_text(content)
    assert not RunFolder(settings).is_finished()
    assert RunFolder(settings).starts() == []


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"- 1", b"a: ["])
def test_torn_settings_are_one_line(folder, settings, content):
    (folder / "settings.yaml").write_bytes(content)
    with pytest.raises(
        SettingsError, match=r"settings.yaml: cannot be read \(.+\): choose another output_dir"
    ) as caught:
        train(settings)
    assert "\n" not in str(caught.value)


def test_a_folder_in_which_nothing_was_trained_is_no_run(settings, settings_for):
    with killed_in(RunFolder, "begin", 1):
        train(settings)
    assert not RunFolder(settings_for("toy/voco_1", *STEPS, "seed=1")).is_finished()
    assert not RunFolder(settings_for("toy/voco_1", *STEPS, "resume=never")).is_finished()


def test_as_many_whole_checkpoints_stay_as_are_wanted(folder, cut):
    manifest = Manifest.read(cut / "checkpoint-2")

    def published(step: int, keep: int | None) -> list[str]:
        """The checkpoints that are there then."""
        aside = folder / UNFINISHED / f"checkpoint-{step}"
        shutil.copytree(cut / "checkpoint-2", aside, ignore=shutil.ignore_patterns(MANIFEST_FILE))
        state = aside / "trainer_state.json"
        state.write_text(json.dumps(json.loads(state.read_text()) | {"global_step": step}))
        publish(folder, aside.name, replace(manifest, step=step), keep)
        return sorted(path.name for path in folder.glob("checkpoint-*"))

    shorten(folder / "checkpoint-4" / "optimizer.pt")
    assert published(3, 2) == ["checkpoint-2", "checkpoint-3"]  # below a torn one, whose time of writing is later
    assert published(3, None) == ["checkpoint-2", "checkpoint-3"]
    assert published(9, 3) == ["checkpoint-2", "checkpoint-3", "checkpoint-9"]
    assert published(5, 3) == ["checkpoint-2", "checkpoint-3", "checkpoint-5"]  # the training that wrote 9 is left
    shorten(folder / "checkpoint-5" / "optimizer.pt")
    assert published(6, 2) == ["checkpoint-3", "checkpoint-6"]
    assert published(7, 1) == ["checkpoint-7"]


def test_a_folder_is_trained_in_by_one_process(settings):
    folder = Path(settings.output_dir)
    with locked(folder / LOCK_FILE):
        with pytest.raises(SettingsError, match=f"^process {os.getpid()} is at work in {folder}"):
            train(settings)
        assert list(folder.iterdir()) == [folder / LOCK_FILE]


FORKED = """
import os, sys, time
from pathlib import Path
from voco_llama.files import locked
with locked(Path(sys.argv[1])):
    begun, begins = os.pipe()
    worker = os.fork()
    if not worker:
        os.write(begins, b".")
        time.sleep(60)
    os.read(begun, 1)
    print(worker, flush=True)
    time.sleep(60)
"""


def test_a_kill_frees_the_folder_though_data_workers_outlive_it(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", FORKED, tmp_path / "lock"], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    try:
        with pytest.raises(SettingsError), locked(tmp_path / "lock"):
            pass
        process.kill()
        process.wait()
        with locked(tmp_path / "lock"):
            os.kill(worker, 0)  # it lives
    finally:
        process.stdout.close()
        os.kill(worker, signal.SIGKILL)


@contextmanager
def largest_file(size: int):
    """No file may grow above so many bytes: a full disk, as far as this process sees."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "final", "settings.yaml"])
def test_a_disk_that_is_full_is_one_line_and_the_same_command_goes_on(settings, whole, file, monkeypatch):
    last = whole / "checkpoint-6"
    sizes = {name: (last / name).stat().st_size for name in ("model.safetensors", "optimizer.pt")}
    assert sizes["model.safetensors"] < sizes["optimizer.pt"]
    limit = 10**9 if file == "settings.yaml" else sizes["model.safetensors"] if file == "optimizer.pt" else 20_000
    if file == "settings.yaml":
        monkeypatch.setattr(RunFolder, "begin", largest_file(100)(RunFolder.begin))
    if file == "final":
        settings.trainer["save_strategy"] = "no"
    run = Path(settings.output_dir)
    line = rf"^{run}\S* cannot be written \(.+\): make room, or choose another output_dir; the same command goes on"
    with largest_file(limit), pytest.raises(SettingsError, match=line) as caught:
        train(settings)
    assert "\n" not in str(caught.value)
    assert not list(run.glob("checkpoint-*"))
    assert not (run / "final").exists()
    monkeypatch.undo()
    train(settings)
    assert same_end(run, whole)


def test_a_link_to_a_place_that_is_not_there_is_one_line(settings, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    settings.output_dir = str(tmp_path / "link")
    with pytest.raises(SettingsError, match=r"^\S+link cannot be written \(File exists\): "):
        train(settings)


def test_a_folder_that_cannot_be_made_is_one_line(settings, tmp_path):
    (tmp_path / "file").write_text("")
    settings.output_dir = str(tmp_path / "file" / "run")
    with pytest.raises(SettingsError, match=r"^output_dir: \S+file is a file, not a folder: name another$"):
        train(settings)


def test_rotation_leaves_what_is_no_checkpoint_of_the_run(tmp_path):
    for name in ("checkpoint-best-7", "checkpoint-²", "checkpoint-3", "checkpoint-12"):
        (tmp_path / name).mkdir()
    assert [path.name for path in by_step(tmp_path)] == ["checkpoint-12", "checkpoint-3"]


def test_weights_alone_are_saved_and_kept(settings_for):
    settings = settings_for(
        "toy/voco_1", "trainer.max_steps=6", "trainer.save_strategy=steps", "trainer.save_steps=1",
        "trainer.save_only_model=true", "trainer.save_total_limit=3", "optimizer=trainer",
    )  # fmt: skip
    train(settings)
    run = Path(settings.output_dir)
    assert [path.name for path in by_step(run)] == ["checkpoint-6", "checkpoint-5", "checkpoint-4"]
    assert not (run / "checkpoint-6" / "optimizer.pt").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda there: there["origin"].update(rows_an_epoch=9.0),
        lambda there: there["origin"].update(rows_an_epoch=0),
        lambda there: there["origin"].update(records=10**15),
        lambda there: there["origin"].update(backend=5),
        lambda there: there["files"].update({"../../outside": {"bytes": 1, "sha256": ""}}),
        lambda there: there["files"].update({"a" * 5000: {"bytes": 1, "sha256": ""}}),
        lambda there: there.update(files={}),
    ],
)
def test_a_manifest_that_makes_no_sense_is_damage(whole, tmp_path, change):
    folder = shutil.copytree(whole / "checkpoint-6", tmp_path / "checkpoint-6")
    there = json.loads((folder / MANIFEST_FILE).read_text())
    change(there)
    (folder / MANIFEST_FILE).write_text(json.dumps(there))
    assert "manifest.json: cannot be read" in damage(folder)
