import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from voco_llama.data.readers import json_records
from voco_llama.data.readers.llava_json import LlavaJson
from voco_llama.data.records import Turn
from voco_llama.errors import DataError

CAPTION = {
    "id": "004539375",
    "image": "00453/004539375.jpg",
    "conversations": [
        {"from": "human", "value": "Render a clear and concise summary of the photo.\n<image>"},
        {"from": "gpt", "value": "select luxury furniture 3 - inch gel memory foam mattress topper"},
    ],
}
INSTRUCT = {
    "id": "000000033471",
    "model": "",
    "image": "coco/train2017/000000033471.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
        {"from": "gpt", "value": "The bus in the image is white and red."},
        {"from": "human", "value": "What feature can be seen on the back of the bus?"},
        {"from": "gpt", "value": "The back of the bus features an advertisement — «é 日»."},
    ],
}
TEXT_ONLY = {"id": 7, "conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello.\n"}]}


def conversation(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def opened(folder: Path, data: object, name: str = "chat.json") -> LlavaJson:
    file = folder.parent / name
    file.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return LlavaJson(file, folder)


def error_of(folder: Path, record: object, index: int = 1) -> str:
    """The error of a bad record behind a good one, which must still be readable."""
    records = opened(folder, [CAPTION, record])
    assert records[0].id == "004539375"
    with pytest.raises(DataError) as caught:
        records[index]
    message = str(caught.value)
    assert message.startswith(f"{records.file} record {index}")
    assert "\n" not in message
    return message


def opening_error(folder: Path, data: str, name: str = "chat.json") -> str:
    with pytest.raises(DataError) as caught:
        opened(folder, data, name)
    assert "\n" not in str(caught.value)
    assert str(folder.parent / name) in str(caught.value)
    return str(caught.value)


# ---- good files


@pytest.mark.parametrize("layout", ["json", "indented", "byte order mark", "jsonl"])
def test_records(folder, layout):
    data = [CAPTION, INSTRUCT, TEXT_ONLY]
    text, name = {
        "json": (json.dumps(data), "chat.json"),
        "indented": (json.dumps(data, indent=4, ensure_ascii=False) + "\n", "chat.json"),
        "byte order mark": ("\ufeff" + json.dumps(data, ensure_ascii=False), "chat.json"),
        "jsonl": ("\n\n".join(json.dumps(record, ensure_ascii=False) for record in data) + "\r\n", "chat.jsonl"),
    }[layout]
    records = opened(folder, text, name)
    assert len(records) == 3
    caption, instruct, text_only = records
    assert caption.images == (folder / "00453/004539375.jpg",)
    assert caption.turns[0] == Turn("user", "Render a clear and concise summary of the photo.\n<image>")
    assert [turn.role for turn in instruct.turns] == ["user", "assistant"] * 2
    assert instruct.turns[3].text == INSTRUCT["conversations"][3]["value"]
    assert instruct.source == f"{records.file} record 1 (id '000000033471')"
    assert text_only.images == ()
    assert text_only.id == "7"
    assert text_only.turns[1].text == "Hello.\n"
    with pytest.raises(IndexError):
        records[3]
    with pytest.raises(IndexError):
        records[-1]


def test_several_images_and_no_id(folder):
    record = {"image": ["a.jpg", "b.jpg"], "conversations": conversation("<image> or <image>?", "The first.")}
    records = opened(folder, [record])
    assert records[0].images == (folder / "a.jpg", folder / "b.jpg")
    assert records[0].id == "0"
    assert records[0].source == f"{records.file} record 0"


def test_sizes_are_known_beforehand(folder):
    two = {"image": ["a", "b"], "conversations": conversation("12345", "123")}
    records = opened(folder, [CAPTION, TEXT_ONLY, two, "not a record", {"conversations": [3]}])
    captions = sum(len(turn["value"]) for turn in CAPTION["conversations"])
    assert records.sizes.characters.tolist() == [captions, 9, 8, 0, 0]
    assert records.sizes.media.tolist() == [1, 0, 2, 0, 0]


def test_which_records_look_at_the_same_is_known_beforehand(folder):
    """By the names of all their images, in the folder where they are."""
    images = [None, "a", ["a"], ["a", "b"], ["b", "a"], ["a", "b"], "b", 3, []]
    described = [{"conversations": [], "image": image} for image in images]
    medium = opened(folder, described).sizes.medium
    assert medium.dtype == np.int64
    assert len(np.unique(medium)) == 6
    assert medium[[0, 8]].tolist() == [0, 0]
    assert medium[1] == medium[2]
    assert medium[3] == medium[5] != medium[4]
    (folder / "inside").mkdir()
    assert not set(opened(folder / "inside", described).sizes.medium[1:8]) & {*medium[1:8]}


def test_text_only_without_a_folder(folder):
    (folder.parent / "a.json").write_text(json.dumps([TEXT_ONLY, CAPTION]))
    records = LlavaJson(folder.parent / "a.json")
    assert records[0].images == ()
    with pytest.raises(DataError, match=r"record 1 .* no image folder; set media_folder"):
        records[1]


def test_pickled_records_are_the_same(folder):
    records = opened(folder, [CAPTION, INSTRUCT])
    assert list(pickle.loads(pickle.dumps(records))) == list(records)


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1000])
def test_any_window_finds_the_same_records(folder, monkeypatch, block):
    data = [67890, CAPTION, INSTRUCT, {"id": 'tricky ]}," \\" \\', "n": 12345}, 12345, "é日", TEXT_ONLY, [1, [2]]]
    text = json.dumps(data, ensure_ascii=False, indent=1)
    expected = opened(folder, text)
    monkeypatch.setattr(json_records, "_BLOCK", block)
    records = opened(folder, text)
    assert [records.raw(index) for index in range(len(data))] == [expected.raw(index) for index in range(len(data))]
    data_read = [records.raw(index) for index in range(len(data))]
    assert [json.loads(piece) for piece in data_read] == data


# ---- files that cannot be read


@pytest.mark.parametrize("block", [4, 2**24])
def test_unreadable_json_says_where(folder, monkeypatch, block):
    monkeypatch.setattr(json_records, "_BLOCK", block)
    message = opening_error(folder, '[\n {"id": "é"},\n {"id": oops}]')
    assert "unreadable JSON at line 3, column 9 (byte offset 25): Expecting value; mend the file" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "line 1, column 1 (byte offset 0): Expecting a list of records"),
        ("<html>", "line 1, column 1 (byte offset 0): Expecting a list of records"),
        ('[{"id": 1}, {"id": "cut', "line 1, column 20 (byte offset 19): Unterminated string"),
        ('[{"id": 1}', "line 1, column 11 (byte offset 10): Expecting ',' or ']'"),
        ('[{"id": 1},', "line 1, column 12 (byte offset 11): Expecting value"),
        ('[{"id": 1} {"id": 2}]', "line 1, column 12 (byte offset 11): Expecting ',' or ']'"),
        ('[{"id": 1}]]', "line 1, column 12 (byte offset 11): Extra data"),
        ("[" * 100_000, "(byte offset 1): maximum recursion depth"),
        ("[" + "1" * 5000 + "]", "(byte offset 1): Exceeds the limit"),
        ('{"id": 1}', "the top level is an object, not a list of records (JSON Lines are to end in .jsonl)"),
        ('"chat"', "the top level is a string, not a list"),
        (" [ ] ", "holds no records"),
    ],
)
def test_unreadable_json(folder, text, expected):
    assert expected in opening_error(folder, text)


def test_unreadable_json_lines(folder):
    lines = json.dumps(CAPTION) + "\n" + '{"id": }\n'
    offset = len(json.dumps(CAPTION)) + 1 + 7
    expected = f"line 2, column 8 (byte offset {offset}): Expecting value"
    assert expected in opening_error(folder, lines, "chat.jsonl")
    assert "holds no records" in opening_error(folder, "\n\n", "chat.jsonl")


def test_missing_file_and_folder(folder):
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        LlavaJson(folder / "none.json", folder)
    with pytest.raises(DataError, match="is a folder; name the file of the data set in it"):
        LlavaJson(folder, folder)
    opened(folder, [CAPTION])
    with pytest.raises(DataError, match="nowhere: no such folder; it should hold the images"):
        LlavaJson(folder.parent / "chat.json", folder / "nowhere")


def test_file_that_changes(folder):
    records = opened(folder, [CAPTION, INSTRUCT])
    records.file.write_text("[]")
    with pytest.raises(DataError, match="record 1: the file changed since it was opened"):
        records[1]


# ---- bad records


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"conversations": None}, "no 'conversations' list; each record needs one"),
        ({"conversations": "Hi"}, "no 'conversations' list"),
        ({"conversations": []}, "'conversations' is empty"),
        ({"conversations": ["<image>", "a"]}, "turn 0 is not an object with 'from' and a text in 'value'"),
        ({"conversations": [{"from": "human"}]}, "turn 0 is not an object with 'from' and a text in 'value'"),
        (
            {"conversations": [{"from": "system", "value": "Be kind."}]},
            "turn 0 is from 'system', an unknown role; known",
        ),
        ({"conversations": [{"from": ["a"], "value": ""}]}, "turn 0 is from ['a'], an unknown role"),
        (
            {"conversations": [{"from": "gpt", "value": "A bus."}] * 2},
            "turn 1 is from 'gpt' where the user's turn belongs",
        ),
        (
            {"conversations": [{"from": "human", "value": "<image>"}, {"from": "user", "value": "Well?"}]},
            "turn 1 is from 'user' where the assistant's turn belongs",
        ),
        (
            {"conversations": conversation("<image><image>", "B")},
            "2 <image> marks but 1 image; write one mark for each",
        ),
        ({"conversations": conversation("A?", "B")}, "0 <image> marks but 1 image; write one mark for each"),
        ({"conversations": conversation("<image>", "see <image>")}, "an answer holds an <image> mark"),
        ({"image": ["a.jpg", "b.jpg"]}, "1 <image> mark but 2 images"),
        ({"image": None}, "1 <image> mark but 0 images"),
        ({"image": [3]}, "'image' holds 3; write a file name or a list of file names"),
        ({"image": {"path": "a"}}, "'image' holds {'path': 'a'}; write"),
        ({"image": ""}, "the file name is empty"),
        ({"image": "../secret.jpg"}, "'../secret.jpg' leaves the folder"),
        ({"image": "/etc/hostname"}, "'/etc/hostname' leaves the folder"),
        ({"image": None, "video": "a.mp4"}, "has a 'video', which this format does not read"),
    ],
)
def test_bad_records(folder, changes, expected):
    message = error_of(folder, {**CAPTION, **changes})
    assert expected in message
    assert "record 1 (id '004539375'): " in message


def test_record_without_conversations(folder):
    record = {key: value for key, value in CAPTION.items() if key != "conversations"}
    assert "record 1 (id '004539375'): no 'conversations' list; each record needs one" in error_of(folder, record)


@pytest.mark.parametrize(("record", "kind"), [(3, "number"), ("x", "string"), (None, "null"), ([], "list")])
def test_record_that_is_no_object(folder, record, kind):
    assert f"record 1: a {kind}, not an object" in error_of(folder, record)


def test_link_that_leaves(folder):
    (folder / "out").symlink_to(folder.parent)
    assert "through a symbolic link" in error_of(folder, {**CAPTION, "image": "out/a.jpg"})


def test_long_and_odd_values_stay_on_one_short_line(folder):
    message = error_of(folder, {**CAPTION, "id": "a\nb" * 1000, "image": "../" + "x\n" * 1000})
    assert len(message) < 1000


def test_half_a_surrogate_pair(folder):
    text = json.dumps({**CAPTION, "conversations": conversation("<image>", "\ud83d")})
    records = opened(folder, f"[{text}]")
    with pytest.raises(DataError, match=r"record 0: holds half a surrogate pair \(\\ud8\.\.\); mend the text"):
        records[0]
    assert opened(folder, [{**CAPTION, "conversations": conversation("<image>", "😀")}])[0].turns[1].text == "😀"


def test_bytes_that_are_not_utf8(folder):
    file = folder.parent / "chat.json"
    file.write_bytes(json.dumps([TEXT_ONLY, CAPTION]).encode().replace(b"luxury", b"lux\xfcry"))
    records = LlavaJson(file, folder)
    assert records[0].id == "7"
    with pytest.raises(DataError, match=r"record 1: not UTF-8 at byte \d+; save the file as UTF-8"):
        records[1]


def test_raw_is_what_the_file_holds(folder):
    text = "[ " + json.dumps(CAPTION, indent=3) + " ,\n" + json.dumps(TEXT_ONLY) + "]"
    records = opened(folder, text)
    assert [records.raw(i).decode() for i in range(2)] == [json.dumps(CAPTION, indent=3), json.dumps(TEXT_ONLY)]


def test_problems_are_collected_where_asked(folder):
    """What is raised by `[index]` is the first error that is collected; the rest of the record is read all the same."""
    turns = [{"from": "gpt", "value": "<image>"}, {"from": "human", "value": 3}, {"from": "bot", "value": "Hi"}]
    records = opened(folder, [{**CAPTION, "conversations": turns, "image": ["a.jpg", 7]}])
    found = []
    record = records.read(0, found.append)
    assert [error.kind for error in found] == ["left_out_turn", "wrong_type", "roles", "wrong_type"]
    assert record.images == (folder / "a.jpg",)
    assert record.turns == ()
    with pytest.raises(DataError) as caught:
        records[0]
    assert str(caught.value) == str(found[1])
