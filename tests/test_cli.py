"""The command line: what it prints, and its exit status."""

import dataclasses
import errno
import subprocess
import sys

import pytest
import torch

from voco_llama import cli
from voco_llama.config_files import CONFIG_DIR
from voco_llama.errors import DataError


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    for command in (
        "toyworld",
        "data-prepare",
        "data-check",
        "data-stats",
        "data-preview",
        "train",
        "doctor",
        "evaluate",
        "evaluate-clips",
        "sweep",
        "report",
        "export",
        "ask",
    ):
        assert command in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "experiment=toy/nothing"], "error: there is no experiment=toy/nothing"),
        (["train", "compression.num_voco=0"], "error: compression.num_voco is 0"),
        (["toyworld", "grdi=3"], "error: unknown setting 'grdi'; did you mean 'grid'?"),
        (["train", "readings=3"], "error: unknown setting 'readings'; did you mean 'compression.readings'?"),
        (["toyworld", "grid=three"], "error: grid: Value 'three'"),
        (["toyworld", "grid=99"], "error: toy world: grid=99"),
        (["evaluate", "row=a"], "error: row a has no checkpoint in suite toy (its rows are upper,"),
        (["evaluate", "row=a/b", "checkpoint=x"], "error: row 'a/b' names a file"),
        (["evaluate-clips", "row=a", "checkpoint=x", "num_frames=1"], "error: num_frames must be at least 2"),
        (["data", "prepare", "set=x", "annotations=a", "videos=v"], "error: set is 'x'"),
        (["data-prepare", "set=msvd_qa"], "error: annotations has no value"),
        (["data", "preview", "samples=0"], "error: samples is 0"),
        (["report", "results=nowhere"], "error: nowhere: holds no results (no such folder from "),
        (["report", f"results={__file__}"], f"error: results: {__file__} is a file: name the folder"),
        (["report", "results=nowhere", f"output={__file__}"], f"error: output: {__file__} is a file, not a folder"),
        (["sweep"], "error: the sweep has no rows"),
        (["sweep", "plan=table_3"], "error: there is no plan=table_3; did you mean 'table_"),
        (["sweep", "plan=toy", "only=[voco_3]"], "error: only: 'voco_3' names no row"),
        (
            ["export", "checkpoint=x", "output=y", "layout=llava-hf"],
            "error: layout is 'llava-hf': choose one of voco, ",
        ),
        (["export", "checkpoint=x", "output=y", "layout=llava"], "error: x: holds no saved model (no such folder)"),
        (["ask", "checkpoint=x"], "error: there is no question"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1


def test_overrides_reach_the_command(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr("voco_llama.toyworld.write_toyworld", lambda settings, root: seen.update({root: settings}))
    assert cli.main(["toyworld", "grid=3", "noise=1.5", f"root={tmp_path}"]) == 0
    (settings,) = seen.values()
    assert list(seen) == [tmp_path]
    assert (type(settings).__name__, settings.grid, settings.noise) == ("ToyWorldSettings", 3, 1.5)


@pytest.fixture
def running(monkeypatch):
    """Make `train` do something else with its settings."""
    return lambda run: monkeypatch.setitem(cli.COMMANDS, "train", dataclasses.replace(cli.COMMANDS["train"], run=run))


def raising(error):
    def run(settings):
        """Fail."""
        raise error

    return run


def test_an_error_out_of_a_worker_is_one_line_too(running, capsys):
    worker = DataError(
        "Caught DataError in DataLoader worker process 0.\nTraceback ...\nvoco_llama.errors.DataError: x: y"
    )
    running(raising(worker))
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "error: x: y\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_place_that_cannot_be_written_is_one_line(running, capsys, number):
    running(raising(OSError(number, "says the system", "/a/b")))
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == (
        f"error: [Errno {number}] says the system: '/a/b': check the path, and that there is room and permission\n"
    )


def test_an_interrupt_is_status_130(running):
    running(raising(KeyboardInterrupt()))
    assert cli.main(["train"]) == 130


def test_a_command_leaves_no_process_group_behind(running, tmp_path):
    """The group's threads, still running while Python ends, aborted one of two processes once in a while."""

    def join(settings):
        """Join a group."""
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)

    running(join)
    assert cli.main(["train"]) == 0
    assert not torch.distributed.is_initialized()


def test_a_bug_keeps_its_traceback(running):
    running(raising(RuntimeError("bug")))
    with pytest.raises(RuntimeError, match="bug"):
        cli.main(["train"])


def test_help_and_mistakes_do_not_load_transformers():
    code = (
        "import sys; from voco_llama.cli import main; status = main(['train', 'stage=foo']);"
        " sys.exit(99 if 'transformers' in sys.modules else status)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize(
    "command", ["toyworld", "data-prepare", "evaluate", "evaluate-clips", "report", "ask", "export", "sweep", "status"]
)
def test_no_setting_has_the_name_of_a_folder_of_configs(command, monkeypatch):
    """Hydra would take `shapes=4` for the choice of a file in `configs/shapes/`."""
    seen = []

    class Composed(Exception):
        pass

    def compose(overrides, name, schema):
        seen.extend(field.name for field in dataclasses.fields(schema))
        raise Composed

    monkeypatch.setattr("voco_llama.composition.compose", compose)
    with pytest.raises(Composed):
        cli.COMMANDS[command].compose([])
    assert "paths" in seen
    folders = {folder.name for folder in CONFIG_DIR.iterdir() if folder.is_dir()}
    assert not folders & set(seen) - {"paths"}
