"""`kind=evaluate`: a suite of benchmarks answered by a checkpoint, images compressed once or once a question.

`evaluate=[...]` are overrides of `voco-llama evaluate`. Evaluations with and without reuse take turns.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from voco_llama.bench.measuring import spread
from voco_llama.bench.results import MISSING, Findings, Page, Parts, times
from voco_llama.bench.settings import BenchSettings
from voco_llama.evaluation.results import read_result
from voco_llama.text import TextTable

KEPT = ("num_answers", "num_compressed", "seconds", "answers_per_second", "first_token_seconds")


def measure(settings: BenchSettings, findings: Findings, evaluation: Callable[[Sequence[str]], Any]) -> None:
    """See the module; `evaluation` makes settings of overrides."""
    from voco_llama.evaluation.run import evaluate  # imports lmms-eval

    runs, answers = [], set()
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(settings.rounds):
            for reuse in (True, False):
                own = [f"output={scratch}", f"reuse={str(reuse).lower()}"]
                result = read_result(evaluate(evaluation([*settings.evaluate, *own])))
                answers.add(Path(scratch, result["answers_file"]).read_text(encoding="utf-8"))
                runs.append({"round": number, "reuse": reuse, **{name: result[name] for name in KEPT}})
                findings.add("runs", runs)
    findings.add("answers_equal", len(answers) == 1)


def page(parts: Parts) -> Page:
    """Answers a second with and without reuse, and the share of the bridge."""
    runs = parts.get("runs", [])
    body, rates = [], {}
    for reuse in (True, False):
        done = [run for run in runs if run["reuse"] is reuse]
        if done:
            rates[reuse] = [run["num_answers"] / run["seconds"]["answering"] for run in done]
            bridge = spread([1 - run["seconds"]["model"] / run["seconds"]["answering"] for run in done])
            name = "once an image" if reuse else "once a question"
            counts = [str(done[0][name]) for name in ("num_answers", "num_compressed")]
            body.append([name, *counts, times(spread(rates[reuse]), 0), f"{100 * bridge['median']:.0f} %"])
    ratio = None
    if len(rates) == 2:
        ratio = spread([once / again for once, again in zip(rates[True], rates[False], strict=False)])
    notes = [f"Reuse is {times(ratio)} times as fast; answers are equal: {parts.get('answers_equal', MISSING)}."]
    notes.append("The bridge decodes images, finds equal ones and makes batches.")
    head = ["compressed", "answers", "compressions", "answers a second", "the bridge's share"]
    return Page("Answering a suite", [TextTable("With and without reuse", head, body)], notes)


def plot(parts: Parts, stem: Path) -> bool:
    """Nothing: two numbers."""
    return False
