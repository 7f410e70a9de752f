"""`bench`: one kind of benchmark from settings to its files."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from voco_llama.bench.results import Findings, Kind
from voco_llama.bench.settings import BenchSettings
from voco_llama.files import check_writable


def bench(settings: BenchSettings, evaluation: Callable[[Sequence[str]], Any]) -> str:
    """Measure, and write `<output>/<kind>.json`, `.md`, and `.png` and `.svg` where there is something to draw.

    Args:
        settings: Checked (`check_bench`).
        evaluation: Makes settings of `voco-llama evaluate` of overrides, for `kind=evaluate`.

    Returns:
        The text of the Markdown file.
    """
    check_writable("output", settings.output)
    if settings.startup.scratch is not None:
        check_writable("startup.scratch", settings.startup.scratch)
    kind: Kind = import_module(f"voco_llama.bench.{settings.kind}")
    findings = Findings(settings, kind.page)
    measure = partial(kind.measure, evaluation=evaluation) if settings.kind == "evaluate" else kind.measure
    measure(settings, findings)
    can_draw = find_spec("matplotlib") is not None  # a machine that is lent for a benchmark may have none
    return findings.write(picture=can_draw and kind.plot(findings.parts, settings.output / settings.kind))
