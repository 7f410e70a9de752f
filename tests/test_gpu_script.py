"""`scripts/gpu` at tiny size: a part that fails and one that is ended leave the others and the files alone."""

import json
import logging
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from scripts import gpu

SLEEPS = "import time; print('began', flush=True); time.sleep(60)"


def part(name: str, code: str, says=lambda log, folder: log.strip()) -> gpu.Part:
    return gpu.Part(name, 60, ["-c", code], says)


def test_parts_end_by_themselves_and_leave_what_they_found(tmp_path, caplog):
    scratch, output = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    session = gpu.Session(output, scratch, {})
    with caplog.at_level(logging.INFO):
        assert not session.run(part("fails", "raise SystemExit(3)"), 30)
        assert not session.run(part("hangs", SLEEPS), 2)
        assert session.run(part("works", "print('found')"), 30)
    found = json.loads((output / "results.json").read_text())["parts"]
    assert {name: (one["ended"], one["says"]) for name, one in found.items()} == {
        "fails": ("failed (3)", ""),
        "hangs": ("ended after 2 s", "began"),
        "works": ("ok", "found"),
    }
    assert all(name in (output / "log.txt").read_text() for name in found)
    with tarfile.open(output / "files.tar.gz") as archive:
        assert {"gpu/fails", "gpu/hangs", "gpu/works"} <= set(archive.getnames())


def test_every_part_at_7b_shape_has_settings_that_fit():
    from voco_llama.bench.settings import check_bench
    from voco_llama.cli import COMMANDS

    listed = gpu.parts(is_small=False, device_bytes=140 << 30)
    benches = [one for one in listed if "bench" in one.command]
    assert len(benches) == len(listed) - 1 == 6
    for one in benches:
        settings = COMMANDS["bench"].compose(one.command[3:])
        check_bench(settings)
        assert settings.shape.hidden == 4096
    assert sum(one.seconds for one in listed[:4]) <= 9 * 60


@pytest.mark.slow
def test_a_benchmark_at_tiny_size(tmp_path):
    script = Path(__file__).parents[1] / "scripts" / "gpu.py"
    done = subprocess.run(
        [sys.executable, str(script), "--small", "--only=train", f"--output={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "times authors" in done.stdout
    with tarfile.open(tmp_path / "files.tar.gz") as archive:
        assert {"gpu/train/train.json", "gpu/train/train.md"} <= set(archive.getnames())
