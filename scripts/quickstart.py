"""The main job at small scale, as a list of `voco-llama` commands, run one after another in one process.

Every line can be typed by itself; running them here saves the seconds that each process would spend on imports.
"""

import os
import shlex
import sys
import time

RUNS = os.environ.get("VOCO_RUNS", "runs")
TOY, WORLD = f"{RUNS}/toy", f"{RUNS}/toyworld"
UPPER, VOCO_1, VOCO_4, LANGUAGE = (f"{TOY}/{run}/final" for run in ("instruct_long", "voco_1", "voco_4", "language"))
VIDEO = f"{TOY}/video/final"
RESULTS = f"{TOY}/results"

STEPS: list[tuple[str, list[str]]] = [
    ("the synthetic world, in the formats of the real data", ["toyworld"]),
    ("a tiny CLIP learns images and captions (stands in for ViT-L)", ["train", "experiment=toy/clip"]),
    ("a tiny language model learns text (stands in for Vicuna)", ["train", "experiment=toy/language"]),
    ("alignment: the projector alone, on captions", ["train", "experiment=toy/align"]),
    ("instructions, text sees the image", ["train", "experiment=toy/instruct"]),
    ("the upper bound: as many steps again", ["train", "experiment=toy/instruct_long"]),
    ("VoCo: 16 vision tokens to 4, from the same weights, the same steps", ["train", "experiment=toy/voco_4"]),
    ("VoCo: 16 vision tokens to 1, likewise", ["train", "experiment=toy/voco_1"]),
    ("video: each frame compressed alone", ["train", "experiment=toy/video"]),
    ("upper bound", ["evaluate", "row=upper", "condition=full", f"checkpoint={UPPER}"]),
    ("4 VoCo tokens", ["evaluate", "row=voco_4", f"checkpoint={VOCO_4}"]),
    ("1 VoCo token", ["evaluate", "row=voco_1", f"checkpoint={VOCO_1}"]),
    ("lower bound: the upper bound's weights under the VoCo mask", ["evaluate", "row=lower", f"checkpoint={UPPER}"]),
    ("blind: the upper bound without the image", ["evaluate", "row=blind", "condition=blind", f"checkpoint={UPPER}"]),
    ("clips, frames in order and shuffled", ["evaluate-clips", "row=video", f"checkpoint={VIDEO}"]),
    ("the table", ["report", f"results={RESULTS}"]),
]


def main() -> int:
    """Run every step; stop at the first that fails."""
    from voco_llama.cli import main as voco_llama

    started = time.monotonic()
    for number, (what, command) in enumerate(STEPS, 1):
        elapsed = time.monotonic() - started
        sys.stdout.write(f"\n== {number}/{len(STEPS)} [{elapsed / 60:.1f} min] {what}\n")
        sys.stdout.write(f"   voco-llama {shlex.join(command)}\n")
        sys.stdout.flush()
        status = voco_llama(command)
        if status != 0:
            return status
    sys.stdout.write(f"\n== done in {(time.monotonic() - started) / 60:.1f} min; everything is under {RUNS}/\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
