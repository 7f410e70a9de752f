"""`kind=answer`: many questions on each of many images, read anew each time, from a full cache, from a VoCo cache.

Images are taken in as many blocks as there are rounds. Of each block every method makes what it keeps of the images,
and then answers in batches of the size that its keys and values allow (`answer.budget_gb`), questions on an image one
after another. Questions cost the same one after another, so `answer.asked` of those on an image are really asked, and
the time of all follows from theirs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from voco_llama.bench.efficiency import fitting
from voco_llama.bench.measuring import OUT_OF_MEMORY, Timing, alternate, ratios, spread
from voco_llama.bench.methods import Asking
from voco_llama.bench.plot import bar_panel, plot_panels
from voco_llama.bench.results import MISSING, Findings, Page, Parts, times
from voco_llama.bench.settings import METHODS, BenchSettings
from voco_llama.bench.shape import build_model, images
from voco_llama.text import TextTable

PART = "methods"
KEEPING, ASKING = "keeping", "asking"
NOTES = [
    "Seconds an image: what is kept of it is made once (nothing, all vision tokens' keys and values, those of the VoCo"
    " tokens), and all questions on it are answered.",
    "Each method answers in the largest batch whose keys and values (image, question and answer) fit the budget.",
    "Of the questions on an image so many were asked as the table says; the rest is counted as long.",
]


@dataclass
class Way:
    """A method and its batch; `kept` is what it has of the images at hand."""

    keep: Callable[[Tensor], Any]
    ask: Callable[[Any, Sequence[int], int], object]
    batch: int
    kept: Any = None

    def keep_block(self, pixel_values: Tensor) -> None:
        """Make what is kept of a block of images, in batches."""
        self.kept = None
        self.kept = self.keep(pixel_values)

    def answer(self, num_images: int, questions: int, new: int) -> None:
        """Answer so many questions on each image."""
        entries = [image for image in range(num_images) for _ in range(questions)]
        for start in range(0, len(entries), self.batch):
            self.ask(self.kept, entries[start : start + self.batch], new)


def ways(asking: Asking, settings: BenchSettings) -> dict[str, Way]:
    """All of `METHODS`."""
    own, model = settings.answer, asking.model
    image = {"no_cache": asking.whole.num_vision, "full_cache": asking.whole.num_vision, "voco": model.config.num_voco}
    batch = {n: fitting(model, image[n] + own.text + own.new, own.budget_gb, own.most_rows) for n in METHODS}
    return {
        "no_cache": Way(lambda pixels: pixels, lambda p, e, new: asking.no_cache(p[list(e)], new), batch["no_cache"]),
        "full_cache": Way(asking.fill, asking.full_cache, batch["full_cache"]),
        "voco": Way(model.compress, asking.voco, batch["voco"]),
    }


def measure(settings: BenchSettings, findings: Findings) -> None:
    """See the module."""
    own, model = settings.answer, build_model(settings).eval()
    found = ways(Asking(model, own.text), settings)
    block = max(1, own.images // settings.rounds)
    pixel_values: dict[int, Tensor] = {}

    def keep(way: Way, number: int) -> Callable[[], object]:
        if number not in pixel_values:
            pixel_values.clear()
            pixel_values[number] = images(model, block)
        return partial(way.keep_block, pixel_values[number])

    def ask(way: Way, asked: int, number: int) -> Callable[[], object]:
        return partial(way.answer, block, asked, own.new)

    works = {}
    for name, way in found.items():
        works[f"{name}/{KEEPING}"] = partial(keep, way)
        works[f"{name}/{ASKING}"] = partial(ask, way, min(own.asked[name], own.questions))
    timings = alternate(works, settings.rounds, model.device, "answers")
    findings.add(
        PART,
        {name: _found(timings, name, way, settings, block) for name, way in found.items()}
        | {"questions": own.questions, "images": block * settings.rounds, "text": own.text, "new": own.new},
    )


def _found(timings: dict[str, Timing], name: str, way: Way, settings: BenchSettings, block: int) -> dict[str, Any]:
    own, keeping, asking = settings.answer, timings[f"{name}/{KEEPING}"], timings[f"{name}/{ASKING}"]
    asked = min(own.asked[name], own.questions)
    failed = keeping.failed or asking.failed
    found: dict[str, Any] = {"batch": way.batch, "asked": asked, "failed": failed and OUT_OF_MEMORY, "seconds": []}
    if not failed:
        both = zip(keeping.seconds, asking.seconds, strict=True)
        found["seconds"] = [(keep + ask * own.questions / asked) / block for keep, ask in both]
        found["a_second"] = spread([own.questions / seconds for seconds in found["seconds"]])
        found["keeping"] = spread([seconds / block for seconds in keeping.seconds])
    return found


def page(parts: Parts) -> Page:
    """One row a method, and how many times as fast VoCo is."""
    if PART not in parts:
        return Page("Many questions an image", [], NOTES)
    found, body = parts[PART], []
    for name in METHODS:
        row = found[name]
        if row["failed"]:
            body.append([name, row["failed"], *[MISSING] * 5])
            continue
        seconds = spread(row["seconds"])
        fast = times(ratios(row, found["voco"]))
        shown = [str(row["batch"]), str(row["asked"]), f"{row['keeping']['median']:.3f}", times(seconds)]
        body.append([name, *shown, times(row["a_second"], 1), fast])
    head = ["", "batch", "asked", "keeping s an image", "all s an image", "questions a second", "VoCo times as fast"]
    title = (
        f"{found['questions']} questions of {found['text']} tokens, answers of {found['new']}, on each of"
        f" {found['images']} images"
    )
    return Page("Many questions an image", [TextTable(title, head, body)], NOTES)


def plot(parts: Parts, stem: Path) -> bool:
    """Questions a second."""
    rates = {name: parts[PART][name]["a_second"] for name in METHODS if not parts[PART][name]["failed"]}
    plot_panels([bar_panel("many questions an image", "questions a second", rates)], stem)
    return True
