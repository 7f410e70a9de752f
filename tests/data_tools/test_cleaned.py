"""The cleaned copy: the good records byte for byte, in files that a training opens."""

import json
import zipfile
from pathlib import Path

import pytest

from tests.data_tools.conftest import DEFECTS, RECORDS, record, refused
from voco_llama import cli
from voco_llama.composition import compose
from voco_llama.data.readers import open_reader
from voco_llama.data_tools.check import check_data
from voco_llama.data_tools.settings import DataCheckSettings
from voco_llama.errors import DataError, SettingsError
from voco_llama.training.build import build_processor, open_mixture

REFUSED = set(refused(DEFECTS))
GOOD = [place for place, entry in enumerate(RECORDS) if entry not in [DEFECTS[kind] for kind in REFUSED]]


def settings_of(folder: Path, overrides: list[str]):
    """A training over the copy, by its own data file."""
    own = [text for text in overrides if not text.startswith(("data.", "workers"))]
    return compose([*own, f"data={folder / 'data.yaml'}"])


def test_the_good_records_byte_for_byte(overrides, defects, images, tmp_path, capsys):
    before = defects.read_bytes()
    own = overrides(("llava_json", defects, images), cleaned=tmp_path / "clean")
    assert cli.main(["data", "check", *own]) == 1
    assert f"cleaned: {tmp_path / 'clean' / 'chat.json'}" in capsys.readouterr().out
    assert defects.read_bytes() == before
    source, copy = (open_reader("llava_json", file, images) for file in (defects, tmp_path / "clean" / "chat.json"))
    assert [copy.raw(i) for i in range(len(copy))] == [source.raw(i) for i in GOOD]
    assert json.loads(copy.file.read_text()) == [RECORDS[i] for i in GOOD]
    assert sorted(path.name for path in (tmp_path / "clean").iterdir()) == ["chat.json", "data.yaml"]
    assert not list(tmp_path.glob(".*"))


def test_a_training_opens_the_copy(overrides, defects, images, tmp_path):
    own = overrides(("llava_json", defects, images))
    check_data(compose([*own, f"cleaned={tmp_path / 'clean'}"], "data_check", DataCheckSettings))
    chosen = settings_of(tmp_path / "clean", own)
    mixture, processor = open_mixture(chosen), build_processor(chosen)
    assert len(mixture) == len(GOOD)
    for entry in mixture:
        assert processor.row(entry)["labels"].numel() <= chosen.data.max_length


def test_the_copy_is_read_from_any_folder(overrides, defects, images, tmp_path, monkeypatch):
    """Also where all was named from the folder that the command ran in."""
    monkeypatch.chdir(tmp_path)
    named = overrides(("llava_json", defects.relative_to(tmp_path), images.relative_to(tmp_path)))
    archives = "++data.sources.0.archives={vg: [a.zip, b.zip], coco: c.zip}"
    for name in "abc":
        with zipfile.ZipFile(f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}.png", "")
    check_data(compose([*named, archives, "cleaned=clean"], "data_check", DataCheckSettings))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    chosen = settings_of(Path("../clean"), named)
    (source,) = chosen.data.sources
    assert (source.file, source.media_folder) == (str(tmp_path / "clean" / "chat.json"), str(images))
    places = {"vg": [str(tmp_path / "a.zip"), str(tmp_path / "b.zip")], "coco": str(tmp_path / "c.zip")}
    assert source.archives == places
    assert len(open_mixture(chosen)) == len(GOOD)


def test_the_copy_is_clean(settings, defects, images, tmp_path):
    check_data(settings(("llava_json", defects, images), cleaned=tmp_path / "clean"))
    again = check_data(settings(("llava_json", tmp_path / "clean" / "chat.json", images)))
    assert again.num_bad == 0
    assert again.counts.keys() == DEFECTS.keys() - REFUSED


def test_notes_are_dropped_where_asked(settings, defects, images, tmp_path):
    chosen = settings(("llava_json", defects, images), cleaned=tmp_path / "clean", drop="[duplicate, repeated_id]")
    findings = check_data(chosen)
    assert findings.num_bad == len(REFUSED)
    again = check_data(settings(("llava_json", tmp_path / "clean" / "chat.json", images)))
    assert again.counts == dict.fromkeys(set(DEFECTS) - REFUSED - {"duplicate", "repeated_id"}, 1)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_other_formats(settings, images, tmp_path, ending, mark):
    """JSON Lines and a CSV whose last line has no end; blank lines go, all else stays."""
    lines = tmp_path / "chat.jsonl"
    texts = [
        json.dumps(entry, ensure_ascii=False) for entry in (record("a"), record("é"), record("x", answer="<image>"))
    ]
    lines.write_bytes((mark + f"{ending}{ending}".join([texts[0], texts[2], texts[1]])).encode())
    captions = tmp_path / "captions.csv"
    rows = ["videoid,name", "1,One", "", "2,", '3,"Two', 'lines"', "9,None", "1,Ünd"]
    captions.write_bytes((mark + ending.join(rows)).encode())
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in "123":
        (clips / f"{name}.mp4").write_bytes(b"a clip")
    sources = ("llava_json", lines, images), ("caption_csv", captions, clips)
    check_data(settings(*sources, cleaned=tmp_path / "new" / "clean", media="exists"))
    copied = (tmp_path / "new" / "clean" / "chat.jsonl").read_bytes().decode()
    assert copied == f"{texts[0]}{ending}{texts[1]}\n"
    expected = ending.join(["videoid,name", "1,One", '3,"Two', 'lines"', "1,Ünd"])
    assert (tmp_path / "new" / "clean" / "captions.csv").read_bytes().decode() == f"{mark}{expected}\n"
    again = check_data(
        settings(
            ("llava_json", tmp_path / "new" / "clean" / "chat.jsonl", images),
            ("caption_csv", tmp_path / "new" / "clean" / "captions.csv", clips),
            media="exists",
        )
    )
    assert (again.num_records, again.num_bad) == (5, 0)


def test_files_of_one_name_are_kept_apart(settings, images, tmp_path):
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "chat.json")
        files[-1].write_text(json.dumps([record(folder), record("bad", image="..")]))
    findings = check_data(settings(*(("llava_json", file, images) for file in files), cleaned=tmp_path / "clean"))
    assert [Path(file).name for file in findings.cleaned] == ["0_chat.json", "1_chat.json"]
    for file, expected in zip(findings.cleaned, "ab", strict=True):
        assert [entry.id for entry in open_reader("llava_json", file, images)] == [expected]


def test_nothing_left_is_an_error(settings, images, tmp_path):
    (tmp_path / "chat.json").write_text(json.dumps([record("bad", image="..")]))
    with pytest.raises(DataError, match=r"cleaned: no record of .*chat\.json is left"):
        check_data(settings(("llava_json", tmp_path / "chat.json", images), cleaned=tmp_path / "clean"))
    assert not (tmp_path / "clean").exists()


def test_a_copy_that_fails_half_way_leaves_nothing(settings, defects, images, tmp_path, monkeypatch):
    def full(self, target):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SettingsError, match=r"cleaned: .*clean cannot be written \(No space left"):
        check_data(settings(("llava_json", defects, images), cleaned=tmp_path / "clean"))
    assert not (tmp_path / "clean").exists()
    assert not list(tmp_path.glob(".*"))


def test_an_empty_folder_will_do(settings, defects, images, tmp_path):
    (tmp_path / "clean").mkdir()
    check_data(settings(("llava_json", defects, images), cleaned=tmp_path / "clean"))
    assert (tmp_path / "clean" / "chat.json").is_file()
