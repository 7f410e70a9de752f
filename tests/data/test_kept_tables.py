"""What large files were read through for is kept, shared, and never trusted when it is stale or damaged."""

import json
import logging
import os
import pickle
import shutil
import threading

import numpy as np
import pytest

from voco_llama.data import kept_tables
from voco_llama.data.kept_tables import open_table
from voco_llama.data.readers.caption_csv import CaptionCsv
from voco_llama.data.readers.llava_json import LlavaJson
from voco_llama.data.readers.video_chatgpt import VideoChatGpt
from voco_llama.errors import DataError


@pytest.fixture(autouse=True)
def keep_everything(monkeypatch):
    monkeypatch.setattr(kept_tables, "SMALLEST_KEPT", 0)


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "source" / "rows.json"
    file.parent.mkdir()
    file.write_text("12345")
    return file


class Maker:
    """Makes a table of a file, and counts how often."""

    def __init__(self, file) -> None:
        self.file = file
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        length = self.file.stat().st_size
        return {"a": np.arange(length, dtype=np.int64), "b": np.full((3, 2), length, dtype=np.int32)}


def assert_same(table, length: int) -> None:
    assert list(table) == ["a", "b"]
    assert table["a"].dtype == np.int64
    np.testing.assert_array_equal(table["a"], np.arange(length))
    np.testing.assert_array_equal(table["b"], np.full((3, 2), length))


def entries(folder) -> list:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def test_made_once_and_mapped(file, tmp_path):
    make = Maker(file)
    for _ in range(3):
        table = open_table(file, "kind", tmp_path / "index", make)
        assert_same(table, 5)
        assert isinstance(table["a"], np.memmap)
    assert make.calls == 1
    assert [path.name for path in file.parent.iterdir()] == ["rows.json"]  # nothing beside the data
    open_table(file, "another kind", tmp_path / "index", make)
    assert make.calls == 2
    assert len(entries(tmp_path / "index")) == 2


def test_no_folder_and_small_files(file, tmp_path, monkeypatch):
    make = Maker(file)
    assert_same(open_table(file, "kind", None, make), 5)
    monkeypatch.setattr(kept_tables, "SMALLEST_KEPT", 6)
    assert_same(open_table(file, "kind", tmp_path / "index", make), 5)
    assert not (tmp_path / "index").exists()
    monkeypatch.setattr(kept_tables, "SMALLEST_KEPT", 5)
    open_table(file, "kind", tmp_path / "index", make)
    assert len(entries(tmp_path / "index")) == 1


@pytest.mark.parametrize("change", ["size", "time", "version", "path"])
def test_a_change_is_noticed(file, tmp_path, monkeypatch, change):
    make = Maker(file)
    before = open_table(file, "kind", tmp_path / "index", make)
    state = file.stat()
    if change == "size":
        file.write_text("1234567")
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif change == "time":
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1000))
    elif change == "version":
        monkeypatch.setattr(kept_tables, "FORMAT_VERSION", kept_tables.FORMAT_VERSION + 1)
    else:
        file = file.rename(file.with_name("moved.json"))
        make.file = file
    assert_same(open_table(file, "kind", tmp_path / "index", make), 7 if change == "size" else 5)
    assert make.calls == 2
    assert len(entries(tmp_path / "index")) == (2 if change == "path" else 1)  # what is stale goes
    assert_same(before, 5)  # mapped still


DAMAGES = {
    "cut": lambda entry: os.truncate(entry / "a.npy", 140),
    "empty": lambda entry: os.truncate(entry / "a.npy", 0),
    "missing": lambda entry: (entry / "b.npy").unlink(),
    "a byte": lambda entry: (entry / "a.npy").write_bytes((entry / "a.npy").read_bytes()[:-1] + b"\7"),
    "header": lambda entry: (entry / "a.npy").write_bytes(b"\0" + (entry / "a.npy").read_bytes()[1:]),
    "no checksums": lambda entry: (entry / "table.json").unlink(),
    "no JSON": lambda entry: (entry / "table.json").write_text("{"),
    "no object": lambda entry: (entry / "table.json").write_text("3"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(file, tmp_path, caplog, damage):
    make = Maker(file)
    open_table(file, "kind", tmp_path / "index", make)
    (entry,) = entries(tmp_path / "index")
    DAMAGES[damage](entry)
    assert_same(open_table(file, "kind", tmp_path / "index", make), 5)
    assert "damaged" in caplog.text
    assert_same(open_table(file, "kind", tmp_path / "index", make), 5)
    assert make.calls == 2


def test_what_a_killed_process_left_is_no_entry(file, tmp_path):
    make = Maker(file)
    open_table(file, "kind", tmp_path / "index", make)
    (entry,) = entries(tmp_path / "index")
    entry.rename(entry.with_name(f".{entry.name}.1"))
    assert_same(open_table(file, "kind", tmp_path / "index", make), 5)
    (entry,) = entries(tmp_path / "index")
    assert not entry.name.startswith(".")
    assert make.calls == 2


@pytest.mark.parametrize("what", ["folder", "entry"])
def test_a_folder_that_cannot_be_written_is_no_error(file, tmp_path, caplog, monkeypatch, what):
    make = Maker(file)
    folder = tmp_path / "index"
    if what == "folder":
        (tmp_path / "file").touch()
        folder = tmp_path / "file" / "index"
    else:
        monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with caplog.at_level(logging.WARNING):
        table = open_table(file, "kind", folder, make)
    assert_same(table, 5)
    assert make.calls == 1
    assert f"index folder {folder} cannot be written" in caplog.text
    assert_same(pickle.loads(pickle.dumps(table)), 5)


def test_others_wait_for_the_one_that_reads(file, tmp_path):
    make = Maker(file)
    began, go_on = threading.Event(), threading.Event()

    def slowly():
        began.set()
        assert go_on.wait(20)
        return make()

    tables = []
    threads = [
        threading.Thread(target=lambda: tables.append(open_table(file, "kind", tmp_path / "index", slowly)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert began.wait(20)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert make.calls == 1
    for table in tables:
        assert_same(table, 5)
    assert len(tables) == 3


def test_an_error_of_the_file_frees_the_lock(file, tmp_path):
    def fail():
        raise DataError("no JSON")

    for _ in range(2):
        with pytest.raises(DataError, match="no JSON"):
            open_table(file, "kind", tmp_path / "index", fail)
    assert_same(open_table(file, "kind", tmp_path / "index", Maker(file)), 5)


def test_an_entry_that_is_gone_when_a_worker_starts(file, tmp_path):
    data = pickle.dumps(open_table(file, "kind", tmp_path / "index", Maker(file)))
    shutil.rmtree(tmp_path / "index")
    with pytest.raises(DataError, match="gone or damaged, its file changed since it was opened; start again"):
        pickle.loads(data)


# ---- readers


def write_chat(folder, count: int):
    turns = [{"from": "human", "value": "<image>\nWhat is é?"}, {"from": "gpt", "value": "A ball."}]
    rows = [{"id": f"r{i}", "image": f"{i}.jpg", "conversations": turns} for i in range(count)]
    (folder / "chat.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def write_captions(folder, count: int):
    lines = "".join(f'{i},"a ball,\nthe {i}th é"\n' for i in range(count))
    (folder / "captions.csv").write_text("videoid,name\n" + lines, encoding="utf-8")


def write_clips(folder, count: int):
    rows = [{"q": "What?", "a": f"A ball, the {i}th.", "video_id": i} for i in range(count)]
    (folder / "clips.json").write_text(json.dumps(rows))


READERS = {
    LlavaJson: (write_chat, "chat.json"),
    CaptionCsv: (write_captions, "captions.csv"),
    VideoChatGpt: (write_clips, "clips.json"),
}


@pytest.mark.parametrize("reader", READERS)
def test_records_through_the_index_are_those_of_the_scan(tmp_path, reader):
    write, name = READERS[reader]
    (tmp_path / "media").mkdir()
    for i in range(50):
        (tmp_path / "media" / f"{i}.mp4").touch()
    write(tmp_path, 40)
    scanned = reader(tmp_path / name, tmp_path / "media")
    for _ in range(2):
        kept = reader(tmp_path / name, tmp_path / "media", index_folder=tmp_path / "index")
        assert isinstance(kept.sizes.characters, np.memmap)
        assert list(kept) == list(scanned)
        np.testing.assert_array_equal(kept.sizes.characters, scanned.sizes.characters)
        np.testing.assert_array_equal(kept.sizes.media, scanned.sizes.media)
        np.testing.assert_array_equal(kept.sizes.medium, scanned.sizes.medium)
    write(tmp_path, 41)
    changed = reader(tmp_path / name, tmp_path / "media", index_folder=tmp_path / "index")
    assert len(changed) == 41
    assert list(changed) == list(reader(tmp_path / name, tmp_path / "media"))


def test_a_column_of_its_own_has_an_index_of_its_own(tmp_path):
    (tmp_path / "captions.csv").write_text("videoid,name,title\n1,A ball,Red\n")
    for column, length in (("name", 6), ("title", 3)):
        reader = CaptionCsv(tmp_path / "captions.csv", tmp_path, caption_column=column, index_folder=tmp_path / "index")
        assert reader.sizes.characters.tolist() == [length]


def test_a_pickled_reader_carries_no_arrays(tmp_path):
    write_chat(tmp_path, 5000)
    scanned, kept = (
        LlavaJson(tmp_path / "chat.json", tmp_path, index_folder=folder) for folder in (None, tmp_path / "index")
    )
    assert len(pickle.dumps(scanned)) > 5000 * 24
    data = pickle.dumps(kept)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert isinstance(again.sizes.characters, np.memmap)
    assert list(again) == list(scanned)


def test_formats_of_one_file_do_not_share_an_index(tmp_path):
    write_clips(tmp_path, 1)
    VideoChatGpt(tmp_path / "clips.json", tmp_path, tmp_path / "index")
    read_otherwise = LlavaJson(tmp_path / "clips.json", tmp_path, tmp_path / "index")
    assert read_otherwise.sizes.media.tolist() == [0]
