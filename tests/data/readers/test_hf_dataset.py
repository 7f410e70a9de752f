"""Tables as records, map-style and streamed: the same rows either way, and the same as from LLaVA's own files."""

import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.data.tables import IMAGE, LLAVA_TYPES, TEXTS, TURNS, llava_rows, png, stored, turns, written
from tests.tiny import tiny_processor
from voco_llama.data.media.images import load_image
from voco_llama.data.readers import hf_dataset
from voco_llama.data.readers.hf_dataset import HfDataset, ParquetStream
from voco_llama.data.readers.llava_json import LlavaJson
from voco_llama.data.records import Turn
from voco_llama.errors import DataError, SettingsError
from voco_llama.hub import is_hub_name

READERS = pytest.mark.parametrize("reader", [HfDataset, ParquetStream])

pytestmark = pytest.mark.usefixtures("arrow_cache")


@pytest.fixture
def llava(tmp_path) -> Path:
    return written(tmp_path, llava_rows(), LLAVA_TYPES)


# ---- good tables


@READERS
def test_rows_and_pixels_are_those_of_the_same_records_in_a_json_file(reader, llava, tmp_path):
    rows = llava_rows()
    described = []
    for i, image in enumerate(rows["image"]):
        entry = {"id": rows["id"][i], "conversations": rows["conversations"][i]}
        if image is not None:
            (tmp_path / image["path"]).write_bytes(image["bytes"])
            entry["image"] = image["path"]
        described.append(entry)
    (tmp_path / "chat.json").write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    ours, theirs = reader(llava), LlavaJson(tmp_path / "chat.json", tmp_path)
    assert len(ours) == len(theirs) == 5
    assert ours.sizes.characters.tolist() == theirs.sizes.characters.tolist()
    assert ours.sizes.media.tolist() == theirs.sizes.media.tolist() == [1, 1, 0, 1, 1]
    assert ours.sizes.media.dtype == ours.sizes.characters.dtype == np.int32
    processor = tiny_processor()
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.id, mine.turns) == (other.id, other.turns)
        row, expected = processor.row(mine), processor.row(other)
        assert row.keys() == expected.keys()
        assert all(torch.equal(row[key], expected[key]) for key in row if key != "image_keys")


@READERS
def test_images_stay_in_their_cells(reader, llava):
    records = reader(llava)
    first, _, text_only, *_ = records
    (image,) = first.images
    assert str(image) == f"{llava} row 0 column image"
    assert image.name == "0.png"
    assert image.open().read() == png(0)
    assert text_only.images == ()
    again = pickle.loads(pickle.dumps(first))
    assert again == first
    assert hash(again) == hash(first)
    assert again.images[0].open().read() == png(0)
    assert len(pickle.dumps(records)) < 20_000
    assert records[3].images[0] != image
    assert [record.id for record in pickle.loads(pickle.dumps(records))] == [f"r{i}" for i in range(5)]
    for index in (-1, 5):
        with pytest.raises(IndexError):
            records[index]


@READERS
def test_a_list_of_images(reader, tmp_path):
    columns = {
        "images": [[stored(0), stored(1)], None, []],
        "conversations": [turns("<image> or <image>?", "A."), turns("Hi", "Hello."), turns("1", "2")],
    }
    records = reader(written(tmp_path, columns, {"images": pa.list_(IMAGE), "conversations": TURNS}))
    assert [str(image).split("parquet ")[1] for image in records[0].images] == [
        "row 0 column images image 0",
        "row 0 column images image 1",
    ]
    assert [image.open().read() for image in records[0].images] == [png(0), png(1)]
    assert records[1].images == ()
    assert records[2].images == ()
    assert records[1].id == "1"
    assert records.sizes.media.tolist() == [2, 0, 0]


@READERS
@pytest.mark.parametrize("kind", [IMAGE, pa.string(), pa.binary(), pa.large_binary()])
def test_an_image_is_bytes_or_a_path(reader, kind, tmp_path):
    (tmp_path / "a.png").write_bytes(png(3))
    value = {"bytes": None, "path": "a.png"} if kind == IMAGE else "a.png" if kind == pa.string() else png(3)
    columns = {"image": [value, None], "conversations": [turns("<image>", "A."), turns("Hi", "Hello.")]}
    file = written(tmp_path, columns, {"image": kind, "conversations": TURNS})
    records = reader(file, tmp_path)
    (image,) = records[0].images
    assert (image == tmp_path / "a.png") == (kind in (IMAGE, pa.string()))
    assert load_image(image).size == (20, 14)
    assert records[1].images == ()
    assert records.sizes.media.tolist() == [1, 0]
    if kind in (IMAGE, pa.string()):
        with pytest.raises(DataError, match=r"record 0: 'image' is the path 'a\.png'; set media_folder"):
            reader(file)[0]


@pytest.mark.parametrize("listed", [False, True])
def test_rows_of_a_table_look_at_the_same_if_it_names_the_same_path(listed, tmp_path):
    """Before anything is read; a row without a path has an image of its own. What is read tells images by their bytes.

    A list of one image is as that image; the order of several counts.
    """
    unnamed = {"bytes": png(0), "path": None}
    values = [stored(0), None, stored(1), stored(0), unnamed, unnamed, {"bytes": png(1), "path": "0.png"}]
    if listed:
        values = [value and [value] for value in values]
        values += [[stored(0), stored(1)], [stored(1), stored(0)], [stored(0), stored(1)], [], [unnamed, stored(1)]]
    columns = {"image": values, "conversations": [turns("<image>", "A.")] * len(values)}
    types = {"image": pa.list_(IMAGE) if listed else IMAGE, "conversations": TURNS}
    medium = HfDataset(written(tmp_path, columns, types)).sizes.medium
    assert medium.dtype == np.int64
    same = [[0, 3, 6], [2], [4], [5]] + ([[7, 9], [8], [11]] if listed else [])
    assert [np.flatnonzero(medium == medium[places[0]]).tolist() for places in same] == same
    assert np.flatnonzero(medium == 0).tolist() == ([1, 10] if listed else [1])
    other = HfDataset(written(tmp_path / "other", columns, types)).sizes.medium
    assert not {*other[[0, 2, 4]]} & {*medium.tolist()}


def test_a_struct_with_nothing_in_it_is_no_image(tmp_path):
    nothing, named = {"bytes": None, "path": None}, {"bytes": None, "path": "a.png"}
    columns = {"image": [nothing, named, None, stored(0)], "conversations": [turns("Hi", "Hello.")] * 4}
    records = HfDataset(written(tmp_path, columns, {"image": IMAGE, "conversations": TURNS}))
    assert records[0].images == ()
    assert records.sizes.media.tolist() == [0, 1, 0, 1]


@READERS
def test_the_cauldron(reader, tmp_path):
    pairs = [{"user": f"Q{i}?", "assistant": f"A{i}.", "source": "x"} for i in range(2)]
    marked = [{"user": "See <image>, then <image>?", "assistant": "Yes.", "source": "x"}]
    columns = {"images": [[stored(0)], [stored(1), stored(2)], [stored(0), stored(1)]], "texts": [pairs, pairs, marked]}
    records = reader(written(tmp_path, columns, {"images": pa.list_(IMAGE), "texts": TEXTS}))
    assert records[0].turns == (
        Turn("user", "<image>\nQ0?"),
        Turn("assistant", "A0."),
        Turn("user", "Q1?"),
        Turn("assistant", "A1."),
    )
    assert records[1].turns[0].text == "<image>\n<image>\nQ0?"
    assert records[2].turns[0].text == "See <image>, then <image>?"
    assert records.sizes.characters.tolist() == [12, 12, 30]


@READERS
def test_captions(reader, tmp_path):
    columns = {"key": [7, 8], "photo": [png(0), png(1)], "alt": [" A bus.\n", "é"]}
    file = written(tmp_path, columns, {"key": pa.int64(), "photo": pa.binary(), "alt": pa.string()})
    names = {"id_column": "key", "image_column": "photo", "caption_column": "alt"}
    records = reader(file, **names, instruction="Say it.")
    assert records[0].turns == (Turn("user", "<image>\nSay it."), Turn("assistant", "A bus."))
    assert records[1].id == "8"
    assert records[1].source == f"{file} record 1 (id 8)"
    assert records.sizes.characters.tolist() == [8, 2]
    assert records.sizes.media.tolist() == [1, 1]
    several = reader(file, **names, instruction=["a", "b", "c"], seed=3)
    assert [record.turns[0].text for record in several] == [record.turns[0].text for record in several]
    with pytest.raises(SettingsError, match=r"hf_dataset: an instruction holds <image>; leave it out"):
        reader(file, **names, instruction="<image>")


@READERS
def test_a_folder_of_shards_and_its_splits(reader, tmp_path):
    for shard in range(3):
        columns = {key: values[shard * 2 : shard * 2 + 2] for key, values in llava_rows(6).items()}
        written(tmp_path, columns, LLAVA_TYPES, f"set/data/train-0000{shard}-of-00003.parquet")
    written(tmp_path, llava_rows(1), LLAVA_TYPES, "set/data/test-00000-of-00001.parquet")
    records = reader(tmp_path / "set")
    assert [record.id for record in records] == [f"r{i}" for i in range(6)]
    assert records[5].images == ()
    assert records[4].images[0].open().read() == png(4)
    assert str(records[4].images[0]) == f"{tmp_path / 'set'} row 4 column image"
    assert len(reader(tmp_path / "set", split="test")) == 1
    with pytest.raises(DataError, match=r"set: no split 'val'; it has: train, test"):
        reader(tmp_path / "set", split="val")


def test_a_folder_of_save_to_disk(llava, tmp_path):
    saved = datasets.load_dataset("parquet", data_files=str(llava), split="train")
    saved = saved.cast_column("image", datasets.Image())
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved, "small": saved.select([4, 2])}).save_to_disk(tmp_path / "two")
    expected = [record.turns for record in HfDataset(llava)]
    for folder in ("one", "two"):
        records = HfDataset(tmp_path / folder)
        assert [record.turns for record in records] == expected
        assert records[1].images[0].open().read() == png(1)
    assert [record.id for record in HfDataset(tmp_path / "two", split="small")] == ["r4", "r2"]
    with pytest.raises(DataError, match=r"two: no split 'val'; it has: train, small"):
        HfDataset(tmp_path / "two", split="val")
    with pytest.raises(SettingsError, match=r"one: written by save_to_disk.*set data\.streaming=false"):
        ParquetStream(tmp_path / "one")


def test_a_set_of_the_hub_is_taken_from_the_library_s_cache(llava, arrow_cache):
    (llava.parent / "name").mkdir()
    llava.rename(llava.parent / "name" / "train.parquet")
    HfDataset(llava.parent / "name")
    (arrow_cache / "name").rename(arrow_cache / "owner___name")
    records = HfDataset("owner/name")
    assert [record.id for record in records] == [f"r{i}" for i in range(5)]
    assert str(records[0].images[0]) == "owner/name row 0 column image"
    assert records[0].images[0].open().read() == png(0)
    with pytest.raises(SettingsError, match=r"owner/name: only Parquet files can be streamed"):
        ParquetStream("owner/name")


def test_json_lines_are_not_streamed(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"id": "a", "conversations": turns("Hi", "Hello.")}) + "\n")
    assert HfDataset(file)[0].turns[1].text == "Hello."
    with pytest.raises(SettingsError, match=r"rows\.jsonl: only Parquet files can be streamed"):
        ParquetStream(file)


def test_nothing_is_decoded_and_no_image_is_read_for_the_sizes(llava, monkeypatch):
    for name in ("voco_llama.data.media.images._opened", "PIL.Image.open"):
        monkeypatch.setattr(name, None)
    assert len(list(HfDataset(llava))) == 5
    read = []
    group = hf_dataset._read_group
    monkeypatch.setattr(hf_dataset, "_read_group", lambda *args: read.append(args[2]) or group(*args))
    assert ParquetStream(llava).sizes.media.tolist() == [1, 1, 0, 1, 1]
    assert read == [["conversations"]] * 3


def test_a_stream_copies_nothing_and_holds_few_rows(tmp_path, arrow_cache, monkeypatch):
    records = ParquetStream(written(tmp_path, llava_rows(12), LLAVA_TYPES))
    assert records.group_starts.tolist() == [0, 2, 4, 6, 8, 10, 12]
    records.shuffle_buffer = 4
    read = []
    group = hf_dataset._read_group
    monkeypatch.setattr(hf_dataset, "_read_group", lambda *args: read.append(args[1]) or group(*args))
    for index in (0, 3, 1, 2, 5, 4, 0):
        assert records[index].id == f"r{index}"
        assert sum(map(len, records._held.values())) <= 4 + 2
    assert read == [0, 1, 2]
    assert records[11].id == "r11"
    assert records[2].id == "r2"
    assert read == [0, 1, 2, 5, 1]  # group 1 was not used for longest
    assert not [file for file in arrow_cache.iterdir() if file.suffix != ".lock"]


# ---- what cannot be read


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("owner/name", True),
        ("name", False),
        ("/abs/name", False),
        ("data/rows.parquet", False),
        ("a/b/c", False),
    ],
)
def test_names_of_the_hub(value, expected):
    assert is_hub_name(value) is expected


@READERS
def test_what_is_not_there(reader, tmp_path):
    with pytest.raises(DataError, match=r"none\.parquet: no such file or folder"):
        reader(tmp_path / "none.parquet")
    with pytest.raises(
        DataError, match=r"owner/name: cannot be read \(Couldn't reach 'owner/name' on the Hub"
    ) as caught:
        reader("owner/name")
    assert "\n" not in str(caught.value)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"a\.txt: not a table that can be read \(\.parquet"):
        reader(tmp_path / "a.txt")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png(0))
    with pytest.raises(DataError, match=r"pictures: a set of kind 'imagefolder'; only arrow, json, parquet are read"):
        reader(tmp_path / "pictures")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "code.py").write_text("raise SystemExit")
    with pytest.raises(DataError, match=r"code: cannot be read \("):
        reader(tmp_path / "code")


@READERS
def test_files_that_are_cut_or_empty_or_of_other_columns(reader, llava, tmp_path):
    data = llava.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-20])
    with pytest.raises(DataError, match=r"cut\.parquet: cannot be read \(.*magic bytes") as caught:
        reader(tmp_path / "cut.parquet")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"holds no records|cannot be read \(BatchSize"):
        reader(written(tmp_path, {key: [] for key in LLAVA_TYPES}, LLAVA_TYPES, "empty.parquet"))
    other = written(tmp_path, {"a": [1]}, {"a": pa.int64()}, "other.parquet")
    with pytest.raises(DataError, match=r"no column 'conversations', 'texts', 'caption' \(columns: a\)"):
        reader(other)
    with pytest.raises(DataError, match=r"no column 'photo' \(columns: id, image, conversations\)"):
        reader(llava, image_column="photo")


def test_shards_of_different_sets(llava, tmp_path):
    written(tmp_path, llava_rows(2), LLAVA_TYPES, "set/a.parquet")
    written(tmp_path, {"a": [1]}, {"a": pa.int64()}, "set/b.parquet")
    with pytest.raises(DataError, match="have different columns"):
        ParquetStream(tmp_path / "set")


def test_a_stream_whose_file_changes(llava, tmp_path):
    records = ParquetStream(llava)
    columns = {key: values[:1] for key, values in llava_rows().items()}
    written(tmp_path, columns, LLAVA_TYPES)
    with pytest.raises(DataError, match=r"rows\.parquet: changed since it was opened"):
        records[0]


def test_no_code_of_a_set_is_run():
    assert set(hf_dataset.BUILDERS.values()) == {"parquet", "arrow", "json"}
