import pytest

from voco_llama.composition import compose, to_plain
from voco_llama.data_tools.settings import DataCheckSettings, DataStatsSettings

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
