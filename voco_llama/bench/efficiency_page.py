"""What `kind=efficiency` found, as tables and a plot; the paper's figures beside, with the text that they imply."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voco_llama.bench.plot import bar_panel, plot_panels
from voco_llama.bench.results import MISSING, Page, Parts, gigabytes, times
from voco_llama.bench.settings import ShapeSettings
from voco_llama.text import TextTable

PAPER = {
    "no cache": (None, 440.5, 9.6, 0),
    "full cache (576)": (302.4, 154.9, 1.2, 576),
    "VoCo cache (1)": (0.525, 134.0, 0.5, 1),
}
"""The paper's Table 7, of one A100: megabytes of keys and values, milliseconds, TFLOPs; and the tokens kept."""
PAPER_SHAPE = ShapeSettings(4096, 32, 32, 11008, 32001, 336, 14, 1024, 24)
"""Vicuna-7B with `<voco>`, and CLIP ViT-L/14 at 336 pixels."""

NOTES = [
    "One question on each image of a batch; greedy decoding by transformers; all rows of one length, nothing padded.",
    "Time to the first token holds all that a row does from its image or cache on; a cache that is read is there"
    " before, and copied for each question. Tokenizing and preparing images are not in it, nor is loading a cache from"
    " disk.",
    "FLOPs are to the first token of one answer, by arithmetic with causal attention as half of its square; the counter"
    " (torch's `FlopCounterMode`) takes the whole square, and is held against arithmetic that does so too.",
    "Memory is beyond the weights and beyond caches that are there before: on a CPU the resident memory of a process of"
    " its own for each row, on a GPU what was allocated.",
    "Questions a second: each row answers in the largest batch whose keys and values (image, question and answer) fit"
    " the budget; the image's own compression or cache is there before.",
    "Compression pays from the question on at which compressing once and reading the cache is faster than reading the"
    " image anew each time.",
    "The paper states neither batch nor lengths, and counts no compression in its VoCo row. Implied text: what a 7B"
    " model reads in so many TFLOPs (`answer_flops`, causal attention as half), tower and projector included where no"
    " cache is kept.",
]


def page(parts: Parts) -> Page:
    """Counts, times of each batch, questions a second, when compression pays, the paper's table."""
    tables = []
    if "counts" in parts:
        tables.append(_counts(parts["counts"]))
    for name, part in _batches(parts):
        tables.append(_times(name, part, parts["asked"]))
        tables.append(_pays(name, part, parts["counts"]))
    if "throughput" in parts:
        tables.append(_throughput(parts["throughput"]))
    tables.append(_paper())
    asked = parts.get("asked")
    stated = [] if asked is None else [
        f"questions of {asked['text']} tokens, answers of {asked['new']}, images of {asked['vision']} vision tokens"
    ]  # fmt: skip
    return Page("What an answer costs", tables, stated + NOTES)


def _batches(parts: Parts) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name.partition("/")[2], part) for name, part in parts.items() if name.startswith("batch/"))


def _counts(counts: dict[str, dict[str, int]]) -> TextTable:
    body = []
    for name, count in counts.items():
        off = count["flops_counted"] / count["flops_as_counted"] - 1
        kept = [f"{count['kv_bytes']:,}", f"{count['kv_bytes_computed']:,}"] if count["kept"] else [MISSING] * 2
        counted = [f"{count[key] / 1e12:.4g}" for key in ("flops", "flops_as_counted", "flops_counted")]
        body.append([name, *kept, *counted, f"{100 * off:+.2f} %"])
    head = ["", "KV bytes an image", "by arithmetic", "TFLOPs", "with whole squares", "counter", "counter off by"]
    return TextTable("Keys and values, and FLOPs to the first token", head, body)


def _times(name: str, part: dict[str, Any], asked: dict[str, int]) -> TextTable:
    base, body = _median(part["no_cache"]["first"]), []
    for row, found in part.items():
        if found["first"]["failed"]:
            body.append([row, found["first"]["failed"], *[MISSING] * 3])
            continue
        saved = MISSING if base is None else f"{100 * (_median(found['first']) / base - 1):+.1f} %"
        a_token = times(_milli(found.get("a_token")))
        timing = found.get("all", found["first"])
        memory = found["memory"]["bytes"] if "memory" in found else timing["peak_bytes"]
        body.append([row, times(_milli(found["first"]["spread"])), saved, a_token, gigabytes(memory)])
    head = ["", "first token ms", "against no cache", "a token ms", "memory GB"]
    return TextTable(f"Times, {name} questions at a time, {asked['text']} tokens each", head, body)


def _milli(found: dict[str, float] | None) -> dict[str, float] | None:
    return None if found is None else {name: 1000 * value for name, value in found.items()}


def _median(timing: dict[str, Any]) -> float | None:
    return None if timing["failed"] else timing["spread"]["median"]


def _pays(name: str, part: dict[str, Any], counts: dict[str, dict[str, int]]) -> TextTable:
    body = []
    for row in part:
        if not row.startswith("compress_"):
            continue
        number = row.removeprefix("compress_")
        named = ("no_cache", f"voco_cached_{number}", row)
        seconds = [_median(part[one]["first"]) for one in named]
        flops = [counts[one]["flops"] for one in named]
        body.append([number, questions(*seconds), questions(*flops)])
    title = f"Questions an image from which compression pays, {name} at a time, to the first token"
    return TextTable(title, ["VoCo tokens", "by time", "by FLOPs"], body)


def questions(without: float | None, cached: float | None, compressing: float | None) -> str:
    """The least number of questions at which `compressing` and so many `cached` cost less than as many `without`."""
    if None in (without, cached, compressing):
        return MISSING
    return "never" if cached >= without else str(math.floor(compressing / (without - cached)) + 1)


def _throughput(found: dict[str, Any]) -> TextTable:
    body = [[name, str(row["rows"]), times(row["a_second"])] for name, row in found.items()]
    return TextTable("Questions a second at a fixed budget for keys and values", ["", "batch", "a second"], body)


def _paper() -> TextTable:
    body = []
    for name, (megabytes, milliseconds, tera, kept) in PAPER.items():
        size = MISSING if megabytes is None else f"{megabytes}"
        body.append([name, size, f"{milliseconds}", f"{tera}", str(implied_text(tera * 1e12, kept))])
    return TextTable("The paper's Table 7", ["", "KV MB", "ms", "TFLOPs", "implied text tokens"], body)


def implied_text(flops: float, kept: int) -> int:
    """Text tokens that a 7B model reads over `kept` tokens in so many FLOPs; of `kept` 0, the image read before it."""
    from voco_llama.bench.shape import config_of
    from voco_llama.model.flops import answer_flops, image_flops

    config = config_of(PAPER_SHAPE)
    image = image_flops(config) if kept == 0 else 0
    before = config.num_vision_tokens if kept == 0 else 0
    text = 1
    while image + answer_flops(config, before + text, 1, kept) < flops:
        text += 1
    return text


def plot(parts: Parts, stem: Path) -> bool:
    """Time to the first token of each row, a panel a batch, and questions a second."""
    panels = []
    for count, part in _batches(parts):
        found = {name: _milli(row["first"]["spread"]) for name, row in part.items() if not row["first"]["failed"]}
        panels.append(bar_panel(f"to the first token, {count} at a time", "ms", found))
    if "throughput" in parts:
        found = {name: row["a_second"] for name, row in parts["throughput"].items()}
        panels.append(bar_panel("at a fixed budget", "questions a second", found))
    if panels:
        plot_panels(panels, stem)
    return bool(panels)
