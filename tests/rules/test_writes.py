"""Nothing is written outside the folders that settings name as outputs, by any command.

All of them run in one process with a home, caches and a working directory of its own, on inputs that lie elsewhere.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rules.commands import LINES, Place, replaced
from voco_llama import cli

pytestmark = pytest.mark.slow

ALLOWED: dict[str, str] = {
    "/dev": "devices; /dev/shm is where processes share memory",
    "/proc": "the kernel's",
}
"""Where writing is no writing, with the reason; and TMPDIR, for files that do not outlive the command."""
LEFT = ("torchinductor_",)
"""What libraries leave in TMPDIR: torch makes the folder of its compiler's cache, empty, at some imports."""


def listing(*folders: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file and folder below some folders."""
    found = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            status = path.lstat()
            found[str(path)] = (status.st_size if path.is_file() else 0, status.st_mtime_ns)
    return found


def lines(place: Place, out: Path, hub: Path) -> Iterator[tuple[str, list[str]]]:
    """A name and a command line for all that there is to try, each with its own folder below `out`."""
    results = out / "rows"
    for row, condition in (("upper", "full"), ("lower", "voco")):
        line = replaced(LINES["evaluate"](place, results), "row", row)
        yield f"evaluate {row}", ["evaluate", *replaced(line, "condition", condition), f"output={results}/all"]
    for command, line_of in LINES.items():
        line = line_of(place, out / command)
        if command == "report":
            line = replaced(line, "results", f"{results}/all")
        yield command, [command, *line]
    train = replaced(LINES["train"](place, out / "reported"), "trainer.report_to", "[tensorboard]")
    yield "train with a report", ["train", *train]
    yield "train streamed", ["train", *LINES["train"](place, out / "kept"), "data.keep_in_memory=false"]
    yield "train dry", ["train", *LINES["train"](place, out / "dry"), "dry_run=true"]
    for layout in ("llava", "llava_hf"):
        yield f"export {layout}", ["export", *replaced(LINES["export"](place, out / layout), "layout", layout)]
    ask = [text for text in LINES["ask"](place, out / "clip") if not text.startswith("image=")]
    yield "ask about a clip", ["ask", *ask, f"video={place.root}/videos/video7010.mp4"]
    tasks = json.dumps(["gqa", "mmbench_en_dev_static", "mme", "vqav2_test", "seedbench", "scienceqa_img", "msvd_qa"])
    every = replaced(LINES["evaluate"](place, out / "tasks"), "tasks", tasks)
    yield "evaluate tasks", ["evaluate", *replaced(every, "hub", str(hub))]


@pytest.fixture(scope="session")
def hub(tmp_path_factory) -> Path:
    """Tiny data sets for every task, and a README that only a careless cache would touch."""
    from tests.evaluation.hub import write_hub

    root = tmp_path_factory.mktemp("every_task")
    write_hub(root / "hub", root / "home")
    return root / "hub"


class Ran:
    """What all commands together did.

    Attributes:
        ends: Of each command line its status and errors.
        touched: Of each the paths that it changed, outside its output folder and TMPDIR.
        wrote: Those that wrote into their output folder.
        left: What is left in TMPDIR.
        changed: Paths of inputs, the working directory, home and caches that are not what they were.
    """

    def __init__(self, place: Place, hub: Path, root: Path) -> None:
        out, log = root / "out", root / "log"
        own = {name: root / name for name in ("cwd", "home", "cache", "tmp")}
        for folder in own.values():
            folder.mkdir()
        named = dict(lines(place, out, hub))
        (root / "lines.json").write_text(json.dumps(list(named.values())), encoding="utf-8")
        inputs = (place.root, hub, own["cwd"], own["home"], own["cache"])
        before = listing(*inputs)
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "XDG_", "VOCO_", "TORCH", "PYTEST", "MPL")) or name.endswith("OFFLINE")
        }
        environment |= {
            "HOME": str(own["home"]), "XDG_CACHE_HOME": str(own["cache"]), "TMPDIR": str(own["tmp"]),
            "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg",
        }  # fmt: skip
        ran = subprocess.run(
            [sys.executable, "-m", "tests.rules.watched", str(log), str(root / "lines.json")],
            cwd=own["cwd"], env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-3000:]
        self.ends = dict(zip(named, json.loads(ran.stdout.splitlines()[-1]), strict=True))
        after = listing(*inputs)
        self.changed = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
        free = (str(out), str(own["tmp"]), *ALLOWED)
        self.touched: dict[str, set[str]] = {name: set() for name in named}
        self.wrote: set[str] = set()
        for line in log.read_text(encoding="utf-8").splitlines():
            number, event, path = line.split("\t")
            if not any(path == folder or path.startswith(f"{folder}/") for folder in free):
                name = list(named)[int(number)] if number.isdecimal() else "start"
                self.touched.setdefault(name, set()).add(f"{event} {path}")
            elif number.isdecimal() and path.startswith(str(out)):
                self.wrote.add(list(named)[int(number)])
        self.left = sorted(str(path.relative_to(own["tmp"])) for path in own["tmp"].rglob("*"))


@pytest.fixture(scope="session")
def ran(place, hub, tmp_path_factory) -> Ran:
    """The run that the tests of this file look at."""
    return Ran(place, hub, tmp_path_factory.mktemp("watched"))


def test_every_command_ran(ran):
    assert set(cli.COMMANDS) <= set(ran.ends)
    assert {name: ended for name, ended in ran.ends.items() if ended != [0, ""]} == {}


def test_inputs_working_directory_and_home_are_as_they_were(ran):
    assert ran.changed == []


@pytest.mark.parametrize("command", [*cli.COMMANDS, "start"])
def test_a_command_touches_its_outputs_alone(command, ran):
    touched = {name: sorted(paths) for name, paths in ran.touched.items() if name.split()[0] == command and paths}
    assert touched == {}


def test_no_temporary_file_is_left(ran):
    assert [path for path in ran.left if not path.startswith(LEFT)] == []


def test_what_is_written_is_seen(ran):
    assert set(cli.COMMANDS) - ran.wrote == {"status", "doctor", "ask"}
