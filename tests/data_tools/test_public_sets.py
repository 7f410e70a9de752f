"""The shipped descriptions of data sets agree with the settings that train on them; files are held against them."""

import hashlib
import logging
import os
import re
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from voco_llama.composition import compose
from voco_llama.data_tools import public_sets
from voco_llama.data_tools.public_sets import Part, State, names_elsewhere, read_sets, verify
from voco_llama.errors import DataError, SettingsError

SETS = read_sets()
DATA = {
    "cc3m_595k": ["cc3m_595k"],
    "lcs_558k": ["lcs_558k"],
    "mix665k": ["mix665k"],
    "webvid": ["webvid_captions", "webvid_and_video_chatgpt"],
    "video_instruct_100k": ["video_chatgpt", "webvid_and_video_chatgpt"],
}
"""Set to the choices of `data` that read it."""


def test_what_ships():
    assert set(SETS) == set(DATA)


@pytest.mark.parametrize(("name", "choice"), [(name, choice) for name in DATA for choice in DATA[name]])
def test_the_places_are_those_that_trainings_read(name, choice):
    sources = compose(["stage=instruct", f"data={choice}", "paths.data=there"]).data.sources
    parts = SETS[name].files
    records = {f"there/{part.place}" for part in parts if part.fills is None}
    media = [f"there/{part.fills}" for part in parts if part.fills]
    mine = [source for source in sources if source.file in records]
    assert {source.file for source in mine} == records
    for folder in media:
        assert any(folder == source.media_folder or folder.startswith(f"{source.media_folder}/") for source in mine)


def test_every_download_of_the_mixture_has_its_own_file():
    places = [part.place for data_set in SETS.values() for part in data_set.files if part.place]
    assert len(places) == len(set(places))
    assert sum(place.endswith("/images.zip") for place in places) == 4


def test_ocr_vqa_is_explained():
    (note,) = SETS["mix665k"].notes
    assert "GIFs named .jpg" in note
    assert compose(["stage=instruct", "data=mix665k"]).data.skip_bad_records


def test_names_in_a_folder_of_downloads():
    coco, gqa = SETS["mix665k"].files[1:3]
    assert names_elsewhere(coco, SETS) == [
        "LLaVA-Instruct-150K/archives/coco/train2017.zip",
        "archives/coco/train2017.zip",
        "coco/train2017.zip",
        "coco_train2017.zip",
        "train2017.zip",
    ]
    assert names_elsewhere(gqa, SETS)[-2:] == ["gqa/images.zip", "gqa_images.zip"]  # `images.zip` may be anyone's
    assert names_elsewhere(SETS["mix665k"].files[-1], SETS) == []


def test_sizes_are_shown_as_published():
    shown = [part.shown_size for part in SETS["lcs_558k"].files]
    assert shown == ["181 MB", "27.4 GB"]
    assert Part(place="a", size=42_400_000).shown_size == "42.4 MB"
    assert Part(place="a").shown_size == "size unknown"


@pytest.mark.parametrize(
    "part", [pytest.param(part, id=f"{name} {part.place or part.fills}") for name in SETS for part in SETS[name].files]
)
def test_a_description_is_whole(part):
    places = [PurePosixPath(place) for place in (part.place, part.unpack, part.fills) if place is not None]
    assert not any(place.is_absolute() or ".." in place.parts for place in places)
    assert part.place or (part.fills and part.manual)
    if part.place:
        assert (part.unpack is None) == (part.fills is None)
        assert part.unpack is None or PurePosixPath(part.fills).is_relative_to(part.unpack)
    assert part.url or part.repository or part.manual
    assert (part.repository is None) == (part.revision is None)
    assert part.size or part.about
    assert re.fullmatch(r"[0-9a-f]{64}", part.sha256 or "0" * 64)
    assert re.fullmatch(r"[0-9a-f]{32}", part.md5 or "0" * 32)
    if part.url:
        assert re.match(r"https?://", part.url)
        assert part.url.endswith(f"/{PurePosixPath(part.place).name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("titel: t", "unknown setting 'titel'"),
        ("title: t", "has no value"),
        ("{title: t, page: p, licence: l, files: [{size: big}]}", "could not be converted to Integer"),
    ],
)
def test_a_description_that_is_wrong(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        read_sets(tmp_path)
    assert str(tmp_path / "a.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_how_a_file_is_fetched():
    part = Part(place="a/b.zip", repository="owner/name", revision="abc")
    options = "--repo-type dataset --revision abc --local-dir 'my data/a'"
    assert part.fetching(Path("my data")) == f"hf download owner/name b.zip {options}"
    part = Part(place="a/b.zip", url="https://host/b.zip")
    assert part.fetching(Path("my data")) == "wget -c -P 'my data/a' https://host/b.zip"
    assert Part(fills="a", manual="ask").fetching(Path("data")) is None


# ---- files


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
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("1.jpg", b"1")
    described = Part(place="images.zip", unpack="images", fills="images")
    assert verify(archive, described, state) == "whole, no exact size or checksum is known"
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"images.zip: cannot be read \(.+\): it is damaged or was not"):
        verify(archive, described, state)


@pytest.fixture
def hashed(monkeypatch):
    """The files that were hashed."""
    seen = []
    original = public_sets.content_key

    def spy(file, *rest):
        seen.append(file.name)
        return original(file, *rest)

    monkeypatch.setattr(public_sets, "content_key", spy)
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
