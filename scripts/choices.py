"""Results that chose the number of VoCo tokens by the image, beside a random choice and the best one with labels.

.venv/bin/python scripts/choices.py --adaptive R/elastic_quality_0.05.benchmarks.json --fixed R/elastic_at_*.benchmarks.json
"""  # noqa: E501

import argparse
import sys
from pathlib import Path

from voco_llama.errors import VoCoError
from voco_llama.report.choices import compare_choices
from voco_llama.text import aligned

HEAD = ("row", "quality", "tokens", "accuracy in %", "random choice", "best with labels")


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adaptive", type=Path, nargs="+", required=True, help="results of evaluate quality=...")
    parser.add_argument("--fixed", type=Path, nargs="+", required=True, help="of evaluate num_voco=..., at each number")
    options = parser.parse_args()
    try:
        choices = compare_choices(options.adaptive, options.fixed)
    except VoCoError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    body = [
        [c.row, f"{c.quality:g}", f"{c.tokens:.2f}", *(f"{100 * v:.1f}" for v in (c.accuracy, c.random, c.best))]
        for c in choices
    ]
    sys.stdout.write(f"{aligned(HEAD, body)}\n")
    if left_out := sorted({name for choice in choices for name in choice.left_out}):
        sys.stdout.write(f"Left out: {', '.join(left_out)}, whose questions have no points of their own.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
