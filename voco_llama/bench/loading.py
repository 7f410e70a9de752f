"""`kind=loading`: how fast training's data path delivers batches with 0, 1 and 2 workers.

Records of LLaVA's format on synthetic JPEGs of a camera's size go through reader, processor (decoding, padding to a
square, resizing to 336, tokenizing, laying out), collator and `DataLoader`, as in a training of `voco_1`. Passes that
other processes disturbed are left out of the medians, unless all were.
"""

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from voco_llama.bench.measuring import spread
from voco_llama.bench.results import Findings, Page, Parts, times
from voco_llama.bench.settings import BenchSettings, LoadingBench
from voco_llama.data.collate import Collator
from voco_llama.data.media.images import ImageTransform
from voco_llama.data.mixture import LoadedMixture, Mixture
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.readers.llava_json import LlavaJson
from voco_llama.text import TextTable
from voco_llama.tokens import add_special_tokens
from voco_llama.toyworld.models import train_tokenizer

WORKERS = (0, 1, 2)
QUIET = 0.1
"""Only passes during which other processes used fewer cores than this make the medians."""
TEXT_ONLY_EVERY = 16
"""About mix665k's share of records without an image."""
QUESTION = "What is in the picture, and what stands beside it?"
ANSWER = "A house with a red roof stands on a green hill, and beside it a tree without leaves. " * 4
GRAIN = 6
"""Standard deviation of the noise on the pictures, which gives files about as large as photographs'."""


def measure(settings: BenchSettings, findings: Findings) -> None:
    """See the module."""
    own = settings.loading
    with tempfile.TemporaryDirectory() as folder:
        size = write_data(Path(folder), own)
        findings.add("kilobytes_an_image", size / own.images / 1000)
        rows, collator = build_loading(Path(folder))
        one_pass(rows, collator, own.batch, workers=0)  # files into the system's cache
        passes = []
        for number in range(settings.rounds):
            for workers in WORKERS:
                passes.append({"round": number} | one_pass(rows, collator, own.batch, workers))
            findings.add("passes", passes)


def write_data(folder: Path, own: LoadingBench) -> int:
    """Write images and records; returns the bytes of all images."""
    source = np.random.default_rng(0)
    records, size = [], 0
    for number in range(own.images):
        blocks = Image.fromarray(source.integers(0, 256, (own.height // 32, own.width // 32, 3), dtype=np.uint8))
        smooth = np.asarray(blocks.resize((own.width, own.height), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = np.clip(smooth + source.normal(0, GRAIN, smooth.shape), 0, 255).astype(np.uint8)
        file = folder / f"{number}.jpg"
        Image.fromarray(pixels).save(file, quality=own.quality)
        size += file.stat().st_size
        turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": ANSWER}]
        records.append({"id": str(number), "image": file.name, "conversations": turns})
        if number % TEXT_ONLY_EVERY == 0:
            turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
            records.append({"id": f"text {number}", "conversations": turns})
    (folder / "records.json").write_text(json.dumps(records), encoding="utf-8")
    return size


def build_loading(folder: Path) -> tuple[LoadedMixture, Collator]:
    """The data set and the collator, as `voco_llama.training.run` makes them."""
    backend = train_tokenizer([QUESTION, ANSWER, "USER: ASSISTANT:"], vocabulary=512)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    add_special_tokens(tokenizer)
    processor = VoCoProcessor(tokenizer, ImageTransform())
    mixture = Mixture([LlavaJson(folder / "records.json", folder)])
    return LoadedMixture(mixture, processor.row), Collator(processor.tokens)


def one_pass(rows: LoadedMixture, collator: Collator, batch: int, workers: int) -> dict[str, float]:
    """Load everything once, the start of the workers included."""
    loader = DataLoader(rows, batch_size=batch, collate_fn=collator, num_workers=workers)
    started, busy_before, own_before = time.perf_counter(), _busy_seconds(), _own_seconds()
    num_images = sum(len(loaded["pixel_values"]) for loaded in loader)
    seconds = time.perf_counter() - started
    others = _busy_seconds() - busy_before - (_own_seconds() - own_before)
    return {
        "workers": workers,
        "images_a_second": num_images / seconds,
        "cores_used_by_others": max(0.0, others / seconds),
    }


def _busy_seconds() -> float:
    """Of all cores, since the machine started."""
    spent = psutil.cpu_times()
    return sum(spent) - spent.idle - getattr(spent, "iowait", 0.0)


def _own_seconds() -> float:
    """Of this process and of its workers that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def page(parts: Parts) -> Page:
    """Images a second by workers, over the quiet passes."""
    passes = parts.get("passes", [])
    quiet = [done for done in passes if done["cores_used_by_others"] < QUIET]
    disturbed = {done["workers"] for done in quiet} != set(WORKERS)
    rates = {
        workers: [done["images_a_second"] for done in (passes if disturbed else quiet) if done["workers"] == workers]
        for workers in WORKERS
    }
    body = []
    if passes:
        base = spread(rates[0])["median"]
        body = [[str(w), times(spread(rate), 0), f"{spread(rate)['median'] / base:.2f}"] for w, rate in rates.items()]
    notes = [f"JPEGs of {parts.get('kilobytes_an_image', 0):.0f} KB; the start of the workers is in the time."]
    if disturbed:
        notes.append(f"Other processes used more than {QUIET} cores nearly all the time: repeat it when they end.")
    head = ["worker processes", "images a second", "ratio of medians"]
    return Page("Loading images", [TextTable("By worker processes", head, body)] if body else [], notes)


def plot(parts: Parts, stem: Path) -> bool:
    """Nothing: three numbers."""
    return False
