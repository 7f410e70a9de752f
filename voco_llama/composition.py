"""How files and overrides become one settings object.

Dataclasses hold the schema (`voco_llama.settings`, and one beside each command), YAML below `configs/` holds the
values, Hydra composes them; an unknown key fails. Here are only checks that one value can pass or fail on its own (its
type, its choices). What is typed is read in `overrides`, and where files are found stands in `config_files`.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import hydra
from hydra.conf import HydraConf
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from voco_llama import config_files
from voco_llama.config_files import choices_of, is_group
from voco_llama.credentials import check_no_credentials
from voco_llama.errors import SettingsError, did_you_mean, one_line, require
from voco_llama.numbered_names import check_own_files, numbered, with_num_voco
from voco_llama.overrides import Override, field_of, for_hydra, split, type_of, wanted
from voco_llama.settings import SourceSettings, TrainSettings

T = TypeVar("T")

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


class _OwnFolder(SearchPathPlugin):
    """Has Hydra look for files in the folder of the user's own first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if (own := config_files.own_folder()) is not None:
            search_path.prepend("own", f"file://{own}")


Plugins.instance().register(_OwnFolder)
# Of what Hydra needs to start a program itself (logging, launchers, help) nothing is wanted: a third of the time.
ConfigStore.instance().store(group="hydra", name="config", node=HydraConf(defaults=[]), provider="hydra")

_STORED: dict[str, type] = {}
"""Schemas that Hydra has, by their names there."""


def compose(overrides: Sequence[str] = (), config_name: str = "train", schema: type = TrainSettings) -> Any:
    """Compose one configuration and return its dataclass.

    Args:
        overrides: `group=choice`, where a choice may be the path of a file, or `key=value` (`voco_llama.overrides`).
            Keys below `trainer.` may be new ones: they are held against `TrainingArguments` later.
        config_name: A top-level file of `configs/`, whose defaults list opens with `<config_name>_schema`.
        schema: The dataclass behind it.

    Raises:
        SettingsError: An unknown key, group or choice, one that is called otherwise now, a value of the wrong type, a
            value that is missing.
    """
    typed = [split(text) for text in overrides]
    for override in typed:
        _check_renamed(override, config_name, schema)
    _check_own_folder(schema)
    if _STORED.get(config_name) is not schema:
        ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
        _STORED[config_name] = schema
    check_own_files(typed)
    read = [str(for_hydra(override, schema)) for override in with_num_voco(typed)]
    try:
        with hydra.initialize_config_dir(str(config_files.CONFIG_DIR), version_base="1.3"):
            config = hydra.compose(config_name, read)
        settings = OmegaConf.to_object(config)
        plain = OmegaConf.to_container(config, resolve=True)
    except Exception as error:  # of Hydra, OmegaConf, YAML, and what their resolvers raise
        raise SettingsError(_explain(error, schema)) from error
    check_no_credentials(flatten(plain))
    _check_nothing_was_dropped(plain, settings, schema)
    _check_values(settings)
    return settings


def _check_renamed(override: Override, config_name: str, schema: type) -> None:
    known = RENAMED.get("train", {}) if issubclass(schema, TrainSettings) else {}
    known = known | RENAMED.get(config_name, {})
    _, key, value = override
    text = key if value is None else f"{key}={value}"
    new = known.get(text) or known.get(key)
    if new is not None:
        raise SettingsError(f"{text}: {new}" if " " in new else f"{key} is now {new}: write {new}={value}")


def _check_own_folder(schema: type) -> None:
    """Hydra takes a folder of settings for a group, and a setting of its name for a choice of its files."""
    own = config_files.own_folder()
    for entry in dataclasses.fields(schema) if own else ():
        require(
            not (own / entry.name).is_dir() or (config_files.CONFIG_DIR / entry.name).is_dir(),
            f"{own} holds a folder '{entry.name}', as a setting is named: keep settings in a folder that holds nothing"
            " else",
        )


def read_file(file: Path, schema: type[T]) -> T:
    """Read one YAML file that holds the values of a dataclass, with no overrides and no defaults list.

    Raises:
        SettingsError: The file is missing or no YAML, a key is unknown, or a value is missing or of the wrong type.
    """
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(file)))
    except Exception as error:  # of OmegaConf and YAML
        raise SettingsError(f"{file}: {_explain(error, schema)}") from error
    require(isinstance(settings, schema), f"{file} holds no settings: write `key: value` lines")
    return settings


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
        if before.get(key) != now.get(key) and not is_free(key, free)
    )


def is_free(key: str, free: Sequence[str]) -> bool:
    """Whether a dotted key begins as one of those that may differ; `*` in them stands for anything."""
    return any(fnmatchcase(key, f"{beginning}*") for beginning in free)


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


def _check_nothing_was_dropped(config: Any, settings: Any, schema: type) -> None:
    """`++key=value` slips past the schema, and the conversion to a dataclass then drops it: refuse it."""
    known = dict(flatten(to_plain(settings)))
    for key, _ in flatten(config):
        if key not in known:
            raise SettingsError(f"unknown setting '{key}'{_did_you_mean_key(key, schema)}")


def _check_values(value: Any, key: str = "", entry: dataclasses.Field | None = None) -> Any:
    """Refuse what is no choice of its setting, a seed out of numpy's range, and numbers that are not finite.

    In paths, `~/` becomes the home folder.

    Returns:
        The value.
    """
    if dataclasses.is_dataclass(value):
        for one in dataclasses.fields(value):
            setattr(value, one.name, _check_values(getattr(value, one.name), f"{key}{one.name}.", one))
    elif entry is not None and entry.metadata.get("is_prose"):
        return value
    elif isinstance(value, list):
        value[:] = [_check_values(item, f"{key}{index}.") for index, item in enumerate(value)]
    elif isinstance(value, dict):
        value.update({name: _check_values(item, f"{key}{name}.") for name, item in value.items()})
    elif entry is not None and (choices := entry.metadata.get("choices")) and value not in choices:
        raise SettingsError(f"{key[:-1]} is {value!r}: choose one of {', '.join(choices)}")
    elif isinstance(value, int) and re.search(r"\b(seed|seeds\.\d+)\.$", key) and not 0 <= value < 2**32:
        raise SettingsError(f"{key[:-1]} is {value}: give 0 to {2**32 - 1}")
    elif isinstance(value, float) and not math.isfinite(value) and key != "trainer.max_grad_norm.":
        raise SettingsError(f"{key[:-1]} is {value}: give a finite number")
    elif isinstance(value, str) and "\0" in value:
        raise SettingsError(f"{key[:-1]} is {value!r}: leave out the character \\0")
    elif isinstance(value, str | Path) and str(value).startswith("~/"):
        return type(value)(Path(value).expanduser())
    return value


def _keys_of(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema."""
    for entry in dataclasses.fields(schema):
        yield f"{prefix}{entry.name}"
        if dataclasses.is_dataclass(entry.type):
            yield from _keys_of(entry.type, f"{prefix}{entry.name}.")


def _did_you_mean_key(key: str, schema: type) -> str:
    known = list(_keys_of(schema)) + [f"data.sources.0.{entry.name}" for entry in dataclasses.fields(SourceSettings)]
    deeper = [name for name in known if name.endswith(f".{key}")]
    if deeper:
        return f"; did you mean {' or '.join(repr(name) for name in deeper)}?"
    return did_you_mean(key, known) or f"; known at the top are {', '.join(e.name for e in dataclasses.fields(schema))}"


def _explain(error: Exception, schema: type) -> str:
    """One line for what Hydra, OmegaConf or YAML have to say."""
    causes = (error, error.__cause__, error.__context__)
    cause = next((one for one in causes if isinstance(one, OmegaConfBaseException)), error)
    said = re.search(r"full_key: (\S+)", str(cause))
    full_key = getattr(cause, "full_key", None) or (said[1] if said else "")
    key = full_key.replace("[", ".").replace("]", "")
    reason = str(cause).split("\n", 1)[0].rstrip(".")
    if isinstance(error, MissingConfigException):
        return _explain_missing(error)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        file = re.match(r"In '(.+?)': ", str(error))
        where = f" in {_shown_file(file[1])}" if file else ""
        return f"unknown setting '{key}'{where}{_did_you_mean_key(key, schema)}"
    if unused := re.match(r"Could not override '([^'@]+)", reason):
        return f"unknown setting '{unused[1]}' of this command{_did_you_mean_key(unused[1], schema)}"
    if isinstance(cause, MissingMandatoryValue):
        return f"{full_key} has no value: give one, as in '{full_key}=...'"
    if not key:
        return one_line(error)
    if "interpolation" in reason or "Interpolation" in reason or "${" in reason:
        return f"{key}: {reason}: write \\${{ where the characters themselves are meant"
    parent, _, last = key.rpartition(".")
    if last.isdecimal() and "dict is not a subclass" in reason:
        return f"{parent} has no item {last}: list all of them, {parent}=[...]"
    entry = field_of(schema, key)
    choices = entry.metadata.get("choices") if entry else None
    advice = f"choose one of {', '.join(choices)}" if choices else f"give {wanted(type_of(schema, key))}"
    return f"{key} is null: {advice}" if "not Optional" in reason else f"{key}: {reason}: {advice}"


def _shown_file(name: str) -> str:
    """A file as Hydra names it, from the folder of groups: ours from the repository's, others whole."""
    files = [root / f"{name}.yaml" for root in config_files.config_roots()]
    file = next((file for file in files if file.is_file()), files[-1]).resolve()
    ours = config_files.CONFIG_DIR.resolve()
    return f"configs/{file.relative_to(ours)}" if file.is_relative_to(ours) else str(file)


def _explain_missing(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).partition("/")
    if not choice or not is_group(group):
        return f"there is no settings file '{error.missing_cfg_file}' in {config_files.CONFIG_DIR}"
    if number := numbered(group, choice):
        base, count = number
        return f"there is no file {group}/{choice}.yaml: write {base}, and compression: {{num_voco: {count}}}"
    known = choices_of(group)
    choices = f"choices: {', '.join(known)}, or the path of a .yaml"
    return f"there is no {group}={choice}{did_you_mean(choice, known)} ({choices})"
