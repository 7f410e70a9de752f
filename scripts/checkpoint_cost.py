"""How long a training stands still for a checkpoint of weights and AdamW's moments, in float32, and when it is whole.

Side by side: waiting for all of it, and with a thread that writes it. The layers are linear ones, of which every step
uses all; so the device has something to do while the thread writes.
"""

import argparse
import json
import logging
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from voco_llama.training.batch import GlobalBatch
from voco_llama.training.checkpoints import damage, damage_inside
from voco_llama.training.manifest import Origin
from voco_llama.training.saving import SavingTrainer

logger = logging.getLogger("checkpoint_cost")

WIDTH = 2048
LINE = re.compile(r"stood still for ([\d.]+) s; it was whole ([\d.]+) s later")


class Layers(nn.Module):
    """About so many million weights, all of which train."""

    def __init__(self, millions: int) -> None:
        super().__init__()
        count = max(1, millions * 10**6 // WIDTH**2)
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(count)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.layers(x).square().mean()}


class Lines(logging.Handler):
    """Seconds that training stood still, and until the checkpoint was whole, of each."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, float]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if found := LINE.search(record.getMessage()):
            self.found.append((float(found[1]), float(found[2])))


class WaitingTrainer(SavingTrainer):
    """As if there was no room for a copy."""

    _stager = None


def measured(trainer_class: type[SavingTrainer], options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Of the second checkpoint on: the first one also takes memory for its copy."""
    from transformers import TrainingArguments  # after the package, which mends torchvision beside a torch without CUDA

    lines = Lines()
    logging.getLogger("voco_llama.training.saving").addHandler(lines)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=options.every * options.checkpoints,
        save_steps=options.every,
        save_total_limit=1,
        per_device_train_batch_size=options.rows,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=options.cpu,
    )
    origin = Origin("PyTorch", GlobalBatch(arguments.world_size, options.rows), 1 << 12, 1 << 12, 0, "", {})
    rows = [{"x": torch.zeros(WIDTH)}] * (1 << 12)
    trainer = trainer_class(origin=origin, model=Layers(options.millions), args=arguments, train_dataset=rows)
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    logging.getLogger("voco_llama.training.saving").removeHandler(lines)
    if not arguments.should_save:
        return {}
    still, later = (sorted(values[1:])[len(values[1:]) // 2] for values in zip(*lines.found, strict=True))
    (last,) = folder.glob("checkpoint-*")
    found = {
        "gigabytes": sum(file.stat().st_size for file in last.iterdir()) / 1e9,
        "first_still": lines.found[0][0],
        "still": still,
        "whole_after": later,
        "training": seconds,
    }
    for name, check in (("sizes", damage), ("hashes", damage_inside)):
        began = time.perf_counter()
        if arguments.world_size == 1 and check(last) is not None:
            raise SystemExit(f"{last}: {check(last)}")
        found[name] = time.perf_counter() - began
    return found


def main() -> None:
    """Log a line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, default=100, help="parameters")
    parser.add_argument("--checkpoints", type=int, default=4)
    parser.add_argument("--every", type=int, default=8, help="steps from one to the next")
    parser.add_argument("--rows", type=int, default=64, help="of a batch")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; they are removed")
    options = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s")
    for name, trainer_class in (("waiting", WaitingTrainer), ("thread", SavingTrainer)):
        with TemporaryDirectory(dir=options.folder) as folder:
            if found := measured(trainer_class, options, Path(folder)):
                logger.info(json.dumps({"name": name} | {key: round(value, 3) for key, value in found.items()}))


if __name__ == "__main__":
    main()
