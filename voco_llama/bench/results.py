"""What a benchmark has found so far, on disk as it comes: a kill loses the part at hand."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from voco_llama.bench.settings import BenchSettings
from voco_llama.composition import to_plain
from voco_llama.files import write_atomically
from voco_llama.provenance import provenance
from voco_llama.text import TextTable, markdown

logger = logging.getLogger(__name__)

MISSING = "–"
Parts = dict[str, Any]


@dataclass(frozen=True)
class Page:
    """What people read of a benchmark: a title, tables, and what was counted and what was not."""

    title: str
    tables: list[TextTable]
    notes: list[str] = field(default_factory=list)


class Kind(Protocol):
    """A benchmark: a module of this package."""

    def measure(self, settings: BenchSettings, findings: "Findings") -> None:
        """Measure, and hand over each part as it is there."""

    def page(self, parts: Parts) -> Page:
        """What the parts that are there say."""

    def plot(self, parts: Parts, stem: Path) -> bool:
        """Draw them; False: there is nothing to draw."""


class Findings:
    """Parts by name, written to `<output>/<kind>.json` and `.md` with each new one."""

    def __init__(self, settings: BenchSettings, page: Callable[[Parts], Page]) -> None:
        self.parts: Parts = {}
        self._stem = settings.output / settings.kind
        self._page = page
        shown = to_plain(settings)
        own = ("kind", "rounds", "shape", "device", "dtype", "seed", settings.kind)
        self._head = {
            "settings": {name: shown[name] for name in own},
            "threads": torch.get_num_threads(),
            **provenance(),
        }

    def add(self, name: str, found: Any) -> None:
        """Keep a part, and write all there are."""
        self.parts[name] = found
        self.write()
        logger.info("%s: measured, in %s", name, self._stem.with_suffix(".json"))

    def write(self, picture: bool = False) -> str:
        """Write both files; returns the text for people."""
        found = {**self._head, "parts": self.parts}
        text = json.dumps(found, indent=2, default=str) + "\n"
        write_atomically(self._stem.with_name(f"{self._stem.name}.json"), text)
        page = self._page(self.parts)
        shown = [f"## {table.title}\n\n{markdown(table.head, table.body)}" for table in page.tables]
        notes = "\n".join(f"- {note}" for note in [*page.notes, *self._provenance()])
        drawn = [f"![{page.title}]({self._stem.name}.png)"] if picture else []
        text = "\n\n".join([f"# {page.title}", *shown, notes, *drawn]) + "\n"
        write_atomically(self._stem.with_name(f"{self._stem.name}.md"), text)
        return text

    def _provenance(self) -> list[str]:
        hardware = self._head["hardware"]
        machine = f"{hardware['cores']} cores ({hardware['machine']}), {self._head['threads']} threads"
        torch_version = self._head["versions"]["torch"]
        where = f"{hardware['accelerator'] or 'no GPU'}, {machine}, torch {torch_version}"
        return [f"`{self._head['command']}`", f"commit {self._head['git_commit']}, {where}"]


def times(found: dict[str, float] | None, digits: int = 2) -> str:
    """A ratio with its spread, `2.10 (2.05 to 2.20)`."""
    if found is None:
        return MISSING
    median, least, most = (f"{found[name]:.{digits}f}" for name in ("median", "least", "most"))
    return f"{median} ({least} to {most})"


def gigabytes(count: int | None) -> str:
    """Of bytes, 10^9 each."""
    return MISSING if count is None else f"{count / 1e9:.2f}"
