"""What results were made from, and so what is finished: small files beside the results.

`<results>/seed_<seed>/<row>.sweep.json` holds the settings of a row's training, how it went (time, commit, hardware,
last loss) and, for each result, the settings of the evaluation and a hash of the result file; `base.sweep.json` holds
the settings of the base stages. A result counts as made only if its settings are those of now, wherever the folders
lie; the runs themselves need not be there any more. Settings that have changed are refused, never mixed.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from voco_llama.composition import difference, flatten, to_plain
from voco_llama.errors import SettingsError
from voco_llama.evaluation.results import BENCHMARKS_KIND
from voco_llama.evaluation.settings import FREE_KEYS as EVALUATE_FREE_KEYS
from voco_llama.files import read_json, write_atomically
from voco_llama.provenance import fingerprint_files
from voco_llama.sweep.plan import BASE, SEEDLESS, TRAIN, Command, Job, SeedPlan
from voco_llama.training.run_folder import FREE_KEYS, SETTINGS_FILE, RunFolder

FORMAT_VERSION = 1
ANYWHERE = ("paths.runs=runs", "paths.data=data")
FIRST_SEED = "seed=0"
"""Overrides that make settings comparable: where folders lie, and which seed it is, make no difference."""
FREE = {TRAIN: tuple(key for key in FREE_KEYS if key != "output_dir"), "evaluate": EVALUATE_FREE_KEYS}
"""Beginnings of keys that do not touch what is made."""
MADE = ("output_dir", "root", "output")
"""The setting of a command that names what it makes."""

Flat = dict[str, Any]


class Runner(Protocol):
    """What the command line lends to the sweep: a command, called with overrides, or composed to its settings."""

    def compose(self, overrides: list[str]) -> Any: ...

    def __call__(self, overrides: list[str]) -> Any: ...


class Records:
    """Reads, compares and writes the records, by the commands that `runners` has."""

    def __init__(self, runners: Mapping[str, Runner]) -> None:
        self._runners = runners
        self._described: dict[tuple[str, ...], Flat] = {}
        self._schemas: dict[str, type] = {}

    def compose(self, command: Command, *more: str) -> Any:
        """The settings of a command (and more overrides), checked against its schema.

        Raises:
            SettingsError: There is no such command, or its overrides do not compose.
        """
        if command.name not in self._runners:
            raise SettingsError(f"a sweep cannot run '{command.name}': choose from {', '.join(self._runners)}")
        try:
            return self._runners[command.name].compose([*command.arguments, *more])
        except SettingsError as error:
            raise SettingsError(f"{command}: {error}") from error

    def run(self, command: Command) -> None:
        """Run a command in this process."""
        self._runners[command.name](command.arguments)

    def describe(self, command: Command) -> Flat:
        """Dotted key -> value of the settings that matter, alike for all seeds and places."""
        key = (command.name, *command.overrides)
        if key not in self._described:
            settings = self.compose(command, *ANYWHERE, *([] if command.name in SEEDLESS else [FIRST_SEED]))
            free = ("paths.", *FREE.get(command.name, ()))
            self._schemas[command.name] = type(settings)
            as_read = json.loads(json.dumps(to_plain(settings), default=str))
            self._described[key] = {k: v for k, v in flatten(as_read) if not k.startswith(free)}
        return self._described[key]

    def check_base(self, plan: SeedPlan) -> Flat:
        """Refuse base stages that differ from those that the results of a seed were made on.

        Returns:
            What each stage makes -> its settings, of then and now.
        """
        file = base_file(plan)
        record, here = _read(file), {}
        there, remedy = record.get("base", {}), f"remove {plan.results} and {plan.runs} to make them again"
        if not record and any(plan.results.glob("*.sweep.json")):
            raise SettingsError(f"{file} is missing, which says what the results beside it stand on: {remedy}")
        seed = record.get("seed", plan.seed) if record else plan.base_seed  # none: from before base_seed
        if seed != plan.base_seed:
            raise SettingsError(
                f"the results in {plan.results} stand on the base stages of seed {seed}, not of {plan.base_seed}: set"
                f" base_seed={seed}, choose other results=... and runs=..., or {remedy}"
            )
        for command in plan.base:
            described = self.describe(command)
            made = next((described[key] for key in MADE if key in described), "")
            here[stage := f"{command.name} {made}".strip()] = described
            self._check_same(
                there.get(stage, described),
                command,
                f"the results in {plan.results} stand on '{stage}'",
                f"choose other results=... and runs=..., or {remedy}",
            )
        return there | here

    def write_base(self, plan: SeedPlan) -> None:
        """Record what the results of a seed stand on."""
        _write(base_file(plan), {"seed": plan.base_seed, "base": self.check_base(plan)})

    def pending(self, job: Job) -> dict[str, Command]:
        """The evaluations of a job whose results are not there.

        Raises:
            SettingsError: There are results of other settings.
        """
        for command in (job.train, *job.evaluations.values()):
            self.describe(command)  # what does not compose is refused before anything runs
        file = record_file(job)
        record = _read(file)
        if not record:
            return dict(job.evaluations)
        made = [result_file(job, result) for result in record["results"]]
        there = [str(path) for path in (file, *made, job.run_folder) if path.exists()]
        remedy = f"remove {' and '.join(there)} to make it again"
        self._check_same(record["train"], job.train, f"row {job.name} was trained", remedy)
        pending = {}
        for result, command in job.evaluations.items():
            made, there = record["results"].get(result), result_file(job, result)
            if made is None or not there.is_file():
                pending[result] = command
                continue
            remedy = f"remove {there} to make it again"
            evaluate = made.get("evaluate") if isinstance(made, dict) else None
            if not isinstance(evaluate, dict):
                raise SettingsError(f"{file} is no record of a sweep of this version: remove it to make the row again")
            self._check_same(evaluate, command, f"result {result} of row {job.name} was made", remedy)
            if made.get("sha256") != fingerprint_files([there]):
                raise SettingsError(f"{there} is not what the sweep wrote for row {job.name}: {remedy}")
        return pending

    def add(self, job: Job, result: str) -> None:
        """Record that a result was made."""
        record = _read(record_file(job)) or {"row": job.row, "seed": job.seed, "results": {}}
        record["train"] = self.describe(job.train)
        if self.is_trained(job):
            record["training"] = RunFolder(self.compose(job.train)).summary()
        record["results"][result] = {
            "sha256": fingerprint_files([result_file(job, result)]),
            "evaluate": self.describe(job.evaluations[result]),
        }
        _write(record_file(job), record)

    def is_trained(self, job: Job) -> bool:
        """Whether the training of a job is finished, by the settings of now.

        Raises:
            SettingsError: Its folder holds a run of other settings.
        """
        return (job.run_folder / SETTINGS_FILE).is_file() and RunFolder(self.compose(job.train)).is_finished()

    def pending_base(self, plan: SeedPlan, training: bool) -> list[Command]:
        """The base stages still to be run; where no row will be trained, only those that make data to evaluate on.

        Raises:
            SettingsError: No record says what rows that are trained stand on, and neither do the stages: one was made
                with other settings, or is gone.
        """
        if not base_file(plan).is_file():
            gone = [command for command in plan.base if command.name == TRAIN and not self._is_made(command)]
            if gone and not training:
                raise SettingsError(
                    f"rows are trained, and what they stand on is gone from {plan.runs}, with any record of it: remove"
                    f" the rows to train them again, or run '{gone[0]}' if that made it"
                )
        return [command for command in plan.base if (training or command.name != TRAIN) and not self._is_made(command)]

    def _is_made(self, command: Command) -> bool:
        settings = self.compose(command)
        if command.name == TRAIN:
            return RunFolder(settings).is_finished()
        root = getattr(settings, "root", None)
        return root is not None and _holds_world(Path(root), settings)

    def _check_same(self, there: Flat, command: Command, what: str, remedy: str) -> None:
        here, schema = self.describe(command), self._schemas[command.name]
        known = {field.name for field in fields(schema)}
        gone = dict.fromkeys(name for key in there if (name := key.partition(".")[0]) not in known)
        if gone:
            raise SettingsError(
                f"{what} by an earlier version, with settings ({', '.join(gone)}) that are gone: {remedy}"
            )
        if differing := difference(there, here, schema):
            raise SettingsError(f"{what} with other settings: {differing}: {remedy}")


def _holds_world(root: Path, settings: Any) -> bool:
    """Whether a toy world is there.

    Raises:
        SettingsError: It is of other settings: results in other folders may stand on it.
    """
    from voco_llama.toyworld.world import MANIFEST  # it brings what draws

    if not (manifest := root / MANIFEST).is_file():
        return False
    there = read_json(manifest, SettingsError, f"remove {root} to make it again").get("settings")
    there = there if isinstance(there, dict) else {}
    if differing := difference(there, to_plain(settings), type(settings), ("root",)):
        raise SettingsError(
            f"{root} holds a world of other settings: {differing}: choose other runs=..., or remove {root.parent} to"
            " make it and what was trained on it again"
        )
    return True


def base_file(plan: SeedPlan) -> Path:
    """The record of what the results of a seed stand on."""
    return plan.results / f"{BASE}.sweep.json"


def record_file(job: Job) -> Path:
    """The record of a row."""
    return job.results / f"{job.row}.sweep.json"


def result_file(job: Job, result: str) -> Path:
    """Where `evaluate` writes a result."""
    return job.results / f"{result}.{BENCHMARKS_KIND}.json"


def _read(file: Path) -> dict[str, Any]:
    """A record; empty where there is none."""
    if not file.is_file():
        return {}
    record = read_json(file, SettingsError, "remove it to make the row again")
    base = record.get("base", {})
    parts = [base, *(base.values() if isinstance(base, dict) else ())]
    parts += [] if "base" in record else [record.get("train"), record.get("results")]
    if record.get("format_version") != FORMAT_VERSION or not all(isinstance(part, dict) for part in parts):
        raise SettingsError(f"{file} is no record of a sweep of this version: remove it to make the row again")
    return record


def _write(file: Path, record: Mapping[str, Any]) -> None:
    write_atomically(file, json.dumps({"format_version": FORMAT_VERSION, **record}, indent=1, sort_keys=True) + "\n")
