"""Going on with another division of the same global batch in one process; what cannot be, and what it says then."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.conftest import losses, settings_in
from tests.training.test_checkpoints import killed_in
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.sharding.carry import set_states
from voco_llama.sharding.states import MASTER, read_states
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.manifest import MANIFEST_FILE, Manifest
from voco_llama.training.resuming import ResumingTrainer, going_on, is_carried
from voco_llama.training.run import train
from voco_llama.training.run_folder import RunFolder
from voco_llama.training.sampling import GroupedSampler
from voco_llama.training.seen import seen
from voco_llama.training.trainer import VoCoTrainer

STEPS = ("trainer.max_steps=8", "trainer.save_strategy=steps", "trainer.save_steps=2", "optimizer=trainer")
ALL_THAT_GOES_BY_ROWS = ("compression.num_voco=4", "compression.num_voco_choices=[1,2,4]", "data.share_media=2")


@pytest.fixture(scope="module")
def cut(world, tmp_path_factory) -> Path:
    """A run of passes of 8 rows, killed after step 5; it has checkpoints 2 and 4."""
    run = tmp_path_factory.mktemp("cut") / "run"
    with killed_in(VoCoTrainer, "training_step", 5):
        train(settings_in(world, run, "toy/voco_1", *STEPS, *ALL_THAT_GOES_BY_ROWS))
    return run


@pytest.fixture
def settings_of(cut, settings_for):
    """Settings for a copy of it."""

    def make(*overrides: str):
        settings = settings_for("toy/voco_1", *STEPS, *ALL_THAT_GOES_BY_ROWS, *overrides)
        if not Path(settings.output_dir).exists():
            shutil.copytree(cut, settings.output_dir)
        return settings

    return make


def test_a_division_of_the_same_global_batch_goes_on(cut, settings_of, settings_for, tmp_path):
    """42 records end after 40 rows in passes of 8, after 42 in passes of 2: the epoch stays as long as it was."""
    whole = settings_for("toy/voco_1", *STEPS, *ALL_THAT_GOES_BY_ROWS, f"output_dir={tmp_path}/whole")
    train(whole)
    divided = settings_of("trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=4")
    train(divided)
    assert len(losses(tmp_path / "whole")) == 8
    np.testing.assert_allclose(losses(Path(divided.output_dir)), losses(tmp_path / "whole"), rtol=1e-4)
    origin = Manifest.read(Path(divided.output_dir) / "checkpoint-8").origin
    assert (origin.batch.rows, origin.batch.accumulation, origin.rows_an_epoch) == (2, 4, 40)
    assert Manifest.read(Path(divided.output_dir) / "checkpoint-8").position() == {"epoch": 1, "rows": 24}
    starts = json.loads((Path(divided.output_dir) / "environment.json").read_text())
    assert [start["rows_a_step"] for start in starts] == [8, 8]


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.per_device_train_batch_size=4"],
        ["trainer.gradient_accumulation_steps=2"],
        ["global_batch_size=16"],
        ["global_batch_size=8", "trainer.learning_rate=1.0e-3"],
    ],
)
def test_another_global_batch_or_learning_rate_is_refused(settings_of, overrides):
    with pytest.raises(SettingsError, match=r"run holds a run with other settings: \S+ \("):
        train(settings_of(*overrides))


def test_a_run_of_other_processes_is_the_same_run(settings_of, monkeypatch):
    """As a sweep asks for it, which is not started as its trainings are; and as torchrun starts it."""
    settings = settings_of()
    file = Path(settings.output_dir) / "environment.json"
    (start,) = json.loads(file.read_text())
    file.write_text(json.dumps([start | {"processes": 2, "rows_a_step": 16}]))
    assert not RunFolder(settings).is_finished()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not RunFolder(settings).is_finished()
    assert not RunFolder(settings_of("trainer.per_device_train_batch_size=4", "global_batch_size=16")).is_finished()
    monkeypatch.delenv("WORLD_SIZE")
    assert not RunFolder(settings_of("trainer.deepspeed={zero_optimization:{stage:2}}")).is_finished()
    with pytest.raises(SettingsError, match="other settings"):
        RunFolder(settings_of("trainer.per_device_train_batch_size=4", "global_batch_size=8")).is_finished()


@pytest.fixture
def made(cut):
    return Manifest.read(cut / "checkpoint-4").origin


def test_what_a_checkpoint_was_made_with_is_asked_for(cut, made):
    def goes_on(**batch):
        return going_on(replace(made, batch=GlobalBatch(drop_last=True, **batch)), cut / "checkpoint-4")

    assert going_on(made, None) == made
    assert goes_on(processes=2, rows=2, accumulation=2).rows_an_epoch == 40
    refused = (
        r"^\S+checkpoint-4 was made with a global batch of 8 rows = 1 processes x 8 rows x 1 accumulated, and now it"
    )
    with pytest.raises(SettingsError, match=rf"{refused} is 16 rows = .*: set global_batch_size=8, or choose another"):
        goes_on(processes=2, rows=8)
    (cut / "checkpoint-4" / MANIFEST_FILE).rename(cut / "aside")
    assert goes_on(processes=2, rows=8)  # older than manifests
    (cut / "aside").rename(cut / "checkpoint-4" / MANIFEST_FILE)


PLAIN, ZERO_2, FSDP, OFFLOADED = "PyTorch", "DeepSpeed 2", "FSDP", "DeepSpeed 3 with offloading"


@pytest.mark.parametrize(
    ("there", "here", "expected"),
    [
        ((PLAIN, 1), (PLAIN, 2), False),
        ((PLAIN, 1), (FSDP, 1), True),
        ((FSDP, 2), (PLAIN, 2), True),
        ((FSDP, 2), (FSDP, 2), True),
        ((ZERO_2, 2), (ZERO_2, 2), False),
        ((ZERO_2, 2), (ZERO_2, 4), True),
        ((ZERO_2, 2), ("DeepSpeed 3", 2), True),
        ((OFFLOADED, 2), (OFFLOADED, 2), False),
        ((OFFLOADED, 2), (OFFLOADED, 4), None),
        (("DeepSpeed 3", 2), (OFFLOADED, 2), None),
    ],
)
def test_what_is_carried_over_and_what_its_backend_loads(made, tmp_path, there, here, expected):
    """None: refused, for nothing is known of what is offloaded."""
    there, here = (replace(made, backend=name, batch=GlobalBatch(n, 8 // n)) for name, n in (there, here))
    assert is_carried(there, here) is (expected is not False)
    (tmp_path / "checkpoint-4").mkdir()
    Manifest(4, there).write(tmp_path / "checkpoint-4")
    if expected is None:
        with pytest.raises(SettingsError, match=r"what is offloaded cannot be carried over .*: go on as it was made$"):
            going_on(here, tmp_path / "checkpoint-4")
    else:
        going_on(here, tmp_path / "checkpoint-4")


@pytest.mark.parametrize(
    ("rows_an_epoch", "batch", "advice"),
    [
        (36, {"processes": 2, "rows": 4}, "set trainer.per_device_train_batch_size=2 and global_batch_size=8"),
        (36, {"processes": 8, "rows": 1}, "use 1 processes"),
    ],
)
def test_an_epoch_that_would_end_elsewhere_is_refused(cut, made, tmp_path, rows_an_epoch, batch, advice):
    """As after passes of 4 rows, of which an epoch of 36 rows may end with half a global batch."""
    (tmp_path / "checkpoint-4").mkdir()
    Manifest(4, replace(made, rows_an_epoch=rows_an_epoch)).write(tmp_path / "checkpoint-4")
    now = replace(made, batch=GlobalBatch(drop_last=True, **batch))
    with pytest.raises(SettingsError, match=rf"^an epoch of \S+ has 36 rows, .* do not end there: {advice}$"):
        going_on(now, tmp_path / "checkpoint-4")


def test_rows_of_an_epoch_are_cut_or_come_again():
    order = GroupedSampler("none", np.ones(10), np.zeros(10), 4, seed=0)
    whole = list(order)
    for rows in (8, 12):
        order.rows = rows
        assert list(order) == (whole + whole)[:rows]
        assert len(order) == rows


class Probe(ResumingTrainer):
    """Nothing but what its random numbers need."""

    def __init__(self, origin, process: int, processes: int) -> None:
        self.origin = origin
        self.args = type("Arguments", (), {"seed": 0, "process_index": process, "world_size": processes})


def test_random_numbers_of_other_processes_follow_from_seed_step_and_process(cut, made, caplog):
    def drawn(process: int, step: int) -> float:
        with caplog.at_level("INFO"):
            Probe(made, process, 2)._load_rng_state(str(cut / f"checkpoint-{step}"))
        return float(torch.rand(()))

    before = torch.get_rng_state()
    assert drawn(0, 2) == drawn(0, 2)
    assert len({drawn(0, 2), drawn(1, 2), drawn(0, 4)}) == 3
    assert "random numbers of process 1 go on from seed" in caplog.text
    torch.set_rng_state(before)


@pytest.mark.parametrize("is_half", [False, True])
def test_states_of_pytorch_are_carried_by_name(tmp_path, is_half):
    """Into an optimizer with other groups; what is kept in float32 elsewhere becomes what the weight is here."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(torch.bfloat16 if is_half else torch.float32)
    there = torch.optim.AdamW([{"params": model[1].parameters()}, {"params": model[0].parameters()}], lr=0.1)
    model(torch.ones(1, 3, dtype=model[0].weight.dtype)).sum().backward()
    there.step()
    torch.save(there.state_dict(), tmp_path / "optimizer.pt")
    states = read_states(tmp_path, "PyTorch", [["1.weight", "1.bias"], ["0.weight", "0.bias"]])
    here = torch.optim.AdamW(model.parameters(), lr=0.1)
    set_states(model, here, states)
    for parameter in model.parameters():
        for key, value in there.state[parameter].items():
            torch.testing.assert_close(here.state[parameter][key], value, rtol=0, atol=0)
    masters = {name: torch.full_like(each, 7, dtype=torch.float32) for name, each in model.named_parameters()}
    set_states(model, here, {name: lambda n=name: states[n]() | {MASTER: masters[n]} for name in masters})
    assert all(bool((each == 7).all()) for each in model.parameters())


def test_another_optimizer_than_adamw_is_not_carried_over(tmp_path):
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match="its optimizer keeps momentum_buffer, and only AdamW's state can go"):
        read_states(tmp_path, "PyTorch", [["weight", "bias"]])


@pytest.mark.slow
def test_an_epoch_stays_as_long_however_often_a_run_goes_on(settings_of, settings_for, tmp_path):
    """Going on a second time in passes of 2 is no change of division any more; nor does the log of records say so."""
    steps = (*STEPS, "trainer.max_steps=12")
    whole = settings_for("toy/voco_1", *steps, *ALL_THAT_GOES_BY_ROWS, f"output_dir={tmp_path}/whole")
    train(whole)
    small = ("trainer.max_steps=12", "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=4")
    run = tmp_path / "run"
    with killed_in(VoCoTrainer, "training_step", 5):
        train(settings_for("toy/voco_1", *steps, *ALL_THAT_GOES_BY_ROWS, f"output_dir={run}"))
    again = settings_for("toy/voco_1", *STEPS, *ALL_THAT_GOES_BY_ROWS, *small, f"output_dir={run}")
    with killed_in(VoCoTrainer, "training_step", 3 * 4):
        train(again)
    train(again)
    np.testing.assert_allclose(losses(run), losses(tmp_path / "whole"), rtol=1e-4)
    assert [(epoch.rows, epoch.lost, epoch.repeated) for epoch in seen(run).epochs()][:2] == [(40, 0, 0), (40, 0, 0)]
    assert {step: rows for step, (_, rows) in seen(run).steps.items()} == {
        step: rows for step, (_, rows) in seen(tmp_path / "whole").steps.items()
    }


@pytest.mark.parametrize("other", ["seed=7", "trainer.learning_rate=1.0e-3", "data.sources.0.limit=20"])
def test_a_checkpoint_that_is_named_was_made_with_the_same_settings(cut, settings_for, tmp_path, other):
    named = (f"resume={cut}/checkpoint-4", f"output_dir={tmp_path}/other")
    with pytest.raises(SettingsError, match="checkpoint-4 was made with other settings, seed or data"):
        train(settings_for("toy/voco_1", *STEPS, *ALL_THAT_GOES_BY_ROWS, *named, other))


def test_what_is_older_than_manifests_goes_on_as_it_was_made(tmp_path, cut):
    origin = Manifest.read(cut / "checkpoint-4").origin
    folder = shutil.copytree(cut / "checkpoint-4", tmp_path / "checkpoint-4")
    (folder / MANIFEST_FILE).unlink()
    assert going_on(origin, folder) == origin
    with pytest.raises(SettingsError, match="is older than manifests and was made under PyTorch"):
        going_on(replace(origin, backend="DeepSpeed 2"), folder)
    (folder / "latest").write_text("global_step4")
    with pytest.raises(SettingsError, match="is older than manifests and was made under DeepSpeed"):
        going_on(origin, folder)
