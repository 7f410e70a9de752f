import json
from collections import Counter
from pathlib import Path

import pytest

from tests.data.media.test_video import write_clip
from tests.data_tools.conftest import DEFECTS, RECORDS, conversation, record, refused
from voco_llama import cli
from voco_llama.data.mixture import LoadedMixture, Mixture, summarize_bad_records
from voco_llama.data.readers.llava_json import LlavaJson
from voco_llama.data_tools import chunks as chunks_module
from voco_llama.data_tools.check import Findings, check_data, write_report
from voco_llama.errors import DataError, ProblemKind, SettingsError
from voco_llama.training.build import build_processor, open_mixture


def write_json(file: Path, records: list) -> Path:
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


def problems_of(settings) -> list[dict]:
    check_data(settings)
    return json.loads(Path(settings.report).read_text(encoding="utf-8"))["problems"]


def kinds_of(settings, tmp_path: Path, records: list, images: Path | None, **own) -> list[tuple[int, str]]:
    """(record, kind) of each problem of a file of records."""
    file = write_json(tmp_path / "some.json", records)
    found = problems_of(settings(("llava_json", file, images), report=tmp_path / "some_report.json", **own))
    return [(problem["record"], problem["kind"]) for problem in found]


# ---- what is found


def test_one_of_each_defect(settings, defects, images, tmp_path):
    pictureless = write_json(tmp_path / "pictureless.json", [record("no folder")])
    markless = write_json(tmp_path / "markless.json", [record("no mark", question="What?")])
    silent = write_json(tmp_path / "silent.json", [{"q": "What?", "a": " ", "video_id": "clip"}])
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "clip.mp4").write_bytes(b"not looked at")
    chosen = settings(
        ("llava_json", defects, images),
        ("llava_json", pictureless, None),
        ("llava_json", markless, images, "marks: llava"),
        report=tmp_path / "out" / "report.json",
    )
    of_clips = settings(("video_chatgpt", silent, tmp_path / "clips"), media="exists")
    findings = check_data(chosen)
    expected = [(str(defects), place, kind) for place, kind in enumerate(DEFECTS, start=1)]
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    found = [(problem["file"], problem["record"], problem["kind"]) for problem in report["problems"]]
    assert found == [*expected, (str(pictureless), 0, "no_media_folder"), (str(markless), 0, "odd_marks")]
    assert report["counts"] == findings.counts == dict.fromkeys(set(ProblemKind) - {"empty_answer", "chat_template"}, 1)
    assert check_data(of_clips).counts == {"empty_answer": 1}
    assert [problem["level"] for problem in report["problems"]] == [
        "error" if problem["kind"] in [*refused(DEFECTS), "no_media_folder"] else "note"
        for problem in report["problems"]
    ]
    assert report["settings"]["media"] == "decode"
    assert report["versions"]["python"]
    bad = len(refused(DEFECTS))
    counted = [(source["records"], source["bad_records"]) for source in report["sources"]]
    assert counted == [(len(RECORDS), bad), (1, 1), (1, 0)]


def test_messages_name_file_record_and_id_on_one_line(settings, defects, images, tmp_path):
    for problem in problems_of(settings(("llava_json", defects, images), report=tmp_path / "report.json")):
        place, kind = problem["record"], problem["kind"]
        assert problem["message"].startswith(f"{defects} record {place}")
        assert "\n" not in problem["message"]
        assert problem["id"] == (None if kind in ("unreadable_record", "bad_file_name") else RECORDS[place]["id"])
    by_kind = {
        p["kind"]: p["message"] for p in problems_of(settings(("llava_json", defects, images), report=tmp_path / "r"))
    }
    assert f"the same conversation on the same media as {defects} record 0" in by_kind["duplicate"]
    assert "2 records of different content have the id 'first', the first is record 0" in by_kind["repeated_id"]
    assert "a GIF file named .jpg" in by_kind["other_format"]
    assert "</s>" in by_kind["special_token_text"]


def test_an_error_is_what_a_training_refuses(settings, defects, images):
    """The check and the loading of a training, record by record."""
    chosen = settings(("llava_json", defects, images))
    findings = check_data(chosen)
    reader, processor = LlavaJson(defects, images), build_processor(chosen)
    refused_by_training = []
    for index in range(len(reader)):
        try:
            processor.row(reader[index])
            refused_by_training.append(False)
        except DataError:
            refused_by_training.append(True)
    assert findings.verdicts[0]["bad"].tolist() == refused_by_training
    assert sum(refused_by_training) == len(refused(DEFECTS))


def test_all_problems_of_a_record(settings, images, tmp_path):
    turns = [
        {"from": "human", "value": "<image>"},
        {"from": "user", "value": "And?"},
        {"from": "gpt", "value": "<voco> <image>"},
        {"from": "human", "value": "So?"},
        {"from": "gpt", "value": ""},
        {"from": "human", "value": "Well?"},
    ]
    found = kinds_of(settings, tmp_path, [record("a", image=["lost.jpg", "cut.jpg"], conversations=turns)], images)
    expected = ["roles", "empty_turn", "unanswered", "mark_in_answer", "missing_mark", "missing_file", "undecodable"]
    assert found == [(0, kind) for kind in [*expected, "special_token_text"]]


def test_a_broken_turn_does_not_put_the_others_out_of_step(settings, images, tmp_path):
    turns = conversation("<image>", "A.", "B?", "C.")
    turns[1] = {"from": "gpt"}
    assert kinds_of(settings, tmp_path, [record("a", conversations=turns)], images) == [(0, "wrong_type")]


def test_broken_files_of_ocr_vqa(settings, images, tmp_path):
    """A training that skips bad records lists the same ones, and reads the GIF."""
    names = ["good.png", "gif.jpg", "lost.jpg", "empty.jpg", "cut.jpg"]
    records = [record(name, image=name) for name in names]
    found = kinds_of(settings, tmp_path, records, images)
    assert found == [(1, "other_format"), (2, "missing_file"), (3, "empty_file"), (4, "undecodable")]
    chosen = settings(("llava_json", tmp_path / "some.json", images))
    reader, listed = LlavaJson(tmp_path / "some.json", images), tmp_path / "bad"
    mixture = Mixture([reader], shuffle=False, skip_bad_records=True, bad_records_folder=listed)
    rows = list(LoadedMixture(mixture, build_processor(chosen).row))
    assert len(rows) == len(names)
    assert [entry["record"] for entry in summarize_bad_records(listed)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        ("decode", ["undecodable", "undecodable", "empty_file", "missing_file", "other_format"]),
        ("header", ["undecodable", "empty_file", "missing_file", "other_format"]),
        ("exists", ["empty_file", "missing_file"]),
    ],
)
def test_how_deep_images_are_looked_at(settings, images, tmp_path, depth, expected):
    (images / "page.jpg").write_text("<html>404</html>")
    names = ["cut.jpg", "page.jpg", "empty.jpg", "lost.jpg", "gif.jpg", "good.png"]
    records = [record(name, image=name) for name in names]
    assert [kind for _, kind in kinds_of(settings, tmp_path, records, images, media=depth)] == expected


def test_what_a_library_fails_with_is_named_and_the_others_are_read(settings, images, tmp_path):
    """A file name that no system takes: an OSError where the file is looked for."""
    records = [record("a"), record("b", image="x" * 5000), record("c", image="gif.jpg")]
    found = kinds_of(settings, tmp_path, records, images)
    assert found == [(1, "unreadable_record"), (2, "other_format")]
    chosen = settings(("llava_json", tmp_path / "some.json", images), **{"data.skip_bad_records": True})
    mixture, processor = open_mixture(chosen, tmp_path / "bad"), build_processor(chosen)
    assert len(list(LoadedMixture(mixture, processor.row))) == 3
    (listed,) = summarize_bad_records(tmp_path / "bad")
    assert listed["error"].startswith(f"{tmp_path / 'some.json'} record 1")


def test_a_huge_image_is_no_image(settings, images, tmp_path):
    header = b"P6 9000 100 255\n"
    (images / "huge.ppm").write_bytes(header + b"\0" * 100)
    assert kinds_of(settings, tmp_path, [record("a", image="huge.ppm")], images, media="header") == [(0, "undecodable")]


def test_clips(settings, tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    write_clip(clips / "1.mp4", 6)
    (clips / "2.mp4").write_bytes((clips / "1.mp4").read_bytes()[:300])
    (clips / "3.mp4").touch()
    captions = tmp_path / "captions.csv"
    captions.write_text("videoid,name\n1,One\n2,Two\n3,Three\n4, \n1,One\n1,Uno\n5\n")
    questions = write_json(
        tmp_path / "questions.json",
        [
            {"q": "What?", "a": "One.", "video_id": "1"},
            {"q": "What?", "a": "", "video_id": "4"},
            {"q": "What?", "a": "Nothing."},
        ],
    )
    sources = ("caption_csv", captions, clips), ("video_chatgpt", questions, clips)
    options = {"report": tmp_path / "report.json", "data.num_frames": 2}
    for depth in ("decode", "header"):
        found = problems_of(settings(*sources, media=depth, **options))
        assert [(Path(problem["file"]).name, problem["record"], problem["kind"]) for problem in found] == [
            ("captions.csv", 1, "undecodable"),
            ("captions.csv", 2, "empty_file"),
            ("captions.csv", 3, "empty_answer"),
            ("captions.csv", 3, "missing_file"),
            ("captions.csv", 4, "duplicate"),
            ("captions.csv", 5, "repeated_id"),
            ("captions.csv", 6, "unreadable_record"),
            ("questions.json", 1, "empty_answer"),
            ("questions.json", 1, "missing_file"),
            ("questions.json", 2, "wrong_type"),
        ]
    exists = problems_of(settings(*sources, media="exists", **options))
    assert [problem["record"] for problem in exists if problem["kind"] == "undecodable"] == []


def test_repetitions(settings, images, tmp_path):
    """Copies within a source and across, whatever their ids; an id is named once, at its second record."""
    a, b = record("a"), record("b")
    first = write_json(tmp_path / "first.json", [a, b, record("a", answer="Else."), a, record("a", answer="More.")])
    second = write_json(
        tmp_path / "second.json", [record("a", answer="Fourth."), b | {"id": "c"}, record("b", image="gif.jpg")]
    )
    found = problems_of(
        settings(
            ("llava_json", first, images),
            ("llava_json", second, images),
            report=tmp_path / "report.json",
            media="exists",
        )
    )
    assert [(Path(problem["file"]).name, problem["record"], problem["kind"]) for problem in found] == [
        ("first.json", 2, "repeated_id"),
        ("first.json", 3, "duplicate"),
        ("second.json", 1, "duplicate"),
    ]
    assert "3 records of different content have the id 'a', the first is record 0;" in found[0]["message"]
    assert f"as {first} record 1;" in found[2]["message"]


def test_without_a_tokenizer_lengths_are_left_out_and_it_says_so(settings, defects, images, tmp_path, caplog):
    chosen = settings(
        ("llava_json", defects, images), report=tmp_path / "report.json", **{"model.tokenizer": tmp_path / "none"}
    )
    counts = Counter(problem["kind"] for problem in problems_of(chosen))
    assert counts.keys() == DEFECTS.keys() - {"image_cut", "no_answer_left", "cut", "special_token_text"}
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["lengths"].startswith("not measured: model.tokenizer: ")
    assert "lengths in tokens are left out" in caplog.text


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(settings, defects, images, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(chunks_module, "CHUNK", 3)
    alone, several = (
        settings(("llava_json", defects, images), report=tmp_path / f"{number}.json", workers=number)
        for number in (0, workers)
    )
    assert problems_of(alone) == problems_of(several)
    reports = [json.loads(Path(chosen.report).read_text(encoding="utf-8")) for chosen in (alone, several)]
    for key in ("sources", "counts", "lengths"):
        assert reports[0][key] == reports[1][key]


# ---- the command


def test_errors_are_status_1_and_one_line(overrides, defects, images, capsys):
    assert cli.main(["data", "check", *overrides(("llava_json", defects, images))]) == 1
    printed = capsys.readouterr()
    bad = len(refused(DEFECTS))
    assert printed.err.splitlines()[-1].startswith(f"found: {bad} of {len(RECORDS)} records cannot be trained on (1 un")
    assert printed.out.startswith(f"{len(RECORDS)} records of 1 source\n")
    for kind in DEFECTS:
        assert f"  {kind} " in printed.out


def test_many_of_a_kind_are_shortened(overrides, images, tmp_path, capsys):
    file = write_json(tmp_path / "some.json", [record(f"{i}", image="lost.jpg") for i in range(5)])
    assert cli.main(["data", "check", *overrides(("llava_json", file, images))]) == 1
    printed = capsys.readouterr().out
    assert printed.count("lost.jpg: no such file") == 3
    assert "and 2 more" in printed


def test_notes_alone_are_status_0(overrides, images, tmp_path, capsys):
    file = write_json(tmp_path / "some.json", [record("a"), record("b", image="gif.jpg"), record("a", answer="No.")])
    assert cli.main(["data-check", *overrides(("llava_json", file, images))]) == 0
    printed = capsys.readouterr()
    assert "note          1  other_format" in printed.out
    assert "error" not in printed.out
    assert "found:" not in printed.err


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"report": "source/chat.json"}, "source/chat.json is a data set's own file; give another name"),
        ({"report": "images"}, "images is a folder; give the name of a file"),
        ({"report": "source/chat.json/report.json"}, "source/chat.json/report.json cannot be written"),
        ({"cleaned": "source"}, "source is not empty; give a new folder"),
        ({"cleaned": "images/clean"}, "lies in the media folder"),
        ({"drop": "[roles]"}, "drop names 'roles'; known: cut, "),
        ({"drop": "[duplicates]"}, "drop names 'duplicates'; did you mean 'duplicate'?"),
        ({"media": "look"}, "media is 'look': choose one of decode, header, exists"),
        ({"workers": -1}, "workers is -1: give 0 or more"),
    ],
)
def test_mistakes_are_found_before_anything_is_read(overrides, defects, images, tmp_path, capsys, own, message):
    own = {key: tmp_path / value if key in ("report", "cleaned") else value for key, value in own.items()}
    before = defects.read_bytes()
    assert cli.main(["data", "check", *overrides(("llava_json", defects, images), **own)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1]
    assert printed.out == ""
    assert defects.read_bytes() == before


def test_a_source_that_cannot_be_opened(settings, images, tmp_path):
    with pytest.raises(SettingsError, match=r"none.json does not exist .* public sets: voco-llama data prepare"):
        check_data(settings(("llava_json", tmp_path / "none.json", images)))


def test_a_report_that_fails_half_way_leaves_nothing(settings, defects, images, tmp_path):
    chosen = settings(("llava_json", defects, images), report=tmp_path / "out" / "report.json")
    with pytest.raises(ZeroDivisionError):
        write_report(chosen, Findings([], [], ""), (str(1 / left) for left in (1, 0)))
    assert list((tmp_path / "out").iterdir()) == []
