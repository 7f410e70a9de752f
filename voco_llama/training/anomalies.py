"""What went wrong in a run, or looks odd: `anomalies.jsonl` in its folder, an entry a line, of any process.

    {"time": 1764000000.0, "step": 41, "kind": "spike", "text": "the loss is ...", ...}

Kinds: `spike` and `nan` (of the loss), `stall`, `lost` (a process), `worker` (one that loads data).
"""

import os
import time
from pathlib import Path
from typing import Any

from voco_llama.files import append_line

ANOMALIES_FILE = "anomalies.jsonl"


def note_anomaly(run: Path, kind: str, step: int, text: str, **more: Any) -> None:
    """Write one down; `more` are entries of the kind's own, which JSON can hold."""
    process = int(os.environ.get("RANK", "0"))
    entry = {"time": round(time.time(), 3), "step": step, "kind": kind, "text": text, "process": process}
    append_line(run / ANOMALIES_FILE, entry | more)
