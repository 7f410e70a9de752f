"""Passwords and tokens: refused in settings by a message that does not show them, and in no file or output of a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules.commands import LINES, Place, make_place, seen
from voco_llama.credentials import check_no_credentials
from voco_llama.errors import SettingsError

IN_ENVIRONMENT = {
    "HF_TOKEN": "hf_plantedplantedplantedplanted01",
    "HUGGING_FACE_HUB_TOKEN": "hf_plantedplantedplantedplanted02",
    "WANDB_API_KEY": "planted0planted0planted0planted0planted3",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED04",
    "AWS_SECRET_ACCESS_KEY": "planted/planted+planted/planted05planted",
    "OPENAI_API_KEY": "sk-planted-planted-planted-06",
}
IN_NETRC = "plantedinnetrc07"
TYPED = "plantedandtyped08"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.hub_token", TYPED),
        ("trainer.push_to_hub_token", TYPED),
        ("data.sources.0.options.token", TYPED),
        ("data.sources.0.options.api_key", TYPED),
        ("model.checkpoint", f"https://user:{TYPED}@example.org/model"),
        ("paths.data", f"s3://{TYPED}@bucket/data"),
        ("data.sources.0.file", f"https://example.org/a.json?access_token={TYPED}"),
        ("data.sources.0.file", f"https://example.org/a.json?a=b&X-Amz-Signature={TYPED}"),
        ("data.sources.0.file", f"https://example.org/a.json?sv=1&sig={TYPED}%3D"),
        ("data.sources.0.options.account_key", TYPED),
        ("data.sources.0.options.auth", TYPED),
        ("trainer.run_name", f"hf_{TYPED}01234567"),
        ("trainer.run_name", f"glpat-{TYPED}01234567"),
        ("trainer.run_name", f"github_pat_{TYPED}01234567"),
        ("trainer.run_name", f"eyJ{TYPED}.eyJ{TYPED}.{TYPED}"),
        ("data.sources.0.options.headers", {"Authorization": f"Bearer {TYPED}"}),
        ("trainer.run_name", f"-----BEGIN RSA PRIVATE KEY-----\\n{TYPED}"),
        ("output_dir", f"runs/{IN_ENVIRONMENT['WANDB_API_KEY']}"),
    ],
)
def test_one_in_a_setting_is_refused_and_not_shown(key, value, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", IN_ENVIRONMENT["WANDB_API_KEY"])
    with pytest.raises(SettingsError, match=f"^{key} holds what looks like a password or a token") as caught:
        check_no_credentials([("seed", 0), (key, value)])
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.hub_token", None),
        ("model.tokenizer", "runs/toy/tokenizer"),
        ("model.checkpoint", "someone/llava-1.5-7b-hf"),
        (
            "questions",
            ["What is at https://example.org/?token", "e-mail me@example.org", "Is the bearer identifiable?"],
        ),
        ("data.sources.0.file", "hf://datasets/someone/set"),
        ("output_dir", "runs/desk-planted-planted-planted"),
        ("seed", 12),
    ],
)
def test_what_is_none_is_taken(key, value, monkeypatch, tmp_path):
    monkeypatch.setenv("SSH_PRIVATE_KEY", str(tmp_path))  # a path, as many a variable has
    check_no_credentials([(key, value), ("paths.data", f"{tmp_path}/data")])


@pytest.mark.parametrize(
    "typed", [f"trainer.hub_token={TYPED}", f"+nonsense.password={TYPED}", f"model.checkpoint=https://a:{TYPED}@b/c"]
)
def test_a_command_that_gets_one_typed_shows_it_nowhere(typed):
    ended = seen(["train", "experiment=toy/voco_1", typed])
    assert ended.is_refused
    assert TYPED not in ended.error[0] + ended.out


def test_one_in_a_file_of_settings_is_refused_too(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"# @package _global_\ndefaults: [/experiment/toy/instruct]\ntrainer: {{hub_token: {TYPED}}}\n"
    )
    ended = seen(["train", f"experiment={tmp_path}/mine.yaml"])
    assert ended.is_refused
    assert ended.error[0].startswith("error: trainer.hub_token holds")
    assert TYPED not in ended.error[0]


@pytest.mark.slow
def test_none_of_the_environment_is_in_what_a_training_writes_or_says(tmp_path):
    """Every byte of the run's folder, of where wandb keeps its own, and of the output."""
    place: Place = make_place(tmp_path / "place")
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {IN_NETRC}\n")
    (home / ".netrc").chmod(0o600)
    line = [text for text in LINES["train"](place, out) if not text.startswith("trainer.report_to")]
    environment = {"HOME": str(home), "WANDB_MODE": "offline", "WANDB_DIR": str(out), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "voco_llama.cli", "train", *line, "trainer.report_to=[tensorboard,wandb]"],
        env=os.environ | IN_ENVIRONMENT | environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {"settings.yaml", "README.md", "rank_0.log", "metrics.jsonl", "optimizer.pt"} <= {
        file.name for file in files
    }
    assert any(file.suffix == ".wandb" for file in files)
    written = [("the output", ended.stdout + ended.stderr), *((file, file.read_bytes()) for file in files)]
    secrets = [value.encode() for value in (*IN_ENVIRONMENT.values(), IN_NETRC)]
    assert [str(where) for where, content in written if any(secret in content for secret in secrets)] == []
