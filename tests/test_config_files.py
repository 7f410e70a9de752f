"""Files of the user's own: a folder on the search path, and any file by its path."""

from pathlib import Path

import pytest
import yaml

from voco_llama import cli
from voco_llama.composition import compose, to_plain
from voco_llama.config_files import VARIABLE, own_folder, using_folder
from voco_llama.errors import SettingsError
from voco_llama.evaluation.settings import read_suite
from voco_llama.report.selection import read_selection
from voco_llama.sweep.plan import expand

EXPERIMENT = """
defaults: [/experiment/toy/voco]
trainer: {max_steps: 7}
output_dir: ${paths.runs}/mine_${compression.num_voco}
"""
FILES = {
    "experiment/mine.yaml": EXPERIMENT,
    "experiment/longer.yaml": "# @package _global_\ndefaults: [/experiment/toy/voco]\ntrainer: {max_steps: 9}\n",
    "compression/three.yaml": "condition: voco\nnum_voco: 3\nnum_voco_choices: [1, 3]\n",
    "data/own.yaml": "sources: [{format: llava_json, file: a b.json}]\n",
    "plan/small.yaml": "seeds: [4]\nrows: {a: {train: [experiment=mine]}}\n",
    "suites/mine.yaml": "columns: {Q: gqa}\n",
    "tables/mine.yaml": "rows: [{row: a}]\n",
    "loss/lm.yaml": "lm: 0.5\n",
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with settings, whose name is hard to spell; the working directory is beside it."""
    folder = tmp_path / "own, (1) = é"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv(VARIABLE, raising=False)
    return folder


def test_groups_of_ones_own_are_chosen_by_name(own):
    with using_folder(str(own)):
        settings = compose(["experiment=mine_4", "data=own"])
        assert (settings.trainer["max_steps"], settings.output_dir) == (7, "runs/mine_4")
        assert settings.data.sources[0].file == "a b.json"
        assert compose(["experiment=longer"]).trainer["max_steps"] == 9
        assert compose(["experiment=mine", "compression=three"]).output_dir == "runs/mine_3"
        assert compose(["experiment=toy/voco_2"]).output_dir == "runs/toy/voco_2"
        assert compose([]).loss.lm == 0.5, "a file of one's own goes before ours of its name"
        with pytest.raises(
            SettingsError, match=r"no experiment=mne; did you mean 'mine'\? \(choices: .*, longer, mine,"
        ):
            compose(["experiment=mne"])
    assert own_folder() is None
    assert compose([]).loss.lm == 1


@pytest.mark.parametrize("spelled", ["{}/experiment/mine.yaml", "{}/experiment/mine"])
def test_a_file_is_chosen_by_its_path(own, spelled):
    for folder in (own, Path("..", own.name)):
        settings = compose([f"experiment={spelled.format(folder)}", "compression.num_voco=2"])
        assert (settings.trainer["max_steps"], settings.output_dir) == (7, "runs/mine_2")
    (own.parent / "elsewhere/here.yaml").write_text(EXPERIMENT)
    for choice in ("here.yaml", "./here.yaml", "./here", "'here.yaml'"):
        assert compose([f"experiment={choice}"]).output_dir == "runs/mine_1"
    assert compose([f"compression={own}/compression/three.yaml"]).compression.num_voco_choices == [1, 3]
    with using_folder(str(own / "plan")):
        assert compose([f"data={own}/data/own.yaml"]).data.sources[0].file == "a b.json"


def test_ours_by_the_name_of_a_file_stays_ours(own):
    (own.parent / "elsewhere/voco.yaml").write_text("seed: 5\n")
    assert compose(["stage=voco.yaml"]).stage.name == "voco"
    with pytest.raises(SettingsError, match="unknown setting 'stage.seed' in /.*/elsewhere/voco.yaml"):
        compose(["stage=./voco.yaml"])


def test_a_record_of_settings_is_an_experiment(own):
    settings = compose(["experiment=toy/voco_4_kl", "seed=3", "trainer.max_steps=5", "output_dir=a,b"])
    Path("settings.yaml").write_text(yaml.safe_dump(to_plain(settings)))
    assert compose(["experiment=settings.yaml"]) == settings


def test_plans_suites_and_tables(own):
    plan = cli.COMMANDS["sweep"].compose([f"plan={own}/plan/small.yaml"])
    assert (plan.seeds, list(plan.rows)) == ([4], ["a"])
    assert read_suite(f"{own}/suites/mine.yaml").columns == {"Q": "gqa"}
    assert read_selection(f"{own}/tables/mine.yaml").names == ["a"]
    for read, kind in ((read_suite, "suite"), (read_selection, "table")):
        with pytest.raises(
            SettingsError, match=f"there is no {kind} 'mine': choose from .*, or give the path of a .yaml"
        ):
            read("mine")
    with using_folder(str(own)):
        assert read_suite("mine").columns == {"Q": "gqa"}
        assert read_selection("mine").names == ["a"]
        assert read_suite("toy").rows
        settings = cli.COMMANDS["sweep"].compose(["plan=small"])
        (seed,) = expand(settings)
        command = str(seed.jobs[0].train)
        assert command.startswith(f"voco-llama train --config-dir '{own}' experiment=mine ")


def test_the_command_line_names_the_folder(own, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr("voco_llama.toyworld.write_toyworld", lambda settings, root: seen.append(own_folder()))
    assert cli.main(["toyworld", "grid=3", "--config-dir", str(own)]) == 0
    assert cli.main(["--config-dir", f"../{own.name}", "toyworld", "grid=3"]) == 0
    monkeypatch.setenv(VARIABLE, str(own))
    assert cli.main(["toyworld", "grid=3"]) == 0
    assert seen == [own] * 3
    assert cli.main(["toyworld", "--config-dir", "nowhere"]) == 2
    assert own_folder() == own
    assert capsys.readouterr().err.startswith("error: /")
    monkeypatch.setenv(VARIABLE, "nowhere")
    assert cli.main(["toyworld"]) == 2
    assert "nowhere is no folder: name one that is, with --config-dir or in VOCO_CONFIGS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "{file}: cannot be read .while parsing"),
        ("- a", "{file} holds no settings"),
        ("\xff", "{file}: cannot be read .'utf-8' codec"),
        ("a: *b", "{file}: cannot be read .found undefined alias"),
        ("seed: 1\nseed: 2", "{file}: cannot be read .while constructing"),
        ("sed: 1", "unknown setting 'sed' in {file}; did you mean 'seed'"),
        ("seed: x", "seed: Value 'x'"),
        ("seed: ${x}", "seed: Interpolation key 'x' not found"),
        ("defaults: 3", "defaults must be a list"),
        ("defaults: [nope]", "there is no experiment=nope"),
    ],
)
def test_a_broken_file_is_one_line(own, text, message):
    file = own / "experiment/bad.yaml"
    file.write_bytes(text.encode("latin1"))
    for choice, folder in (("bad", str(own)), (f"{file}", None)):
        with using_folder(folder), pytest.raises(SettingsError) as raised:
            compose([f"experiment={choice}"])
        assert message.format(file=file).replace(".while", "(while").replace(".'utf", "('utf").replace(
            ".found", "(found"
        ) in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("choice", ["./nope", "/nope.yaml", "../nope.yaml", "~/no/pe.yaml", "/", "./"])
def test_a_path_that_is_not_there(own, choice):
    with pytest.raises(SettingsError, match="experiment: there is no file .*: name one that ends with .yaml"):
        compose([f"experiment={choice}"])


def test_a_folder_that_hides_a_setting_is_refused(own):
    (own / "seed").mkdir()
    with using_folder(str(own)), pytest.raises(SettingsError, match="holds a folder 'seed', as a setting is named"):
        compose([])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=null", "model=null: choose one of llama3_70b, llava_7b, "),
        ("stage=", "stage=: choose one of align, "),
        ("experiment=", "experiment=: choose one of .*, or experiment=null for none"),
        ("experiment=toy/voco_1,toy/voco_4", "there is no experiment=toy/voco_1,toy/voco_4"),
        ("experiment=toy", "there is no experiment=toy "),
        ("experiment=..", "there is no experiment=.. "),
        ("stage=a\nb", "there is no stage=a b "),
        ("~stage=[a]", r"cannot read the override '~stage=\[a\]': write ~stage"),
        ("plan=toy", "unknown setting 'plan' of this command; known at the top are model, "),
        ("stage@x=voco", "unknown setting 'stage' of this command"),
        ("optimizer=a\nb", "optimizer is 'a\\\\nb': choose one of trainer, muon"),
        ("experiment=nope.yaml", "there is no experiment=nope.yaml"),
    ],
)
def test_choices_that_are_none(override, message):
    with pytest.raises(SettingsError, match=message) as raised:
        compose([override])
    assert "\n" not in str(raised.value)


def test_a_group_may_be_left_out_or_filled_in():
    assert compose(["experiment=null", "hardware=null"]) == compose([])
    settings = compose(["data={max_length: 99}", "hardware={num_processes: 2}"])
    assert (settings.data.max_length, settings.hardware.num_processes) == (99, 2)
