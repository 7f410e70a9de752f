"""The one function that decides what trains, and its table."""

import pytest
from torch import nn

from voco_llama.errors import SettingsError
from voco_llama.training.stages import ModuleCount, format_table, set_trainable


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision = nn.Linear(2, 3)
        self.language_model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
        self.projector = nn.Linear(3, 4)
        self.language_model[1].weight = self.language_model[0].weight


@pytest.mark.parametrize(
    ("trains", "trained"),
    [
        (["projector"], {"projector": 16}),
        (["language"], {"language_model": 20}),
        (["projector", "language"], {"projector": 16, "language_model": 20}),
    ],
)
def test_only_what_is_named_trains(trains, trained, caplog):
    caplog.set_level("INFO")
    model = Model().requires_grad_(False)
    table = set_trainable(model, trains)
    sizes = {"vision": 9, "language_model": 20, "projector": 16}  # tied weights count once
    assert table == [
        ModuleCount(name, trained.get(name, 0), size - trained.get(name, 0)) for name, size in sizes.items()
    ]
    for name, child in model.named_children():
        assert {p.requires_grad for p in child.parameters()} == {name in trained}
    assert format_table(table) in caplog.text


def test_the_table_has_sums_and_columns():
    assert format_table([ModuleCount("a", 1000, 0), ModuleCount("long", 1, 22)]).splitlines() == [
        "  module  trained  frozen",
        "  a         1,000       0",
        "  long          1      22",
        "  all       1,001      22",
    ]


def test_an_unknown_part():
    with pytest.raises(SettingsError, match="choose from vision, projector, language"):
        set_trainable(Model(), ["eyes"])
