"""What a run writes down for people and programs while it goes: metrics, and a log of each process."""

import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from voco_llama.files import append_line
from voco_llama.training.progress import loss_curve
from voco_llama.training.run_files import LOGS_FOLDER, METRICS_FILE


class MetricsLog(TrainerCallback):
    """Writes each entry of the Trainer's log to `metrics.jsonl`; numbers that are none are null.

    After a resume the steps since the checkpoint come again: the last entry of a step counts.
    """

    def __init__(self, run: Path) -> None:
        self.file = run / METRICS_FILE

    def on_log(self, args: Any, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            for entry in loss_curve(state.log_history[-1:]):
                finite = {key: value if math.isfinite(value) else None for key, value in entry.items()}
                append_line(self.file, finite | {"max_steps": state.max_steps, "time": round(time.time(), 3)})


def process_file(run: Path) -> Path:
    """The log of this process."""
    return run / LOGS_FOLDER / f"rank_{os.environ.get('RANK', '0')}.log"


@contextmanager
def process_log(run: Path) -> Iterator[None]:
    """Within it, what this process logs goes to `logs/rank_N.log` too."""
    file = process_file(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        logging.getLogger(__name__).info("process %d on %s begins", os.getpid(), socket.gethostname())
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
