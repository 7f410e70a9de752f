"""Hydra's sweep grammar becomes rows."""

import pytest

from voco_llama.errors import SettingsError
from voco_llama.sweep.plan import grid


def rows_of(*overrides):
    return {name: row.train for name, row in grid(overrides).items()}


def test_a_row_for_each_combination():
    assert rows_of("experiment=toy/voco_1,toy/voco_4", "trainer.learning_rate=1e-3,3e-3", "optimizer=muon") == {
        f"{name}-learning_rate_{rate}": [f"experiment=toy/{name}", f"trainer.learning_rate={rate}", "optimizer=muon"]
        for name in ("voco_1", "voco_4")
        for rate in ("0.001", "0.003")
    }


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["experiment=toy/voco_1"], ["voco_1"]),
        (["compression.num_voco=range(1,4)"], ["run-num_voco_1", "run-num_voco_2", "run-num_voco_3"]),
        (
            ["experiment=voco_1", "data.grouping=choice(none,length)"],
            ["voco_1-grouping_none", "voco_1-grouping_length"],
        ),
        (["a.x=1,2", "b.x=3"], ["run-x_1", "run-x_2"]),
        (["a.x=1,2", "b.x=3,4"], [f"run-a.x_{a}-b.x_{b}" for a in (1, 2) for b in (3, 4)]),
        (["+trainer.optim_args='a=1','b=2'"], ["run-optim_args_a_1", "run-optim_args_b_2"]),
        (["data.sources=[a,b]"], ["run"]),
    ],
)
def test_names(overrides, names):
    assert list(rows_of(*overrides)) == names


@pytest.mark.parametrize("value", ["runs/lr=1e-3/final", "a#1", "~/x", "it's", "é"])
def test_a_text_that_is_no_value_of_the_grammar_is_one_value(value):
    override = f"model.checkpoint={value}"
    assert rows_of("experiment=a,/b/c.yaml", override) == {
        "a": ["experiment=a", override],
        "c": ["experiment=/b/c.yaml", override],
    }


def test_overrides_are_kept_as_they_were_written():
    written = "loss.teacher_checkpoint=${paths.runs}/toy/instruct/final"
    assert rows_of("experiment=a,b", written)["a"] == ["experiment=a", written]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["a=[1"], "cannot be read as overrides"), (["a='x y','x=y'"], "two combinations are named 'run-a_x_y'")],
)
def test_what_is_no_grid_is_refused(overrides, message):
    with pytest.raises(SettingsError, match=message) as refused:
        grid(overrides)
    assert "\n" not in str(refused.value)
