"""Which records a run has trained on, counted from what its processes wrote down (`records/`): none lost, none twice.

It imports nothing slow and reads what a run at work, or a kill, left.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voco_llama.files import read_json_lines
from voco_llama.training.run_files import RECORDS_FOLDER

_START = ("start", "processes", "epoch_rows", "step_rows")


def is_count(value: object) -> bool:
    """Whether it is an integer of 64 bits, as the files of a run hold."""
    return type(value) is int and -(2**63) <= value < 2**63


def records_file(run: Path, process: int | str) -> Path:
    """Of a process of a run."""
    return run / RECORDS_FOLDER / f"rank_{process}.jsonl"


@dataclass(frozen=True)
class EpochSeen:
    """What an epoch has come to.

    Attributes:
        rows: That were trained on.
        lost: Of those that should have been up to its last step, the ones that were not.
        repeated: Rows beyond the first of an entry.
    """

    epoch: int
    rows: int
    lost: int
    repeated: int


@dataclass
class Seen:
    """The steps that count: what came after the checkpoint that a run went on from is left out.

    Attributes:
        steps: Step -> its epoch, and the entries of the mixture that it trained on, of all processes.
        epoch_rows: Rows that an epoch has, as the last start counted them.
        step_rows: Rows of a step.
    """

    steps: dict[int, tuple[int, list[int]]] = field(default_factory=dict)
    epoch_rows: int = 0
    step_rows: int = 0

    @property
    def last(self) -> int:
        """The last step."""
        return max(self.steps, default=0)

    def epochs(self) -> Iterator[EpochSeen]:
        """What each epoch has come to.

        Rows that `dataloader_drop_last` leaves out, and those of steps that the last epoch has not come to, are not
        lost. Without `dataloader_drop_last` the first rows of an epoch may come again to fill its last pass.
        """
        last_steps = {epoch: step for step, (epoch, _) in sorted(self.steps.items())}
        for epoch, last in last_steps.items():
            is_over = last != self.last
            first = max((step for before, step in last_steps.items() if before < epoch), default=0) + 1
            due = self.epoch_rows if is_over else min((last - first + 1) * self.step_rows, self.epoch_rows)
            entries = Counter(entry for of, entries in self.steps.values() if of == epoch for entry in entries)
            yield EpochSeen(epoch, entries.total(), max(due - len(entries), 0), entries.total() - len(entries))


def seen(run: Path, up_to: int | None = None) -> Seen:
    """What a run has trained on.

    Args:
        run: Its folder.
        up_to: The last step that counts, such as its last checkpoint's; None: the last that every process wrote down.
    """
    found, lasts, processes = Seen(), [], 0
    files = {file.stem.removeprefix("rank_"): file for file in run.glob(f"{RECORDS_FOLDER}/rank_*.jsonl")}
    ranks = {int(rank): file for rank, file in files.items() if rank.isdecimal() and file.is_file()}
    for rank, file in sorted(ranks.items()):
        steps, start = _of_process(file)
        if rank == 0:
            processes, found.epoch_rows, found.step_rows = (start.get(key, 0) for key in _START[1:])
        if rank < processes:
            lasts.append(max([*steps, start.get("start", 0)]))
        for step, line in steps.items():
            found.steps.setdefault(step, (line["epoch"], []))[1].extend(line["records"])
    last = min(lasts, default=0) if up_to is None else up_to
    found.steps = {step: of for step, of in sorted(found.steps.items()) if step <= last}
    return found


def _of_process(file: Path) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """The lines of its steps that count, and that of its last start."""
    steps: dict[int, dict[str, Any]] = {}
    start: dict[str, Any] = {}
    for line in read_json_lines(file):
        if all(is_count(line.get(key)) for key in _START):
            start = line
            steps = {step: of for step, of in steps.items() if step <= line["start"]}
        elif all(map(is_count, (line.get("step"), line.get("epoch"), *_listed(line.get("records"))))):
            steps[line["step"]] = line
    return steps, start


def _listed(records: object) -> list[Any]:
    return records if isinstance(records, list) else [None]
