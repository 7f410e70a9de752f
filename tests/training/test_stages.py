"""The one function that decides what trains, and its table."""

import pytest
import torch
from torch import nn

from voco_llama.training.stages import (
    ModuleCount,
    count_parameters,
    format_table,
    give_learning_rate,
    part_parameters,
    set_trainable,
)


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
def test_only_what_is_named_trains(trains, trained):
    model = Model().requires_grad_(False)
    table = set_trainable(model, trains)
    sizes = {"vision": 9, "language_model": 20, "projector": 16}  # tied weights count once
    assert table == [
        ModuleCount(name, trained.get(name, 0), size - trained.get(name, 0)) for name, size in sizes.items()
    ]
    for name, child in model.named_children():
        assert {p.requires_grad for p in child.parameters()} == {name in trained}


def test_a_model_may_have_parameters_of_its_own():
    model = Model()
    model.logit_scale = nn.Parameter(torch.zeros(()))
    assert [count.module for count in count_parameters(model)] == [
        "vision",
        "language_model",
        "projector",
        "logit_scale",
    ]
    assert count_parameters(model)[-1] == ModuleCount("logit_scale", 1, 0)


def test_the_table_has_sums_and_columns():
    assert format_table([ModuleCount("a", 1000, 0), ModuleCount("long", 1, 22)]).splitlines() == [
        "  module      trained    frozen",
        "  a             1,000         0",
        "  long              1        22",
        "  all           1,001        22",
    ]


def test_a_part_has_its_learning_rate_and_all_else_of_its_groups():
    model = Model()
    matrices, rest = [model.language_model[0].weight, model.projector.weight], [model.projector.bias]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}], 1.0
    )
    give_learning_rate(optimizer, part_parameters(model, "projector"), 0.25)
    found = [(group["params"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert len(found) == 3  # the second had nothing else in it
    assert found[0][0][0] is matrices[0]
    assert found[0][1:] == (1.0, 0.3)
    assert found[1][0][0] is matrices[1]
    assert found[1][1:] == (0.25, 0.3)
    assert found[2][0][0] is rest[0]
    assert found[2][1:] == (0.25, 0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert scheduler.get_last_lr() == [0.5, 0.125, 0.125]
