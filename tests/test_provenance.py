"""Fingerprints follow contents, files appear whole, and a run says where it comes from."""

import re

import pytest

from voco_llama import provenance as module
from voco_llama.files import write_atomically
from voco_llama.provenance import (
    fingerprint_data,
    fingerprint_files,
    git_commit,
    provenance,
    sampled_fingerprint,
)


def test_provenance_names_versions_and_commit(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/home/someone/voco_llama/cli.py", "ask", "questions=[a b]"])
    facts = provenance()
    assert facts["command"] == "cli.py ask 'questions=[a b]'"
    assert set(facts) == {"date", "command", "git_commit", "versions", "hardware"}
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", facts["git_commit"] or "0" * 40)
    assert facts["versions"]["torch"].startswith("2.")


def test_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "site-packages" / "voco_llama" / "provenance.py"))
    assert git_commit() is None


def test_fingerprint_of_files_follows_names_and_contents(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    before = fingerprint_files([one, two])
    assert fingerprint_files([two, one]) == before
    two.write_text("3")
    assert fingerprint_files([one, two]) != before
    assert fingerprint_data({"a": 1, "b": 2}) == fingerprint_data({"b": 2, "a": 1}) != fingerprint_data({"a": 2})


def test_sampled_fingerprint_sees_names_sizes_and_contents_of_large_files(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    weights = bytearray(5_000_000)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    (folder / "notes.txt").write_text("not looked at")
    before = sampled_fingerprint(folder)
    (folder / "notes.txt").write_text("still not")
    assert sampled_fingerprint(folder) == before
    seen = {before}
    for place in (0, len(weights) // 2 - len(weights) // 2 % (1 << 16), len(weights) - 1):
        changed = bytearray(weights)
        changed[place : place + (1 << 18)] = b"\1" * len(changed[place : place + (1 << 18)])
        (folder / "model.safetensors").write_bytes(changed)
        seen.add(sampled_fingerprint(folder))
    assert len(seen) == 4
    (folder / "model.safetensors").write_bytes(weights + b"\0")
    assert sampled_fingerprint(folder) not in seen
    assert sampled_fingerprint(folder / "config.json") != sampled_fingerprint(folder / "model.safetensors")


def test_sampled_fingerprint_sees_tables_at_any_depth(tmp_path):
    (tmp_path / "data").mkdir()
    seen = {sampled_fingerprint(tmp_path)}
    for name in ("a.parquet", "b.arrow"):
        for text in ("a", "b"):
            (tmp_path / "data" / name).write_text(text)
            seen.add(sampled_fingerprint(tmp_path))
    assert len(seen) == 5


def test_write_leaves_the_old_file_if_it_fails(tmp_path, monkeypatch):
    file = tmp_path / "folder" / "file.json"
    write_atomically(file, "old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
