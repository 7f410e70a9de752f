import pickle
from pathlib import Path

import pytest

from voco_llama.data.readers.caption_csv import INSTRUCTIONS, CaptionCsv
from voco_llama.errors import DataError, SettingsError

WEBVID = (
    "videoid,contentUrl,duration,page_dir,name\n"
    "1001,https://example.org/1.mp4,PT00H00M11S,000001_000050,Aerial shot winter forest\n"
    '1002,https://example.org/2.mp4,PT00H00M11S,000001_000050,"A ""red"" ball, rolling\nslowly — é"\n'
    "\n"
    "1003,https://example.org/3.mp4,PT00H00M11S,000051_000100,Clouds\n"
)


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "videos"
    for name in ("000001_000050/1001.mp4", "1002.mkv", "1003.webm"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def opened(videos: Path, text: str | bytes = WEBVID, **options) -> CaptionCsv:
    file = videos.parent / "captions.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return CaptionCsv(file, videos, **options)


def error_of(videos: Path, row: str) -> str:
    records = opened(videos, WEBVID + row)
    assert records[2].turns[1].text == "Clouds"
    with pytest.raises(DataError) as caught:
        records[3]
    message = str(caught.value)
    assert message.startswith(f"{records.file} record 3")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("text", [WEBVID, "\ufeff" + WEBVID, WEBVID.replace("\n", "\r\n"), WEBVID.rstrip("\n")])
def test_records(videos, text):
    records = opened(videos, text)
    assert len(records) == 3
    assert [record.video for record in records] == [
        videos / "000001_000050" / "1001.mp4",
        videos / "1002.mkv",
        videos / "1003.webm",
    ]
    assert [record.id for record in records] == ["1001", "1002", "1003"]
    assert records[1].turns[1].text.replace("\r", "") == 'A "red" ball, rolling\nslowly — é'
    assert records[1].source == f"{records.file} record 1 (videoid '1002')"
    for record in records:
        mark, instruction = record.turns[0].text.split("\n")
        assert mark == "<image>"
        assert instruction in INSTRUCTIONS
        assert not record.images
    with pytest.raises(IndexError):
        records[3]


def test_sizes_are_known_beforehand(videos):
    sizes = opened(videos).sizes
    assert sizes.characters.tolist() == [25, len('A "red" ball, rolling\nslowly — é'.encode()), 6]
    assert sizes.media.tolist() == [1, 1, 1]
    assert len({*sizes.medium.tolist()} - {0}) == 3


def test_other_columns_and_one_instruction(videos):
    records = opened(
        videos,
        "caption,clip\nA ball,1002\n",
        id_column="clip",
        caption_column="caption",
        instruction="Say what you see.",
    )
    assert records[0].turns[0].text == "<image>\nSay what you see."
    assert records[0].turns[1].text == "A ball"


def test_instruction_is_a_function_of_seed_and_index(videos):
    text = "videoid,name\n" + "1002,A ball\n" * 60
    chosen = [record.turns[0].text for record in opened(videos, text, seed=1)]
    assert set(chosen) == {f"<image>\n{instruction}" for instruction in INSTRUCTIONS}
    again = opened(videos, text, seed=1)
    assert [again[i].turns[0].text for i in reversed(range(60))] == chosen[::-1]
    assert [record.turns[0].text for record in opened(videos, text, seed=2)] != chosen


def test_pickled_records_are_the_same(videos):
    records = opened(videos)
    assert list(pickle.loads(pickle.dumps(records))) == list(records)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("9,u,d,p,Clouds\n", "(videoid '9'): no clip of this name in"),
        ("1002,u,d,p, \n", "(videoid '1002'): the caption is empty"),
        ("1002,u\n", "(videoid '1002'): the row has only 2 columns"),
        (",u,d,p,Clouds\n", "the clip's id is empty"),
        ("../1002,u,d,p,Clouds\n", "leaves the folder"),
        ("1002,u,d,/etc,Clouds\n", "leaves the folder"),
        ("1002,u,d,p,an <image> of clouds\n", "an answer holds an <image> mark"),
    ],
)
def test_bad_rows(videos, row, expected):
    assert expected in error_of(videos, row)


def test_missing_clip_says_where_it_was_looked_for(videos):
    message = error_of(videos, "9,u,d,000051_000100,Clouds\n")
    assert "(looked for .mp4, .mkv, .webm, .avi, .mov, also in '000051_000100'); fetch it" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no column 'videoid'"),
        ("id,caption\n1,a\n", "no column 'videoid' (columns: 'id, caption'); add it, or name the column"),
        ("videoid,caption\n1,a\n", "no column 'name'"),
        ("videoid,name\n", "holds no records, only a header"),
        (
            'videoid,name\n1,a\n2,"never closed\n3,b\n',
            "unreadable CSV in the row that begins at line 3 (byte offset 17): unexpected end of data",
        ),
        (
            'videoid,name\n1,"a"b\n',
            "unreadable CSV in the row that begins at line 2 (byte offset 13): ',' expected after '\"'",
        ),
    ],
)
def test_unreadable_files(videos, text, expected):
    with pytest.raises(DataError) as caught:
        opened(videos, text)
    assert expected in str(caught.value)
    assert "captions.csv: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_utf8(videos):
    records = opened(videos, WEBVID.encode().replace(b"Clouds", b"Cl\xfcds"))
    assert records[1].id == "1002"
    with pytest.raises(DataError, match=r"record 2: not UTF-8 at byte \d+"):
        records[2]


def test_missing_file_and_folder(videos):
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        CaptionCsv(videos / "none.csv", videos)
    records = opened(videos)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        CaptionCsv(records.file, videos / "nowhere")


def test_file_that_changes(videos):
    records = opened(videos)
    records.file.write_text("")
    with pytest.raises(DataError, match="record 0: the file changed since it was opened"):
        records[0]


@pytest.mark.parametrize(
    ("instruction", "text"), [([], "is empty"), (" ", "is empty"), ("<image> What?", "holds <image>")]
)
def test_bad_instructions(videos, instruction, text):
    with pytest.raises(SettingsError, match=text):
        opened(videos, instruction=instruction)
