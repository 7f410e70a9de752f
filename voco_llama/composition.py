"""How files and overrides become one settings object.

Dataclasses hold the schema (`voco_llama.settings`, and one beside each command), YAML below `configs/` holds the
values, Hydra composes them; an unknown key fails. Here are only checks that one value can pass or fail on its own (its
type, its choices). hydra is used here and in `sweep/grid.py`, omegaconf here and in `settings.py`.
"""

import dataclasses
import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from voco_llama.errors import SettingsError
from voco_llama.settings import SourceSettings, TrainSettings

T = TypeVar("T")

_PACKAGE = Path(__file__).resolve().parent
CONFIG_DIR = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
"""Inside the package in an installed wheel, beside it in a checkout."""
EVAL_DIR = CONFIG_DIR.with_name("eval")
"""Tables, suites and tasks; beside the configurations in both."""


def compose(overrides: Sequence[str] = (), config_name: str = "train", schema: type = TrainSettings) -> Any:
    """Compose one configuration and return its dataclass.

    Args:
        overrides: Hydra overrides, `group=choice` or `key=value`. Keys below `trainer.` may be new ones: they are
            held against `TrainingArguments` later.
        config_name: A top-level file of `configs/`, whose defaults list opens with `<config_name>_schema`.
        schema: The dataclass behind it.

    Raises:
        SettingsError: An unknown key, group or choice, a value of the wrong type, a value that is missing.
    """
    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
    overrides = [f"++{text}" if text.startswith("trainer.") else text for text in overrides]
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            config = hydra.compose(config_name, overrides)
        settings = OmegaConf.to_object(config)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise SettingsError(_explain(error, schema)) from error
    _check_nothing_was_dropped(config, settings, schema)
    _check_choices(settings)
    return settings


def read_file(file: Path, schema: type[T]) -> T:
    """Read one YAML file that holds the values of a dataclass, with no overrides and no defaults list.

    Raises:
        SettingsError: The file is missing or no YAML, a key is unknown, or a value is missing or of the wrong type.
    """
    try:
        values = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(file)))
    except (OmegaConfBaseException, YAMLError, OSError) as error:
        raise SettingsError(f"{file}: {_explain(error, schema)}") from error
    return values


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


@dataclasses.dataclass(frozen=True)
class Difference:
    """Between the settings of something that exists and those of now: of the keys that differ, both values."""

    values: dict[str, tuple[Any, Any]]
    shown: int = 5

    def __bool__(self) -> bool:
        return bool(self.values)

    def __str__(self) -> str:
        listed = [f"{key} ({there} there, {here} now)" for key, (there, here) in self.values.items()]
        more = f" and {len(listed) - self.shown} more" if len(listed) > self.shown else ""
        return ", ".join(listed[: self.shown]) + more


def difference(
    there: Mapping[str, Any], here: Mapping[str, Any], schema: type | None = None, free: Sequence[str] = ()
) -> Difference:
    """What differs between settings that were written down and those of now.

    Args:
        there: Nested, or already flat; of then.
        here: The same of now.
        schema: Of both: a key that is younger than what was written had its default then.
        free: Beginnings of dotted keys that may differ.
    """
    before, now = dict(flatten(there)), dict(flatten(here))
    if schema is not None:
        younger = [key for key in now if key not in before and not _is_of_a_list_in(before, key)]
        before |= dict(_defaults_of(schema, younger))
    differing = (key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key))
    return Difference({key: (before.get(key), now.get(key)) for key in differing if not key.startswith(tuple(free))})


def _is_of_a_list_in(tree: Mapping[str, Any], key: str) -> bool:
    """Whether a key is an item of a list that `tree` has too, if with fewer items."""
    parent, _, index = key.rpartition(".")
    return index.isdigit() and any(other == parent or other.startswith(f"{parent}.") for other in tree)


def _defaults_of(schema: type, keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Dotted key and default of those of the keys that have one, in lists of dataclasses too."""
    own = {entry.name: entry for entry in dataclasses.fields(schema)}
    for key in keys:
        name, _, rest = key.partition(".")
        if (entry := own.get(name)) is None:
            continue
        (item,) = get_args(entry.type) if get_origin(entry.type) is list else (None,)
        inner = item if rest.partition(".")[0].isdigit() else entry.type
        inner_rest = rest.partition(".")[2] if inner is item else rest
        if dataclasses.is_dataclass(inner):
            yield from ((f"{key[: -len(inner_rest)]}{k}", v) for k, v in _defaults_of(inner, [inner_rest]))
        elif entry.default is not dataclasses.MISSING and not rest:
            yield key, entry.default
        elif entry.default_factory is not dataclasses.MISSING:
            default = dict(flatten(entry.default_factory(), name))
            if key in default:
                yield key, default[key]


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


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
    """Every dotted key of a schema; list items carry the index 0."""
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
    known = sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.glob("**/*.yaml"))
    return f"there is no {group}={choice}{did_you_mean(choice, known)} (choices: {', '.join(known)})"
