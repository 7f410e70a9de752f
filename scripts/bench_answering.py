"""How fast a checkpoint answers a suite, images compressed once or once a question, side by side in one run.

    .venv/bin/python scripts/bench_answering.py row=voco_4 output=docs/results/answering repeats=3

Takes the settings of `voco-llama evaluate`, and `repeats`. Evaluations with and without reuse alternate; the ratio of
their speeds is what counts, for machines are noisy. Writes `<output>/bench_answering.json`: the times of each
evaluation, the medians, the share of the bridge (decoding images, finding equal ones, batching) in answering, and
whether all answers were equal. `profile=true` prints where the time of the last evaluation went.
"""

import cProfile
import json
import logging
import pstats
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from voco_llama.cli import COMMANDS
from voco_llama.evaluation.results import read_result
from voco_llama.evaluation.run import evaluate
from voco_llama.files import write_atomically
from voco_llama.provenance import provenance


def _median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


def main() -> None:
    """See the module."""
    own = dict(argument.split("=", 1) for argument in sys.argv[1:] if argument.startswith(("repeats=", "profile=")))
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith(("repeats=", "profile="))]
    folder = COMMANDS["evaluate"].compose(overrides).output
    logging.basicConfig(level=logging.WARNING)
    runs, answers = [], set()
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(int(own.get("repeats", 3))):
            for reuse in (True, False):
                settings = COMMANDS["evaluate"].compose(
                    [*overrides, f"output={scratch}", f"reuse={str(reuse).lower()}"]
                )
                profile = cProfile.Profile()
                file = profile.runcall(evaluate, settings) if own.get("profile") == "true" else evaluate(settings)
                result = read_result(file)
                answers.add(Path(scratch, result["answers_file"]).read_text(encoding="utf-8"))
                kept = ("num_answers", "num_compressed", "seconds", "answers_per_second", "first_token_seconds")
                runs.append({"repeat": repeat, "reuse": reuse, **{name: result[name] for name in kept}})
    speed = {
        reuse: _median(run["num_answers"] / run["seconds"]["answering"] for run in runs if run["reuse"] is reuse)
        for reuse in (True, False)
    }
    share = _median(1 - run["seconds"]["model"] / run["seconds"]["answering"] for run in runs if run["reuse"])
    found = {
        "answers_per_second": {"reuse": speed[True], "no_reuse": speed[False], "ratio": speed[True] / speed[False]},
        "share_of_the_bridge": share,
        "answers_equal": len(answers) == 1,
        "runs": runs,
        **provenance(),
    }
    write_atomically(folder / "bench_answering.json", json.dumps(found, indent=2) + "\n")
    sys.stdout.write(json.dumps({k: v for k, v in found.items() if k not in ("runs", "versions")}, indent=2) + "\n")
    if own.get("profile") == "true":
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
