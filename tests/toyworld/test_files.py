"""The world on disk: read by the real readers, the same from the same settings, whole or not at all."""

import csv
import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from voco_llama.data.media.images import load_image
from voco_llama.data.readers import open_reader
from voco_llama.errors import SettingsError
from voco_llama.toyworld import ToyWorldSettings, world, write_toyworld
from voco_llama.toyworld.models import train_tokenizer
from voco_llama.toyworld.scenes import place_name

SETTINGS = ToyWorldSettings(
    pretrain_images=20, instruct_images=40, val_images=6, text_rows=20, clips_train=8, clips_test=4,
    benchmark_images=12, benchmark_questions=40, text_only_share=0.15,
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "toy"
    write_toyworld(SETTINGS, folder)
    return folder


def files_of(root: Path) -> dict[str, bytes]:
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("file", "records", "text_only"),
    [("pretrain/chat.json", 20, 0), ("instruct/train.json", 46, 6), ("instruct/val.json", 7, 1)],
)
def test_image_records_are_read(root: Path, file: str, records: int, text_only: int) -> None:
    reader = open_reader("llava_json", root / file, (root / file).parent / "images")
    read = [reader[index] for index in range(len(reader))]
    assert len(read) == records
    assert sum(not record.images for record in read) == text_only
    assert all(load_image(record.images[0]).size == (32, 32) for record in read if record.images)
    assert len({record.id for record in read}) == records


def test_text_records_are_read(root: Path) -> None:
    reader = open_reader("llava_json", root / "text" / "train.json")
    assert [reader[index].images for index in range(len(reader))] == [()] * 20


@pytest.mark.parametrize(("split", "clips"), [("train", 8), ("test", 4)])
def test_clip_questions_are_read(root: Path, split: str, clips: int) -> None:
    reader = open_reader("video_chatgpt", root / "clips" / f"{split}.json", root / "clips" / "videos")
    videos = {reader[index].video for index in range(len(reader))}
    assert len(videos) == clips
    assert all(video is not None and video.is_file() for video in videos)


def test_clip_captions_are_read(root: Path) -> None:
    reader = open_reader("caption_csv", root / "clips" / "captions.csv", root / "clips" / "videos")
    assert len(reader) == 8
    assert reader[0].video == root / "clips" / "videos" / "toy_train_000000.mp4"
    with (root / "clips" / "captions.csv").open() as file:
        assert list(next(csv.DictReader(file))) == ["videoid", "contentUrl", "duration", "page_dir", "name"]


def test_scenes_on_disk_are_those_of_the_plan(root: Path) -> None:
    described = json.loads((root / "scenes.json").read_text())
    captions = [row["conversations"][1]["value"] for row in json.loads((root / "pretrain" / "chat.json").read_text())]
    assert len(described["pretrain"]) == len(captions)
    for description, caption in zip(described["pretrain"], captions, strict=True):
        told = []
        for thing in description.split("; "):
            cell, name = thing.split(" ", 1)
            row, col = map(int, cell.split(","))
            told.append(sorted(f"{name} {place_name(row, col, SETTINGS.grid)}".split()))
        assert sorted(told) == sorted(sorted(part.split()) for part in caption.split(", "))
    held_out = {text for part, texts in described.items() if part == "val" or "benchmark" in part for text in texts}
    trained = {text for part in ("pretrain", "text", "train") for text in described[part]}
    assert held_out
    assert not held_out & trained


def test_same_settings_same_bytes(root: Path, tmp_path: Path) -> None:
    write_toyworld(SETTINGS, tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(root)


def test_another_seed_is_another_world(root: Path, tmp_path: Path) -> None:
    write_toyworld(replace(SETTINGS, seed=1), tmp_path / "other")
    one, other = files_of(root), files_of(tmp_path / "other")
    assert one.keys() == other.keys()
    for file in ("pretrain/chat.json", "pretrain/images/toy_pretrain_000000.png", "clips/test.json", "scenes.json"):
        assert one[file] != other[file]


def test_a_written_world_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(world, "_write_all", refuse)
    write_toyworld(SETTINGS, root)
    with pytest.raises(AssertionError, match="written again"):
        write_toyworld(replace(SETTINGS, seed=1), root)


def touch(settings: ToyWorldSettings, folder: Path) -> None:
    """Stands in for the writing, where only what happens around it is looked at."""
    (folder / "chat.json").write_text(f"[{settings.seed}]")
    files = world._fingerprints(folder)
    (folder / "manifest.json").write_text(json.dumps(world._manifest(settings) | {"files": files}))


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> Callable[[ToyWorldSettings, Path], None]:
    monkeypatch.setattr(world, "_write_all", touch)
    return write_toyworld


def test_a_world_of_other_settings_is_replaced(
    light: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    light(SETTINGS, tmp_path / "toy")
    light(SETTINGS, tmp_path / "toy")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    light(replace(SETTINGS, seed=7), tmp_path / "toy")
    assert "holds a world of other settings, which is replaced: seed (0 there, 7 now)" in caplog.text
    assert (tmp_path / "toy" / "chat.json").read_text() == "[7]"
    assert [entry.name for entry in tmp_path.iterdir()] == ["toy"]


def test_a_changed_file_is_written_again(light: Callable, tmp_path: Path) -> None:
    light(SETTINGS, tmp_path / "toy")
    (tmp_path / "toy" / "chat.json").write_text("[]")
    light(SETTINGS, tmp_path / "toy")
    assert (tmp_path / "toy" / "chat.json").read_text() == "[0]"


def test_a_foreign_folder_is_refused(light: Callable, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingsError, match="is no toy world; choose another folder"):
        light(SETTINGS, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_manifest_is_one_line(light: Callable, tmp_path: Path, content: bytes) -> None:
    light(SETTINGS, tmp_path / "toy")
    (tmp_path / "toy" / "manifest.json").write_bytes(content)
    with pytest.raises(
        SettingsError, match=r"manifest.json: cannot be read \(.+\): choose another folder or remove it"
    ):
        light(SETTINGS, tmp_path / "toy")


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(settings: ToyWorldSettings, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "no room", str(folder / "half"))

    monkeypatch.setattr(world, "_write_all", fail)
    with pytest.raises(
        SettingsError, match=r"half cannot be written \(No space left on device\): make room, or choose"
    ):
        write_toyworld(SETTINGS, tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_where_writing_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(settings: ToyWorldSettings, folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError("disk full")

    monkeypatch.setattr(world, "_write_all", fail)
    with pytest.raises(OSError, match="disk full"):
        write_toyworld(SETTINGS, tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_vocabulary_is_refused() -> None:
    words = ["circle square triangle cross star diamond " * 2, "red green blue yellow purple cyan orange white"]
    with pytest.raises(SettingsError, match="vocabulary=262 is too small: 1[0-9] of 1[0-9] words"):
        train_tokenizer(words, 262)
