"""`status`: how far a run is, how it goes, and how it ended, from the files in its folder.

It reads no weights, imports nothing slow and writes nothing, so it may be asked of a run at work, from any machine that
sees its folder.
"""

import itertools
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voco_llama.errors import CheckpointError, SettingsError, refused_as
from voco_llama.files import json_if_whole, lock_holder, read_json_lines
from voco_llama.text import aligned, duration, printable
from voco_llama.training.log_entries import SPEED, speed_in_words
from voco_llama.training.manifest import MANIFEST_FILE, size_faults
from voco_llama.training.run_files import (
    ANOMALIES_FILE,
    ENDED_FILE,
    ENVIRONMENT_FILE,
    LOCK_FILE,
    METRICS_FILE,
    RESULT_FILE,
    SETTINGS_FILE,
    by_step,
)
from voco_llama.training.seen import is_count, seen

INTERVALS = 20
"""Of log entries, whose middle says how long a step takes."""
SHOWN = 3
"""Anomalies, the last ones."""
LAST_SECOND = 253402214400
"""Of times that a calendar shows in any time zone, up to the year 9999."""


@dataclass
class StatusSettings:
    """What `voco-llama status` reads; `voco-llama status FOLDER ...` says the same.

    Attributes:
        runs: Folders of runs, or folders that hold some.
    """

    runs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Status:
    """Of a run; None where its files do not say it.

    Attributes:
        state: `running`, `finished`, how it ended last, or `killed`.
        starts: So far.
        step: Steps done, of `steps`.
        metrics: The last entry of its log.
        seconds: A step takes.
        checkpoint: The last that is as long as was listed, and its age in seconds.
        rows, lost, repeated: Trained on, over all epochs (`voco_llama.training.seen`); None: nothing was written down.
        anomalies: All of them.
    """

    run: Path
    state: str
    starts: int = 0
    step: int = 0
    steps: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    checkpoint: tuple[str, float] | None = None
    rows: int | None = None
    lost: int | None = None
    repeated: int | None = None
    anomalies: list[dict[str, Any]] = field(default_factory=list)

    @property
    def left(self) -> float | None:
        """Seconds until its last step."""
        return None if self.seconds is None or self.steps is None else self.seconds * (self.steps - self.step)


def status(settings: StatusSettings) -> str:
    """All of one run, or a line of each.

    Raises:
        SettingsError: A folder neither is a run nor holds one.
    """
    runs = []
    for name in settings.runs:
        with refused_as(SettingsError, name):
            runs += runs_in(Path(name))
    if not runs:
        raise SettingsError("status: name the folder of a run: voco-llama status runs/toy/voco_1")
    found = [status_of(run) for run in runs]
    return _in_full(found[0]) if len(found) == 1 else _as_table(found)


def runs_in(folder: Path) -> list[Path]:
    """The folder itself if it is a run's, else those below it, or below these, that are.

    Raises:
        SettingsError: None is.
    """
    below = (folder, *sorted(folder.glob("*")), *sorted(folder.glob("*/*")))
    found = [path for path in below if any((path / name).is_file() for name in (SETTINGS_FILE, LOCK_FILE))]
    if folder in found:
        return [folder]
    if not found:
        raise SettingsError(f"{folder} is no folder of a run, nor of runs: it has no {SETTINGS_FILE}")
    return found


def status_of(run: Path) -> Status:
    """Of a run, whatever of its files is there, and whoever wrote them."""
    try:
        return _read(run)
    except OSError as error:
        return Status(run, f"cannot be read: {error}")


def _read(run: Path) -> Status:
    metrics = [entry for entry in map(_numbers, _lines(run / METRICS_FILE)) if {"step", "time"} <= entry.keys()]
    rows = seen(run)
    epochs = list(rows.epochs())
    last = metrics[-1] if metrics else {}
    starts = json_if_whole(run / ENVIRONMENT_FILE)
    return Status(
        run,
        _state(run),
        len(starts) if isinstance(starts, list) else 0,
        rows.last or last.get("step", 0),
        last.get("max_steps"),
        last,
        _seconds_a_step(metrics[-INTERVALS:]),
        _last_checkpoint(run),
        *[sum(getattr(epoch, name) for epoch in epochs) if epochs else None for name in ("rows", "lost", "repeated")],
        _lines(run / ANOMALIES_FILE),
    )


def _state(run: Path) -> str:
    if (holder := lock_holder(run / LOCK_FILE)) is not None:
        return f"running (process {holder})"
    ended = json_if_whole(run / ENDED_FILE)
    if isinstance(json_if_whole(run / RESULT_FILE), dict):
        return "finished"
    if isinstance(ended, dict):
        return f"ended with status {_said(ended, 'status')}: {_said(ended, 'text')}"
    return "killed" if (run / LOCK_FILE).exists() or (run / ENVIRONMENT_FILE).exists() else "not begun"


def _seconds_a_step(metrics: list[dict[str, Any]]) -> float | None:
    """The middle of intervals, so that neither a checkpoint nor the time between two starts counts."""
    seconds = []
    for before, after in itertools.pairwise(metrics):
        steps, passed = after["step"] - before["step"], after["time"] - before["time"]
        if steps > 0 and passed > 0:
            seconds.append(passed / steps)
    return statistics.median(seconds) if seconds else None


def _last_checkpoint(run: Path) -> tuple[str, float] | None:
    for folder in by_step(run):
        try:
            if next(size_faults(folder), None) is None and (folder / MANIFEST_FILE).exists():
                return folder.name, time.time() - (folder / MANIFEST_FILE).stat().st_mtime
        except (CheckpointError, OSError):  # damaged, or just removed
            continue
    return None


def _in_full(found: Status) -> str:
    metrics, lines = found.metrics, {}
    of = f" of {found.steps:,} ({found.step / found.steps:.0%})" if found.steps else ""
    epoch = f", epoch {metrics['epoch']:.2f}" if "epoch" in metrics else ""
    lines["step"] = f"{found.step:,}{of}{epoch}"
    if "loss" in metrics:
        lines["loss"] = f"{metrics['loss']:.4f} at step {metrics['step']:,}"
    if found.seconds is not None:
        lines["speed"] = "  ".join([f"{found.seconds:.2f} s a step", *_speed(metrics)])
    if found.left:
        lines["left"] = duration(found.left)
    lines["checkpoint"] = "none" if found.checkpoint is None else _aged(*found.checkpoint)
    if found.rows is not None:
        lines["rows"] = f"{found.rows:,} trained on, {found.lost:,} lost, {found.repeated:,} repeated"
    kinds = Counter(_said(each, "kind") for each in found.anomalies)
    lines["anomalies"] = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
    head = f"{found.run}: {found.state}; {found.starts} start{'' if found.starts == 1 else 's'}"
    last = [f"    {_when(each)} step {_said(each, 'step')}: {_said(each, 'text')}" for each in found.anomalies[-SHOWN:]]
    texts = [head, *(f"  {name:<11} {text}" for name, text in lines.items()), *last]
    return "".join(f"{printable(text)}\n" for text in texts)


def _as_table(found: list[Status]) -> str:
    head = ("run", "step", "of", "loss", "s a step", "left", "checkpoint", "lost", "repeated", "anomalies", "state")
    body = [
        (
            each.run,
            each.step,
            each.steps or "-",
            f"{each.metrics['loss']:.4f}" if "loss" in each.metrics else "-",
            "-" if each.seconds is None else f"{each.seconds:.2f}",
            "-" if each.left is None else duration(each.left),
            "-" if each.checkpoint is None else each.checkpoint[0].rpartition("-")[2],
            "-" if each.lost is None else each.lost,
            "-" if each.repeated is None else each.repeated,
            len(each.anomalies),
            each.state.partition(":")[0],
        )
        for each in found
    ]
    return aligned(head, ([printable(str(cell)) for cell in row] for row in body)) + "\n"


def _aged(name: str, seconds: float) -> str:
    return f"{name}, written {duration(max(seconds, 0))} ago"


def _when(anomaly: dict[str, Any]) -> str:
    seconds = _numbers(anomaly).get("time")
    return "unknown time" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _said(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    return str(value) if isinstance(value, str | int | float) else "unknown"


def _speed(metrics: dict[str, float]) -> list[str]:
    return speed_in_words(metrics) if metrics.keys() >= set(SPEED) else []


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    """Of an entry that anybody may have written: steps are counts, and its time is one."""
    numbers = {key: value for key, value in entry.items() if type(value) is float or is_count(value)}
    if not 0 <= numbers.get("time", 0) < LAST_SECOND:
        del numbers["time"]
    return {key: value for key, value in numbers.items() if key not in ("step", "max_steps") or is_count(value)}


def _lines(file: Path) -> list[dict[str, Any]]:
    return list(read_json_lines(file)) if file.is_file() else []
