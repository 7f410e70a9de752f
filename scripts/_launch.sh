# shellcheck shell=bash
# Sourced by scripts/launch and scripts/slurm/train.sbatch, never run by itself; stays in the folder it was called from.
#   find_python ROOT   sets `python` to the one that has the package: $VOCO_PYTHON, ROOT/.venv's, or the one on PATH

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

find_python() {
  python=${VOCO_PYTHON:-$1/.venv/bin/python}
  [ -n "${VOCO_PYTHON:-}" ] || [ -x "$python" ] || python=python3
  command -v "$python" >/dev/null || fail "there is no $python: install the package (README.md), or name one in VOCO_PYTHON"
}
