"""A user's mistake or a damaged file never ends in a traceback, in any command: one line, status 2.

Walked: every command, every setting of its schema; of every path what can be wrong with a file, a folder, a checkpoint,
a place to write to.
"""

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.rules.commands import LINES, SLOW, Ended, Place, replaced, seen
from tests.rules.settings import (
    CHECKPOINT,
    FILE,
    FOLDER,
    OUTPUT,
    OUTPUT_FILE,
    PATHS,
    TEXTS,
    Leaf,
    PathSetting,
    is_of_a_training,
    settings_of,
)
from voco_llama import cli

GARBAGE = bytes(range(256)) * 4
"""No text of UTF-8, and no format's beginning."""
STATES = {
    FILE: ("absent", "folder", "empty", "garbage", "half", "name"),
    FOLDER: ("absent", "file", "empty"),
    CHECKPOINT: ("absent", "file", "empty"),
    OUTPUT: ("file", "below a file"),
    OUTPUT_FILE: ("folder", "below a file"),
}
"""What is wrong with what a setting names."""
NONSENSE = ("abc", "-1", "0", "null", "[]")
"""Values that are right for some settings, and must be a line for the others."""

WHOLE = ("train", "ask")
"""Commands of which more is tried; of the others, which share code and settings with these, a smaller seeded part."""
QUICK = (("ask", "image"), ("ask", "checkpoint"), ("train", "data.sources.file"), ("train", "output_dir"))
"""Settings that the quick tests damage."""


def slow_where(command: str, key: str) -> pytest.param:
    return pytest.param(command, key, marks=() if (command, key) in QUICK else pytest.mark.slow)


def some(found: Sequence[Any], count: int, *what: str) -> list[Any]:
    """All of them for the commands that are tried whole, of the others so many."""
    return list(found) if what[0] in WHOLE else random.Random(" ".join(what)).sample(found, min(count, len(found)))


def is_one_line(ended: Ended) -> bool:
    """It went well, found something, or told a mistake in one line."""
    return ended.status in (0, 1) or ended.is_refused


def test_a_path_is_a_path_and_a_text_is_a_text():
    assert set(PATHS) == set(cli.COMMANDS), "a new command: say in PATHS which of its settings are paths"
    for command in cli.COMMANDS:
        known = {*PATHS[command], *TEXTS["*"], *TEXTS.get(command, ())}
        known |= set(TEXTS["train"]) if is_of_a_training(command) else set()
        new = [leaf.key for leaf in settings_of(command) if leaf.may_hold_text and leaf.key not in known]
        assert not new, f"{command}: say in PATHS or TEXTS what {new} are"


def override(place: Place, key: str, path: Path) -> str:
    """The setting with this path as its value."""
    part = key.removeprefix("data.sources.")
    if part == key:
        return f"{'++' if key.startswith('trainer.') else ''}{key}={json.dumps(str(path))}"
    source = place.source.removesuffix("}")
    if part == "archives":
        return f"data.sources=[{source}, archives: {{a: {json.dumps(str(path))}}}}}]"
    before = source.partition(f"{part}: ")[2].partition(",")[0]
    return f"data.sources=[{source.replace(f'{part}: {before}', f'{part}: {json.dumps(str(path))}')}}}]"


def damaged(place: Place, setting: PathSetting, state: str, folder: Path) -> Path:
    """A path in this folder with this wrong about it."""
    good = None if setting.good is None else setting.good(place)
    path = folder / (good.name if good is not None and good.is_file() else "named")
    if state == "folder" or (state == "empty" and setting.kind != FILE):
        path.mkdir()
    elif state == "file":
        path.write_bytes(GARBAGE)
    elif state == "below a file":
        path.write_bytes(GARBAGE)
        path = path / "below"
    elif state == "name":
        path = folder / ("n" * 300)
    elif state != "absent":
        whole = good.read_bytes() if good is not None else b""
        path.write_bytes({"empty": b"", "garbage": GARBAGE, "half": whole[: len(whole) // 2]}[state])
    return path


def paths() -> Iterator[pytest.param]:
    """Of each command its own settings; of those that it shares with `train` some."""
    for command, named in PATHS.items():
        shared = [key for key in named if command != "train" and key in PATHS["train"]]
        for key in [key for key in named if key not in shared] + some(shared, 4, command):
            yield slow_where(command, key)


@pytest.mark.parametrize(("command", "key"), list(paths()))
def test_a_path_that_is_not_what_it_should_be(command, key, place, tmp_path, monkeypatch):
    if command == "report":
        place.results.mkdir(exist_ok=True)
    setting, wrong = PATHS[command][key], {}
    states = STATES[setting.kind]
    for state in random.Random(f"{command} {key}").sample(states, min(len(states), 2 if command in WHOLE else 1)):
        folder = tmp_path / state.replace(" ", "_")
        folder.mkdir()
        line = LINES[command](place, folder / "out") + ["dry_run=true"] * (command == "sweep")
        for other in setting.with_it:
            line = replaced(line, *other.split("=", 1))
        changed = override(place, key, damaged(place, setting, state, folder))
        ended = seen([command, *replaced(line, *changed.split("=", 1))])
        if not is_one_line(ended):
            wrong[state] = ended
    assert not wrong, "\n".join(f"{changed.partition('=')[0]} {state}: {ended}" for state, ended in wrong.items())


def checkpoints() -> Iterator[pytest.param]:
    for command, named in PATHS.items():
        if command in SLOW or command == "doctor":
            continue
        for key, setting in named.items():
            if setting.kind == CHECKPOINT and setting.good is not None:
                yield slow_where(command, key)


@pytest.mark.parametrize(("command", "key"), list(checkpoints()))
def test_a_checkpoint_with_a_damaged_file(command, key, place, tmp_path):
    """Its files: not there, empty, cut in half, JSON of another kind; of most settings one state each."""
    setting, wrong, number = PATHS[command][key], [], 0
    good = setting.good(place)
    for file in sorted(path for path in good.iterdir() if path.is_file() and path.suffix != ".md"):
        states = {
            "absent": None,
            "empty": b"",
            "garbage": GARBAGE,
            "half": file.read_bytes()[: file.stat().st_size // 2],
        }
        if file.suffix == ".json":
            states |= {"list": b"[]", "none": b"null", "object": b"{}", "deep": b"[" * 100_000}
        is_whole = (command, key) in (("ask", "checkpoint"), ("train", "model.checkpoint"))
        for state, content in some(list(states.items()), 1, "train" if is_whole else "", command, key, file.name):
            number += 1
            folder = tmp_path / f"{number}_{state}"
            shutil.copytree(good, folder / good.name)
            damaged = folder / good.name / file.name
            damaged.unlink() if content is None else damaged.write_bytes(content)
            line = LINES[command](place, folder / "out")
            for other in setting.with_it:
                line = replaced(line, *other.split("=", 1))
            changed = override(place, key, folder / good.name)
            ended = seen([command, *replaced(line, *changed.split("=", 1))])
            if not is_one_line(ended):
                wrong.append(f"{file.name} {state}: {ended}")
            shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong)


def own_settings(command: str) -> list[Leaf]:
    """Those that are not of every training; of `train` all."""
    shared = {leaf.key for leaf in settings_of("train")} if command != "train" and is_of_a_training(command) else set()
    return [
        leaf for leaf in settings_of(command) if leaf.key not in shared and not leaf.key.startswith("data.sources.")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_a_value_that_makes_no_sense(command, place, tmp_path):
    """Each setting with one of `NONSENSE`; of a training, whose settings are many, in its dry run."""
    line = LINES[command](place, tmp_path / "out")
    if command in ("train", "sweep"):
        line.append("dry_run=true")
    if command == "bench":
        line = replaced(line, "train.workloads", "[]")
    wrong = []
    for leaf in own_settings(command):
        for value in random.Random(f"{command} {leaf.key}").sample(NONSENSE, 1):
            ended = seen([command, *replaced(line, leaf.key, value)])
            if not is_one_line(ended):
                wrong.append(f"{leaf.key}={value}: {ended}")
    assert not wrong, "\n".join(wrong)


NONE = ("", "=", "a", "a.b=c", "+a=1", "seed=[", "seed={a:", "seed=${x", "seed=${nothing}", "+++")


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_a_setting_that_is_none(command, place, tmp_path):
    """What is typed by mistake in place of a setting."""
    for text in some(NONE, 2, command):
        ended = seen([command, *LINES[command](place, tmp_path / "out"), text])
        assert ended.is_refused, (text, ended)
