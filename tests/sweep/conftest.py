"""Sweeps whose commands leave the files of a training and of an evaluation, but do neither."""

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from voco_llama import cli
from voco_llama.composition import to_plain
from voco_llama.errors import DataError
from voco_llama.model.quality import QUALITY_FILE
from voco_llama.sweep.run import sweep
from voco_llama.sweep.settings import RowSettings, SweepSettings
from voco_llama.toyworld.world import MANIFEST
from voco_llama.training.run_folder import RunFolder

REAL = cli.sweep_runners()


@functools.cache
def compose_once(name: str, overrides: tuple[str, ...]):
    """Composing costs a tenth of a second, and the tests compose the same again and again."""
    return REAL[name].compose(list(overrides))


def composer(name: str) -> Callable[[list[str]], Any]:
    """What composes a command."""
    return lambda overrides: copy.deepcopy(compose_once(name, tuple(overrides)))


class Runner(NamedTuple):
    """A command of the sweep, of two functions."""

    compose: Callable[[list[str]], Any]
    run: Callable[[list[str]], None]

    def __call__(self, overrides: list[str]) -> None:
        self.run(overrides)


class FakeCommands:
    """Stand in for `voco-llama`'s commands.

    Attributes:
        calls: What was run: `train voco_1`, `evaluate voco_1_at_2`, `toyworld`.
        failing: Those that fail.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.runners = {name: Runner(composer(name), self._runner(name)) for name in REAL}

    def _runner(self, name: str) -> Callable[[list[str]], None]:
        def run(overrides: list[str]) -> None:
            settings = self.runners[name].compose(overrides)
            of = {"train": lambda: Path(settings.output_dir).name, "evaluate": lambda: settings.row}.get(name)
            call = name if of is None else f"{name} {of()}"
            self.calls.append(call)
            if call in self.failing:
                raise self.failing[call]
            self._make(name, settings)

        return run

    def _make(self, name: str, settings) -> None:
        if name == "train":
            run = RunFolder(settings)
            run.begin()
            run.final.mkdir(exist_ok=True)
            run.finish({})
        elif name == "evaluate":
            settings.output.mkdir(parents=True, exist_ok=True)
            made = {"row": settings.row, "num_voco": settings.num_voco, "seed": settings.seed}
            (settings.output / f"{settings.row}.benchmarks.json").write_text(json.dumps(made))
        elif name == "fit-quality":
            head = Path(settings.model.checkpoint) / QUALITY_FILE
            head.parent.mkdir()
            head.write_text("")
        elif name == "convert-gguf":
            settings.output.mkdir(parents=True, exist_ok=True)
        else:
            settings.root.mkdir(parents=True)
            (settings.root / MANIFEST).write_text(json.dumps({"settings": to_plain(settings)}, default=str))

    def failing_with(self, *calls: str) -> None:
        """From now on, these fail, and no others."""
        self.failing = {call: DataError(f"{call} does not work: mend it") for call in calls}

    def take(self) -> list[str]:
        """What was run since the last time."""
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr("voco_llama.sweep.run.check_needs", lambda *needed: None)  # these commands need nothing
    return FakeCommands()


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Two trainings with a base, in this process, below the working directory."""
    monkeypatch.chdir(tmp_path)
    return SweepSettings(
        runs=Path("runs"),
        results=Path("results"),
        base=[["toyworld"], ["train", "experiment=toy/clip"]],
        rows={
            "upper": RowSettings(
                train=["experiment=toy/instruct_long"],
                evaluate={"upper": ["condition=full"], "lower": ["condition=voco"]},
            ),
            "voco_4": RowSettings(
                train=["experiment=toy/voco_4"], evaluate={"voco_4": [], "voco_4_at_2": ["num_voco=2"]}
            ),
        },
        folder="toy",
        processes=0,
    )


@pytest.fixture
def run(fake, settings):
    """Run the sweep with changes to its settings; what was run."""

    def run(**changes) -> list[str]:
        sweep(SweepSettings(**{**vars(settings), **changes}), [], fake.runners)
        return fake.take()

    return run
