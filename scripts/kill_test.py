"""Trainings that are killed at random moments, and started again by the same command: what is lost, and what repeated?

Each backend trains once undisturbed, and then again while faults come at random steps, drawn from a seed. One that is
`moved` has another number of processes, backend or accumulation at each start. Faults are:

    kill     SIGKILL to one process
    all      SIGKILL to all of them
    saving   SIGKILL to one while a checkpoint is written
    torn     SIGKILL to all; then a file of the last checkpoint loses its end, or a bit of it flips
    term     SIGTERM to one, which ends all of them with a checkpoint
    usr1     SIGUSR1 to one, the same
    full     the disk takes no more: no file may become larger than a checkpoint's are

After the last fault it trains to its end. Then the records of every step, the losses and the weights are held against
those of the undisturbed run. Whether processes that remain leave by themselves is seen too.
"""

import argparse
import json
import logging
import random
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

from scripts.forked import Ranks, start
from voco_llama.files import read_json_lines
from voco_llama.provenance import provenance
from voco_llama.text import markdown
from voco_llama.training.checkpoints import UNFINISHED, by_step
from voco_llama.training.seen import records_file, seen

logger = logging.getLogger("kill_test")

WAYS = {
    "one": (1, 1, "cpu"),
    "one, two passes": (1, 2, "cpu"),
    "ddp": (2, 1, "cpu"),
    "zero2": (2, 1, "zero2"),
    "zero2, two passes": (2, 2, "zero2"),
    "zero3": (2, 1, "zero3"),
    "fsdp2": (2, 1, "fsdp2"),
}
"""Processes, passes that are accumulated, and the group of settings."""
BACKENDS = {**{name: [name] for name in ("one", "ddp", "zero2", "zero3", "fsdp2")}, "moved": list(WAYS)}
"""The ways to train among which each start has one; an undisturbed training has the first."""

KILLS, SIGNALS, OTHERS = ("kill", "kill", "all", "saving", "torn"), ("term", "usr1"), ("full",)
"""Faults in the proportions in which they are drawn."""
LATE = "late"
"""A fault before whose moment the training had ended."""
STATUSES = {"term": {143}, "usr1": {138}, "full": {2, 75}, LATE: {0}}
"""With which processes leave by themselves."""
REMAINING = {75, -signal.SIGKILL}
"""The same, where another was killed."""

GLOBAL_BATCH = 8
SAVE_STEPS = 4
STEPS_A_FAULT = 5
KILLS_A_RUN = 10
LONGEST = 120.0
"""Seconds in which processes must come to the step of a fault, or to a full disk."""
PATIENCE = 20.0
"""Seconds after a fault in which processes are to leave by themselves."""
POLL = 0.003

WORLD = {
    "pretrain_images": 48,
    "instruct_images": 32,
    "val_images": 2,
    "text_rows": 24,
    "clips_train": 4,
    "clips_test": 2,
    "benchmark_images": 4,
    "benchmark_questions": 6,
    "turns": 3,
    "choice_turns": 0,
    "text_only_share": 0.3,
    "vision_width": 16,
    "vision_layers": 2,
    "vision_heads": 2,
    "clip_text_width": 16,
    "clip_text_layers": 1,
    "clip_embedding": 16,
    "language_width": 32,
    "language_mlp": 48,
    "language_layers": 2,
    "language_heads": 2,
}
"""A small one, with rows without an image among its records."""


@dataclass
class Fault:
    """One fault, and what became of it.

    Attributes:
        step: At which it was to come.
        way: Of `WAYS`, of the start that it ended.
        came_at: Steps that were done when it came; None: processes were still starting.
        waited: Seconds until all processes had left, or were ended.
        ended: Processes that were ended after `PATIENCE`, as a launcher does: they waited for one that was gone.
        statuses: Of all.
    """

    kind: str
    step: int
    way: str = ""
    came_at: int | None = None
    waited: float = 0.0
    ended: int = 0
    statuses: list[int | None] = field(default_factory=list)

    @property
    def left_well(self) -> bool:
        """Whether processes left by themselves, with the status that says why."""
        allowed = STATUSES.get(self.kind, REMAINING)
        if self.came_at is None:  # it may have come before signals are handled, and before the others were met
            allowed = allowed | {-signal.SIGTERM, -signal.SIGUSR1} | ({-signal.SIGKILL} if self.ended else set())
        return all(status in allowed for status in self.statuses)

    def entry(self) -> dict[str, Any]:
        """For the file of results."""
        return asdict(self) | {"left_well": self.left_well}


class Trainings:
    """One backend's undisturbed training, and those that are disturbed.

    Args:
        backend: Of `BACKENDS`.
        folder: Of everything that they write.
        begin: The folder of the model that they start from; None: random weights.
    """

    def __init__(self, backend: str, folder: Path, begin: Path | None) -> None:
        self.ways = BACKENDS[backend]
        self.folder, self.begin = folder, begin
        self.start_seconds = self.step_seconds = 0.0

    def command(self, name: str, steps: int, way: str) -> list[str]:
        """Of the training of that name."""
        processes, passes, group = WAYS[way]
        world = self.folder / "world"
        tower = [] if self.begin else [f"model.vision.name={world / 'clip' / 'tiny_clip.json'}"]
        return [
            "train",
            "experiment=toy/voco_1",
            "optimizer=trainer",
            f"trainer={group}",
            f"paths.toyworld={world}",
            f"output_dir={self.folder / name}",
            f"model.checkpoint={self.begin or 'null'}",
            *tower,
            f"trainer.max_steps={steps}",
            f"global_batch_size={GLOBAL_BATCH}",
            f"trainer.per_device_train_batch_size={GLOBAL_BATCH // processes // passes}",
            "trainer.learning_rate=3.0e-3",
            "projector_learning_rate=1.0e-3",
            "trainer.logging_steps=1",
            f"trainer.save_steps={SAVE_STEPS}",
            "trainer.save_total_limit=3",
            "trainer.report_to=none",
            "trainer.dataloader_num_workers=0",
            "data.keep_in_memory=false",
            "trainer.use_cpu=true",
            "trainer.bf16=false",
        ]

    def start(self, name: str, steps: int, way: str, **variables: str) -> Ranks:
        """Begin it, or go on with it."""
        return start(WAYS[way][0], self.command(name, steps, way), self.folder / f"{name}_logs", **variables)

    def finish(self, name: str, steps: int) -> None:
        """Train it to its end.

        Raises:
            RuntimeError: It failed.
        """
        began, ranks = time.monotonic(), self.start(name, steps, self.ways[0])
        while not steps_done(self.folder / name) and ranks.running:
            time.sleep(POLL)
        self.start_seconds = self.start_seconds or time.monotonic() - began
        ranks.wait(600, until_failure=True)
        ranks.end()
        if set(ranks.statuses) != {0}:
            raise RuntimeError(f"{name}: statuses {ranks.statuses}\n{ranks.output[-3000:]}")
        self.step_seconds = json.loads((self.folder / name / "result.json").read_text())["seconds"] / steps

    def disturb(self, name: str, steps: int, fault: Fault, drawn: random.Random) -> None:
        """Start it, wait for the moment of a fault, and have it come."""
        run = self.folder / name
        limit = {"LARGEST_FILE": str(_limit(run))} if fault.kind == "full" else {}
        done, lines = steps_done(run), _lines(run)
        fault.way = drawn.choice(self.ways)
        is_finished = (run / "result.json").exists()
        ranks = self.start(name, steps, fault.way, **limit)
        if is_finished:
            fault.kind = LATE
        elif fault.kind == "full":
            ranks.wait(LONGEST, until_failure=True)
        else:
            self._wait_for(fault, done, ranks, run, drawn)
        fault.came_at = steps_done(run) if len(_lines(run)) > len(lines) + 1 else None  # beyond that of its start
        began = time.monotonic()
        if fault.kind not in ("full", LATE):
            if not ranks.running and not any(ranks.statuses):
                fault.kind = LATE
            self._strike(fault, ranks, drawn)
        ranks.wait(PATIENCE)
        fault.waited, fault.ended = round(time.monotonic() - began, 2), len(ranks.running)
        ranks.end()
        fault.statuses = ranks.statuses
        if fault.kind == "torn":
            tear(run, drawn)
        if not fault.left_well:
            logger.warning("%s: %s\n%s", name, fault, ranks.output[-1500:])

    def _wait_for(self, fault: Fault, done: int, ranks: Ranks, run: Path, drawn: random.Random) -> None:
        if fault.step <= done:
            ranks.wait(drawn.uniform(0, self.start_seconds), until_failure=True)
            return
        deadline = time.monotonic() + LONGEST
        while steps_done(run) < fault.step and ranks.running and time.monotonic() < deadline:
            time.sleep(POLL)
        if fault.kind == "saving":
            until = time.monotonic() + SAVE_STEPS * 4 * self.step_seconds
            while not (run / UNFINISHED).is_dir() and ranks.running and time.monotonic() < until:
                pass
        else:
            time.sleep(drawn.uniform(0, self.step_seconds))

    def _strike(self, fault: Fault, ranks: Ranks, drawn: random.Random) -> None:
        everyone = range(len(ranks.workers))
        one = [drawn.randrange(len(ranks.workers))]
        numbers = {"term": signal.SIGTERM, "usr1": signal.SIGUSR1}
        ranks.send(numbers.get(fault.kind, signal.SIGKILL), everyone if fault.kind in ("all", "torn") else one)


def steps_done(run: Path) -> int:
    """Steps of the last line that a training's first process wrote of its records; 0: none."""
    return next((line["step"] if "step" in line else line["start"] for line in reversed(_lines(run))), 0)


def _lines(run: Path) -> list[dict[str, Any]]:
    file = records_file(run, 0)
    return list(read_json_lines(file)) if file.is_file() else []


def _limit(run: Path) -> int:
    """Bytes that hold all but the largest file of a checkpoint; where there is none yet, fewer than a model's."""
    sizes = sorted(path.stat().st_size for folder in by_step(run) for path in folder.rglob("*") if path.is_file())
    return sizes[-1] - 1 if sizes else 10_000


def tear(run: Path, drawn: random.Random) -> None:
    """Cut off the end of a file of the last checkpoint, or flip a bit of it."""
    last = next(by_step(run), None)
    if last is None:
        return
    file = drawn.choice(sorted(path for path in last.rglob("*") if path.is_file() and path.stat().st_size > 1))
    content = bytearray(file.read_bytes())
    if drawn.random() < 0.5:
        content = content[: drawn.randrange(len(content))]
    else:
        content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
    file.write_bytes(content)


def draw_faults(kills: int, steps: int, drawn: random.Random) -> list[Fault]:
    """So many kills, and a signal for every five of them and a full disk for every ten, at random steps."""
    kinds = [KILLS[number % len(KILLS)] for number in range(kills)]
    kinds += [SIGNALS[number % len(SIGNALS)] for number in range(max(kills // 5, 1))]
    kinds += [OTHERS[0]] * max(kills // 10, 1)
    drawn.shuffle(kinds)
    moments = sorted(drawn.randint(1, steps - 2 * SAVE_STEPS) for _ in kinds)
    return [Fault(kind, step) for kind, step in zip(kinds, moments, strict=True)]


def differences(disturbed: Path, undisturbed: Path) -> dict[str, Any]:
    """What a disturbed training has otherwise: records of each step, losses, weights."""
    want, got = (
        Counter((step, record) for step, (_, records) in seen(run).steps.items() for record in records)
        for run in (undisturbed, disturbed)
    )
    curves = [_curve(folder) for folder in (disturbed, undisturbed)]
    loss = max(abs(a - b) for a, b in zip(*curves, strict=True))
    ours, theirs = (load_file(folder / "final" / "model.safetensors") for folder in (disturbed, undisturbed))
    weight = max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in theirs)
    return {
        "records": want.total(),
        "lost": (want - got).total(),
        "repeated": (got - want).total(),
        "loss_difference": loss,
        "weight_difference": weight,
        "bitwise": ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs),
    }


def _curve(run: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((run / "result.json").read_text())["loss_curve"]]


def measure(backend: str, kills: int, seed: int, folder: Path, begin: Path | None) -> list[dict[str, Any]]:
    """Disturb a backend's trainings until so many kills came; one entry a training."""
    trainings, results = Trainings(backend, folder, begin), []
    for number in range(-(-kills // KILLS_A_RUN)):
        drawn = random.Random(f"{seed} {backend} {number}")
        wanted = min(KILLS_A_RUN, kills - number * KILLS_A_RUN)
        steps = STEPS_A_FAULT * KILLS_A_RUN if kills >= KILLS_A_RUN else STEPS_A_FAULT * kills
        undisturbed, name = f"{backend}_undisturbed", f"{backend}_{number}"
        if not (folder / undisturbed).exists():
            trainings.finish(undisturbed, steps)
        faults = draw_faults(wanted, steps, drawn)
        for fault in faults:
            trainings.disturb(name, steps, fault, drawn)
            came_at = "start" if fault.came_at is None else fault.came_at
            line = "%s  %-6s at step %s  %s  statuses %s  left after %.1f s"
            logger.info(line, name, fault.kind, came_at, fault.way, fault.statuses, fault.waited)
        trainings.finish(name, steps)
        found = differences(folder / name, folder / undisturbed)
        logger.info("%s  %s", name, found)
        results.append({"backend": backend, "steps": steps, "faults": [fault.entry() for fault in faults], **found})
        shutil.rmtree(folder / name)
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Of all trainings, a line a backend."""
    rows = []
    for backend in dict.fromkeys(one["backend"] for one in results):
        runs = [one for one in results if one["backend"] == backend]
        faults = [fault for one in runs for fault in one["faults"]]
        counted = Counter(fault["kind"] for fault in faults)
        kills = sum(counted[kind] for kind in dict.fromkeys(KILLS))
        rows.append(
            (
                backend,
                "1 or 2" if len(BACKENDS[backend]) > 1 else WAYS[backend][0],
                kills,
                sum(counted[kind] for kind in SIGNALS),
                counted["full"],
                sum(one["records"] for one in runs),
                sum(one["lost"] for one in runs),
                sum(one["repeated"] for one in runs),
                "equal" if all(one["bitwise"] for one in runs) else _largest(runs, "weight_difference"),
                _largest(runs, "loss_difference"),
                sum(fault["ended"] for fault in faults),
                f"{max(fault['waited'] for fault in faults if not fault['ended']):.1f} s",
                sum(not fault["left_well"] for fault in faults),
            )
        )
    head = ("backend", "processes", "kills", "signals", "full disks", "records", "lost", "repeated", "weights",
            "largest loss difference", "had to be ended", "others left within", "other statuses")  # fmt: skip
    return markdown(head, rows)


def _largest(runs: list[dict[str, Any]], key: str) -> str:
    return f"{max(one[key] for one in runs):.1e}"


def first_model(folder: Path) -> Path:
    """A world, and a model that all trainings start from."""
    logger.info("a world and a model to begin with, in a minute or two")
    toyworld = ["toyworld", f"root={folder / 'world'}", *(f"{key}={value}" for key, value in WORLD.items())]
    ranks = start(1, toyworld, folder / "logs")
    ranks.wait(300)
    if ranks.statuses != [0]:
        raise RuntimeError(ranks.output[-3000:])
    Trainings("one", folder, None).finish("begin", 1)
    return folder / "begin" / "final"


def main() -> int:
    """0: no record was lost or repeated, no weight differs by more than rounding, every process left as it should."""
    parser = argparse.ArgumentParser(description="Kill trainings at random moments, and count what was lost.")
    parser.add_argument("--kills", type=int, default=20, help="of each backend (20); signals and full disks besides")
    parser.add_argument("--backends", default=",".join(BACKENDS), help=f"of {','.join(BACKENDS)} (all)")
    parser.add_argument("--seed", type=int, default=0, help="of what comes when (0)")
    parser.add_argument("--output", type=Path, help="a file for all of it, as JSON")
    parser.add_argument("--folder", type=Path, help="where trainings are written, and left (else a temporary one)")
    given = parser.parse_args()
    backends = given.backends.split(",")
    if unknown := set(backends) - set(BACKENDS):
        parser.error(f"no backend {', '.join(sorted(unknown))}: choose of {', '.join(BACKENDS)}")
    if given.kills < 1:
        parser.error(f"--kills is {given.kills}: give 1 or more")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    began = time.monotonic()
    with TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = given.folder or Path(temporary)
        begin = first_model(folder)
        results = [one for backend in backends for one in measure(backend, given.kills, given.seed, folder, begin)]
    found = {**provenance(), "seed": given.seed, "seconds": round(time.monotonic() - began), "trainings": results}
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(found, indent=2) + "\n")
    sys.stdout.write(table(results))
    is_well = all(
        one["lost"] == one["repeated"] == 0
        and one["weight_difference"] < 1e-3
        and all(fault["left_well"] for fault in one["faults"])
        for one in results
    )
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
