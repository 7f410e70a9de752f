"""`kind=startup`: how long a data set of the size of mix665k takes to open, and what its workers hold.

A LLaVA file of conversations of 1 to 10 questions (665,000: a gigabyte) and a zip of tiny images (600,000) are made in
a folder of `startup.scratch`, where they stay for a second call if that is named. Each opening is a process of its own
on one thread: the first one with an empty index folder, the others with what that left. Then `DataLoader` workers,
forked and spawned, read records with the bytes of their images. Memory in bytes: `rss` with the pages that processes
share, such as the mapped index, `uss` without. Opening drops no page cache, so the disk's own speed is not in the
numbers.
"""

import json
import random
import shutil
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader

from voco_llama.bench.measuring import in_own_process, peak_rss
from voco_llama.bench.results import Findings, Page, Parts
from voco_llama.bench.settings import BenchSettings
from voco_llama.data.media.roots import open_media_root
from voco_llama.data.mixture import LoadedMixture, Mixture
from voco_llama.data.readers.llava_json import LlavaJson
from voco_llama.data.records import Record
from voco_llama.text import TextTable

TEXT_ONLY_SHARE = 0.06
QUESTION_WORDS, ANSWER_WORDS = (4, 20), (1, 55)
WORDS = ("the", "image", "a", "red", "bus", "is", "standing", "near", "people", "what", "and", "colour", "café", "in")
RECORDS, ARCHIVE, INDEX = "mix.json", "train2017.zip", "index"
OPENINGS = ("first opening", "second", "third")


def measure(settings: BenchSettings, findings: Findings) -> None:
    """See the module."""
    own = settings.startup
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (own.scratch or Path(temporary)) / f"startup_{own.records}_{own.members}"
        scratch.mkdir(parents=True, exist_ok=True)
        if not (scratch / RECORDS).is_file():
            make_records(scratch / RECORDS, own.records, own.members)
        if not (scratch / ARCHIVE).is_file():
            make_archive(scratch / ARCHIVE, own.members)
        shutil.rmtree(scratch / INDEX, ignore_errors=True)
        for opening in OPENINGS:
            findings.add(opening, in_own_process(open_once, scratch))
        files = {name: scratch / name for name in (RECORDS, ARCHIVE)}
        sizes = {name: file.stat().st_size for name, file in files.items()}
        index = sum(file.stat().st_size for file in (scratch / INDEX).rglob("*") if file.is_file())
        findings.add("bytes", sizes | {INDEX: index})
        findings.add("loading", in_own_process(workers_memory, scratch, own.workers, own.reads))


def _member(number: int) -> str:
    return f"train2017/{number:012}.jpg"


def make_records(file: Path, records: int, members: int) -> None:
    """Writes conversations in the shape of mix665k's."""
    source = random.Random(0)

    def text(bounds: tuple[int, int]) -> str:
        return " ".join(source.choices(WORDS, k=source.randint(*bounds)))

    with file.open("w", encoding="utf-8") as stream:
        for number in range(records):
            turns = []
            for turn in range(source.randint(1, 10)):
                mark = "" if turn else "<image>\n"
                turns += [{"from": "human", "value": mark + text(QUESTION_WORDS)}]
                turns += [{"from": "gpt", "value": text(ANSWER_WORDS)}]
            record = {"id": f"{number:012}", "image": f"coco/{_member(number % members)}", "conversations": turns}
            if source.random() < TEXT_ONLY_SHARE:
                del record["image"]
                turns[0]["value"] = turns[0]["value"].removeprefix("<image>\n")
            stream.write(("[" if number == 0 else ", ") + json.dumps(record))
        stream.write("]")


def make_archive(file: Path, members: int) -> None:
    """Writes a zip of that many tiny members."""
    with zipfile.ZipFile(file, "w") as opened:
        for number in range(members):
            opened.writestr(_member(number), b"%012d" % number)


class _Load:
    """A record's text length and the bytes of its image: what reading costs without decoding."""

    def __call__(self, record: Record) -> tuple[int, int]:
        num_bytes = 0
        for image in record.images:
            with image.open() as stream:
                num_bytes += len(stream.read())
        return sum(len(turn.text) for turn in record.turns), num_bytes


def _memory(process: psutil.Process) -> dict[str, int]:
    held = process.memory_full_info()
    return {"rss": held.rss, "uss": held.uss}


def open_once(threads: int, scratch: Path) -> dict[str, Any]:
    """Opens archive, records and mixture in this process."""
    torch.set_num_threads(1)
    before = time.perf_counter()
    root = open_media_root(None, scratch / RECORDS, scratch / INDEX, {"coco": str(scratch / ARCHIVE)})
    archive = time.perf_counter()
    reader = LlavaJson(scratch / RECORDS, root, scratch / INDEX)
    records = time.perf_counter()
    Mixture([reader])
    mixed = time.perf_counter()
    assert reader[len(reader) - 1].turns
    seconds = {"archive": archive - before, "records": records - archive, "mixture": mixed - records}
    return {
        "seconds": seconds | {"all": mixed - before},
        "process": _memory(psutil.Process()) | {"peak_rss": peak_rss()},
    }


def workers_memory(threads: int, scratch: Path, workers: int, reads: int) -> dict[str, Any]:
    """Reads through `DataLoader` workers and measures them at the end."""
    torch.set_num_threads(1)
    root = open_media_root(None, scratch / RECORDS, scratch / INDEX, {"coco": str(scratch / ARCHIVE)})
    data = LoadedMixture(Mixture([LlavaJson(scratch / RECORDS, root, scratch / INDEX)]), _Load())
    found: dict[str, Any] = {}
    for context in ("fork", "spawn"):
        loader = DataLoader(data, batch_size=1, num_workers=workers, multiprocessing_context=context)
        began = time.perf_counter()
        batches = iter(loader)
        next(batches)
        first = time.perf_counter()
        read = sum(1 for _, _ in zip(range(workers * reads), batches, strict=False))
        ended = time.perf_counter()
        found[context] = {
            "workers": [_memory(worker) for worker in psutil.Process().children(recursive=True) if _is_worker(worker)],
            "seconds_to_first": first - began,
            "records_a_second": read / (ended - first),
        }
        del batches
    return found | {"main": _memory(psutil.Process())}


def _is_worker(process: psutil.Process) -> bool:
    return "resource_tracker" not in " ".join(process.cmdline())


def page(parts: Parts) -> Page:
    """Seconds of each opening, and bytes of each worker."""
    openings = [(name, parts[name]) for name in OPENINGS if name in parts]
    names = ("records", "archive", "mixture", "all")
    body = [
        [name, *(f"{found['seconds'][one]:.2f}" for one in names), f"{found['process']['peak_rss'] / 1e6:.0f}"]
        for name, found in openings
    ]
    tables = [TextTable("Opening", ["", *(f"{name} s" for name in names), "peak MB"], body)]
    if loading := parts.get("loading"):
        body = [
            [context, *(f"{max(w[key] for w in loading[context]['workers']) / 1e6:.0f}" for key in ("rss", "uss"))]
            for context in ("fork", "spawn")
        ]
        tables.append(TextTable("A worker process", ["started by", "MB", "its own MB"], body))
    sizes = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in parts.get("bytes", {}).items())
    notes = ["The files were in the page cache: the speed of the disk is not in these numbers."]
    return Page("Opening a large data set", tables, [sizes, *notes] if sizes else notes)


def plot(parts: Parts, stem: Path) -> bool:
    """Nothing: a few numbers."""
    return False
