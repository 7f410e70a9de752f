"""The experiment trackers that `trainer.report_to` names: whether they can be used here without a question."""

import configparser
import netrc
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from voco_llama.errors import SettingsError, did_you_mean

PACKAGES = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}
"""Where transformers asks for a tracker's package by another name."""
WANDB_SETTINGS = (Path("wandb/settings"), Path("~/.config/wandb/settings"))
"""Where `wandb offline` says so."""


def check_trackers(trainer: Mapping[str, Any]) -> list[str]:
    """The trackers of a training; `all` are those that are installed.

    Raises:
        SettingsError: transformers does not know one, it is not installed, or it would ask who the user is.
    """
    from transformers.integrations import integration_utils

    named = trainer.get("report_to") or []
    names = [named] if isinstance(named, str) else list(named)
    if names == ["all"]:
        names = integration_utils.get_available_reporting_integrations()
    names = [name for name in names if name != "none"]
    known = integration_utils.INTEGRATION_TO_CALLBACK
    for name in names:
        if name not in known:
            raise SettingsError(
                f"trainer.report_to: '{name}' is no tracker{did_you_mean(str(name), list(known))} (choices: none, all,"
                f" {', '.join(known)})"
            )
        if not getattr(integration_utils, f"is_{PACKAGES.get(name, name)}_available")():
            raise SettingsError(f"trainer.report_to: {name} is not installed: install it, or choose another")
        if name == "wandb" and not _wandb_is_set_up():
            raise SettingsError(
                "trainer.report_to: wandb would ask who you are: run wandb login, or set WANDB_API_KEY, or"
                " WANDB_MODE=offline"
            )
    return names


def _wandb_is_set_up() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    return any(_wandb_modes()) or _wandb_host_is_known()


def _wandb_modes() -> Iterator[bool]:
    """Of each of its settings files, whether it needs no server."""
    for file in WANDB_SETTINGS:
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(file.expanduser(), encoding="utf-8")
            yield parser.get("default", "mode", fallback="") in ("offline", "disabled")
        except (configparser.Error, ValueError):
            continue


def _wandb_host_is_known() -> bool:
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
