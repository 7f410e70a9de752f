"""The experiment trackers that `trainer.report_to` names: whether they can be used here without a question."""

import configparser
import netrc
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from voco_llama.errors import SettingsError, did_you_mean

PACKAGES = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}
"""Where transformers asks for a tracker's package by another name."""
WANDB_SETTINGS = (Path("wandb/settings"), Path("~/.config/wandb/settings"))
"""Where `wandb offline` says so, and `wandb login --host=...` which server."""


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
    kept = list(_wandb_settings())
    if any(settings.get("mode") in ("offline", "disabled") for settings in kept):
        return True
    named = [os.environ.get("WANDB_BASE_URL"), *(settings.get("base_url") for settings in kept)]
    return _is_in_netrc([url for url in named if url])


def _wandb_settings() -> Iterator[Mapping[str, str]]:
    """What each of its settings files says."""
    for file in WANDB_SETTINGS:
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(file.expanduser(), encoding="utf-8")
            yield dict(parser["default"]) if "default" in parser else {}
        except (configparser.Error, ValueError):
            continue


def _is_in_netrc(urls: list[str]) -> bool:
    """Whether the user's file of logins has one for wandb's own host or that of a URL, with or without its port."""
    named = os.environ.get("NETRC")
    wanted = {host for url in urls for host in (urlsplit(url).netloc, urlsplit(url).netloc.partition(":")[0])}
    for file in [named] if named else ["~/.netrc", "~/_netrc"]:
        try:
            hosts = netrc.netrc(Path(file).expanduser()).hosts
        except (OSError, ValueError, netrc.NetrcParseError):
            continue
        if any("wandb" in host or host in wanted or host == "default" for host in hosts):
            return True
    return False
