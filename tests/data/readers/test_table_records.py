"""Rows of tables that cannot be records, and what is said of them."""

import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.tables import IMAGE, LLAVA_TYPES, TEXTS, TURNS, png, stored, turns, written
from voco_llama.data.media.images import load_image
from voco_llama.data.readers.hf_dataset import HfDataset, ParquetStream
from voco_llama.errors import DataError

READERS = pytest.mark.parametrize("reader", [HfDataset, ParquetStream])

pytestmark = pytest.mark.usefixtures("arrow_cache")


@READERS
@pytest.mark.parametrize(
    ("image", "conversation", "expected"),
    [
        (stored(0), None, "no 'conversations' list"),
        (stored(0), [], "'conversations' is empty"),
        (stored(0), turns("A?", "B"), "0 <image> marks but 1 image; write one mark"),
        (None, turns("<image>", "B"), "1 <image> mark but 0 images"),
        ({"bytes": None, "path": None}, turns("<image>", "B"), "1 <image> mark but 0 images"),
        ({"bytes": None, "path": "../a.png"}, turns("<image>", "B"), "'../a.png' leaves the folder"),
        ({"bytes": None, "path": "/etc/hostname"}, turns("<image>", "B"), "'/etc/hostname' leaves the folder"),
    ],
)
def test_bad_rows(reader, image, conversation, expected, tmp_path):
    columns = {"id": ["a", "b"], "image": [stored(0), image], "conversations": [turns("<image>", "B"), conversation]}
    records = reader(written(tmp_path, columns, LLAVA_TYPES), tmp_path)
    assert records[0].id == "a"
    with pytest.raises(DataError) as caught:
        records[1]
    assert str(caught.value).startswith(f"{records.file} record 1 (id 'b'): ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@READERS
@pytest.mark.parametrize(
    ("columns", "types", "expected"),
    [
        ({"caption": [" "]}, {"caption": pa.string()}, "record 0: the caption is empty"),
        ({"caption": [None]}, {"caption": pa.string()}, "record 0: the caption is None"),
        ({"texts": [None]}, {"texts": TEXTS}, "record 0: no 'texts' list"),
        (
            {"texts": [[{"user": None, "assistant": "A", "source": ""}]]},
            {"texts": TEXTS},
            "record 0: turn 0 is not an object",
        ),
        (
            {"images": [[stored(0), None]], "texts": [[{"user": "Q", "assistant": "A", "source": ""}]]},
            {"images": pa.list_(IMAGE), "texts": TEXTS},
            "record 0: 'images' 1 is empty",
        ),
        (
            {"video": ["a.mp4"], "conversations": [turns("<image>", "A")]},
            {"video": pa.string(), "conversations": TURNS},
            "record 0: has a 'video', which this format does not read",
        ),
    ],
)
def test_bad_rows_of_other_forms(reader, columns, types, expected, tmp_path):
    with pytest.raises(DataError) as caught:
        reader(written(tmp_path, columns, types))[0]
    assert expected in str(caught.value)


@READERS
def test_text_that_is_not_utf8(reader, tmp_path):
    raw = pa.array([b"good", b"lux\xfcry"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"caption": raw, "image": pa.array([png(0), png(1)])}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"not UTF-8|cannot be read"):
        reader(tmp_path / "rows.parquet")[1]


@READERS
def test_an_image_that_cannot_be_decoded_names_its_cell(reader, tmp_path):
    columns = {"image": [{"bytes": b"nothing", "path": None}], "conversations": [turns("<image>", "A.")]}
    records = reader(written(tmp_path, columns, {"image": IMAGE, "conversations": TURNS}))
    with pytest.raises(DataError, match=r"rows\.parquet row 0 column image: not an image that can be read"):
        load_image(records[0].images[0])
    assert records[0].images[0].name == "image"


@READERS
def test_every_problem_of_a_row_is_handed_over(reader, tmp_path):
    columns = {"image": [stored(0)], "conversations": [turns("What?", " ")]}
    records = reader(written(tmp_path, columns, {"image": IMAGE, "conversations": TURNS}))
    found = []
    record = records.read(0, found.append)
    assert [problem.kind for problem in found] == ["empty_turn", "missing_mark"]
    assert len(record.images) == 1


@READERS
def test_paths_may_name_members_of_an_archive(reader, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("part/0.png", png(3))
    image = {"bytes": None, "path": "part/0.png"}
    columns = {"image": [image], "conversations": [turns("<image>", "A.")]}
    records = reader(written(tmp_path, columns, {"image": IMAGE, "conversations": TURNS}), tmp_path / "images.zip")
    (found,) = records[0].images
    assert found.open().read() == png(3)
