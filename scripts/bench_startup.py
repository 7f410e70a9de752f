"""How long a data set of the size of mix665k takes to open, the first time and then, and what its workers hold.

    .venv/bin/python scripts/bench_startup.py output=docs/results/startup

Makes a LLaVA file of `records` conversations of 1 to 10 questions (665,000, a gigabyte) and a zip of `members` images
that are a few bytes each (600,000) in `scratch` (a temporary folder), where they stay for a second call if it is named.
Each opening is a process of its own on one thread: the first ones with an empty index folder, the others with what
those left. Then `workers` DataLoader workers (2), forked and spawned, read `reads` records (4,000) each with the bytes
of their images. Writes `<output>/bench_startup.json`: seconds, and bytes of memory: `rss` with the pages that
processes share, such as the mapped index, `uss` without. Opening drops no page cache, so the disk's own speed is not
in the numbers.
"""

import json
import logging
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import psutil
from torch.utils.data import DataLoader

from voco_llama.data.media.roots import open_media_root
from voco_llama.data.mixture import LoadedMixture, Mixture
from voco_llama.data.readers.llava_json import LlavaJson
from voco_llama.data.records import Record
from voco_llama.files import write_atomically
from voco_llama.provenance import provenance

DEFAULTS = {"records": 665_000, "members": 600_000, "workers": 2, "reads": 4_000, "scratch": "", "output": "."}
TEXT_ONLY_SHARE = 0.06
QUESTION_WORDS, ANSWER_WORDS = (4, 20), (1, 55)
WORDS = ("the", "image", "a", "red", "bus", "is", "standing", "near", "people", "what", "and", "colour", "café", "in")


def _member(number: int) -> str:
    return f"train2017/{number:012}.jpg"


def make_records(file: Path, records: int, members: int) -> None:
    """Writes conversations in the shape of mix665k's."""
    draw = random.Random(0)

    def text(bounds: tuple[int, int]) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(*bounds)))

    with file.open("w", encoding="utf-8") as stream:
        for number in range(records):
            turns = []
            for turn in range(draw.randint(1, 10)):
                mark = "" if turn else "<image>\n"
                turns += [{"from": "human", "value": mark + text(QUESTION_WORDS)}]
                turns += [{"from": "gpt", "value": text(ANSWER_WORDS)}]
            record = {"id": f"{number:012}", "image": f"coco/{_member(number % members)}", "conversations": turns}
            if draw.random() < TEXT_ONLY_SHARE:
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


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def open_once(scratch: Path) -> dict[str, Any]:
    """Opens archive, records and mixture in this process."""
    before = time.perf_counter()
    index = scratch / "index"
    root = open_media_root(None, scratch / "mix.json", index, {"coco": str(scratch / "train2017.zip")})
    archive = time.perf_counter()
    reader = LlavaJson(scratch / "mix.json", root, index)
    records = time.perf_counter()
    mixture = Mixture([reader])
    order = {"characters": int(mixture.characters.sum()), "media": int(mixture.media.sum())}
    mixed = time.perf_counter()
    assert reader[len(reader) - 1].turns
    seconds = {"archive": archive - before, "records": records - archive, "mixture": mixed - records}
    return {
        "seconds": seconds | {"all": mixed - before},
        "process": _memory(psutil.Process()) | {"peak_rss": _peak()},
        "contents": order,
    }


def workers_memory(scratch: Path, workers: int, reads: int) -> dict[str, Any]:
    """Reads through DataLoader workers and measures them at the end."""
    index = scratch / "index"
    root = open_media_root(None, scratch / "mix.json", index, {"coco": str(scratch / "train2017.zip")})
    data = LoadedMixture(Mixture([LlavaJson(scratch / "mix.json", root, index)]), _Load())
    found: dict[str, Any] = {}
    for context in ("fork", "spawn"):
        loader = DataLoader(data, batch_size=1, num_workers=workers, multiprocessing_context=context)
        began = time.perf_counter()
        batches = iter(loader)
        next(batches)
        first = time.perf_counter()
        for _ in range(workers * reads):
            next(batches)
        ended = time.perf_counter()
        found[context] = {
            "workers": [_memory(worker) for worker in psutil.Process().children(recursive=True) if _is_worker(worker)],
            "seconds_to_first": first - began,
            "records_per_second": workers * reads / (ended - first),
        }
        del batches
    return found | {"main": _memory(psutil.Process())}


def _is_worker(process: psutil.Process) -> bool:
    return "resource_tracker" not in " ".join(process.cmdline())


def _in_its_own_process(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, *(f"{argument}" for argument in arguments)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return json.loads(done.stdout)


def measure(scratch: Path, own: dict[str, Any]) -> dict[str, Any]:
    """Makes what is not there, and measures it."""
    file, archive = scratch / "mix.json", scratch / "train2017.zip"
    if not file.is_file():
        make_records(file, own["records"], own["members"])
    if not archive.is_file():
        make_archive(archive, own["members"])
    for old in sorted((scratch / "index").rglob("*"), reverse=True) if (scratch / "index").is_dir() else []:
        old.rmdir() if old.is_dir() else old.unlink()
    openings = [_in_its_own_process("open", scratch) for _ in range(3)]
    assert len({json.dumps(opening.pop("contents")) for opening in openings}) == 1
    return {
        "records": own["records"],
        "members": own["members"],
        "bytes": {"records": file.stat().st_size, "archive": archive.stat().st_size, "index": _size(scratch / "index")},
        "first_opening": openings[0],
        "later_openings": openings[1:],
        "loading": _in_its_own_process("workers", scratch, own["workers"], own["reads"]),
    }


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """See the module."""
    logging.basicConfig(level=logging.WARNING)
    match sys.argv[1:]:
        case ["open", scratch]:
            sys.stdout.write(json.dumps(open_once(Path(scratch))))
            return
        case ["workers", scratch, workers, reads]:
            sys.stdout.write(json.dumps(workers_memory(Path(scratch), int(workers), int(reads))))
            return
    own = DEFAULTS | dict(argument.split("=", 1) for argument in sys.argv[1:])
    own = {key: type(DEFAULTS[key])(value) for key, value in own.items()}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(own["scratch"] or temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        found = measure(scratch, own)
    found |= provenance()
    write_atomically(Path(own["output"]) / "bench_startup.json", json.dumps(found, indent=2) + "\n")
    sys.stdout.write(json.dumps({k: v for k, v in found.items() if k != "versions"}, indent=2) + "\n")


if __name__ == "__main__":
    main()
