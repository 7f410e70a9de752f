import json
import re

import pytest

from tests.data_tools.conftest import record
from voco_llama import cli
from voco_llama.composition import compose, to_plain
from voco_llama.data_tools.settings import DataCheckSettings, DataStatsSettings, check_output, check_rows_named
from voco_llama.errors import SettingsError

OWN = {
    ("data_check", DataCheckSettings): {
        "report": None,
        "cleaned": None,
        "drop": [],
        "media": "decode",
        "workers": None,
    },
    ("data_stats", DataStatsSettings): {"output": None, "sample": 10_000, "workers": None},
}


@pytest.mark.parametrize("command", OWN)
@pytest.mark.parametrize("overrides", [[], ["data=mix665k"], ["experiment=toy/voco_4", "data=toy_clips"]])
def test_the_commands_take_the_settings_of_a_training(command, overrides):
    assert to_plain(compose(overrides, *command)) == to_plain(compose(overrides)) | OWN[command]


# ---- whose rows are meant


@pytest.mark.parametrize("named", ["experiment=voco_4", "model=llava_7b", "model.tokenizer=a", "+model.checkpoint=a=b"])
def test_a_training_or_its_model_says_whose_rows_are_meant(named):
    check_rows_named(["data=mix665k", named])
    with pytest.raises(SettingsError, match=r"no training is named, .* add its experiment=\.\.\."):
        check_rows_named(["data=mix665k", "experiment=null", "data.max_length=3", "prompt=plain"])


@pytest.fixture
def sources(tmp_path, images):
    """Of one's own: a row of it is longer than the toy world's `data.max_length`."""
    (tmp_path / "own.json").write_text(json.dumps([record("a", question="<image>" + "w " * 300)]))
    return f"data.sources=[{{format: llava_json, file: {tmp_path / 'own.json'}, media_folder: {images}}}]"


def test_rows_are_not_measured_by_a_model_that_nobody_named(sources, capsys, tmp_path):
    own = [sources, "workers=0"]
    assert cli.main(["data", "check", *own, f"cleaned={tmp_path / 'clean'}"]) == 0
    assert "row lengths: not measured: no training is named" in capsys.readouterr().out
    assert json.loads((tmp_path / "clean" / "own.json").read_text())
    assert cli.main(["data", "stats", *own]) == 0
    printed = capsys.readouterr().out
    assert "row lengths: not measured: no training is named" in printed
    assert re.search(r"^longer than 256 +- +-$", printed, re.M)
    assert cli.main(["data", "preview", sources, f"output={tmp_path / 'page'}"]) == 2
    assert "no training is named" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_the_output_says_how_rows_are_written(overrides, defects, images, tmp_path, capsys):
    own = [text for text in overrides(("llava_json", defects, images)) if not text.startswith("prompt=")]
    line = f'tokenizer of {tmp_path / "tokenizer"}; template vicuna_v1, order first, system text "A chat'
    cli.main(["data", "check", *own])
    cli.main(["data", "stats", *own])
    assert capsys.readouterr().out.count(f"row lengths: measured by the {line}") == 2
    of_page = [text for text in own if not text.startswith("workers")]
    assert cli.main(["data", "preview", *of_page, f"output={tmp_path}"]) == 0
    page = (tmp_path / "preview.html").read_text(encoding="utf-8")
    assert line.replace('"', "&#34;") in page
    assert "data.max_length 128" in page


@pytest.mark.parametrize("command", ["check", "stats", "preview"])
def test_data_that_is_not_here(command, capsys, tmp_path):
    name = [f"paths.data={tmp_path}", "experiment=voco_4"]
    assert cli.main(["data", command, *name]) == 2
    error = capsys.readouterr().err
    assert f"error: data.sources.0.file: {tmp_path}/LLaVA-Instruct-150K" in error
    assert error.endswith("how to get the public sets: voco-llama data prepare\n")


# ---- outputs


@pytest.mark.parametrize(("command", "key"), [("check", "report"), ("stats", "output"), ("preview", "output")])
def test_a_file_of_somebody_else_is_not_overwritten(command, key, overrides, defects, images, tmp_path, capsys):
    file = tmp_path / "notes"
    if command == "preview":
        (tmp_path / "notes").mkdir()
        file = tmp_path / "notes" / "preview.html"
    own = [text for text in overrides(("llava_json", defects, images)) if not text.startswith("workers")]
    file.write_text("<!DOCTYPE html>\nMy own.")
    assert cli.main(["data", command, *own, f"{key}={tmp_path / 'notes'}"]) == 2
    assert f"{key}: {file} is there and was not written by this command; give another name" in capsys.readouterr().err
    assert file.read_text() == "<!DOCTYPE html>\nMy own."
    file.unlink()
    for _ in range(2):  # its own is written anew
        cli.main(["data", command, *own, f"{key}={tmp_path / 'notes'}"])
        assert "error:" not in capsys.readouterr().err
    assert file.is_file()


def test_an_output_is_looked_at_before_anything_is_read(tmp_path):
    check_output("report", tmp_path / "new" / "report.json", "{")
    with pytest.raises(SettingsError, match="report: .* is a folder"):
        check_output("report", tmp_path, "{")
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="report: .* cannot be written"):
        check_output("report", tmp_path / "file" / "report.json", "{")
