"""A number in a name is `compression.num_voco`: `experiment=voco_4`, and no file for each number."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from voco_llama.config_files import file_by_path, group_file, is_group
from voco_llama.errors import SettingsError, refused_as, require
from voco_llama.overrides import Override, chosen


def with_num_voco(overrides: Sequence[Override]) -> list[Override]:
    """`compression=voco_4` is `compression=voco compression.num_voco=4`; `experiment=toy/voco_4_kl` is toy/voco_kl so.

    A file of the very name goes before. The number of a chosen compression, said or its file's own, goes before that of
    an experiment, and `compression.num_voco=...` before both.

    Raises:
        SettingsError: A name is one of these without its `_`.
    """
    numbers, read = {}, []
    for override in overrides:
        group, choice = override.key, chosen(override)
        if group in ("experiment", "compression") and choice is not None:
            file = file_by_path(group, choice)
            name = choice.removesuffix(".yaml")
            if file is None:
                _check_joined(group, name)
            if file is None and (found := numbered(group, name)):
                override = override._replace(value=found[0])
                numbers[group] = found[1]
            elif group == "compression" and (file := file or group_file(group, name)):
                numbers[group] = _values_in(file).get("num_voco")
        read.append(override)
    number = numbers.get("compression", numbers.get("experiment"))
    return read if number is None else [Override("", "compression.num_voco", str(number)), *read]


def _check_joined(group: str, choice: str) -> None:
    """Refuse a number that `_` should set apart: `voco4` is no name, and a close one would be of another number."""
    name = re.fullmatch(r"(.*[a-z])-?([1-9][0-9]*(?:_[a-z]+)?)", choice)
    if name is None or group_file(group, choice):
        return
    meant = f"{name[1]}_{name[2]}"
    if group_file(group, meant) or numbered(group, meant):
        raise SettingsError(f"there is no {group}={choice}; did you mean '{meant}'?")


def numbered(group: str, choice: str) -> tuple[str, int] | None:
    """Of `voco_4_kl`: `voco_kl` and 4, if there is no file of the name, and one without the number that takes any.

    That is an experiment whose folder follows the number, or a compression to VoCo tokens alone, always as many.
    """
    name = re.fullmatch(r"(.+)_([1-9][0-9]*)((?:_[a-z]+)?)", choice)
    if name is None or group not in ("experiment", "compression") or group_file(group, choice):
        return None
    base = f"{name[1]}{name[3]}"
    if (file := group_file(group, base)) is None:
        return None
    values = _values_in(file)
    if group == "experiment":
        takes_any = "compression.num_voco" in str(values.get("output_dir", ""))
    else:
        takes_any = values.get("condition") == "voco" and "num_voco_choices" not in values
    return (base, int(name[2])) if takes_any else None


def check_own_files(overrides: Sequence[Override]) -> None:
    """Refuse a chosen file that is no YAML, by its name, which Hydra does not always say.

    Raises:
        SettingsError: It says what is wrong.
    """
    for override in overrides:
        choice = chosen(override)
        if choice is not None and is_group(override.key):
            file = file_by_path(override.key, choice) or group_file(override.key, choice.removesuffix(".yaml"))
            if file is not None:
                _values_in(file)


def _values_in(file: Path) -> dict[str, Any]:
    """The values of a YAML file as they stand there."""
    with refused_as(SettingsError, file, "write `key: value` lines"):
        values = OmegaConf.to_container(OmegaConf.load(file))
        require(isinstance(values, dict), f"{file} holds no settings: write `key: value` lines")
    return values
