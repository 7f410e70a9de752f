"""All that needs a GPU: its parts one after another, most valuable first, each a process with a time limit of its own.

What a part finds is in `results.json`, `log.txt` and `files.tar.gz` as soon as it ends, and one that fails or takes too
long ends itself alone. Of the times: a part at 7B shape takes about 25 s until its model stands.
"""

import argparse
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[1]
LEAST = 20
"""Seconds that must be left for another part to begin."""
GRACE = 5
"""Seconds between SIGTERM and SIGKILL."""
TAIL = 2500
"""Characters of a failed part's log that are shown."""
ALL_LAYERS_STEP = 100 << 30
"""Bytes of a GPU on which AdamW in bf16 updates 32 layers (weights, gradients, moments: 54 GB) beside activations."""
PROBE = """
import json, torch, transformers
found = {"torch": torch.__version__, "transformers": transformers.__version__, "device": None, "bytes": 0}
if torch.cuda.is_available():
    found |= {"device": torch.cuda.get_device_name(), "bytes": torch.cuda.get_device_properties(0).total_memory}
print(json.dumps(found))
"""

logger = logging.getLogger("gpu")


@dataclass(frozen=True)
class Part:
    """What runs, for how many seconds at most, and a line on what it found, of its log and its folder."""

    name: str
    seconds: int
    command: list[str]
    says: Callable[[str, Path], str]


def bench(name: str, kind: str, seconds: int, overrides: list[str], tiny: list[str] | None) -> Part:
    """A benchmark at 7B shape, or with the overrides `tiny` at the tiny one."""
    size = ["shape=7b", *overrides] if tiny is None else ["shape=tiny", "peak_memory=false", "rounds=1", *tiny]
    command = ["-m", "voco_llama.cli", "bench", f"kind={kind}", *size]
    return Part(name, seconds, command, lambda _, folder: SAYS[kind](json.loads((folder / f"{kind}.json").read_text())))


def parts(is_small: bool, device_bytes: int) -> list[Part]:
    """All parts, in order."""
    none = ["train.workloads=[]", "train.lengths=[]", "train.frames=[]"]
    ways = [f"{way}_checkpointing" for way in ("authors", "masked", "two_steps", "two_steps_shared")]
    kernels = [] if is_small else [f"{ways[3]}_liger"]
    all_ways, fewer_ways, two_ways = (
        f"train.variants=[{','.join([*names, *kernels])}]"
        for names in ([*ways[:3], "two_steps_shared", ways[3]], [ways[0], *ways[2:]], [ways[0], ways[3]])
    )
    layers = 32 if device_bytes > ALL_LAYERS_STEP else 16

    def tiny(*overrides: str) -> list[str] | None:
        return list(overrides) if is_small else None

    def train(name: str, seconds: int, overrides: list[str], *small: str) -> Part:
        varied = [*none, *overrides]
        return bench(name, "train", seconds, varied, tiny(*varied, "train.rows=2", *small))

    budget = ["budget_gb=8", "most_rows=256"]
    return [
        Part("tests", 110, ["-m", "pytest", "-m", "gpu", "-q", "--durations=10", "tests/gpu"], says_tests),
        train("train", 150, ["rounds=5", "train.workloads=[mix665k]", "train.rows=16", all_ways], "rounds=1"),
        bench(
            "efficiency",
            "efficiency",
            150,
            ["rounds=3", "efficiency.batches=[1,16]", *(f"efficiency.{value}" for value in budget)],
            tiny("efficiency.num_voco=[1]", "efficiency.new=2", "efficiency.most_rows=2"),
        ),
        bench(
            "answer",
            "answer",
            110,
            ["rounds=3", "answer.asked={no_cache:1,full_cache:5,voco:20}", *(f"answer.{value}" for value in budget)],
            tiny("answer.images=1", "answer.questions=2", "answer.new=2"),
        ),
        train("video", 100, ["rounds=2", "train.workloads=[video]", "train.rows=8", fewer_ways], "rounds=1"),
        train(
            "update",
            80,
            ["rounds=2", "train.workloads=[two_each]", "train.rows=16", "train.optimizer=true", two_ways]
            + ([] if is_small else [f"shape.layers={layers}"]),
            "rounds=1",
        ),
        train(
            "curves",
            90,
            ["rounds=2", "train.lengths=[128,512,1024,2048]", "train.frames=[1,4,8]", "train.curve_rows=8", fewer_ways]
            + ([] if is_small else ["shape.layers=8"]),
            *("rounds=1", "train.lengths=[8]", "train.frames=[2]", "train.curve_rows=2"),
        ),
    ]


def says_tests(log: str, folder: Path) -> str:
    """Pytest's last line."""
    found = re.findall(r"^=*\s*(\d+ (?:passed|failed|skipped|error).*? in [\d.]+s)", log, re.MULTILINE)
    return found[-1] if found else ""


def says_train(found: dict[str, Any]) -> str:
    """How many times as fast as the first variant the last one is, and its utilization."""
    said, peak = [], found["parts"]["matrix_peak"]
    for name, part in found["parts"].items():
        if isinstance(part, dict):
            (base, _), *_, (variant, timing) = part["variants"].items()
            ratio = timing["times_as_fast"]
            fast = f"{ratio['median']:.2f} times {base.partition('_')[0]}" if ratio else f"{base} or {variant} failed"
            if not timing["failed"]:
                fast += f", {part['needed_flops'] / timing['spread']['median'] / peak:.0%} of peak"
            said.append(f"{name.removeprefix('workload/')}: {fast}")
    return "; ".join([*said, f"peak {peak / 1e12:.3g} TFLOP/s"])


def says_efficiency(found: dict[str, Any]) -> str:
    """How much earlier the first token from a VoCo cache comes, for each number of questions at a time."""
    said = []
    for name, rows in found["parts"].items():
        if name.startswith("batch/"):
            first = {row: rows[row]["first"]["spread"]["median"] for row in ("no_cache", "voco_cached_1")}
            gain = 1 - first["voco_cached_1"] / first["no_cache"]
            said.append(f"{gain:.0%} ({name.removeprefix('batch/')} at a time)")
    return f"first token from 1 VoCo token below no cache by {', '.join(said)}"


def says_answer(found: dict[str, Any]) -> str:
    """How many times as fast VoCo answers."""
    a_second = {
        name: found["parts"]["methods"][name]["a_second"]["median"] for name in ("no_cache", "full_cache", "voco")
    }
    times = {name: a_second["voco"] / rate for name, rate in a_second.items()}
    return f"{times['no_cache']:.2f} times no cache, {times['full_cache']:.2f} times a full cache"


SAYS = {"train": says_train, "efficiency": says_efficiency, "answer": says_answer}


class Session:
    """Runs parts and keeps what they find.

    Args:
        output: Folder of the files.
        scratch: Where parts write.
        environment: Of their processes.
    """

    def __init__(self, output: Path, scratch: Path, environment: dict[str, str]) -> None:
        self.output, self.scratch, self.environment = output, scratch, environment
        self.found: dict[str, Any] = {"command": sys.argv, "parts": {}}
        output.mkdir(parents=True, exist_ok=True)
        (output / "log.txt").write_text("")

    def run(self, part: Part, seconds: float) -> bool:
        """Whether the part ended well within so many seconds."""
        folder, began = self.scratch / part.name, time.monotonic()
        folder.mkdir()
        command = [sys.executable, *part.command, *([f"output={folder}"] if "bench" in part.command else [])]
        with (self.output / "log.txt").open("a+") as log:
            log.write(f"\n==== {part.name}: {' '.join(command)}\n")
            log.flush()
            start = log.tell()
            status = run_for(command, seconds, self.environment, log)
            log.seek(start)
            text = log.read()
        took = time.monotonic() - began
        ended = {0: "ok", None: f"ended after {seconds:.0f} s"}.get(status, f"failed ({status})")
        said = self._says(part, text, folder)
        logger.info("%-11s %5.0f s  %s  %s", part.name, took, ended, said)
        if status != 0:
            logger.info("%s", text[-TAIL:])
        self.found["parts"][part.name] = {"ended": ended, "seconds": round(took, 1), "says": said}
        self.keep()
        return status == 0

    def _says(self, part: Part, log: str, folder: Path) -> str:
        try:
            return part.says(log, folder)
        except (OSError, KeyError, StopIteration) as error:  # the part ended before it had come so far
            return f"(no {error})" if isinstance(error, KeyError) else ""

    def keep(self) -> None:
        """Write what was found so far."""
        (self.output / "results.json").write_text(json.dumps(self.found, indent=2) + "\n")
        with tarfile.open(self.output / "files.tar.gz", "w:gz") as archive:
            archive.add(self.scratch, "gpu")


def run_for(command: list[str], seconds: float, environment: dict[str, str], log: TextIO) -> int | None:
    """The exit status of a process and all that it started; None: it was ended after so many seconds."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
            if process.poll() is None:
                os.killpg(process.pid, number)
                try:
                    process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue


def environment_with(wheels: Path | None, target: Path) -> dict[str, str]:
    """Variables of the parts' processes, with packages of wheels in `target`."""
    folders = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if wheels is not None:
        files = [str(file) for file in sorted(wheels.resolve().glob("*.whl"))]
        options = "--quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target".split()
        subprocess.run([sys.executable, "-m", "pip", "install", *options, str(target), *files], check=True)
        folders.insert(0, str(target))
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(folders)}
    return os.environ | offline


def main() -> int:
    """0 if no part failed."""
    parser = argparse.ArgumentParser(description="The gpu tests and the benchmarks at 7B shape, on one GPU.")
    parser.add_argument("--minutes", type=float, default=9, help="in all (9); what comes too late is left out")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of its files (runs/gpu)")
    parser.add_argument("--only", metavar="PART,...", help="of tests, train, efficiency, answer, video, update, curves")
    parser.add_argument("--small", action="store_true", help="at tiny size, as it is without a GPU")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that are put into a temporary place first")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    end = time.monotonic() + 60 * given.minutes
    with TemporaryDirectory() as temporary:
        scratch, site = Path(temporary, "files"), Path(temporary, "site")
        scratch.mkdir()
        environment = environment_with(given.wheels, site)
        probed = subprocess.run(
            [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=False
        )
        if probed.returncode:
            reason = probed.stderr.strip().splitlines()[-1]
            parser.exit(1, f"{sys.executable}: {reason}: scripts/test sets up .venv, or give --wheels\n")
        machine = json.loads(probed.stdout)
        is_small = given.small or machine["device"] is None
        if machine["device"] is None:
            environment["VOCO_GPU_TESTS"] = "cpu"
        listed = parts(is_small, machine["bytes"])
        names = [part.name for part in listed] if given.only is None else given.only.split(",")
        if unknown := set(names) - {part.name for part in listed}:
            parser.error(f"no part {', '.join(sorted(unknown))}: choose of {', '.join(part.name for part in listed)}")
        session = Session(given.output, scratch, environment)
        session.found["machine"] = machine
        logger.info("%s, torch %s, transformers %s%s", machine["device"] or "no GPU", machine["torch"],
                    machine["transformers"], ", at tiny size" if is_small else "")  # fmt: skip
        ended = []
        for part in (part for part in listed if part.name in names):
            left = end - time.monotonic()
            if left < LEAST:
                logger.info("%-11s no time left", part.name)
                session.found["parts"][part.name] = {"ended": "no time left"}
                continue
            ended.append(session.run(part, min(part.seconds, left - GRACE)))
        session.keep()
        logger.info("%d of %d parts ended well, in %s", sum(ended), len(names), given.output.resolve())
        return 0 if all(ended) else 1


if __name__ == "__main__":
    sys.exit(main())
