"""Imports inside the package keep the contracts of pyproject.toml: down only, no circles, libraries in few files."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_contracts_are_kept():
    """In a process of its own, since the linter turns off the loggers of the one it runs in."""
    command = "from importlinter.cli import lint_imports_command as lint; lint()"
    linted = subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr
