"""What a sweep runs: settings become rows, and rows, for each seed, base stages and one job a row.

Every seed has its own world, base stages and runs below `<runs>/seed_<seed>`, and its results in
`<results>/seed_<seed>`; with `base_seed` the world and the base stages of that one serve all. A job is one training
and the evaluations of its checkpoint; a row that evaluates another row's checkpoint joins that row's job. Nothing is
read from disk here.

Rows are listed, or made by Hydra's sweep grammar, as its multirun has it: one for each combination of values.

    ["experiment=toy/voco_1,toy/voco_4", "trainer.learning_rate=1e-3,3e-3"]

gives voco_1-learning_rate_0.001, voco_1-learning_rate_0.003, voco_4-learning_rate_0.001, voco_4-learning_rate_0.003.
"""

import itertools
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from voco_llama.config_files import own_folder
from voco_llama.errors import SettingsError, did_you_mean
from voco_llama.evaluation.results import check_row_name
from voco_llama.model.quality import QUALITY_FILE
from voco_llama.overrides import as_value
from voco_llama.sweep.settings import RowSettings, SweepSettings

BASE = "base"
"""Name of the job of a seed's base stages."""
TRAIN, FIT_QUALITY, EVALUATE = "train", "fit-quality", "evaluate"
SEEDLESS = ("convert-gguf",)
"""Commands that have no seed: what they make is the same for all."""
EXPERIMENT = "experiment"
UNNAMED = "run"
"""What a row's name begins with where no experiment is chosen."""
OWNED_KEYS = {
    "seed": "set seeds=[...]",
    "output_dir": "it follows from runs, folder and the row's name",
    "output": "set results=...",
    "row": "it is the result's name in the plan",
    "checkpoint": "it is that of the row, or of checkpoint_of",
    "paths.runs": "set runs=...",
}
"""Keys of `train` and `evaluate` that the sweep decides, and what to do instead."""


@dataclass(frozen=True)
class Command:
    """A `voco-llama` command.

    Attributes:
        name: `train`, `evaluate`, ...
        overrides: Those that are the same for every seed.
        seeded: Those that say the seed, and where things lie.
    """

    name: str
    overrides: tuple[str, ...]
    seeded: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """Each setting once: what is said later wins."""
        said: dict[str, str] = {}
        for override in (*self.overrides, *self.seeded):
            key = override.partition("=")[0].lstrip("+")
            said.pop(key, None)
            said[key] = override
        return list(said.values())

    def __str__(self) -> str:
        own = own_folder()
        folder = [] if own is None else ["--config-dir", str(own)]
        return shlex.join(["voco-llama", self.name, *folder, *self.arguments])


@dataclass(frozen=True)
class Job:
    """A row of one seed: a training, and evaluations by the names of their results.

    Attributes:
        run_folder: Of the training.
        results: Folder of the results.
        fit: Gives the checkpoint what chooses numbers of VoCo tokens by the image, for evaluations that want it.
    """

    seed: int
    row: str
    run_folder: Path
    results: Path
    train: Command
    fit: Command
    evaluations: Mapping[str, Command]

    def wants_head(self, evaluation: Command) -> bool:
        """Whether an evaluation has each image choose, and the checkpoint lacks what does."""
        chooses = any(argument.startswith("quality=") for argument in evaluation.arguments)
        return chooses and not (self.run_folder / "final" / QUALITY_FILE).is_file()

    @property
    def name(self) -> str:
        return f"{seed_folder(self.seed)}/{self.row}"


@dataclass(frozen=True)
class SeedPlan:
    """All of one seed: the base stages in order, and the jobs, none of which needs another.

    Attributes:
        base_seed: Whose base stages they are: its own, or those that all seeds share.
        runs: Folder of that seed's runs, with the base stages.
    """

    seed: int
    base_seed: int
    runs: Path
    results: Path
    base: tuple[Command, ...]
    jobs: tuple[Job, ...]

    @property
    def base_name(self) -> str:
        return f"{seed_folder(self.base_seed)}/{BASE}"


def seed_folder(seed: int) -> str:
    """The name of a seed's folders."""
    return f"seed_{seed}"


def expand(settings: SweepSettings) -> list[SeedPlan]:
    """Everything that the settings ask for, seed by seed.

    Raises:
        SettingsError: There is nothing to run, a name is unknown or used twice, or an override sets what the sweep
            decides.
    """
    rows = grid(settings.train) if settings.train else settings.rows
    if not rows:
        raise SettingsError("the sweep has no rows: choose a plan=..., or give train=[...]")
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise SettingsError(f"seeds is {settings.seeds}: list at least one, each once")
    selected = _selected(_trained(rows), settings)
    of_rows = (overrides for row in rows.values() for overrides in (row.train or [], *row.evaluate.values()))
    for overrides in (settings.overrides, settings.trainings, settings.evaluate, *of_rows):
        _check_not_owned(overrides, OWNED_KEYS)
    for overrides in settings.base:
        _check_not_owned(overrides, ("seed", "paths.runs"))
    return [_seed_plan(seed, rows, selected, settings) for seed in settings.seeds]


def _trained(rows: Mapping[str, RowSettings]) -> dict[str, list[tuple[str, str, list[str]]]]:
    """Row that trains -> its evaluations: the row that lists each, its result's name, its overrides."""
    trained = {name: [] for name, row in rows.items() if row.train is not None}
    seen = set()
    for name, row in rows.items():
        check_row_name(name)
        if name == BASE:
            raise SettingsError(f"a row is named '{BASE}', as the base stages are: rename it")
        if (row.train is None) == (row.checkpoint_of is None):
            raise SettingsError(f"row {name}: set one of train and checkpoint_of")
        source = name if row.checkpoint_of is None else row.checkpoint_of
        if source not in trained:
            raise SettingsError(f"row {name}: checkpoint_of={source} is no row that trains: {', '.join(trained)}")
        for result, overrides in (row.evaluate or {name: []}).items():
            check_row_name(result)
            if result in seen:
                raise SettingsError(f"row {name}: a second result is named '{result}': rename one")
            seen.add(result)
            trained[source].append((name, result, overrides))
    return trained


def _selected(trained: Mapping[str, list], settings: SweepSettings) -> dict[str, dict[str, list[str]]]:
    """Row that trains -> the results that `only` and `skip` leave, and their overrides."""
    known = sorted({name for listed in trained.values() for row, result, _ in listed for name in (row, result)})
    for key in ("only", "skip"):
        for pattern in getattr(settings, key):
            if not any(fnmatchcase(name, pattern) for name in known):
                hint = did_you_mean(pattern, known) or f" ({', '.join(known)})"
                raise SettingsError(f"{key}: '{pattern}' names no row and no result{hint}")

    def matches(names: tuple[str, str], patterns: list[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

    selected = {
        source: {
            result: overrides
            for row, result, overrides in listed
            if (not settings.only or matches((row, result), settings.only))
            and not matches((row, result), settings.skip)
        }
        for source, listed in trained.items()
    }
    selected = {source: results for source, results in selected.items() if results}
    if not selected:
        raise SettingsError(f"only={settings.only} and skip={settings.skip} leave no row: choose others")
    return selected


def _check_not_owned(overrides: Collection[str], owned: Collection[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key in owned:
            raise SettingsError(f"'{override}': the sweep decides {key}: {OWNED_KEYS[key]}")


def _seed_plan(seed: int, rows: Mapping[str, RowSettings], selected: Mapping, settings: SweepSettings) -> SeedPlan:
    runs, results = (folder / seed_folder(seed) for folder in (settings.runs, settings.results))
    base_seed = seed if settings.base_seed is None else settings.base_seed
    base_runs = settings.runs / seed_folder(base_seed)
    place = f"paths.runs={as_value(base_runs)}"
    seeded = (place, f"seed={base_seed}")
    inside = "/".join(["${paths.runs}", *([settings.folder] if settings.folder else [])])
    given = {"hub": settings.hub, "suite": settings.suite}
    benchmarks = tuple(f"{key}={as_value(value)}" for key, value in given.items() if value is not None)

    def job(row: str, evaluations: Mapping[str, list[str]]) -> Job:
        run, run_folder = f"{inside}/{row}", runs / settings.folder / row
        elsewhere = seed != base_seed
        own = (place, f"seed={seed}", *([f"output_dir={as_value(run_folder)}"] if elsewhere else []))
        overrides = (*rows[row].train, *settings.trainings, *settings.overrides, f"output_dir={run}")
        train = Command(TRAIN, overrides, own)
        fitted = as_value(run_folder / "final") if elsewhere else f"{run}/final"
        fit = Command(FIT_QUALITY, (*overrides, f"model.checkpoint={fitted}"), own)
        evaluate = {
            result: Command(
                EVALUATE,
                (f"row={result}", f"checkpoint={run}/final", *benchmarks, *overrides, *settings.evaluate),
                (
                    *([f"checkpoint={as_value(run_folder / 'final')}"] if elsewhere else []),
                    f"output={as_value(results)}",
                    *own[:2],
                ),
            )
            for result, overrides in evaluations.items()
        }
        return Job(seed, row, run_folder, results, train, fit, evaluate)

    for stage in settings.base:
        if not stage:
            raise SettingsError("base lists an empty stage: give a command and its overrides, as [train, stage=align]")
    of_all = {TRAIN: settings.trainings}
    places = {name: seeded[:1] if name in SEEDLESS else seeded for name, *_ in settings.base}
    base = tuple(Command(name, (*given, *of_all.get(name, ())), places[name]) for name, *given in settings.base)
    return SeedPlan(
        seed, base_seed, base_runs, results, base, tuple(job(row, results) for row, results in selected.items())
    )


def grid(overrides: Sequence[str]) -> dict[str, RowSettings]:
    """Rows by name, each with the overrides of its training and one evaluation.

    Args:
        overrides: Of `voco-llama train`; `a,b`, `choice(...)`, `range(...)`, `glob(...)` sweep, the last key fastest.

    Raises:
        SettingsError: An override cannot be read, or two combinations get the same name.
    """
    parsed = [_values(override) for override in overrides]
    keys = [one.key.lstrip("+") for one in parsed]
    rows = {}
    for values in itertools.product(*(one.values for one in parsed)):
        chosen = [f"{one.key}={v}" if one.varies else one.text for one, v in zip(parsed, values, strict=True)]
        swept = {k: v for one, k, v in zip(parsed, keys, values, strict=True) if one.varies}
        name = _name(dict(zip(keys, values, strict=True)).get(EXPERIMENT, UNNAMED), swept)
        if name in rows:
            raise SettingsError(f"train: two combinations are named '{name}': name the values apart")
        rows[name] = RowSettings(train=chosen)
    return rows


class _Values(NamedTuple):
    """An override in the sweep grammar: its key, the values that it stands for, whether it says more than one."""

    text: str
    key: str
    values: list[str]
    varies: bool


def _values(text: str) -> _Values:
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        key, _, value = text.partition("=")
        if value and not set(value) & set(",()[]{}"):  # a text that is no value of the grammar, such as a path
            return _Values(text, key, [value], False)
        reason = str(error).split("\n", 1)[0]
        raise SettingsError(f"train: {text} cannot be read as overrides: {reason}: quote each value") from error
    varies = override.is_sweep_override()
    values = list(override.sweep_string_iterator()) if varies else [override.get_value_element_as_str()]
    return _Values(text, override.get_key_element(), values, varies)


def _name(experiment: str, swept: dict[str, str]) -> str:
    """The experiment, and key and value of whatever else varies; a key in full only where its end is not enough."""
    ends = [key.rpartition(".")[2] for key in swept]
    parts = [_clean(experiment.rpartition("/")[2].removesuffix(".yaml"))]
    for key, value in swept.items():
        if key != EXPERIMENT:
            end = key.rpartition(".")[2]
            parts.append(f"{end if ends.count(end) == 1 else key}_{_clean(value)}")
    return "-".join(parts)


def _clean(value: str) -> str:
    """What of a value can stand in a file's name."""
    return re.sub(r"[^\w.-]+", "_", value).strip("_")
