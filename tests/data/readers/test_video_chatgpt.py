import json
import pickle
from pathlib import Path

import pytest

from voco_llama.data.readers.video_chatgpt import VideoChatGpt
from voco_llama.data.records import Turn
from voco_llama.errors import DataError

GOOD = {"q": "What does the man do?", "a": "He rides a horse.", "video_id": "v_k_ZXmr8pmrs"}


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("v_k_ZXmr8pmrs.mkv", "both.webm", "both.mp4", "loud.MP4", "12.webm", "notes.txt"):
        (folder / name).touch()
    return folder


def opened(videos: Path, data: object) -> VideoChatGpt:
    file = videos.parent / "train.json"
    file.write_text(json.dumps(data))
    return VideoChatGpt(file, videos)


def test_records(videos):
    records = opened(
        videos, [GOOD, {**GOOD, "video_id": "both"}, {**GOOD, "video_id": "loud"}, {**GOOD, "video_id": 12}]
    )
    assert [record.video.name for record in records] == ["v_k_ZXmr8pmrs.mkv", "both.mp4", "loud.MP4", "12.webm"]
    assert records[0].turns == (
        Turn("user", "<image>\nWhat does the man do?"),
        Turn("assistant", "He rides a horse."),
    )
    assert records[0].video == videos / "v_k_ZXmr8pmrs.mkv"
    assert records[0].source == f"{records.file} record 0 (video_id 'v_k_ZXmr8pmrs')"
    assert records[1].id == "1"
    assert not records[0].images
    assert records.sizes.characters.tolist() == [38] * 4
    assert records.sizes.media.tolist() == [1] * 4
    assert len({*records.sizes.medium.tolist()} - {0}) == 4
    assert list(pickle.loads(pickle.dumps(records))) == list(records)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"video_id": "gone"}, "(video_id 'gone'): no clip of this name in"),
        ({"video_id": "notes"}, "(looked for .mp4, .mkv, .webm, .avi, .mov); fetch it"),
        ({"video_id": "../videos/both"}, "no clip of this name in"),
        ({"video_id": None}, "no 'video_id'; each record needs the name of its clip"),
        ({"q": None}, "no text in 'q'; fill in the question"),
        ({"a": " "}, "no text in 'a'; fill in the answer"),
        ({"q": "Is <image> this?"}, "2 <image> marks but 1 clip; write one mark"),
    ],
)
def test_bad_records(videos, changes, expected):
    records = opened(videos, [GOOD, {**GOOD, **changes}])
    with pytest.raises(DataError) as caught:
        records[1]
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"{records.file} record 1")
    assert "\n" not in str(caught.value)


def test_clip_that_leaves_through_a_link(videos):
    (videos.parent / "out.mp4").touch()
    (videos / "link.mp4").symlink_to(videos.parent / "out.mp4")
    with pytest.raises(DataError, match="through a symbolic link"):
        opened(videos, [{**GOOD, "video_id": "link"}])[0]


def test_bad_files(videos):
    with pytest.raises(DataError, match="holds no records"):
        opened(videos, [])
    with pytest.raises(DataError, match="not a list of records"):
        opened(videos, GOOD)
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        VideoChatGpt(videos / "none.json", videos)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        VideoChatGpt(videos / "none.json", videos / "nowhere")
