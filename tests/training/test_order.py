"""The very records that a training sees, in their order: with and without a kill, in one process and in two."""

import json
from itertools import chain
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from tests.data.tables import LLAVA_TYPES, llava_rows, stored, written
from tests.training.conftest import losses
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.readers import hf_dataset
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.build import open_mixture
from voco_llama.training.run import order_of, train
from voco_llama.training.sampling import StreamSampler
from voco_llama.training.trainer import VoCoTrainer

RECORDS, BATCH, ACCUMULATION = 23, 3, 2
STEPS_AN_EPOCH = 4  # 7 batches of 3, the last step has one; 2 records are left over
STEPS = 10

pytestmark = pytest.mark.usefixtures("arrow_cache")


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.fixture
def table(tmp_path) -> Path:
    """Records numbered by their ids, about three images, in row groups of two."""
    rows = llava_rows(RECORDS)
    shared = [None if image is None else stored(i // 9) for i, image in enumerate(rows["image"])]
    return written(tmp_path, rows | {"id": [str(i) for i in range(RECORDS)], "image": shared}, LLAVA_TYPES)


@pytest.fixture
def settings_of(settings_for, table, tmp_path):
    def make(name: str, *overrides: str):
        return settings_for(
            "toy/voco_1",
            f"data.sources=[{{format: hf_dataset, file: {table}}}]",
            "data.keep_in_memory=false",
            "optimizer=trainer",
            f"trainer.per_device_train_batch_size={BATCH}",
            f"trainer.gradient_accumulation_steps={ACCUMULATION}",
            f"trainer.max_steps={STEPS}",
            f"output_dir={tmp_path / name}",
            *overrides,
        )

    return make


@pytest.fixture
def seen(monkeypatch):
    """Trains without computing anything: the step and the numbers of the records of each micro-batch, in order."""
    row = VoCoProcessor.row

    def numbered_row(self, record):
        return row(self, record) | {"number": torch.tensor([int(record.id)])}  # the collator joins them

    monkeypatch.setattr(VoCoProcessor, "row", numbered_row)

    def run(settings, kill_at: int = -1) -> list[tuple[int, list[int]]]:
        batches = []

        def step(self, model, inputs, *args, **kwargs):
            if self.state.global_step == kill_at:
                raise Killed
            batches.append((self.state.global_step, inputs["number"].tolist()))
            return torch.zeros(())

        monkeypatch.setattr(VoCoTrainer, "training_step", step)
        if kill_at < 0:
            train(settings)
        else:
            with pytest.raises(Killed):
                train(settings)
        return batches

    return run


def epochs_of(batches: list[tuple[int, list[int]]]) -> list[list[int]]:
    epochs = [[] for _ in range(-(-STEPS // STEPS_AN_EPOCH))]
    for step, numbers in batches:
        epochs[step // STEPS_AN_EPOCH] += numbers
    return epochs


ORDERS = {
    "none": ("data.grouping=none",),
    "length": ("data.grouping=length",),
    "modality": ("data.grouping=modality", f"data.share_media={BATCH}"),
    "stream": ("data.grouping=none", "data.streaming=true", "data.shuffle_buffer=4"),
}


@pytest.mark.parametrize(
    ("order", "workers"),
    [
        *(pytest.param(order, 0, marks=() if order == "stream" else pytest.mark.slow) for order in ORDERS),
        *(pytest.param(order, 2, marks=pytest.mark.slow) for order in ORDERS),
    ],
)
def test_a_killed_run_goes_on_with_the_record_it_would_have_seen(settings_of, seen, order, workers):
    overrides = (*ORDERS[order], f"trainer.dataloader_num_workers={workers}")
    whole = seen(settings_of("whole", *overrides))
    assert [step for step, _ in whole] == [0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6, 7, 8, 8, 9, 9]
    first, second, third = epochs_of(whole)
    assert len(set(first)) == len(first) == len(set(second)) == len(second) == 21  # nothing twice, 2 left over
    assert len(set(third)) == len(third) == 12
    assert first != second
    for saved, killed in ((STEPS_AN_EPOCH, 5), (5, 7)):  # between two epochs, and inside one
        saving = (*overrides, "trainer.save_strategy=steps", f"trainer.save_steps={saved}")
        before = seen(settings_of(f"killed{saved}", *saving), kill_at=killed)
        assert before == [entry for entry in whole if entry[0] < killed]
        after = seen(settings_of(f"killed{saved}", *saving))
        assert after == [entry for entry in whole if entry[0] >= saved]


def test_an_epoch_of_a_stream_reads_each_row_group_once(settings_of, monkeypatch):
    settings = settings_of("any", *ORDERS["stream"], "data.sources.0.weight=0.8")
    read, group = [], hf_dataset._read_group
    monkeypatch.setattr(hf_dataset, "_read_group", lambda *args: read.append(args[1]) or group(*args))
    mixture = open_mixture(settings)
    seen = [int(mixture[i].id) for i in StreamSampler(mixture, settings.data.shuffle_buffer, settings.seed)]
    assert len(set(seen)) == len(seen) == 18
    assert sorted(read) == sorted({number // 2 for number in seen})


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(settings_of, seen):
    runs = [seen(settings_of(f"w{n}", *ORDERS["stream"], f"trainer.dataloader_num_workers={n}")) for n in (0, 1, 2)]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_two_processes_share_the_order_of_one(settings_of, order, drop_last):
    """The loaders that the Trainer has `accelerate` make for each process, over indices alone."""
    settings = settings_of("any", *ORDERS[order])
    mixture = open_mixture(settings)
    sampler = order_of(mixture, 5, settings, GlobalBatch(2, BATCH, ACCUMULATION, drop_last))

    def batches(processes: int, rank: int, epoch: int, skipped: int = 0) -> list[list[int]]:
        loader = DataLoader(
            range(RECORDS), batch_size=2 * BATCH // processes, sampler=sampler, drop_last=drop_last, collate_fn=list
        )
        loader = prepare_data_loader(loader, num_processes=processes, process_index=rank)
        loader = skip_first_batches(loader, skipped) if skipped else loader
        sampler.set_epoch(epoch)
        loader.set_epoch(epoch)
        return list(loader)

    for epoch in range(2):
        order_of_epoch = sampler.order(epoch).tolist()
        assert sorted(order_of_epoch) == list(range(RECORDS))
        (alone,) = (batches(1, 0, epoch),)
        shared = [batches(2, rank, epoch) for rank in range(2)]
        whole = RECORDS // (2 * BATCH)
        assert list(chain(*alone[:whole])) == order_of_epoch[: whole * 2 * BATCH]
        assert [a + b for a, b in zip(*shared, strict=True)][:whole] == alone[:whole]
        assert len(shared[0]) == whole + (not drop_last)
        if not drop_last:  # all are seen; the last batches are filled up from the first ones
            assert set(chain(*shared[0], *shared[1])) == set(range(RECORDS))
        for skipped in (1, 2):
            assert [batches(2, rank, epoch, skipped) for rank in range(2)] == [part[skipped:] for part in shared]


def test_a_bad_record_of_a_stream_is_left_out_and_listed(settings_of, seen, tmp_path):
    rows = llava_rows(RECORDS) | {"id": [str(i) for i in range(RECORDS)]}
    rows["image"][7] = {"bytes": b"nothing", "path": "7.png"}
    file = written(tmp_path, rows, LLAVA_TYPES, "bad.parquet")
    overrides = (*ORDERS["stream"], f"data.sources.0.file={file}", "data.skip_bad_records=true")
    whole = seen(settings_of("skipping", *overrides))
    numbers = [number for _, numbers in whole for number in numbers]
    assert 7 not in numbers
    good = seen(settings_of("good", *ORDERS["stream"]))
    replaced = [9 if number == 7 else number for _, numbers in good for number in numbers]
    assert numbers == replaced  # 8 is text-only
    (bad,) = json.loads((tmp_path / "skipping" / "result.json").read_text())["bad_records"]
    assert bad["error"].startswith(f"{file} record 7 (id '7'): image {file} row 7 column image: not an image")


@pytest.mark.parametrize("streaming", [False, True])
def test_two_steps_from_a_table(settings_of, tmp_path, streaming):
    settings = settings_of("trained", *ORDERS["stream" if streaming else "none"], "trainer.max_steps=2")
    final = train(settings)
    assert len(losses(tmp_path / "trained")) == 2
    assert VoCoProcessor.from_pretrained(final)
    inputs = json.loads((tmp_path / "trained" / "inputs.json").read_text())
    assert inputs.keys() >= {"data.sources.0.file"}


def test_the_curve_does_not_depend_on_where_the_records_stand(settings_of, settings_for, table, tmp_path):
    """The records of a table and of a JSON file, through a whole training."""
    rows = pq.read_table(table).to_pylist()
    (tmp_path / "images").mkdir()
    for row in rows:
        if row["image"] is None:
            del row["image"]
        else:
            (tmp_path / "images" / row["image"]["path"]).write_bytes(row["image"]["bytes"])
            row["image"] = row["image"]["path"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = f"{{format: llava_json, file: {tmp_path / 'rows.json'}, media_folder: {tmp_path / 'images'}}}"
    train(settings_of("table", "trainer.max_steps=2"))
    train(settings_of("json", f"data.sources=[{source}]", "trainer.max_steps=2"))
    assert losses(tmp_path / "table") == losses(tmp_path / "json")
