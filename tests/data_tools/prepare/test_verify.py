"""Whether a file is the published one, and that hashing it again is avoided exactly as long as it is the same file."""

import hashlib
import logging
import os

import pytest

from tests.data_tools.archives import write_zip
from voco_llama.data_tools.prepare import verify as verifying
from voco_llama.data_tools.prepare.sets import Part
from voco_llama.data_tools.prepare.verify import State, verify
from voco_llama.errors import DataError

CONTENT = b'[{"id": 1}]\n'
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


@pytest.fixture
def file(tmp_path):
    (tmp_path / "chat.json").write_bytes(CONTENT)
    return tmp_path / "chat.json"


@pytest.fixture
def state(tmp_path):
    return State(tmp_path / "state.json")


def part(**published):
    return Part(place="a/chat.json", **published)


@pytest.mark.parametrize(
    ("published", "found"),
    [
        ({"size": len(CONTENT), "sha256": SHA256}, "size and sha256 as published"),
        ({"md5": MD5}, "md5 as published"),
        ({"sha256": SHA256, "md5": "0" * 32}, "sha256 as published"),
        ({"size": len(CONTENT)}, "size as published, no checksum is known"),
        ({}, "whole, no exact size or checksum is known"),
    ],
)
def test_as_published(published, found, file, state):
    assert verify(file, part(**published), state) == found


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"size": len(CONTENT) + 1}, r"12 bytes, published are 13 \(a download that was cut off\)"),
        ({"size": len(CONTENT) - 1}, r"12 bytes, published are 11 \(another version\)"),
        ({"sha256": "0" * 64}, f"its sha256 is {SHA256}, published is 0{{64}}; fetch it again"),
        ({"md5": "0" * 32}, f"its md5 is {MD5}, published is 0{{32}}"),
    ],
)
def test_not_as_published(published, message, file, state):
    with pytest.raises(DataError, match=message):
        verify(file, part(**published), state)


@pytest.mark.parametrize("content", [b"", b"[", CONTENT[:-2], b'{"a": 1}', b"<html>Not found</html>"])
def test_records_that_are_not_whole(content, file, state):
    file.write_bytes(content)
    with pytest.raises(DataError, match="no whole JSON list"):
        verify(file, part(), state)


def test_an_archive_that_is_not_whole(tmp_path, state):
    archive = write_zip(tmp_path / "images.zip", [("1.jpg", b"1")])
    described = Part(place="images.zip", unpack="images", fills="images")
    assert verify(archive, described, state) == "whole, no exact size or checksum is known"
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(DataError, match="images.zip: broken, perhaps a download that was cut off"):
        verify(archive, described, state)


@pytest.fixture
def hashed(monkeypatch):
    """The files that were hashed."""
    seen = []
    original = verifying._hash

    def spy(file, *rest):
        seen.append(file.name)
        return original(file, *rest)

    monkeypatch.setattr(verifying, "_hash", spy)
    return seen


def test_a_checksum_is_remembered(file, state, hashed):
    for _ in range(2):
        verify(file, part(sha256=SHA256), State(state.file))
    assert hashed == ["chat.json"]


def test_a_wrong_checksum_is_remembered_too(file, state, hashed):
    for _ in range(2):
        with pytest.raises(DataError, match="its sha256 is"):
            verify(file, part(sha256="0" * 64), State(state.file))
    assert hashed == ["chat.json"]


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_is_hashed_again(change, file, state, hashed):
    verify(file, part(sha256=SHA256), state)
    if change == "size":
        before = file.stat()
        file.write_bytes(b"[1]")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        file.write_bytes(CONTENT.replace(b"1", b"2"))
        os.utime(file, ns=(1, 1))
    with pytest.raises(DataError, match="its sha256 is"):
        verify(file, part(sha256=SHA256), State(state.file))
    assert len(hashed) == 2


def test_what_is_known_goes_with_a_file_that_is_renamed(file, state, hashed, tmp_path):
    verify(file, part(sha256=SHA256), state)
    file.rename(tmp_path / "new.json")
    state.move(file, tmp_path / "new.json")
    verify(tmp_path / "new.json", part(sha256=SHA256), State(state.file))
    assert hashed == ["chat.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"%s": 3}', '{"%s": {"stamp": 1, "sha256": "x"}}'])
def test_a_damaged_state_is_no_obstacle(text, file, tmp_path, hashed):
    (tmp_path / "state.json").write_text(text.replace("%s", str(file.resolve())))
    verify(file, part(sha256=SHA256), State(tmp_path / "state.json"))
    verify(file, part(sha256=SHA256), State(tmp_path / "state.json"))
    assert hashed == ["chat.json"]


def test_a_state_that_cannot_be_written_is_a_warning(file, tmp_path, caplog):
    (tmp_path / "state.json").mkdir()
    with caplog.at_level(logging.WARNING):
        assert verify(file, part(sha256=SHA256), State(tmp_path / "state.json")) == "sha256 as published"
    assert "the next run hashes again" in caplog.text


def test_progress_is_reported(file, state, monkeypatch):
    monkeypatch.setattr(verifying, "CHUNK_BYTES", 5)
    seen = []
    verify(file, part(sha256=SHA256), state, seen.append)
    assert seen == [5, 5, 2]
