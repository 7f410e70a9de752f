"""The words of a command line: help, version, and what was meant."""

import re

import pytest

from voco_llama import cli
from voco_llama.command_line import parse
from voco_llama.errors import SettingsError


def words(*arguments):
    return parse(list(arguments), cli.COMMANDS)


def printed(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        words(*arguments)
    assert left.value.code == 0
    return capsys.readouterr().out


def test_overrides_and_options_may_stand_in_any_order():
    assert words("train", "a=1", "--config-dir", "x", "b=2") == ("train", "x", ["a=1", "b=2"])
    assert words("--config-dir", "x", "data", "check", "a=1") == ("data-check", "x", ["a=1"])
    assert words("data-check", "--config-dir=x y") == ("data-check", "x y", [])
    assert words("train", "~hardware", "+a=-1", "b=--c") == ("train", None, ["~hardware", "+a=-1", "b=--c"])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_there_is_help(capsys, arguments):
    assert "evaluate-clips   Answer questions on clips" in printed(capsys, *arguments)


def test_version(capsys):
    assert printed(capsys, "--version").startswith("voco-llama 0.")


@pytest.mark.parametrize("arguments", [["data"], ["data", "--help"], ["data", "-h"]])
def test_a_group_of_commands_lists_them(capsys, arguments):
    text = printed(capsys, *arguments)
    assert "data-preview     Draw samples" in text
    assert "evaluate" not in text


def test_help_of_a_command_lists_what_it_reads(capsys, tmp_path):
    text = printed(capsys, "train", "--help")
    assert "experiment=align_7b, " in text
    assert "toy/voco_kl" in text
    assert "dry_run: Count what the training would be" in text
    assert re.search(r"\ncompression\.\*: .* readings: Elastic.*\ncompression\.q_former\.\*: ", text, re.DOTALL)
    assert re.search(r"\nloss\.\*: .* reconstruction: .*\nloss\.schedule\.N\.\*: Weights", text, re.DOTALL)
    assert "plan=13b, 7b, " in printed(capsys, "sweep", "seeds=[1]", "-h")
    evaluate = printed(capsys, "evaluate", "-h")
    assert "go_on: List questions that fail" in evaluate
    assert "None" not in evaluate
    assert re.search(r" root: The folder.* grid: Scenes have", printed(capsys, "toyworld", "-h"), re.DOTALL)
    assert re.search(r" workers: Proc.* dry_run: Count", printed(capsys, "data", "check", "-h"), re.DOTALL)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("")
    for before, after in ((["--config-dir", str(tmp_path)], []), ([], ["--config-dir", str(tmp_path)])):
        assert " mine, " in printed(capsys, *before, "train", *after, "--help")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evalute"], "there is no command 'evalute'; did you mean 'evaluate'?"),
        (["Train", "seed=1"], "there is no command 'Train'; did you mean 'train'?"),
        (["data", "chek"], "there is no command 'data-chek'; did you mean 'data-check'?"),
        (["data", "seed=1"], "there is no command 'data': choose one of data-prepare, data-check"),
        (["nothing"], "there is no command 'nothing': choose one of toyworld, "),
        ([""], "there is no command '': choose one of"),
        (["train", "--seed", "3"], "there is no option --seed: settings are written without dashes, seed=..."),
        (
            ["train", "--dry-run=true"],
            "there is no option --dry-run=true: settings are written without dashes, dry_run=...",
        ),
        (["train", "-x"], "there is no option -x"),
        (["--seed", "3", "train"], "unrecognized arguments: --seed: voco-llama --help says what there is"),
        (["train", "--config-dir"], "argument --config-dir: expected one argument: voco-llama train --help says"),
        (["train", "--config", "x"], "there is no option --config; did you mean '--config-dir'?"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(SettingsError) as raised:
        words(*arguments)
    assert str(raised.value).startswith(message)


def test_mistakes_are_one_line_and_status_2(capsys):
    assert cli.main(["evalute"]) == 2
    assert cli.main(["ask", "image=a.png", "image=b.png"]) == 2
    assert cli.main(["train", "optimizer=null"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: there is no command 'evalute'; did you mean 'evaluate'?",
        "error: image is given twice (a.png and b.png): give it once, or both as a list, image=[a.png,b.png]",
        "error: optimizer is null: choose one of trainer, muon",
    ]
