"""What `trainer.report_to` may name, found out before anything is read."""

import pytest

from voco_llama.errors import SettingsError
from voco_llama.training.checks import check_settings
from voco_llama.training.trackers import check_trackers


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """A user who never used a tracker."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("names", ["wandb", ["wandb"], ["tensorboard", "wandb"], "all"])
def test_wandb_without_a_login_is_refused(names):
    with pytest.raises(SettingsError, match="wandb would ask who you are: run wandb login, or set WANDB_API_KEY, or"):
        check_trackers({"report_to": names})


@pytest.mark.parametrize("way", ["key", "offline", "netrc", "wandb offline"])
def test_wandb_that_asks_nothing_passes(way, monkeypatch, tmp_path):
    if way == "key":
        monkeypatch.setenv("WANDB_API_KEY", "x")
    elif way == "offline":
        monkeypatch.setenv("WANDB_MODE", "offline")
    elif way == "netrc":
        (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
        (tmp_path / ".netrc").chmod(0o600)
    else:
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    assert check_trackers({"report_to": ["wandb"]}) == ["wandb"]


@pytest.mark.parametrize("url", ["environment", "settings", None])
def test_a_login_at_a_server_of_ones_own_or_in_another_file_passes(url, monkeypatch, tmp_path):
    machine = "api.wandb.ai" if url is None else "localhost:8080"
    file = tmp_path / ("logins" if url is None else ".netrc")
    file.write_text(f"machine {machine}\n  login user\n  password x\n")
    if url is None:
        monkeypatch.setenv("NETRC", str(file))
    elif url == "environment":
        monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:8080")
    else:
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = http://localhost:8080\n")
    assert check_trackers({"report_to": ["wandb"]}) == ["wandb"]


@pytest.mark.parametrize("names", [None, "none", [], ["none"]])
def test_none(names):
    assert check_trackers({"report_to": names}) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("wandbb", "trainer.report_to: 'wandbb' is no tracker; did you mean 'wandb'? (choices: none, all, "),
        ([3], "trainer.report_to: '3' is no tracker"),
        (["tensorboard", "mlflow"], "trainer.report_to: mlflow is not installed: install it, or choose another"),
    ],
)
def test_what_is_unknown_or_not_installed_is_refused(names, message):
    with pytest.raises(SettingsError) as caught:
        check_trackers({"report_to": names})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_that_transformers_knows_is_asked_for(monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in integration_utils.INTEGRATION_TO_CALLBACK:
        try:
            assert check_trackers({"report_to": [name]}) == [name]
        except SettingsError as error:
            assert str(error).startswith(f"trainer.report_to: {name} is not installed")  # noqa: PT017


def test_a_training_is_refused_before_anything_is_read(settings_for):
    with pytest.raises(SettingsError, match="wandb would ask who you are"):
        check_settings(settings_for("toy/instruct", "trainer.report_to=[wandb]"))
