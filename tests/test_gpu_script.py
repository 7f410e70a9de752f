"""`scripts/gpu`: a part that fails and one that is ended leave the others and the files alone."""

import json
import logging
import sys
import tarfile
from unittest.mock import ANY

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


def test_all_of_it(tmp_path, monkeypatch, capsys):
    """Parts in order, those that were asked for; too little time is said, and no failure."""
    listed = [part("first", "print(1)"), part("second", "print(2)"), part("third", "raise SystemExit(1)")]
    monkeypatch.setattr(gpu, "parts", lambda is_small, device_bytes: listed)
    monkeypatch.setattr(gpu, "PROBE", """print('{"torch": "2", "transformers": "5", "device": null, "bytes": 0}')""")
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)

    def run(*arguments: str) -> tuple[int, dict]:
        monkeypatch.setattr(sys, "argv", ["gpu", f"--output={tmp_path}", *arguments])
        status = gpu.main()
        return status, json.loads((tmp_path / "results.json").read_text())["parts"]

    assert run("--only=second,first") == (0, {"first": ANY, "second": ANY})
    status, found = run()
    assert (status, found["third"]["ended"]) == (1, "failed (1)")
    assert run("--minutes=0.1", "--only=third") == (0, {"third": {"ended": "no time left"}})
    with pytest.raises(SystemExit):
        run("--only=fourth")
    assert "no part fourth: choose of first, second, third" in capsys.readouterr().err
