"""What a run writes down while it goes: the rows of each step, metrics, a log of each process; rows are counted."""

import json
import signal
from pathlib import Path

import pytest

from tests.training.conftest import losses
from voco_llama.errors import Interrupted
from voco_llama.files import append_line, read_json_lines
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.build import build_processor, open_mixture
from voco_llama.training.run import order_of, train
from voco_llama.training.seen import EpochSeen, records_file, seen
from voco_llama.training.trainer import VoCoTrainer

ROWS, STEP_ROWS, EPOCH_STEPS = 42, 8, 5


def planned(settings, epoch: int) -> list[int]:
    """What the sampler says an epoch's rows are, in order."""
    processor = build_processor(settings)
    tokens = processor.num_vision + processor.num_voco
    order = order_of(open_mixture(settings), tokens, settings, GlobalBatch.of(settings, 1)).order(epoch)
    return order[: EPOCH_STEPS * STEP_ROWS].tolist()


def of_epoch(run: Path, epoch: int) -> list[int]:
    return [entry for of, entries in seen(run).steps.values() if of == epoch for entry in entries]


@pytest.mark.parametrize(
    "more",
    [
        ("data.keep_in_memory=true",),
        ("data.keep_in_memory=false", "trainer.dataloader_num_workers=2"),
        ("two_steps=false", "trainer.per_device_train_batch_size=4", "trainer.gradient_accumulation_steps=2"),
        (
            "data.share_media=4",
            "data.grouping=modality",
            "trainer.per_device_train_batch_size=4",
            "global_batch_size=8",
        ),
    ],
)
def test_the_rows_say_what_the_sampler_planned(settings_for, more, caplog):
    caplog.set_level("INFO", "voco_llama")  # as the command line does
    settings = settings_for("toy/voco_1", "trainer.max_steps=7", *more)
    train(settings)
    run = Path(settings.output_dir)
    assert of_epoch(run, 0) == planned(settings, 0)
    assert of_epoch(run, 1) == planned(settings, 1)[: 2 * STEP_ROWS]
    assert list(seen(run).epochs()) == [EpochSeen(0, 40, 0, 0), EpochSeen(1, 16, 0, 0)]
    metrics = list(read_json_lines(run / "metrics.jsonl"))
    assert [entry["loss"] for entry in metrics] == losses(run)
    assert all(entry["time"] > 1e9 and entry["step"] == step for step, entry in enumerate(metrics, 1))
    assert "step 7/7" in (run / "logs" / "rank_0.log").read_text()


def test_a_stand_in_is_named(settings_for, world, tmp_path):
    file = tmp_path / "train.json"
    records = json.loads((world / "instruct" / "train.json").read_text())
    records[3]["conversations"] = []
    file.write_text(json.dumps(records))
    source = f"[{{format: llava_json, file: {file}, media_folder: {world}/instruct/images}}]"
    more = ("data.skip_bad_records=true", "trainer.max_steps=5", f"data.sources={source}")
    settings = settings_for("toy/voco_1", *more)
    train(settings)
    run, mixture = Path(settings.output_dir), open_mixture(settings)
    bad = next(entry for entry in range(ROWS) if mixture.origin(entry) == (0, 3))
    lines = [line for line in read_json_lines(records_file(run, 0)) if bad in line.get("records", ())]
    stood_in = next(record for record in mixture._candidates(0, 3) if record != 3)
    assert [line["stood_in"] for line in lines] == [{str(bad): stood_in}]
    assert list(seen(run).epochs()) == [EpochSeen(0, 40, 0, 0)]


def test_nothing_is_lost_or_repeated_by_a_kill_and_a_signal(settings_for, monkeypatch, caplog):
    """Killed in the sixth step, a step after its last checkpoint; then asked to end in the seventh."""
    caplog.set_level("INFO", "voco_llama")
    settings = settings_for("toy/voco_1", "trainer.max_steps=9", "trainer.save_strategy=steps", "trainer.save_steps=4")
    run, method = Path(settings.output_dir), VoCoTrainer.training_step

    def at(step: int, ends: BaseException | int):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == step - 1:
                if isinstance(ends, BaseException):
                    raise ends
                signal.raise_signal(ends)
            return method(self, *args, **kwargs)

        monkeypatch.setattr(VoCoTrainer, "training_step", training_step)

    at(6, MemoryError())
    with pytest.raises(MemoryError):
        train(settings)
    assert seen(run).last == 5
    with records_file(run, 0).open("a") as file:
        file.write('{"step": 6, "epo')
    at(7, signal.SIGUSR1)
    with pytest.raises(Interrupted, match="SIGUSR1: .*checkpoint-7 was written") as caught:
        train(settings)
    assert caught.value.status == 138
    assert seen(run).last == 7
    monkeypatch.undo()
    train(settings)
    assert list(seen(run).epochs()) == [EpochSeen(0, 40, 0, 0), EpochSeen(1, 32, 0, 0)]
    assert of_epoch(run, 0) == planned(settings, 0)
    steps = [entry["step"] for entry in read_json_lines(run / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9]
    assert (run / "logs" / "rank_0.log").read_text().count(" begins") == 3


def write(run: Path, process: int, *lines: dict) -> None:
    file = records_file(run, process)
    file.parent.mkdir(exist_ok=True)
    for line in lines:
        append_line(file, line)


def begins(step: int, processes: int, epoch_rows: int = 8) -> dict:
    return {"start": step, "process": 1, "processes": processes, "epoch_rows": epoch_rows, "step_rows": 4}


def step(number: int, epoch: int, *entries: int) -> dict:
    return {"step": number, "epoch": epoch, "records": list(entries)}


def test_lost_and_repeated_rows_are_counted(tmp_path):
    write(tmp_path, 0, begins(0, 1), step(1, 0, 0, 1, 2, 3), step(2, 0, 4, 5, 6, 3), step(3, 1, 7, 6, 5, 4))
    assert list(seen(tmp_path).epochs()) == [EpochSeen(0, 8, 1, 1), EpochSeen(1, 4, 0, 0)]
    assert list(seen(tmp_path, up_to=1).epochs()) == [EpochSeen(0, 4, 0, 0)]
    write(tmp_path, 0, step(5, 2, 0, 1, 2, 3))
    assert list(seen(tmp_path).epochs())[1] == EpochSeen(1, 4, 4, 0)


def test_a_step_that_a_process_did_not_write_down_is_lost_where_it_counts(tmp_path):
    write(tmp_path, 0, begins(0, 2), step(1, 0, 0, 1), step(2, 0, 4, 5))
    write(tmp_path, 1, begins(0, 2), step(1, 0, 2, 3))
    assert list(seen(tmp_path).epochs()) == [EpochSeen(0, 4, 0, 0)]
    assert list(seen(tmp_path, up_to=2).epochs()) == [EpochSeen(0, 6, 2, 0)]


def test_fewer_processes_may_go_on(tmp_path):
    """The second process got further than the checkpoint, and is not there any more."""
    write(tmp_path, 0, begins(0, 2), step(1, 0, 0, 1))
    write(tmp_path, 1, begins(0, 2), step(1, 0, 2, 3), step(2, 0, 6, 7))
    for process in range(2):
        write(tmp_path, process, begins(1, 1))
    write(tmp_path, 0, step(2, 0, 4, 5, 6, 7))
    assert list(seen(tmp_path).epochs()) == [EpochSeen(0, 8, 0, 0)]


def test_damaged_lines_are_passed_over(tmp_path):
    write(tmp_path, 0, begins(0, 1), {"step": "x"}, {"start": None}, step(1, 0, 0, 1, 2, 3), {"step": 2})
    assert list(seen(tmp_path).epochs()) == [EpochSeen(0, 4, 0, 0)]
    assert list(seen(tmp_path / "nothing").epochs()) == []
