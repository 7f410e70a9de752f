"""The main job at small scale: a list of `voco-llama` commands, every one of which can be typed by itself.

Commands run one after another in this process, which saves the seconds that each process spends on imports. The
commands of one group do not depend on each other and run side by side, a process and a thread each: on models this
small, two threads that wait for each other do less than two processes that do not.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

RUNS = os.environ.get("VOCO_RUNS", "runs")
TOY, WORLD = f"{RUNS}/toy", f"{RUNS}/toyworld"
VOCO_4, VIDEO = f"{TOY}/voco_4/final", f"{TOY}/video/final"
TRAIN_SIDE_BY_SIDE = ("instruct_long", "voco_1", "voco_4", "average_pool_1")


def commands(seed: int) -> list[tuple[str, list[list[str]]]]:
    """What is done, in order: a line about it, and the commands of the group.

    Args:
        seed: Of the world, of every training run and of every evaluation.
    """
    listed = [
        ("the synthetic world, in the formats of the real data", [["toyworld"]]),
        ("a tiny CLIP learns images and captions (stands in for ViT-L)", [["train", "experiment=toy/clip"]]),
        ("a tiny language model learns text (stands in for Vicuna)", [["train", "experiment=toy/language"]]),
        ("alignment: the projector alone, on captions", [["train", "experiment=toy/align"]]),
        ("instructions; text sees the whole image", [["train", "experiment=toy/instruct"]]),
        (
            "as many further steps each: the upper bound, 16 vision tokens compressed to 1 and to 4, and averaged",
            [["train", f"experiment=toy/{run}"] for run in TRAIN_SIDE_BY_SIDE],
        ),
        ("video: each frame compressed alone", [["train", "experiment=toy/video"]]),
        (
            "lmms-eval's GQA, MMBench, MME, POPE and VQAv2: the upper bound, 4 tokens, 1 token, the average, the lower"
            " bound (the upper bound's weights under the VoCo mask), and no image",
            [["evaluate", "suite=toy"]],
        ),
        ("clips, frames in order and shuffled", [["evaluate-clips", "row=video", f"checkpoint={VIDEO}"]]),
    ]
    seeded = [(what, [[*command, f"seed={seed}"] for command in group]) for what, group in listed]
    return [*seeded, ("the table", [["report"]])]


def example_commands() -> list[tuple[str, list[list[str]]]]:
    """One image compressed once, three questions; one clip, a question on order. Known only once the world exists."""
    images = Path(WORLD, "instruct")
    rows = json.loads((images / "val.json").read_text(encoding="utf-8"))
    row = next(row for row in rows if "image" in row)
    turns = zip(row["conversations"][::2], row["conversations"][1::2], strict=True)
    pairs = [(human["value"].replace("<image>", "").strip().split("\n")[0], gpt["value"]) for human, gpt in turns]
    asked, answers = zip(*[(question, answer) for question, answer in pairs if "options:" not in question], strict=True)
    clips = Path(WORLD, "clips")
    clip = json.loads((clips / "test.json").read_text(encoding="utf-8"))[0]
    video = next((clips / "videos").glob(f"{clip['video_id']}.*"))
    image_ask = ["ask", f"checkpoint={VOCO_4}", f"image={images / 'images' / row['image']}", _questions(asked[:3])]
    video_ask = ["ask", f"checkpoint={VIDEO}", f"video={video}", _questions([clip["q"]])]
    return [
        (f"one image, compressed once, three questions (truth: {', '.join(answers[:3])})", [image_ask]),
        (f"one clip, each frame compressed alone (truth: {clip['a']})", [video_ask]),
    ]


def _questions(questions: Sequence[str]) -> str:
    return f"questions={json.dumps(list(questions))}"


def run_group(group: Sequence[list[str]]) -> int:
    """Run one command here, or several side by side; the first status that is not 0."""
    if len(group) == 1:
        from voco_llama.cli import main as voco_llama

        return voco_llama(group[0])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-m", "voco_llama.cli", *command], env=environment) for command in group
    ]
    try:
        statuses = [process.wait() for process in processes]
    except KeyboardInterrupt:
        statuses = [process.wait() for process in processes]
    return next((status for status in statuses if status), 0)


def main() -> int:
    """Run every group; stop at the first command that fails."""
    parser = argparse.ArgumentParser(description="The main job at small scale; results go to $VOCO_RUNS (runs).")
    parser.add_argument("--seed", type=int, default=0, help="of the world and of all training; 0 by default")
    listed = commands(parser.parse_args().seed)
    started = time.monotonic()
    total = len(listed) + 2
    for number, (what, group) in enumerate(listed, 1):
        status = _announced(number, total, started, what, group)
        if status:
            return status
    for number, (what, group) in enumerate(example_commands(), total - 1):
        status = _announced(number, total, started, what, group)
        if status:
            return status
    sys.stdout.write(f"\n== done in {(time.monotonic() - started) / 60:.1f} min; everything is under {RUNS}/toy\n")
    return 0


def _announced(number: int, total: int, started: float, what: str, group: Sequence[list[str]]) -> int:
    sys.stdout.write(f"\n== {number}/{total} [{(time.monotonic() - started) / 60:.1f} min] {what}\n")
    for command in group:
        sys.stdout.write(f"   voco-llama {shlex.join(command)}\n")
    sys.stdout.flush()
    return run_group(group)


if __name__ == "__main__":
    sys.exit(main())
