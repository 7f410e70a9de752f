"""Hydra's sweep grammar, as its multirun has it: one row for each combination of values.

    ["experiment=toy/voco_1,toy/voco_4", "trainer.learning_rate=1e-3,3e-3"]

gives voco_1-learning_rate_0.001, voco_1-learning_rate_0.003, voco_4-learning_rate_0.001, voco_4-learning_rate_0.003.
"""

import itertools
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from voco_llama.errors import SettingsError
from voco_llama.sweep.settings import RowSettings

EXPERIMENT = "experiment"
UNNAMED = "run"
"""What a row's name begins with where no experiment is chosen."""


def grid(overrides: Sequence[str]) -> dict[str, RowSettings]:
    """Rows by name, each with the overrides of its training and one evaluation.

    Args:
        overrides: Of `voco-llama train`; `a,b`, `choice(...)`, `range(...)`, `glob(...)` sweep, the last key fastest.

    Raises:
        SettingsError: An override cannot be read, or two combinations get the same name.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        choices = [_choices(override) for override in parsed]
    except HydraException as error:
        reason = str(error).split("\n", 1)[0]
        raise SettingsError(f"train={list(overrides)} cannot be read as overrides: {reason}") from error
    keys = [override.get_key_element().lstrip("+") for override in parsed]
    rows = {}
    for values in itertools.product(*choices):
        chosen = [
            f"{o.get_key_element()}={v}" if o.is_sweep_override() else o.input_line
            for o, v in zip(parsed, values, strict=True)
        ]
        swept = {k: v for o, k, v in zip(parsed, keys, values, strict=True) if o.is_sweep_override()}
        experiment = next((v for k, v in zip(keys, values, strict=True) if k == EXPERIMENT), UNNAMED)
        name = _name(experiment, swept)
        if name in rows:
            raise SettingsError(f"train: two combinations are named '{name}': name the values apart")
        rows[name] = RowSettings(train=chosen)
    return rows


def _choices(override: Override) -> list[str]:
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def _name(experiment: str, swept: dict[str, str]) -> str:
    """The experiment, and key and value of whatever else varies; a key in full only where its end is not enough."""
    ends = [key.rpartition(".")[2] for key in swept]
    parts = [_clean(experiment.rpartition("/")[2])]
    for key, value in swept.items():
        if key != EXPERIMENT:
            end = key.rpartition(".")[2]
            parts.append(f"{end if ends.count(end) == 1 else key}_{_clean(value)}")
    return "-".join(parts)


def _clean(value: str) -> str:
    """What of a value can stand in a file's name."""
    return re.sub(r"[^\w.-]+", "_", value).strip("_")
