"""How files and overrides become one settings object.

Dataclasses hold the schema (`voco_llama.settings`, and one beside each command), YAML below `configs/` holds the
values, Hydra composes them; an unknown key fails. Here are only checks that one value can pass or fail on its own (its
type, its choices). hydra is used here and in `sweep/plan.py`, omegaconf here and in `settings.py`.
"""

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from voco_llama.errors import SettingsError, did_you_mean
from voco_llama.settings import SourceSettings, TrainSettings

T = TypeVar("T")

_PACKAGE = Path(__file__).resolve().parent
CONFIG_DIR = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
"""Inside the package in an installed wheel, beside it in a checkout."""
EVAL_DIR = CONFIG_DIR.with_name("eval")
"""Tables, suites and tasks; beside the configurations in both."""
SHOWN_KEYS = 5
"""Of those that differ."""

_NOT_UNPACKED = "archives are read in place, under the settings that `data prepare set=...` names; leave it out"
_NOT_FETCHED = "nothing is downloaded: run the commands that `data prepare set=...` names; leave it out"

RENAMED: dict[str, dict[str, str]] = {
    "data_stats": {"processes": "hardware.num_processes"},
    "data_prepare": dict.fromkeys(("unpack", "max_members", "max_ratio"), _NOT_UNPACKED)
    | dict.fromkeys(("download", "retries"), _NOT_FETCHED),
}
"""Of each configuration (`train`: of all that hold the settings of a training), what its overrides once said: a setting
-> its new name; or a setting, or a choice (`group=choice`), -> a sentence with the new way."""


def compose(overrides: Sequence[str] = (), config_name: str = "train", schema: type = TrainSettings) -> Any:
    """Compose one configuration and return its dataclass.

    Args:
        overrides: Hydra overrides, `group=choice` or `key=value`. Keys below `trainer.` may be new ones: they are
            held against `TrainingArguments` later.
        config_name: A top-level file of `configs/`, whose defaults list opens with `<config_name>_schema`.
        schema: The dataclass behind it.

    Raises:
        SettingsError: An unknown key, group or choice, one that is called otherwise now, a value of the wrong type, a
            value that is missing.
    """
    for override in overrides:
        _check_renamed(override, config_name, schema)
    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
    overrides = [f"++{text}" if text.startswith("trainer.") else text for text in _with_num_voco(overrides)]
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            config = hydra.compose(config_name, overrides)
        settings = OmegaConf.to_object(config)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:  # ValueError: stage=4
        raise SettingsError(_explain(error, schema)) from error
    _check_nothing_was_dropped(config, settings, schema)
    _check_choices(settings)
    return settings


def _check_renamed(override: str, config_name: str, schema: type) -> None:
    known = RENAMED.get("train", {}) if issubclass(schema, TrainSettings) else {}
    known = known | RENAMED.get(config_name, {})
    text = override.lstrip("+~")
    key, _, value = text.partition("=")
    new = known.get(text) or known.get(key)
    if new is not None:
        raise SettingsError(f"{text}: {new}" if " " in new else f"{key} is now {new}: write {new}={value}")


def _with_num_voco(overrides: Sequence[str]) -> list[str]:
    """`compression=voco_4` is `compression=voco compression.num_voco=4`; `experiment=toy/voco_4_kl` is toy/voco_kl so.

    A file of the very name goes before. The number of a chosen compression, said or its file's own, goes before that of
    an experiment, and `compression.num_voco=...` before both.
    """
    numbers, chosen = {}, []
    for override in overrides:
        group, _, choice = override.partition("=")
        choice = choice.strip("'\"").removesuffix(".yaml")
        if group in ("experiment", "compression"):
            if numbered := _numbered(group, choice):
                choice, numbers[group] = numbered
                override = f"{group}={choice}"
            elif group == "compression" and (file := CONFIG_DIR / group / f"{choice}.yaml").is_file():
                numbers[group] = OmegaConf.load(file).num_voco
        chosen.append(override)
    number = numbers.get("compression", numbers.get("experiment"))
    return chosen if number is None else [f"compression.num_voco={number}", *chosen]


def _numbered(group: str, choice: str) -> tuple[str, int] | None:
    """Of `voco_4_kl`: `voco_kl` and 4, if there is no file of the name, and one without the number that takes any.

    That is an experiment whose folder follows the number, or a compression to VoCo tokens alone, always as many.
    """
    name = re.fullmatch(r"(.+)_([1-9][0-9]*)((?:_[a-z]+)?)", choice)
    if name is None or (CONFIG_DIR / group / f"{choice}.yaml").is_file():
        return None
    base = f"{name[1]}{name[3]}"
    file = CONFIG_DIR / group / f"{base}.yaml"
    if group not in ("experiment", "compression") or not file.is_file():
        return None
    values = OmegaConf.to_container(OmegaConf.load(file))
    if group == "experiment":
        takes_any = "compression.num_voco" in values.get("output_dir", "")
    else:
        takes_any = values["condition"] == "voco" and "num_voco_choices" not in values
    return (base, int(name[2])) if takes_any else None


def read_file(file: Path, schema: type[T]) -> T:
    """Read one YAML file that holds the values of a dataclass, with no overrides and no defaults list.

    Raises:
        SettingsError: The file is missing or no YAML, a key is unknown, or a value is missing or of the wrong type.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(file)))
    except (OmegaConfBaseException, YAMLError, OSError) as error:
        raise SettingsError(f"{file}: {_explain(error, schema)}") from error


def to_plain(settings: Any) -> dict[str, Any]:
    """A settings dataclass as nested dictionaries and lists, fit for YAML and JSON."""
    return dataclasses.asdict(settings)


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf of nested dictionaries and lists."""
    if not isinstance(tree, dict | list) or not tree:
        yield prefix, tree
        return
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))


class Difference(dict[str, tuple[Any, Any]]):
    """Between the settings of something that exists and those of now: of the keys that differ, both values."""

    def __str__(self) -> str:
        listed = [f"{key} ({_short(there)} there, {_short(here)} now)" for key, (there, here) in self.items()]
        more = f" and {len(listed) - SHOWN_KEYS} more" if len(listed) > SHOWN_KEYS else ""
        return ", ".join(listed[:SHOWN_KEYS]) + more


def difference(
    there: Mapping[str, Any], here: Mapping[str, Any], schema: type | None = None, free: Sequence[str] = ()
) -> Difference:
    """What differs between settings that were written down and those of now.

    Args:
        there: Nested, or already flat; of then.
        here: The same of now.
        schema: Of both: a key that is younger than what was written had its default then.
        free: Beginnings of dotted keys that may differ; `*` stands for anything.
    """
    before, now = dict(flatten(there)), dict(flatten(here))
    if schema is not None:
        before |= dict(_younger(schema, before, now))
    return Difference(
        (key, (before.get(key), now.get(key)))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(fnmatchcase(key, f"{beginning}*") for beginning in free)
    )


def _younger(schema: type, before: Collection[str], now: Collection[str], at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and default of the settings that `now` has and `before` has nothing of, also in lists of dataclasses.

    A list that both have is as old as `before`, however many items it had then.
    """
    for entry in dataclasses.fields(schema):
        key = f"{at}{entry.name}"
        (item,) = get_args(entry.type) if get_origin(entry.type) is list else (None,)
        if not _has(now, key):
            continue
        if not _has(before, key):
            factory = entry.default_factory
            default = entry.default if factory is dataclasses.MISSING else factory()
            plain = to_plain(default) if dataclasses.is_dataclass(default) else default
            yield from ((k, value) for k, value in flatten(plain, key) if value not in (MISSING, dataclasses.MISSING))
        elif dataclasses.is_dataclass(entry.type):
            yield from _younger(entry.type, before, now, f"{key}.")
        elif dataclasses.is_dataclass(item):
            for index in itertools.takewhile(lambda index, key=key: _has(before, f"{key}.{index}"), itertools.count()):
                yield from _younger(item, before, now, f"{key}.{index}.")


def _has(keys: Collection[str], key: str) -> bool:
    return any(other == key or other.startswith(f"{key}.") for other in keys)


def _short(value: Any) -> str:
    """A value as shown; of a fingerprint its beginning."""
    return f"{value[:8]}..." if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else str(value)


def _check_nothing_was_dropped(config: DictConfig, settings: Any, schema: type) -> None:
    """`++key=value` slips past the schema, and the conversion to a dataclass then drops it: refuse it."""
    known = dict(flatten(to_plain(settings)))
    for key, _ in flatten(OmegaConf.to_container(config, resolve=True)):
        if key not in known:
            raise SettingsError(f"unknown setting '{key}'{_did_you_mean_key(key, schema)}")


def _check_choices(settings: Any, prefix: str = "") -> None:
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        choices = entry.metadata.get("choices")
        if dataclasses.is_dataclass(value):
            _check_choices(value, f"{prefix}{entry.name}.")
        elif choices and value not in choices:
            raise SettingsError(f"{prefix}{entry.name} is '{value}': choose one of {', '.join(choices)}")


def _keys_of(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema."""
    for entry in dataclasses.fields(schema):
        yield f"{prefix}{entry.name}"
        if dataclasses.is_dataclass(entry.type):
            yield from _keys_of(entry.type, f"{prefix}{entry.name}.")


def _did_you_mean_key(key: str, schema: type) -> str:
    known = list(_keys_of(schema)) + [f"data.sources.0.{entry.name}" for entry in dataclasses.fields(SourceSettings)]
    return did_you_mean(key, known) or f"; known at the top are {', '.join(e.name for e in dataclasses.fields(schema))}"


def _explain(error: Exception, schema: type) -> str:
    """One line for what Hydra, OmegaConf or YAML have to say."""
    cause = error.__cause__ or error.__context__
    cause = cause if isinstance(cause, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None)
    reason = str(cause).split("\n", 1)[0]
    if isinstance(error, OverrideParseException):
        return f"cannot read the override '{error.override}': write group=choice or key=value, quoted for the shell"
    if isinstance(error, MissingConfigException):
        return _explain_missing(error)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        key = key.replace("[", ".").replace("]", "")
        file = re.match(r"In '(.+?)': ", str(error))
        where = f" in configs/{file[1]}.yaml" if file else ""
        return f"unknown setting '{key}'{where}{_did_you_mean_key(key, schema)}"
    if isinstance(cause, MissingMandatoryValue):
        return f"{key} has no value: give one, as in '{key}=...'"
    return " ".join(f"{key}: {reason}".split()) if key else " ".join(str(error).split())


def _explain_missing(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).partition("/")
    folder = CONFIG_DIR / group
    if not choice or not folder.is_dir():
        return f"there is no settings file '{error.missing_cfg_file}' in {CONFIG_DIR}"
    if numbered := _numbered(group, choice):
        base, number = numbered
        return f"there is no file {group}/{choice}.yaml: write {base}, and compression: {{num_voco: {number}}}"
    known = sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.glob("**/*.yaml"))
    return f"there is no {group}={choice}{did_you_mean(choice, known)} (choices: {', '.join(known)})"
