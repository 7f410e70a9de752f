"""Which images of a batch are the same: by where they lie, in files, clips, archives and tables."""

import pickle
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data.tables import IMAGE, TURNS, png, stored, turns, written
from tests.tiny import tiny_processor
from voco_llama.data.collate import Collator
from voco_llama.data.media import decoded
from voco_llama.data.media.archives import Archive
from voco_llama.data.media.stored import MediaFile
from voco_llama.data.media.video import frame_indices
from voco_llama.data.readers.hf_dataset import HfDataset
from voco_llama.data.records import Record, Turn
from voco_llama.layout import ROW_FIELDS, HostRows

PROCESSOR = tiny_processor(num_frames=4)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Three images, the first two of the same bytes."""
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path, number in zip(paths, (0, 0, 1), strict=True):
        path.write_bytes(png(number))
    return paths


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """Makes clips of so many frames; each of these is a color."""
    lengths = {}

    def frames(file: Path, num_frames: int) -> list[Image.Image]:
        there = [Image.new("RGB", (8, 8), (9 * number, 0, 0)) for number in range(lengths[file])]
        return [there[index] for index in frame_indices(lengths[file], num_frames)]

    def make(name: str, num_frames: int) -> Path:
        (tmp_path / name).touch()
        lengths[tmp_path / name] = num_frames
        return tmp_path / name

    monkeypatch.setattr(decoded, "read_frames", frames)
    return make


def about(*images: MediaFile, video: MediaFile | None = None) -> Record:
    marks = "<image>" * (len(images) or video is not None)
    return Record("x", (Turn("user", f"{marks}What?"), Turn("assistant", "That.")), images, video)


def batch_of(*records: Record, **options) -> dict:
    return Collator(PROCESSOR.tokens, **options)([PROCESSOR.row(record) for record in records])


def media_of(*records: Record) -> tuple[list, list, int]:
    batch = batch_of(*records)
    return batch["media"].tolist(), batch["medium"].tolist(), len(batch["pixel_values"])


def test_an_image_is_there_once_in_one_row_and_in_several(files):
    a, b, c = files
    batch = batch_of(about(a), about(), about(b), about(a, c, a), about(a), about(a, c, a))
    assert batch["medium"].tolist() == [0, -1, 1, 2, 0, 2]
    assert batch["media"].tolist() == [[0, -1, -1], [1, -1, -1], [0, 2, 0]]
    expected = torch.stack([PROCESSOR.image_transform(Image.open(path)) for path in files])
    assert torch.equal(batch["pixel_values"], expected)


def test_a_batch_of_text(files):
    batch = batch_of(about(), about())
    assert batch["media"].shape == (0, 0)
    assert batch["medium"].tolist() == [-1, -1]
    assert batch["pixel_values"].shape == (0, 3, 16, 16)


def test_rows_for_two_steps_stay_as_they_are(files):
    """What else a sample brings is joined, what moves a batch leaves the rows alone; labels are there to be counted."""
    samples = [PROCESSOR.row(about(path)) | {"words": torch.tensor([i])} for i, path in enumerate(files)]
    batch, masked = (Collator(PROCESSOR.tokens, two_steps=two_steps)(samples) for two_steps in (True, False))
    assert list(batch) == ["labels", "rows", "words", "pixel_values"]
    rows = batch["rows"]
    assert isinstance(rows, HostRows)
    assert rows.fields.keys() == {*ROW_FIELDS}
    assert all(torch.equal(rows.fields[name], masked[name]) for name in ROW_FIELDS)
    assert torch.equal(rows.medium, masked["medium"])
    assert batch["labels"] is rows.fields["labels"]
    assert batch["words"].tolist() == masked["words"].tolist() == [0, 1, 2]
    assert torch.equal(pickle.loads(pickle.dumps(rows)).media, rows.media)


def test_frames_of_a_clip(tmp_path, clip):
    """The frames of a clip too short are repeated, and each is there once."""
    long, short = clip("long.mp4", 9), clip("short.mp4", 3)
    media, medium, images = media_of(about(video=long), about(video=short), about(video=long))
    assert (medium, images) == ([0, 1, 0], 7)
    assert media == [[0, 1, 2, 3], [4, 4, 5, 6]]


def test_members_of_an_archive(files, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in files:
            archive.write(path, path.name)
    (tmp_path / "other.zip").write_bytes((tmp_path / "all.zip").read_bytes())
    found = [Archive(tmp_path / name).find("a.png") for name in ("all.zip", "all.zip", "other.zip")]
    assert media_of(*map(about, found), about(files[0])) == ([[0], [1], [2]], [0, 0, 1, 2], 3)


def test_rows_of_a_table(tmp_path, arrow_cache):
    """The same bytes are the same image; a name that others have too says nothing."""
    unnamed = {"bytes": png(0), "path": None}
    images = [stored(0), stored(0), {"bytes": png(1), "path": "0.png"}, unnamed, unnamed]
    columns = {"image": images, "conversations": [turns("<image>", "A.")] * len(images)}
    reader = HfDataset(written(tmp_path, columns, {"image": IMAGE, "conversations": TURNS}))
    batch = batch_of(*reader)
    assert batch["medium"].tolist() == [0, 0, 1, 0, 0]
    assert len(batch["pixel_values"]) == 2


def test_what_several_records_look_at_is_decoded_once(files, clip, monkeypatch):
    opened = Counter()
    for name in ("load_image", "read_frames"):
        read = getattr(decoded, name)
        monkeypatch.setattr(decoded, name, lambda file, *rest, read=read: opened.update([file]) or read(file, *rest))
    a, b, _ = files
    shown = clip("shown.mp4", 5)
    for record in (about(a), about(a, b), about(b), *[about(video=shown)] * 3, about(a)):
        PROCESSOR.row(record)
    assert opened == {a: 1, b: 1, shown: 1}
    changed = png(5, (30, 30))
    a.write_bytes(changed)
    row = PROCESSOR.row(about(a))
    assert torch.equal(row["pixel_values"][0], PROCESSOR.image_transform(Image.open(a)))


def test_splits_have_rows_of_their_own(tmp_path, arrow_cache):
    """Row 0 of one is not row 0 of the other, nor does sharing take them for one medium."""
    for number, split in enumerate(("train", "test")):
        columns = {"image": [{"bytes": png(number), "path": None}], "conversations": [turns("<image>", "A.")]}
        written(tmp_path / "set", columns, {"image": IMAGE, "conversations": TURNS}, f"{split}-00000.parquet")
    one, other = (HfDataset(tmp_path / "set", split=split) for split in ("train", "test"))
    batch = batch_of(one[0], other[0])
    assert batch["medium"].tolist() == [0, 1]
    assert not torch.equal(*batch["pixel_values"])
    assert one.sizes.medium[0] != other.sizes.medium[0]
