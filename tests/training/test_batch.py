"""A global batch that a recipe names: what of it a run remembers, and what its card says."""

import pytest
import yaml

from voco_llama.composition import compose, to_plain
from voco_llama.errors import SettingsError
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.card import _recipe
from voco_llama.training.run_folder import RunFolder


def test_a_run_goes_on_as_planned_for_other_hardware(settings_for, tmp_path):
    settings = settings_for()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.yaml").write_text(yaml.safe_dump(to_plain(settings)))
    (tmp_path / "run" / "inputs.json").write_text("{}")
    (tmp_path / "run" / "checkpoint-1").mkdir()  # else nothing would be lost by other settings
    changed = settings_for("toy/instruct", "hardware.num_processes=4", "+data.sources.0.published_records=5")
    assert not RunFolder(changed).is_finished()
    with pytest.raises(SettingsError, match=r"other settings: global_batch_size \(None there, 8 now\)"):
        RunFolder(settings_for("toy/instruct", "global_batch_size=8")).is_finished()


@pytest.mark.parametrize(("overrides", "rows"), [(["global_batch_size=32"], 32), ([], 16)])
def test_the_card_says_how_many_rows_a_step_has(settings_for, overrides, rows):
    start = {"processes": 2, "hardware": {"accelerator": "x"}, "git_commit": "y", "versions": {}}
    lines = _recipe(settings_for("toy/instruct", *overrides), {}, {"steps": 1, "seconds": 1}, start)
    assert f"- samples a step: {rows}" in list(lines)


def test_where_the_rows_of_a_pass_stand_in_the_global_batch():
    """Of passes [p0 p1][p0 p1] of 3 rows: the second process begins its second pass at row 9 of 12."""
    batch = GlobalBatch(processes=2, rows=3, accumulation=2)
    assert [batch.first_row(number, process) for number in (0, 1) for process in (0, 1)] == [0, 3, 6, 9]
    assert batch.size == 12


@pytest.mark.parametrize(
    ("processes", "advice"),
    [
        (48, "use 16 processes, or set global_batch_size to a multiple of 384"),
        (64, "set trainer.per_device_train_batch_size=2, or"),
        (256, "use 128 processes, or"),
    ],
)
def test_what_does_not_divide_says_what_would(processes, advice):
    settings = compose(["global_batch_size=128", "trainer.per_device_train_batch_size=8"])
    with pytest.raises(SettingsError, match=advice):
        GlobalBatch.of(settings, processes)
