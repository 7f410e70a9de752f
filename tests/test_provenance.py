"""Fingerprints follow contents, files appear whole, and a run says where it comes from."""

import re

import pytest

from voco_llama import provenance as module
from voco_llama.provenance import fingerprint_data, fingerprint_files, git_commit, provenance, write_atomically


def test_provenance_names_versions_and_commit():
    facts = provenance()
    assert set(facts) == {"command", "git_commit", "versions", "hardware"}
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


def test_write_leaves_the_old_file_if_it_fails(tmp_path, monkeypatch):
    file = tmp_path / "folder" / "file.json"
    write_atomically(file, "old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
