"""The files in the folder of a run, and small ones that are written there; nothing slow is imported.

settings.yaml     the resolved settings
inputs.json       fingerprints of the data files and of the model that it started from
environment.json  git commit, package versions, command line's start time, seed
checkpoint-N/     Trainer checkpoints (resume), each with a manifest: what made it, and its files with their hashes
.unfinished/      what is being written
.requeued         under Slurm: the job that was queued again last, and the checkpoint that there was
.run.lock         held by the process that trains
runs/             tensorboard
metrics.jsonl     what the Trainer logs, an entry a line, each with its time; after a resume the last of a step counts
logs/             what each process logs
anomalies.jsonl   what went wrong or looks odd
ended.json        how the last start ended, its exit status and line; not there while it goes, and after a kill
records/          which rows each step trained on, as each process wrote it down (`voco_llama.training.records_log`)
bad_records/      what each process skipped
final/            the trained model, its processor and its card (README.md)
result.json       written last: loss curve, table of what trained, skipped records, times

An anomaly is `{"time": ..., "step": 41, "kind": "spike", "text": "the loss ...", "process": 0}`, of any process; kinds:
`spike` and `nan` (of the loss), `stall`, `lost` (a process), `worker` (one that loads data).
"""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voco_llama.files import append_line, write_atomically

SETTINGS_FILE = "settings.yaml"
INPUTS_FILE = "inputs.json"
ENVIRONMENT_FILE = "environment.json"
RESULT_FILE = "result.json"
ENDED_FILE = "ended.json"
METRICS_FILE = "metrics.jsonl"
ANOMALIES_FILE = "anomalies.jsonl"
LOCK_FILE = ".run.lock"
LOGS_FOLDER = "logs"
RECORDS_FOLDER = "records"


def note_anomaly(run: Path, kind: str, step: int, text: str, **more: Any) -> None:
    """Add one to `anomalies.jsonl`; `more` are entries of the kind's own, which JSON can hold."""
    process = int(os.environ.get("RANK", "0"))
    entry = {"time": round(time.time(), 3), "step": step, "kind": kind, "text": text, "process": process}
    append_line(run / ANOMALIES_FILE, entry | more)


def note_end(run: Path, status: int, line: str) -> None:
    """Write how a start of the run ended."""
    end = {"time": round(time.time(), 3), "status": status, "text": line}
    write_atomically(run / ENDED_FILE, json.dumps(end) + "\n")


def by_step(run: Path) -> Iterator[Path]:
    """The checkpoints below a run's folder, the last first."""
    found = [path for path in run.glob("checkpoint-*") if re.fullmatch("checkpoint-[0-9]+", path.name)]
    yield from sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
