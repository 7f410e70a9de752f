"""The folder of a run: what it holds, and whether a command begins, goes on with, or has already finished it.

Its files are those of `voco_llama.training.run_files`.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import yaml

from voco_llama.composition import difference, flatten, is_free, to_plain
from voco_llama.errors import SettingsError, one_line, refused_as
from voco_llama.files import json_if_whole, locked, read_json, write_atomically, writing
from voco_llama.hub import FINAL_FOLDER
from voco_llama.provenance import fingerprint_data, provenance, versions
from voco_llama.settings import TrainSettings
from voco_llama.sharding import sharding_of
from voco_llama.training.batch import GlobalBatch, is_first_process, world_size
from voco_llama.training.checkpoints import (
    UNFINISHED,
    damage_inside,
    discard_unfinished,
    last_whole,
    take_place,
)
from voco_llama.training.inputs import fingerprints
from voco_llama.training.manifest import Origin
from voco_llama.training.run_files import (
    ANOMALIES_FILE,
    ENDED_FILE,
    ENVIRONMENT_FILE,
    INPUTS_FILE,
    LOCK_FILE,
    METRICS_FILE,
    RECORDS_FOLDER,
    RESULT_FILE,
    SETTINGS_FILE,
    by_step,
    note_end,
)

logger = logging.getLogger(__name__)

FREE_KEYS = (
    "resume",
    "output_dir",
    "paths",
    "hardware",
    "stall_limit",
    "dry_run",
    "data.index_folder",
    "data.sources.*.published_records",
    "data.sources.*.assumed_characters",
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

DIVISION_KEYS = (
    "global_batch_size",
    "trainer.per_device_train_batch_size",
    "trainer.gradient_accumulation_steps",
    "trainer.deepspeed",
    "trainer.fsdp",
    "trainer.ddp_",
    "trainer.gradient_checkpointing",
)
"""Those that may while the global batch stays the same (`voco_llama.training.resuming` says how)."""


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
    def unfinished_final(self) -> Path:
        """Where it is written before it goes there."""
        return self.path / UNFINISHED / FINAL_FOLDER

    @property
    def bad_records(self) -> Path:
        """Where processes list what they skipped."""
        return self.path / "bad_records"

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Within it this command alone works in the folder, and a disk that takes nothing more is one line.

        Raises:
            SettingsError: Another process works in it, or has finished it meanwhile, or it cannot be written to.
        """
        advice = "make room, or choose another output_dir; the same command goes on from what is whole"
        is_first = is_first_process()
        with writing(self.path, advice), locked(self.path / LOCK_FILE, remains=False) if is_first else nullcontext():
            if self.is_finished():
                raise SettingsError(f"{self.path} was finished by another process just now: there is nothing to do")
            with self._noting_end() if is_first else nullcontext(), writing(self.path, advice):
                yield

    @contextmanager
    def _noting_end(self) -> Iterator[None]:
        (self.path / ENDED_FILE).unlink(missing_ok=True)
        try:
            yield
        except BaseException as error:
            with suppress(OSError):  # a disk that is full is what ended it
                note_end(self.path, getattr(error, "status", 1), one_line(error))
            raise
        note_end(self.path, 0, "finished")

    def is_finished(self) -> bool:
        """Whether the run already ended, by these very settings and from these very inputs.

        Of a run that left nothing to go on from, the settings may change.

        Raises:
            SettingsError: The folder belongs to other settings or inputs, or `resume=never` and it is in use.
        """
        if not (self.path / SETTINGS_FILE).is_file() or not self._holds_work():
            return False
        if self.settings.resume == "never":
            raise SettingsError(f"{self.path} holds a run and resume=never: choose another output_dir or remove it")
        self._check_same_settings()
        self._check_same_inputs()
        made_it = self.settings.stage.name == "clip" or self.final.is_dir()  # a tower lies in the folder itself
        return made_it and isinstance(json_if_whole(self.path / RESULT_FILE), dict)

    def _holds_work(self) -> bool:
        """Whether anything in the folder took training to make."""
        made = (self.path / RESULT_FILE, self.final)
        return any(path.exists() for path in made) or any(by_step(self.path))

    def _saved_settings(self) -> dict[str, Any]:
        file = self.path / SETTINGS_FILE
        with refused_as(SettingsError, file, f"choose another output_dir, or remove {self.path}"):
            there = yaml.safe_load(file.read_text(encoding="utf-8"))
            if not isinstance(there, dict):
                raise ValueError("it holds no settings")
        return there

    def _check_same_settings(self) -> None:
        free = (*FREE_KEYS, *DIVISION_KEYS) if self._has_same_global_batch() else FREE_KEYS
        differing = difference(self._saved_settings(), to_plain(self.settings), TrainSettings, free)
        if differing:
            raise SettingsError(
                f"{self.path} holds a run with other settings: {differing}: choose another output_dir or remove it"
            )

    def _has_same_global_batch(self) -> bool:
        """In the processes of now, or in those of its last start: who asks may not be who trains.

        Of a run that is older than what it says of it, nothing is known.
        """
        last = next(reversed(self.starts()), {})
        rows, processes = last.get("rows_a_step"), last.get("processes")
        if not isinstance(rows, int) or not isinstance(processes, int):
            return False
        return rows in [
            self.settings.global_batch_size or GlobalBatch.of(self.settings, each).size
            for each in (world_size() or 1, processes)
        ]

    def _check_same_inputs(self) -> None:
        file = self.path / INPUTS_FILE
        there = read_json(file, SettingsError, f"choose another output_dir, or remove {self.path}")
        here = fingerprints(self.settings)
        changed = sorted(key for key in here if there.get(key, here[key]) != here[key])
        if changed:
            raise SettingsError(
                f"{self.path} holds a run on what {', '.join(changed)} named then, and that has changed since: choose"
                " another output_dir, or remove it to train again"
            )

    @property
    def names_checkpoint(self) -> bool:
        """Whether `resume` names the checkpoint to go on from."""
        return self.settings.resume not in ("auto", "never")

    def checkpoint(self) -> Path | None:
        """The checkpoint to go on from: the one that `resume` names, or the last that is whole.

        All processes call it, when they are joined: each reads a part of the files.

        Raises:
            SettingsError: The one that `resume` names is not whole.
        """
        if not self.names_checkpoint:
            return last_whole(self.path)
        folder = Path(self.settings.resume)
        if (why := damage_inside(folder)) is not None:
            raise SettingsError(f"resume={folder} is damaged ({why}): name another checkpoint, or auto or never")
        return folder

    def origin(self, batch: GlobalBatch, records: int) -> Origin:
        """What its checkpoints say of where they come from."""
        learned = {
            key: value
            for key, value in flatten(to_plain(self.settings))
            if not is_free(key, (*FREE_KEYS, *DIVISION_KEYS))
        }
        return Origin(
            backend=sharding_of(self.settings.trainer).label,
            batch=batch,
            records=records,
            rows_an_epoch=batch.rows_an_epoch(records),
            seed=self.settings.seed,
            settings=fingerprint_data(learned),
            versions=versions(),
        )

    def begin(self) -> None:
        """Write what the run is; a run that goes on adds its environment to those before."""
        discard_unfinished(self.path)
        before = self.starts() if self._holds_work() else []
        if not before:
            for name in (self.bad_records.name, RECORDS_FOLDER):  # maybe of other data
                shutil.rmtree(self.path / name, ignore_errors=True)
            for name in (METRICS_FILE, ANOMALIES_FILE):
                (self.path / name).unlink(missing_ok=True)
        write_atomically(self.path / INPUTS_FILE, json.dumps(fingerprints(self.settings), indent=2) + "\n")
        write_atomically(self.path / SETTINGS_FILE, yaml.safe_dump(to_plain(self.settings), sort_keys=False))
        here = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seed": self.settings.seed,
            "processes": world_size() or 1,
            "rows_a_step": GlobalBatch.of(self.settings, world_size() or 1).size,
            **provenance(),
        }
        write_atomically(self.path / ENVIRONMENT_FILE, json.dumps([*before, here], indent=2) + "\n")

    def place_final(self) -> None:
        """Give the trained model its place; it was written to `unfinished_final`."""
        take_place(self.path, FINAL_FOLDER)

    def finish(self, result: dict[str, Any]) -> None:
        """Write `result.json`, by which the run counts as finished."""
        write_atomically(self.path / RESULT_FILE, json.dumps(result, indent=2) + "\n")

    def summary(self) -> dict[str, Any]:
        """How a finished run went: its result, the loss curve's end alone, and each of its starts."""
        result = read_json(self.path / RESULT_FILE)
        return result | {"loss_curve": result.get("loss_curve", [])[-1:], "starts": self.starts()}

    def starts(self) -> list[dict[str, Any]]:
        """Environment of each start of the run, the last one's at the end; none if the file is missing or damaged."""
        there = json_if_whole(self.path / ENVIRONMENT_FILE)
        return [start for start in there if isinstance(start, dict)] if isinstance(there, list) else []
