"""Runs that must give one and the same loss curve, and what a run leaves behind."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.training.conftest import losses
from voco_llama.data.processor import VoCoProcessor
from voco_llama.errors import DataError, SettingsError, own_line
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.training.build import build_or_load
from voco_llama.training.run import train
from voco_llama.training.trainer import VoCoTrainer


def curve_of(settings_for, name: str, *overrides: str, experiment: str = "toy/voco_1") -> list[float]:
    settings = settings_for(experiment, *overrides)
    settings.output_dir = f"{settings.output_dir}_{name}"
    train(settings)
    return losses(Path(settings.output_dir))


def test_the_same_seed_gives_the_same_curve(settings_for, plain):
    assert len(plain) == 4
    assert curve_of(settings_for, "again") == plain
    assert curve_of(settings_for, "other", "seed=1") != plain


@pytest.mark.parametrize(
    "overrides",
    [
        # unequal numbers of trained tokens in the micro-batches, and text-only micro-batches among them
        ("trainer.per_device_train_batch_size=4", "trainer.gradient_accumulation_steps=2"),
        ("trainer.per_device_train_batch_size=1", "trainer.gradient_accumulation_steps=8"),
        ("trainer.per_device_train_batch_size=2", "global_batch_size=8"),
        ("trainer.gradient_checkpointing=true",),
        ("trainer.dataloader_num_workers=2", "data.keep_in_memory=false"),
        ("data.keep_in_memory=true", "trainer.dataloader_num_workers=0"),
        ("model.attention=eager",),
    ],
    ids=["4x2", "1x8", "2 of 8", "checkpointing", "workers", "kept", "eager"],
)
def test_what_must_not_change_the_curve(settings_for, plain, overrides):
    torch.testing.assert_close(curve_of(settings_for, "varied", *overrides), plain, rtol=1e-5, atol=1e-6)


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def test_a_killed_run_goes_on_to_the_same_curve(settings_for, monkeypatch, caplog):
    more = ("trainer.max_steps=8", "trainer.save_strategy=steps", "trainer.save_steps=3")
    more += ("projector_learning_rate=1e-3",)
    whole = curve_of(settings_for, "whole", *more)

    settings = settings_for("toy/voco_1", *more)
    step = VoCoTrainer.training_step

    def killed_at_step_5(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise Killed
        return step(self, *args, **kwargs)

    monkeypatch.setattr(VoCoTrainer, "training_step", killed_at_step_5)
    with pytest.raises(Killed):
        train(settings)
    monkeypatch.undo()
    run = Path(settings.output_dir)
    assert not (run / "result.json").exists()
    (run / "checkpoint-4").mkdir()  # killed while it was written: no trainer_state.json yet

    train(settings)
    # 42 rows make 5 batches of 8: the run was killed inside the first epoch and ends in the second
    assert losses(run) == whole
    assert "checkpoint-4 was not written to its end" in caplog.text
    assert len(json.loads((run / "environment.json").read_text())) == 2


@pytest.mark.parametrize("optimizer", ["muon", "trainer"])
def test_the_optimizer_is_the_one_that_is_set(settings_for, optimizer):
    settings = settings_for(
        "toy/instruct", f"optimizer={optimizer}", "trainer.save_strategy=steps", "trainer.save_steps=4"
    )
    train(settings)
    saved = torch.load(Path(settings.output_dir) / "checkpoint-4" / "optimizer.pt", weights_only=True)
    kept = [set(state) for state in saved["state"].values()]
    adamw, muon = {"step", "exp_avg", "exp_avg_sq"}, {"step", "momentum"}
    assert adamw in kept
    assert (muon in kept) == (optimizer == "muon")


@pytest.mark.parametrize("optimizer", ["trainer", "muon"])
@pytest.mark.slow
def test_the_projector_may_have_its_own_learning_rate(settings_for, optimizer):
    """After one step, which is proportional to the rate, the projector has gone half as far, all else as far."""

    def trained(rate: float, projector_rate: str):
        settings = settings_for(
            "toy/instruct", f"optimizer={optimizer}", "trainer.max_steps=1", f"trainer.learning_rate={rate}",
            "trainer.lr_scheduler_type=constant", "trainer.warmup_steps=0", f"projector_learning_rate={projector_rate}",
        )  # fmt: skip
        settings.output_dir += f"_{rate}_{projector_rate}"
        return VoCoLlama.from_pretrained(train(settings)).state_dict()

    start, same, halved = trained(0.0, "null"), trained(3e-3, "null"), trained(3e-3, "1.5e-3")
    for name in ("projector.0.weight", "projector.2.bias", "language_model.model.layers.0.mlp.up_proj.weight"):
        step = 0.5 if name.startswith("projector") else 1.0
        assert not torch.equal(same[name], start[name])
        torch.testing.assert_close(halved[name] - start[name], step * (same[name] - start[name]), atol=1e-7, rtol=1e-3)


def test_a_finished_run_is_left_as_it_is(settings_for, monkeypatch, caplog):
    settings = settings_for("toy/align")
    final = train(settings)
    result = (final.parent / "result.json").stat().st_mtime_ns
    monkeypatch.setattr("voco_llama.training.run.build_or_load", None)
    caplog.set_level("INFO", "voco_llama")
    assert train(settings) == final
    assert (final.parent / "result.json").stat().st_mtime_ns == result
    assert "is finished: nothing to do" in caplog.text

    with pytest.raises(SettingsError, match="other settings: seed \\(0 there, 5 now\\): choose another output_dir"):
        train(settings_for("toy/align", "seed=5"))
    with pytest.raises(SettingsError, match="resume=never"):
        train(settings_for("toy/align", "resume=never"))
    train(settings_for("toy/align", "trainer.logging_steps=7"))


def test_a_run_older_than_a_setting_had_its_default(settings_for):
    settings = settings_for("toy/align")
    final = train(settings)
    file = final.parent / "settings.yaml"
    saved = yaml.safe_load(file.read_text())
    del saved["loss"], saved["model"]["lora"], saved["data"]["index_folder"], saved["data"]["sources"][0]["archives"]
    file.write_text(yaml.safe_dump(saved))
    assert train(settings) == final
    with pytest.raises(SettingsError, match=r"other settings: loss.lm \(1.0 there, 0.5 now\): choose another"):
        train(settings_for("toy/align", "loss.lm=0.5"))


def test_a_finished_run_whose_start_was_trained_anew_is_not_taken_for_its_result(settings_for, tmp_path):
    first = settings_for("toy/language", f"output_dir={tmp_path / 'language'}")
    start = train(first)
    second = settings_for("toy/align", f"output_dir={tmp_path / 'align'}", f"model.checkpoint={start}")
    train(second)
    train(second)
    shutil.rmtree(tmp_path / "language")
    train(settings_for("toy/language", f"output_dir={tmp_path / 'language'}", "seed=1"))
    with pytest.raises(SettingsError, match=r"align holds a run on what model.checkpoint named then, and that has"):
        train(second)
    (tmp_path / "align" / "inputs.json").unlink()
    with pytest.raises(SettingsError, match=r"inputs.json: cannot be read .*: choose another output_dir"):
        train(second)


def test_the_card_says_what_the_run_did(settings_for):
    settings = settings_for("toy/voco_1")
    final = train(settings)
    card = (final / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "voco-llama"
    assert "base_model" not in head  # it started from files of this machine, which nobody else has
    (source,) = settings.data.sources
    result = json.loads((final.parent / "result.json").read_text())
    start = json.loads((final.parent / "environment.json").read_text())[-1]
    for line in (
        "condition `voco`, 1 VoCo tokens an image, stage `voco`",
        f"| `{source.file}` | llava_json | 1.0 | {len(json.loads(Path(source.file).read_text())):,} |",
        "- parts trained: projector, language",
        "- samples a step: 8",
        "- learning rate: 0.003",
        f"- commit: `{start['git_commit']}`",
        f"Training loss at step 4: {result['loss_curve'][-1]['loss']:.4f}.",
    ):
        assert line in re.sub(" +", " ", body), line


def test_what_a_run_leaves_behind(settings_for):
    settings = settings_for("toy/instruct")
    final = train(settings)
    run = final.parent
    saved = yaml.safe_load((run / "settings.yaml").read_text())
    assert saved["compression"] == dataclasses.asdict(settings.compression)
    assert (saved["compression"]["condition"], saved["compression"]["num_voco"]) == ("full", 1)
    (start,) = json.loads((run / "environment.json").read_text())
    assert start["seed"] == 0
    assert start["versions"]["torch"] == torch.__version__
    result = json.loads((run / "result.json").read_text())
    assert [entry["step"] for entry in result["loss_curve"]] == [1, 2, 3, 4]
    table = {row["module"]: row for row in result["parameters"]}
    assert table["vision"]["trained"] == table["language_model"]["frozen"] == table["projector"]["frozen"] == 0
    assert result["bad_records"] == []
    assert not list(final.glob("*.bin"))
    model, processor = VoCoLlama.from_pretrained(final), VoCoProcessor.from_pretrained(final)
    assert (model.config.condition, processor.condition) == ("full", "full")


def test_a_stage_starts_from_the_one_before_and_changes_only_what_it_trains(settings_for, tmp_path):
    first = train(settings_for("toy/language", f"output_dir={tmp_path / 'language'}"))
    second = train(settings_for("toy/align", f"output_dir={tmp_path / 'align'}", f"model.checkpoint={first}"))
    third = train(
        settings_for(
            "toy/video",
            f"output_dir={tmp_path / 'video'}",
            f"model.checkpoint={second}",
            "prompt.order=authors",
            "trainer.per_device_train_batch_size=4",
        )
    )
    states = [VoCoLlama.from_pretrained(folder).state_dict() for folder in (first, second, third)]

    def changed(before: dict, after: dict) -> set[str]:
        return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}

    assert changed(states[0], states[1]) == {"projector"}
    assert changed(states[1], states[2]) == {"projector", "language_model"}
    model, processor = VoCoLlama.from_pretrained(third), VoCoProcessor.from_pretrained(third)
    assert (model.config.condition, model.config.num_voco, processor.num_voco) == ("voco", 4, 4)
    assert model.config.segment_shape() == processor.segment_shape()
    assert model.config.segment_prefix_ids != []


Q_FORMER = ("compression=q_former_4", "compression.q_former={layers: 1, width: 16, heads: 2}")


def test_a_new_way_of_compressing_starts_anew_and_the_same_one_goes_on(settings_for, tmp_path):
    start = train(settings_for("toy/language", f"output_dir={tmp_path / 'language'}"))
    trained = train(settings_for("toy/voco_1", *Q_FORMER, f"model.checkpoint={start}"))
    before = VoCoLlama.from_pretrained(trained).state_dict()
    queries = "compressor.queries"
    result = json.loads((trained.parent / "result.json").read_text())
    table = {row["module"]: row for row in result["parameters"]}
    assert table["compressor"] == {"module": "compressor", "trained": table["compressor"]["trained"], "frozen": 0}
    assert table["compressor"]["trained"] == sum(v.numel() for k, v in before.items() if k.startswith("compressor."))

    same, processor = build_or_load(settings_for("toy/voco_1", *Q_FORMER, f"model.checkpoint={trained}"))
    assert torch.equal(same.state_dict()[queries], before[queries])
    assert processor.num_vision == 0
    fewer = (*Q_FORMER, "compression.num_voco=2")
    smaller, processor = build_or_load(settings_for("toy/voco_1", *fewer, f"model.checkpoint={trained}"))
    assert smaller.compressor.queries.shape[1] == 2
    back, processor = build_or_load(settings_for("toy/voco_1", f"model.checkpoint={trained}"))
    assert back.compressor is None
    assert back.config.q_former is None
    assert processor.num_vision == back.config.segment_shape().num_vision == 16
    distinct = ("compression=voco_2", "compression.voco_embeddings=distinct")
    offsets, _ = build_or_load(settings_for("toy/voco_1", *distinct, f"model.checkpoint={trained}"))
    assert offsets.voco_offsets.weight.shape[0] == 2
    assert not offsets.voco_offsets.weight.any()


def test_offsets_are_kept_when_only_segment_attention_changes(settings_for, tmp_path):
    distinct = ("compression=voco_2", "compression.voco_embeddings=distinct")
    trained = train(settings_for("toy/voco_1", *distinct))
    both_ways = (*distinct, "compression.segment_attention=bidirectional", f"output_dir={tmp_path / 'next'}")
    model, _ = build_or_load(settings_for("toy/voco_1", *both_ways, f"model.checkpoint={trained}"))
    assert model.config.segment_attention == "bidirectional"
    assert bool(model.voco_offsets.weight.any())


def broken_copy(world: Path, folder: Path) -> list[str]:
    """Overrides for a data set one of whose images is missing."""
    rows = json.loads((world / "instruct" / "train.json").read_text())
    with_image = next(row for row in rows if "image" in row)
    with_image["image"] = "gone.png"
    folder.mkdir()
    (folder / "rows.json").write_text(json.dumps(rows))
    return [f"data.sources.0.file={folder / 'rows.json'}", "trainer.max_steps=6"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_record_stops_or_is_skipped_and_listed(settings_for, world, tmp_path, workers, caplog):
    overrides = [
        *broken_copy(world, tmp_path / "data"),
        f"trainer.dataloader_num_workers={workers}",
        "data.keep_in_memory=false",
    ]
    with pytest.raises(DataError) as raised:
        train(settings_for("toy/instruct", *overrides))
    assert "gone.png: no such file" in own_line(raised.value)
    assert "rows.json record" in own_line(raised.value)

    skipping = settings_for(
        "toy/instruct", *overrides, "data.skip_bad_records=true", f"output_dir={tmp_path / 'skipping'}"
    )
    train(skipping)
    (bad,) = json.loads((tmp_path / "skipping" / "result.json").read_text())["bad_records"]
    assert "gone.png" in bad["error"]
    assert "1 bad records were skipped" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.attention=flex_attention"], "no backward pass on a CPU"),
        (
            ["trainer.lr_scheduler_type=cosinus"],
            "trainer.lr_scheduler_type is 'cosinus': choose one of",
        ),
        (
            ["trainer=zero2", "optimizer=trainer", "trainer.use_cpu=true", "trainer.dataloader_num_workers=0"],
            "needs torchrun",
        ),
    ],
)
def test_what_the_machine_or_the_trainer_refuses(settings_for, overrides, message, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SettingsError, match=message):
        train(settings_for("toy/instruct", *overrides))


def test_a_data_set_smaller_than_a_batch(settings_for):
    with pytest.raises(DataError, match=r"42 records, a batch 64"):
        train(settings_for("toy/instruct", "trainer.per_device_train_batch_size=64"))


def test_an_empty_data_set(settings_for, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(DataError, match=r"none.json: holds no records"):
        train(settings_for("toy/instruct", f"data.sources.0.file={tmp_path / 'none.json'}"))


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run(settings_for):
    with pytest.raises(
        SettingsError, match=r"the loss is (nan|inf) at step \d+, first on .*: lower trainer.learning_rate"
    ):
        train(
            settings_for(
                "toy/instruct", "optimizer=trainer", "trainer.learning_rate=1.0e+38", "trainer.max_grad_norm=0"
            )
        )


def test_a_checkpoint_of_another_kind(settings_for, world):
    from voco_llama.errors import CheckpointError

    with pytest.raises(CheckpointError):
        train(settings_for("toy/instruct", f"model.checkpoint={world / 'language'}"))


@pytest.mark.slow
def test_progress_and_tensorboard(settings_for, caplog):
    caplog.set_level("INFO", "voco_llama")
    settings = settings_for(
        "toy/instruct", "trainer.report_to=[tensorboard]", "trainer.logging_steps=3", "trainer.max_steps=5"
    )
    train(settings)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/5", "2/5", "3/5", "5/5"]
    assert all(words in lines[0] for words in (" text + ", " segment tokens/s  MFU ", "  padding ", "  data "))
    assert list(Path(settings.output_dir).glob("runs/*/events*"))


def test_wandb_is_asked_when_named(settings_for):
    from transformers.integrations import WandbCallback, get_reporting_integration_callbacks

    from voco_llama.training.arguments import training_arguments

    arguments = training_arguments(settings_for("toy/instruct", "trainer.report_to=[wandb]"))
    assert get_reporting_integration_callbacks(arguments.report_to) == [WandbCallback]
