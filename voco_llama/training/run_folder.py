"""The folder of a run: what it holds, and whether a command begins, goes on with, or has already finished it.

settings.yaml     the resolved settings
inputs.json       fingerprints of the data files and of the model that it started from
environment.json  git commit, package versions, command line's start time, seed
checkpoint-N/     Trainer checkpoints (resume)
runs/             tensorboard
bad_records/      what each process skipped
final/            the trained model, its processor and its card (README.md)
result.json       written last: loss curve, table of what trained, skipped records, times
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

import yaml

from voco_llama.composition import difference, to_plain
from voco_llama.errors import SettingsError
from voco_llama.files import write_atomically
from voco_llama.provenance import provenance
from voco_llama.settings import TrainSettings
from voco_llama.training.batch import world_size
from voco_llama.training.inputs import fingerprints

logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.yaml"
INPUTS_FILE = "inputs.json"
ENVIRONMENT_FILE = "environment.json"
RESULT_FILE = "result.json"
FINAL_FOLDER = "final"

FREE_KEYS = (
    "resume",
    "output_dir",
    "paths",
    "hardware",
    "dry_run",
    "data.index_folder",
    "data.sources.*.published_records",
    "trainer.logging_",
    "trainer.save_",
    "trainer.report_to",
    "trainer.run_name",
    "trainer.disable_tqdm",
    "trainer.dataloader_num_workers",
    "trainer.dataloader_prefetch_factor",
    "trainer.dataloader_persistent_workers",
    "trainer.dataloader_pin_memory",
)
"""Beginnings of keys that may change when a run goes on: they do not touch what is learned."""


class RunFolder:
    """See the module; `output_dir` of the settings is the folder."""

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.path = Path(settings.output_dir)

    @property
    def final(self) -> Path:
        """Where the trained model goes."""
        return self.path / FINAL_FOLDER

    @property
    def bad_records(self) -> Path:
        """Where processes list what they skipped."""
        return self.path / "bad_records"

    def is_finished(self) -> bool:
        """Whether the run already ended, by these very settings and from these very inputs.

        Raises:
            SettingsError: The folder belongs to other settings or inputs, or `resume=never` and it is in use.
        """
        if not (self.path / SETTINGS_FILE).is_file():
            return False
        if self.settings.resume == "never":
            raise SettingsError(f"{self.path} holds a run and resume=never: choose another output_dir or remove it")
        self._check_same_settings()
        self._check_same_inputs()
        return (self.path / RESULT_FILE).is_file()

    def _check_same_settings(self) -> None:
        there = yaml.safe_load((self.path / SETTINGS_FILE).read_text(encoding="utf-8"))
        differing = difference(there, to_plain(self.settings), TrainSettings, FREE_KEYS)
        if differing:
            raise SettingsError(
                f"{self.path} holds a run with other settings: {differing}: choose another output_dir or remove it"
            )

    def _check_same_inputs(self) -> None:
        file = self.path / INPUTS_FILE
        if not _is_json(file):
            raise SettingsError(f"{file} is missing or damaged: choose another output_dir, or remove {self.path}")
        there = json.loads(file.read_text(encoding="utf-8"))
        here = fingerprints(self.settings)
        changed = sorted(key for key in here if there.get(key, here[key]) != here[key])
        if changed:
            raise SettingsError(
                f"{self.path} holds a run on what {', '.join(changed)} named then, and that has changed since: choose"
                " another output_dir, or remove it to train again"
            )

    def checkpoint(self) -> Path | None:
        """The checkpoint to go on from: the one that `resume` names, or the last that was written to its end."""
        if self.settings.resume not in ("auto", "never"):
            return Path(self.settings.resume)
        found = [path for path in self.path.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
        for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
            if _is_json(path / "trainer_state.json"):  # the Trainer writes it last
                return path
            logger.warning("%s was not written to its end: passed over", path)
        return None

    def begin(self) -> None:
        """Write what the run is; a run that goes on adds its environment to those before."""
        write_atomically(self.path / INPUTS_FILE, json.dumps(fingerprints(self.settings), indent=2) + "\n")
        write_atomically(self.path / SETTINGS_FILE, yaml.safe_dump(to_plain(self.settings), sort_keys=False))
        file = self.path / ENVIRONMENT_FILE
        starts = self.starts() if file.is_file() else []
        here = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seed": self.settings.seed,
            "processes": world_size() or 1,
            **provenance(),
        }
        write_atomically(file, json.dumps([*starts, here], indent=2) + "\n")

    def finish(self, result: dict[str, Any]) -> None:
        """Write `result.json`, by which the run counts as finished."""
        write_atomically(self.path / RESULT_FILE, json.dumps(result, indent=2) + "\n")

    def summary(self) -> dict[str, Any]:
        """How a finished run went: its result, the loss curve's end alone, and each of its starts."""
        result = json.loads((self.path / RESULT_FILE).read_text(encoding="utf-8"))
        return result | {"loss_curve": result.get("loss_curve", [])[-1:], "starts": self.starts()}

    def starts(self) -> list[dict[str, Any]]:
        """Environment of each start of the run, the last one's at the end."""
        return json.loads((self.path / ENVIRONMENT_FILE).read_text(encoding="utf-8"))


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return True
