"""How fast training's data path delivers batches with 0, 1 and 2 workers, side by side in one run.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench_loading.py output=docs/results/loading repeats=5

Records of LLaVA's format on synthetic JPEGs of a camera's size go through reader, processor (decoding, padding to a
square, resizing to 336, tokenizing, laying out), collator and `DataLoader`, as in a training of `voco_1`. Takes
`images` (320), `width` (640), `height` (480), `quality` (90), `batch` (16), `repeats` (5). The numbers of workers
alternate; their ratios are what counts, for machines are noisy. Writes `<output>/bench_loading.json`: medians, ratios,
each pass, and how many cores other processes used meanwhile. Passes that others disturbed are left out of the medians.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from voco_llama.data.collate import Collator
from voco_llama.data.media.images import ImageTransform
from voco_llama.data.mixture import LoadedMixture, Mixture
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.readers.llava_json import LlavaJson
from voco_llama.errors import SettingsError
from voco_llama.files import write_atomically
from voco_llama.provenance import provenance
from voco_llama.tokens import add_special_tokens
from voco_llama.toyworld.models import train_tokenizer

WORKERS = (0, 1, 2)
QUIET = 0.1
"""Only passes during which other processes used fewer cores than this make the medians."""
DEFAULTS = {"images": 320, "width": 640, "height": 480, "quality": 90, "batch": 16, "repeats": 5}
TEXT_ONLY_EVERY = 16
"""About mix665k's share of records without an image."""
QUESTION = "What is in the picture, and what stands beside it?"
ANSWER = "A house with a red roof stands on a green hill, and beside it a tree without leaves. " * 4
GRAIN = 6
"""Standard deviation of the noise on the pictures, which gives files about as large as photographs'."""


def write_data(folder: Path, own: dict[str, int]) -> int:
    """Write images and records; returns the bytes of all images."""
    random = np.random.default_rng(0)
    records, size = [], 0
    for number in range(own["images"]):
        blocks = Image.fromarray(random.integers(0, 256, (own["height"] // 32, own["width"] // 32, 3), dtype=np.uint8))
        smooth = np.asarray(blocks.resize((own["width"], own["height"]), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = np.clip(smooth + random.normal(0, GRAIN, smooth.shape), 0, 255).astype(np.uint8)
        file = folder / f"{number}.jpg"
        Image.fromarray(pixels).save(file, quality=own["quality"])
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
    started, busy_before, own_before = time.perf_counter(), busy_seconds(), own_seconds()
    num_images = sum(len(loaded["pixel_values"]) for loaded in loader)
    seconds = time.perf_counter() - started
    others = busy_seconds() - busy_before - (own_seconds() - own_before)
    return {
        "workers": workers,
        "seconds": seconds,
        "images_per_second": num_images / seconds,
        "samples_per_second": len(rows) / seconds,
        "cores_used_by_others": max(0.0, others / seconds),
    }


def busy_seconds() -> float:
    """Of all cores, since the machine started."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0)


def own_seconds() -> float:
    """Of this process and of its workers that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def main() -> None:
    """See the module."""
    given = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    output = Path(given.pop("output", "docs/results/loading"))
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise SettingsError(f"unknown setting {unknown[0]!r}; known: output, {', '.join(DEFAULTS)}")
    own = DEFAULTS | {name: int(value) for name, value in given.items()}
    with tempfile.TemporaryDirectory() as folder:
        size = write_data(Path(folder), own)
        rows, collator = build_loading(Path(folder))
        one_pass(rows, collator, own["batch"], workers=0)  # files into the system's cache
        passes = [
            {"repeat": repeat} | one_pass(rows, collator, own["batch"], workers)
            for repeat in range(own["repeats"])
            for workers in WORKERS
        ]
    quiet = [done for done in passes if done["cores_used_by_others"] < QUIET]
    if {done["workers"] for done in quiet} != set(WORKERS):
        raise SettingsError(
            f"other processes used more than {QUIET} cores nearly all the time: repeat it when they end"
        )
    medians = {
        str(workers): {
            name: statistics.median(done[name] for done in quiet if done["workers"] == workers)
            for name in ("images_per_second", "samples_per_second")
        }
        for workers in WORKERS
    }
    base = medians["0"]["images_per_second"]
    found = {
        "workers": {n: median | {"ratio": median["images_per_second"] / base} for n, median in medians.items()},
        "settings": own,
        "kilobytes_per_image": size / own["images"] / 1000,
        "quiet_passes": len(quiet),
        "passes": passes,
        **provenance(),
    }
    write_atomically(output / "bench_loading.json", json.dumps(found, indent=2) + "\n")
    shown = {key: value for key, value in found.items() if key not in ("passes", "versions")}
    sys.stdout.write(json.dumps(shown, indent=2) + "\n")


if __name__ == "__main__":
    main()
