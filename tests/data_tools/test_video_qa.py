"""`data prepare`: public annotations become a data set that `datasets` loads by its name, or one clear line."""

import json

import pyarrow.parquet as pq
import pytest
import yaml

from voco_llama.data_tools.settings import DataPrepareSettings
from voco_llama.data_tools.video_qa import COLUMNS, PARQUET, prepare_video_qa, read_mapping
from voco_llama.errors import DataError, SettingsError

ASKED = [
    {"id": 0, "video_id": 7010, "question": "what is shown?", "answer": "a dog", "category_id": 3},
    {"id": 1, "video_id": 7010, "question": "who runs?", "answer": "dog", "category_id": 3},
    {"id": 2, "video_id": 7011, "question": "what is red?", "answer": "ball", "category_id": 3},
]
PAIR = [
    [{"video_name": "video7010", "question_id": "v_7010_1", "question": "what is shown?"}],
    [{"question_id": "v_7010_1", "answer": "a dog", "type": 0}],
]


@pytest.fixture
def prepare(tmp_path):
    """Writes annotations, makes empty clips, and prepares."""

    def prepare(records=ASKED, clips=("video7010.mp4", "video7011.avi"), answered=None, mapping=None, **changes):
        videos = tmp_path / "clips"
        videos.mkdir(exist_ok=True)
        for clip in clips:
            (videos / clip).touch()
        files = {"annotations": tmp_path / "test_qa.json"}
        files["annotations"].write_text(json.dumps(records))
        if answered is not None:
            files["answers"] = tmp_path / "test_a.json"
            files["answers"].write_text(json.dumps(answered))
        if isinstance(mapping, str):
            files["mapping"] = tmp_path / "youtube_mapping.txt"
            files["mapping"].write_text(mapping)
        values = {"set": "msrvtt_qa", "videos": videos, "hub": tmp_path / "hub", **files, **changes}
        return prepare_video_qa(DataPrepareSettings(folder=tmp_path, **values))

    return prepare


def rows_of(folder):
    return pq.read_table(folder / PARQUET).to_pylist()


def test_a_list_of_questions_and_answers(prepare, tmp_path):
    folder = prepare()
    assert folder == tmp_path / "hub/voco-llama/MSRVTT-QA"
    assert pq.read_table(folder / PARQUET).column_names == list(COLUMNS)
    assert rows_of(folder) == [
        {"video": video, "video_name": name, "question_id": question_id, "question": question, "answer": answer}
        for video, name, question_id, question, answer in (
            ("video7010.mp4", "video7010", "0", "what is shown?", "a dog"),
            ("video7010.mp4", "video7010", "1", "who runs?", "dog"),
            ("video7011.avi", "video7011", "2", "what is red?", "ball"),
        )
    ]
    assert sorted(path.name for path in (folder / "videos").iterdir()) == ["video7010.mp4", "video7011.avi"]
    _, head, body = (folder / "README.md").read_text().split("---\n")
    assert yaml.safe_load(head)["configs"][0]["data_files"] == [{"split": "test", "path": PARQUET}]
    assert "3 questions on 2 clips." in body


def test_a_file_of_questions_and_one_of_answers(prepare):
    (row,) = rows_of(prepare(PAIR[0], answered=PAIR[1]))
    assert (row["video"], row["question_id"], row["answer"]) == ("video7010.mp4", "v_7010_1", "a dog")


def test_msvd_clips_have_their_own_names(prepare):
    mapping = "-4wsuPCjDBc_5_15 vid7010\n\n_0nX-El-ySo_83_93 vid7011\n"
    clips = ("-4wsuPCjDBc_5_15.avi", "_0nX-El-ySo_83_93.avi")
    folder = prepare(set="msvd_qa", mapping=mapping, clips=clips)
    assert folder.name == "MSVD-QA"
    assert [row["video_name"] for row in rows_of(folder)] == ["-4wsuPCjDBc_5_15"] * 2 + ["_0nX-El-ySo_83_93"]


def test_msvd_clips_by_number(prepare):
    rows = rows_of(prepare(set="msvd_qa", clips=("vid7010.mp4", "vid7011.mp4")))
    assert [row["video"] for row in rows] == ["vid7010.mp4", "vid7010.mp4", "vid7011.mp4"]


def test_again_writes_the_same(prepare):
    def contents():
        folder = prepare()
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert contents() == contents()


def test_again_leads_to_the_new_clips(prepare, tmp_path):
    prepare()
    (tmp_path / "clips").rename(tmp_path / "moved")
    folder = prepare(videos=tmp_path / "moved", clips=())
    assert (folder / "videos").resolve() == tmp_path / "moved"


def test_clips_may_lie_in_the_data_set(prepare, tmp_path):
    videos = tmp_path / "hub/voco-llama/MSRVTT-QA/videos"
    videos.mkdir(parents=True)
    for clip in ("video7010.mp4", "video7011.mp4"):
        (videos / clip).touch()
    folder = prepare(videos=videos)
    assert not (folder / "videos").is_symlink()
    with pytest.raises(SettingsError, match=r"MSRVTT-QA/videos: a folder of its own, not a link to .*clips: move it"):
        prepare()


def test_a_failure_leaves_what_was_there(prepare):
    folder = prepare()
    before = (folder / "README.md").read_text()
    with pytest.raises(DataError):
        prepare([*ASKED, {"id": 3}])
    assert (folder / "README.md").read_text() == before
    assert len(rows_of(folder)) == 3


def test_a_kill_on_the_way_leaves_no_card(prepare, monkeypatch):
    folder = prepare()

    def killed(table, file):
        raise KeyboardInterrupt

    monkeypatch.setattr("voco_llama.data_tools.video_qa.pq.write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare()
    assert not (folder / "README.md").exists()


def test_missing_clips_are_counted_and_named(prepare):
    asked = [{"id": n, "video_id": n, "question": "q?", "answer": "a"} for n in range(8)]
    with pytest.raises(DataError) as raised:
        prepare(asked, clips=("video0.mp4",))
    message = str(raised.value)
    assert (
        "clips: 7 of 8 clips are missing ('video1', 'video2', 'video3', 'video4', 'video5', ...; looked for" in message
    )
    assert message.endswith("fetch them, or leave their questions out with allow_missing=true")


def test_questions_on_missing_clips_are_left_out_if_told_so(prepare, caplog):
    folder = prepare(clips=("video7011.mp4",), allow_missing=True)
    assert [row["question_id"] for row in rows_of(folder)] == ["2"]
    assert "2 questions were left out" in (folder / "README.md").read_text()
    assert "1 of 2 clips are missing ('video7010'" in caplog.text


def test_a_set_without_any_clip_is_refused(prepare):
    with pytest.raises(DataError, match="2 of 2 clips are missing"):
        prepare(clips=("other.mp4",), allow_missing=True)


def test_a_clip_that_leads_elsewhere_is_refused(prepare, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "elsewhere.mp4").touch()
    (tmp_path / "clips/video7010.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    with pytest.raises(DataError, match=r"record 0 \(id 0\): 'video7010.mp4' leaves the folder"):
        prepare(clips=("video7011.mp4",))


@pytest.mark.parametrize(
    ("records", "answered", "message"),
    [
        ([{**ASKED[0], "question": " "}], None, r"record 0 \(id 0\): no text in 'question'"),
        ([ASKED[0], {**ASKED[1], "answer": 3}], None, r"record 1 \(id 1\): no text in 'answer'; fill it in"),
        ([{**ASKED[0], "video_id": None}], None, r"record 0 \(id 0\): no number or text in 'video_id'"),
        ([{"video_id": 1}], None, r"record 0: no number or text in 'id'"),
        ([ASKED[0], ASKED[0]], None, r"record 1 \(id 0\): a question of this id came before"),
        (PAIR[0], None, r"\(question_id 'v_7010_1'\): no text in 'answer'; name the file of answers with answers="),
        (
            PAIR[0],
            [{"question_id": "x", "answer": "y"}],
            r"\(question_id 'v_7010_1'\): .* has no answer to it",
        ),
        (PAIR[0], PAIR[1] * 2, r"test_a.json record 1 .*: an answer to this question came before"),
        (PAIR[0], [{"answer": "y"}], r"test_a.json record 0: no number or text in 'question_id'"),
        ({"id": 0}, None, r"test_qa.json: the top level is an object"),
    ],
)
def test_a_bad_record_is_named(prepare, records, answered, message):
    with pytest.raises(DataError, match=message):
        prepare(records, answered=answered)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a vid1\nb\n", r"youtube_mapping.txt line 2: 'b' is not a clip and its own vid<number>"),
        ("a vid1\nb vid1\n", r"youtube_mapping.txt line 2: 'b vid1' is not a clip"),
    ],
)
def test_a_bad_mapping_is_named(tmp_path, text, message):
    file = tmp_path / "youtube_mapping.txt"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_mapping(file)


def test_a_number_that_the_mapping_lacks(prepare):
    with pytest.raises(DataError, match=r"record 2 \(id 2\): the mapping has no vid7011; fetch the mapping file again"):
        prepare(set="msvd_qa", mapping="video7010 vid7010\n")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"set": "tgif_qa"}, SettingsError, "set is 'tgif_qa': choose one of msvd_qa, msrvtt_qa"),
        ({"videos": "nowhere"}, DataError, "nowhere: no such folder; it should hold the clips of"),
        ({"answers": "nowhere.json"}, DataError, "nowhere.json: no such file"),
        ({"annotations": "nowhere.json"}, DataError, "nowhere.json: no such file"),
    ],
)
def test_what_is_not_there(prepare, tmp_path, changes, error, message):
    paths = {name: value if name == "set" else tmp_path / value for name, value in changes.items()}
    with pytest.raises(error, match=message):
        prepare(**paths)
