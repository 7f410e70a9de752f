"""The words of a command line: which command, a folder of settings of one's own, overrides; help, and what was meant.

It imports nothing slow: the schema of a command is looked at for its help alone.
"""

import argparse
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import Any, NamedTuple, NoReturn, Protocol, get_args, get_origin

from voco_llama.config_files import VARIABLE, choices_of, is_group, using_folder
from voco_llama.errors import SettingsError, did_you_mean
from voco_llama.provenance import installed_version

HELP = ("-h", "--help")
OPTIONS = ("--config-dir", "--help")
"""Of a command."""
ITEMS = {list: ".N", dict: ".NAME"}
"""How the settings of an item are called."""
WIDTH = 110


class Described(Protocol):
    """A command: one line about it, `module:name` of its schema, and its file of `configs/`."""

    help: str
    schema: str
    config: str


class Words(NamedTuple):
    """What was typed: a command, the folder of `--config-dir`, the overrides."""

    command: str
    folder: str | None
    overrides: list[str]


class _Parser(argparse.ArgumentParser):
    """Mistakes are errors of ours; options are not shortened."""

    def __init__(self, prog: str, **more: Any) -> None:
        super().__init__(prog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **more)
        self.add_argument("--config-dir", metavar="FOLDER", help=f"of settings of your own; or in {VARIABLE}")

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}: {self.prog} --help says what there is")


def parse(arguments: list[str], commands: Mapping[str, Described]) -> Words:
    """Read a command line; help and version are printed and end the process.

    A command of two words may be written with a blank: `data prepare` is `data-prepare`.

    Raises:
        SettingsError: There is no such command or option.
    """
    parser = _Parser(
        "voco-llama",
        usage="%(prog)s [--config-dir FOLDER] command [key=value ...]",
        description="Compress an image into a few VoCo tokens, and answer from their cache.",
        epilog=f"commands:\n{_listed(commands)}\n\nSettings are group=choice, where a choice is a name or the path of a"
        " .yaml, and key=value.\n`voco-llama COMMAND --help` lists those of a command.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {installed_version('voco-llama')}")
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments or ["--help"])
    name, *rest = options.words or [""]
    if rest and (joined := f"{name}-{rest[0]}") in commands:
        name, rest = joined, rest[1:]
    if name not in commands:
        _no_command(name, rest, commands)
    if set(rest) & set(HELP):
        folder = _parser_of(name, commands[name]).parse_known_args([word for word in rest if word not in HELP])[0]
        with using_folder(folder.config_dir or options.config_dir):
            _parser_of(name, commands[name], _settings_of(commands[name])).parse_args(HELP[:1])
    typed, unknown = _parser_of(name, commands[name]).parse_known_intermixed_args(rest)
    if unknown:
        option = unknown[0].partition("=")[0]
        key = option.lstrip("-").replace("-", "_")
        hint = did_you_mean(option, OPTIONS) or f": settings are written without dashes, {key}=..."
        raise SettingsError(f"there is no option {unknown[0]}{hint}")
    return Words(name, typed.config_dir or options.config_dir, typed.overrides)


def _no_command(word: str, rest: list[str], commands: Mapping[str, Described]) -> NoReturn:
    """A group of commands says which it has; anything else is a mistake."""
    group = {name: command for name, command in commands.items() if name.startswith(f"{word}-")}
    if group and (not rest or rest[0] in HELP):
        sys.stdout.write(f"usage: voco-llama {word} command [key=value ...]\n\ncommands:\n{_listed(group)}\n")
        raise SystemExit(0)
    typed = f"{word}-{rest[0]}" if group and "=" not in rest[0] else word
    known = list(group or commands)
    hint = "" if typed == word and group else did_you_mean(typed, known)
    hint = hint or f": choose one of {', '.join(known)}"
    raise SettingsError(f"there is no command {typed!r}{hint}")


def _parser_of(name: str, command: Described, epilog: str | None = None) -> _Parser:
    parser = _Parser(f"voco-llama {name}", description=command.help, epilog=epilog)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings; as below")
    return parser


def _settings_of(command: Described) -> str:
    """What a command reads: its groups with their choices, and its keys, as its schema describes them."""
    schema = resolve_name(command.schema)
    own = [entry.name for entry in dataclasses.fields(schema)]
    groups = ["experiment", *own] if "trainer" in own else ["plan"] if command.config == "sweep" else own
    choices = [
        textwrap.fill(", ".join(choices_of(name)), WIDTH, initial_indent=f"  {name}=", subsequent_indent="    ")
        for name in groups
        if is_group(name)
    ]
    head = "groups (a number in a name, as in voco_4, is compression.num_voco):" if "trainer" in own else "groups:"
    schemas = [entry for entry in schema.__mro__ if dataclasses.is_dataclass(entry)]  # its own settings, then inherited
    inside = (text for entry in dataclasses.fields(schema) for text in _described_inside(entry.type, entry.name))
    described = "\n\n".join([*(inspect.cleandoc(entry.__doc__) for entry in schemas), *inside])
    return "\n".join([*([head, *choices, ""] if choices else []), re.sub(r"\bNone\b", "null", described)])


def _described_inside(kind: Any, name: str) -> Iterator[str]:
    """What the settings within a setting are, each group of them under its dotted name."""
    if dataclasses.is_dataclass(kind):
        yield f"{name}.*: {inspect.cleandoc(kind.__doc__)}"
        for entry in dataclasses.fields(kind):
            yield from _described_inside(entry.type, f"{name}.{entry.name}")
    for part in get_args(kind):
        yield from _described_inside(part, name + ITEMS.get(get_origin(kind), ""))


def _listed(commands: Mapping[str, Described]) -> str:
    return "\n".join(f"  {name:<16} {command.help}" for name, command in commands.items())
