"""A command that goes on after a kill never stops at what the kill left: the same command again makes the same files.

Each command runs once. The files that it wrote, in the order in which they were finished, are the moments of a kill: at
each, what came later is not there, and the file itself is missing, or empty or half in turn; of one that was renamed
into its place only what stood aside is left.
"""

import itertools
import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from tests.rules.commands import LINES, Place, seen
from tests.rules.watched import watch
from voco_llama import cli
from voco_llama.model.quality import QUALITY_FILE

QUICK = ("train", "export")
"""Commands that the quick tests kill."""
WRITES_NOTHING = ("status", "doctor", "ask")
OF_STARTS = (
    "environment.json", "README.md", "manifest.json", "metrics.jsonl", "rank_0.jsonl", "rank_0.log", "ended.json",
)  # fmt: skip
"""Files that say how often a run was started and what each start did, and what hashes files have that say when."""
TIMES = (
    "seconds", "date", "started", "per_second", "share", "wait", "host", "time",
    "num_answers", "num_visuals", "num_compressed",
)  # fmt: skip
"""Parts of keys whose values are of one run alone: when and where, how long, and what of the answers it gave itself."""
SEED, FEW, MANY = 0, 3, 6
"""Moments of a kill that are tried: the first, the last, and some between, drawn by the seed."""


@dataclass(frozen=True)
class Moment:
    """A file, or a folder that was renamed into its place.

    Attributes:
        path: Relative to the output folder.
        finished: When, in nanoseconds.
        is_renamed: It was never half in its place.
    """

    path: Path
    finished: int
    is_renamed: bool


@dataclass(frozen=True)
class Made:
    """What a command wrote, kept beside where it wrote it.

    Attributes:
        line: The command.
        out: Its output folder.
        kept: A copy of it.
        moments: In order.
        stable: What is in the files that are the same each time the command runs.
    """

    line: list[str]
    out: Path
    kept: Path
    moments: list[Moment]
    stable: dict[Path, Any]

    def restore(self) -> None:
        """The output folder as the command left it."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.kept, self.out, symlinks=True)

    def killed_at(self, moment: Moment, state: str) -> None:
        """The output folder as a kill left it."""
        self.restore()
        for other in self.moments:
            if other.finished > moment.finished:
                remove(self.out / other.path)
        path = self.out / moment.path
        whole = path.read_bytes() if path.is_file() else None
        remove(path)
        if state == "aside":
            aside = path.with_name(f".{path.name}.99999999")
            half(aside, whole) if whole is not None else shutil.copytree(self.kept / moment.path, aside)
        elif state == "half":
            half(path, whole)
        elif state == "empty":
            path.touch()


def half(path: Path, whole: bytes) -> None:
    path.write_bytes(whole[: len(whole) // 2])


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def content(file: Path) -> Any:
    """What a file says, without times; of a teacher's words the numbers to six digits, for their last one depends on
    where in memory they lie; of a head fitted to readings of an untrained model, which differ in nothing but such
    last digits, what it is made for and its shapes."""
    data = file.read_bytes()
    if file.name == QUALITY_FILE.name:
        with suppress(SafetensorError), safe_open(file, "pt") as opened:
            described = json.loads(opened.metadata()["voco_llama"])
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
            return shapes, {key: value for key, value in described.items() if key != "found"}
    if file.name.startswith("top_k_"):
        tensors = load(data)
        return {name: [f"{value:.5e}" for value in tensor.flatten().tolist()] for name, tensor in tensors.items()}
    try:
        return timeless(json.loads(data)) if file.suffix == ".json" else data
    except ValueError:  # left damaged
        return data


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not any(part in k for part in TIMES)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[Path, Any]:
    """Of all files below a folder that are not hidden."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith("."))
    return {file.relative_to(folder): content(file) for file in files}


@pytest.fixture(scope="session")
def writes(tmp_path_factory):
    """The log of what is written from now on, and what names the command at work."""
    log = tmp_path_factory.mktemp("writes") / "log"
    return log, watch(log)


@pytest.fixture(scope="session")
def made(place, writes, tmp_path_factory):
    """Runs a command once, for all tests."""
    known: dict[str, Made] = {}
    log, named = writes

    def make(command: str) -> Made:
        if command not in known:
            root = tmp_path_factory.mktemp("killed")
            line = [command, *LINES[command](place, root / "out")]
            given = contents(root / "out")  # what a command reads and writes to, such as a checkpoint
            if given:
                shutil.copytree(root / "out", root / "given")
            once = run(line, root / "out")
            shutil.rmtree(root / "out")
            if given:
                shutil.copytree(root / "given", root / "out")
            named(command)
            twice = run(line, root / "out")
            named("after")
            renamed = renamed_to(log, command)
            shutil.copytree(root / "out", root / "kept", symlinks=True)
            stable = {
                path: value for path, value in once.items() if twice.get(path) == value and path.name not in OF_STARTS
            }
            written = [moment for moment in moments(root / "out", renamed) if moment.path not in given]
            known[command] = Made(line, root / "out", root / "kept", written, stable)
        return known[command]

    return make


def run(line: list[str], out: Path) -> dict[Path, Any]:
    ended = seen(line)
    assert (ended.status, ended.error) == (0, []), ended
    return contents(out)


def renamed_to(log: Path, command: str) -> set[str]:
    """Paths that were the end of a renaming."""
    lines = (line.split("\t") for line in log.read_text(encoding="utf-8").splitlines())
    return {path for name, event, path in lines if name == command and event == "os.rename"}


def moments(out: Path, renamed: set[str]) -> Iterator[Moment]:
    """In order; files inside a renamed folder are one with it."""
    found = []
    for path in out.rglob("*"):
        if any(str(above) in renamed for above in path.parents) or path.name.endswith(".lock"):
            continue
        if str(path) in renamed or path.is_file():
            found.append(Moment(path.relative_to(out), path.lstat().st_ctime_ns, str(path) in renamed))
    return iter(sorted(found, key=lambda moment: moment.finished))


def drawn(found: list[Moment], count: int) -> list[Moment]:
    """The first, the last and some between."""
    if len(found) <= count:
        return found
    between = random.Random(SEED).sample(range(1, len(found) - 1), count - 2)
    return [found[place] for place in (0, *sorted(between), len(found) - 1)]


def stops(made: Made, count: int) -> list[str]:
    """What the same command says after each kill at which it does not end well with the same files."""
    wrong = []
    for moment, torn in zip(drawn(made.moments, count), itertools.cycle(("half", "empty")), strict=False):
        for state in ("absent", "aside" if moment.is_renamed else torn):
            made.killed_at(moment, state)
            wrong += differs(made, f"{moment.path} {state}")
    return wrong


def differs(made: Made, what: str) -> list[str]:
    ended = seen(made.line)
    if ended.status != 0 or ended.error:
        return [f"{what}: {ended.status} {ended.error} {ended.escaped}"]
    there = contents(made.out)
    differing = [str(path) for path, value in made.stable.items() if there.get(path) != value]
    return [f"{what}: not the same {differing[:3]}"] if differing else []


def slow_where(command: str) -> pytest.param:
    return pytest.param(command, marks=() if command in QUICK else pytest.mark.slow)


WRITING = [command for command in LINES if command not in WRITES_NOTHING]


def test_every_command_that_writes_is_killed():
    assert set(WRITING) == set(cli.COMMANDS) - set(WRITES_NOTHING)


@pytest.mark.parametrize("command", [slow_where(command) for command in WRITING])
def test_a_command_goes_on_after_a_kill(command, made, request):
    if command == "report":
        request.getfixturevalue("measured")
    wrong = stops(made(command), FEW)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "teacher"])
def test_a_command_goes_on_after_a_kill_at_many_moments(command, made):
    wrong = stops(made(command), MANY)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", ["model.safetensors", pytest.param("*", marks=pytest.mark.slow)])
def test_a_torn_checkpoint_gives_way_to_the_one_before(file, made):
    """As a machine without power leaves it: the last checkpoint is complete by its names, and a file of it is not."""
    train, wrong = made("train"), []
    states = itertools.cycle(("half", "empty", "absent"))
    for damaged in sorted((train.kept / "run" / "checkpoint-2").glob(file)):
        state = next(states)
        train.restore()
        shutil.rmtree(train.out / "run" / "final")
        (train.out / "run" / "result.json").unlink()
        path = train.out / damaged.relative_to(train.kept)
        whole = path.read_bytes()
        path.unlink() if state == "absent" else path.write_bytes(b"" if state == "empty" else whole[: len(whole) // 2])
        wrong += differs(train, f"{path.name} {state}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [".run.12345", "run/.settings.yaml.12345", "run/checkpoint-1.tmp", "run/checkpoint-9"])
def test_what_other_kills_left_is_no_obstacle(name, place: Place, tmp_path):
    """Beside the run and in it: of a process that is not there any more."""
    left = tmp_path / "out" / name
    left.parent.mkdir(parents=True, exist_ok=True)
    left.mkdir() if "checkpoint" in name else left.write_text("half a fi", encoding="utf-8")
    os.utime(left, (0, 0))
    ended = seen(["train", *LINES["train"](place, tmp_path / "out")])
    assert (ended.status, ended.error, ended.escaped) == (0, [], "")
