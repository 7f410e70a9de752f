r"""What is typed becomes what Hydra reads.

Hydra has a grammar for values: a comma is a sweep, `#` an error, `1_000` a number. No command here is a sweep by that
grammar (`sweep train=[...]` reads it by itself), so a value is read by the type of its setting instead:

| setting takes | typed | the setting is |
|---|---|---|
| a text or a path | `left,right.png`, `runs/lr=1e-3/final`, `a (1).png`, `a#1.png`, `it's`, `1_000` | that text |
| | `'a b'`, `"a b"`, `a\ b` | `a b`: quotes and Hydra's escapes (a backslash before one of `\()[]{}:=,` or a blank) |
| | `null`; `${paths.runs}/x` | none, where the setting may be none; the value of another setting, then `/x` |
| a list of texts | `What is it?` | a list of it |
| a list of numbers | `0,1,2` | a list of them |
| anything else | as Hydra has it: `3`, `1e-3`, `false`, `[a, b]`, `{a: 1}` | that value |

`~/` at the beginning of a text is the home folder (`composition`). A value is never empty: `''` is the empty text.
"""

import dataclasses
import re
import types
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

from voco_llama.config_files import GLOBAL_GROUPS, choices_of, file_by_path, hydra_choice, is_group
from voco_llama.errors import SettingsError, require, shown

_OVERRIDE = re.compile(r"(~|\+{0,2})([^=]*)(?:=(.*))?", re.DOTALL)
_KEY = re.compile(r"[A-Za-z_$][\w$-]*(?:[./](?:[A-Za-z_$][\w$-]*|0|[1-9][0-9]*))*(?:@[\w$.-]*)?", re.ASCII)
_UNREADABLE = object()
_WANTED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    list: "a list, as [a, b]",
    dict: "keys and values, as {a: 1}",
}


class Override(NamedTuple):
    """`key=value`, `+key=value`, `++key=value`, `~key`; `value` is None where there is no `=`."""

    prefix: str
    key: str
    value: str | None

    def __str__(self) -> str:
        return f"{self.prefix}{self.key}" + ("" if self.value is None else f"={self.value}")


def split(text: str) -> Override:
    """The parts of one override.

    Raises:
        SettingsError: It is none, or one of Hydra's own settings.
    """
    override = Override(*_OVERRIDE.fullmatch(text).groups())
    prefix, key, value = override
    if not _KEY.fullmatch(key) or (value is None and prefix != "~"):
        raise SettingsError(
            f"cannot read the override {shown(text)}: write group=choice or key=value, with quotes around what has"
            " blanks: 'key=several words'"
        )
    if re.split("[./@]", key)[0] == "hydra":
        raise SettingsError(f"{key} is Hydra's own: leave it out (--config-dir FOLDER names a folder of settings)")
    return override


def check_lists_given_once(overrides: Sequence[str], schema: type) -> None:
    """Refuse two items, each given as the whole of a list (`image=a.png image=b.png`): both were meant.

    Of a setting that is given twice otherwise the last holds, as Hydra has it, so that scripts can append `"$@"`.

    Raises:
        SettingsError: It names both.
    """
    given: dict[str, str | None] = {}
    for _, key, value in map(split, overrides):
        is_list = get_origin(_bare(type_of(schema, key))) is list
        if is_list and value != given.setdefault(key, value) and not str(value).startswith("["):
            both = ",".join(_flat(one).strip("[]") for one in (given[key], value))
            raise SettingsError(
                f"{key} is given twice ({_flat(given[key])} and {_flat(value)}): give it once, or both as a list,"
                f" {key}=[{both}]"
            )


def for_hydra(override: Override, schema: type) -> Override:
    """One override in Hydra's grammar, its value read by the type that the schema says; see the module.

    Raises:
        SettingsError: The value cannot be read as one of its type, or names a file that is not there.
    """
    prefix, key, value = override
    if is_group(key.partition("@")[0]):
        return _chosen(override)
    if value is None:
        return override
    kind = _bare(type_of(schema, key))
    empty = f", or {key}=\"''\" for the empty text" if kind is str else ""
    require(value != "", f"{key}= gives no value: write one{empty}")
    if not prefix and (kind is dict or get_origin(kind) is dict or _is_open(schema, key)):
        prefix = "++"  # a key of its own making, in a dictionary
    return Override(prefix, key, _readable(key, value, kind))


def quoted(text: str) -> str:
    """Any text as a value of Hydra's grammar that is read as this very text; `${` stays an interpolation."""
    return QuotedString(text=text, quote=Quote.double).with_quotes()


def as_value(text: object) -> str:
    """A path or a text as a value that is read as it, quoted only where it must be."""
    text = str(text)
    return text if re.fullmatch(r"[\w./+${}-]+", text) and _parsed(text) == text else quoted(text)


def _flat(text: object) -> str:
    return " ".join(str(text).splitlines())


def _chosen(override: Override) -> Override:
    prefix, group, choice = override
    if choice is not None:
        choice = _flat(choice)  # no name of a file has several lines, and a message has one
    key = f"{group}@_global_" if group in GLOBAL_GROUPS else group
    value = None if choice is None else _parsed(choice)
    if isinstance(value, dict):
        return override  # values of the keys themselves
    if choice is None or isinstance(value, list):
        require(choice is None or prefix != "~", f"cannot read the override {shown(str(override))}: write ~{group}")
        return Override(prefix, key, choice)
    may_be_none = group in GLOBAL_GROUPS
    if value is None and may_be_none:
        return Override("~", key, None)
    none = f", or {group}=null for none" if may_be_none else ""
    require(value is not None and choice != "", f"{group}={choice}: choose one of {', '.join(choices_of(group))}{none}")
    choice = value if isinstance(value, str) else choice
    if file := file_by_path(group, choice):
        choice = hydra_choice(group, file)
    return Override(prefix, key, quoted(choice))


def chosen(override: Override) -> str | None:
    """The choice that an override makes of a group, without quotes; None where it makes none."""
    value = None if override.value is None else _parsed(override.value)
    return value if isinstance(value, str) else None if value is None else override.value


def _readable(key: str, text: str, kind: Any) -> str:
    value, list_of = _parsed(text), (get_args(kind) or (Any,))[0] if get_origin(kind) is list else None
    if kind in (str, Path):
        return text if value is None or _is_text(text, value) else quoted(text)
    if list_of is not None:
        if value is None or isinstance(value, list) or (isinstance(value, str) and value.startswith("${")):
            return text
        if list_of in (str, Path) and not text.startswith("["):
            return f"[{quoted(value if _is_text(text, value) else text)}]"
        if list_of in (int, float) and isinstance(_parsed(f"[{text}]"), list):
            return f"[{text}]"
        items = '["...", "..."]' if list_of in (str, Path) else "[...]"
        raise SettingsError(
            f"cannot read the override {shown(f'{key}={text}')}: {key} takes a list: write '{key}={items}'"
        )
    if value is not _UNREADABLE:
        return text
    if kind in (Any, None) and text[0] not in "[{":
        return quoted(text)
    raise SettingsError(f"cannot read the override {shown(f'{key}={text}')}: {key} takes {wanted(kind)}")


def _is_text(text: str, value: Any) -> bool:
    """Whether Hydra reads this text as the one that was meant."""
    return isinstance(value, str) and (value == text or text[0] in "'\"" or "\\" in text)


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _parsed(text: str) -> Any:
    """A value as Hydra's grammar reads it: None, a text, a number, a list ...; `_UNREADABLE`: no value, or a sweep."""
    try:
        override = _parser().parse_override(f"key={text}")
    except Exception:  # Hydra's own errors, and RecursionError of its parser
        return _UNREADABLE
    return _UNREADABLE if override.is_sweep_override() else override.value()


# ---- the types of settings


def type_of(schema: type, key: str) -> Any:
    """The annotation of a dotted key, also of one in a list or a dictionary; None where the schema has no such key."""
    kind: Any = schema
    for name in key.split("."):
        kind = _bare(kind)
        if dataclasses.is_dataclass(kind):
            kind = get_type_hints(kind).get(name)
        elif get_origin(kind) in (list, dict):
            is_item = get_origin(kind) is dict or name.isdecimal()
            require(is_item, f"{key}: '{name}' is no number of an item: write 0 for the first")
            kind = get_args(kind)[-1]
        else:
            kind = Any if kind in (Any, dict, list) else None
    return kind


def field_of(schema: type, key: str) -> dataclasses.Field | None:
    """The field of a dataclass behind a dotted key."""
    parent, _, name = key.rpartition(".")
    kind = _bare(type_of(schema, parent)) if parent else schema
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return next((entry for entry in fields if entry.name == name), None)


def wanted(kind: Any) -> str:
    """What a setting of this type takes, in words."""
    kind = _bare(kind)
    if dataclasses.is_dataclass(kind):
        return f"keys of its own ({', '.join(entry.name for entry in dataclasses.fields(kind))})"
    return _WANTED.get(get_origin(kind) or kind, "[a, b], {a: 1} or a text, in quotes where it begins like those")


def _is_open(schema: type, key: str) -> bool:
    """Whether the schema leaves it open which keys stand beside this one."""
    parent = key.rpartition(".")[0]
    kind = _bare(type_of(schema, parent)) if parent else schema
    return kind in (dict, Any) or get_origin(kind) is dict


def _bare(kind: Any) -> Any:
    """A type without `| None`."""
    if get_origin(kind) in (types.UnionType, Union):
        others = [one for one in get_args(kind) if one is not type(None)]
        return others[0] if len(others) == 1 else Any
    return kind
