"""Checks of a training against the machine, each of them failing in its way."""

import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError

from tests.tiny import tiny_tokenizer
from voco_llama import cli
from voco_llama.composition import compose
from voco_llama.preflight import training
from voco_llama.preflight.dry_run import plan_memory
from voco_llama.preflight.finding import run_checks
from voco_llama.preflight.shapes import meta_model
from voco_llama.preflight.training import training_checks

Usage = namedtuple("Usage", "total used free")


def composed(*overrides, experiment="voco_1"):
    return compose([f"experiment={experiment}", *overrides])


def found(settings):
    """What -> finding of all checks of a training; the last one of each name."""
    return {finding.what: finding for finding in run_checks(training_checks(settings))}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("RANK", "WORLD_SIZE", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def room(monkeypatch):
    """A large disk."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 1e13))


def test_a_7b_training_on_a_bare_machine(room):
    findings = found(composed())
    errors = {what for what, finding in findings.items() if finding.level == "error"}
    assert errors == {"data.sources.0.file", "data.sources.0.media_folder", "model.checkpoint"}
    assert findings["memory estimate"].level == "ok"
    assert findings["memory estimate"].detail == "27.0 GB of 80 GB: fits"
    assert findings["processes"].level == "warning"
    assert findings["launch"].advice.startswith("torchrun --nproc_per_node 8 ")
    assert findings["disk"].level == "ok"


def test_a_training_without_faults(room, tmp_path, monkeypatch):
    from tests.training.conftest import WORLD
    from voco_llama.toyworld import write_toyworld

    write_toyworld(WORLD, tmp_path / "toyworld")
    settings = compose(
        [
            "experiment=toy/instruct",
            f"paths.toyworld={tmp_path}/toyworld",
            f"output_dir={tmp_path}/run",
            "model.checkpoint=null",
            f"model.vision.name={tmp_path}/toyworld/clip/tiny_clip.json",
        ]
    )
    before = sorted(tmp_path.rglob("*"))
    findings = found(settings)
    assert {finding.level for finding in findings.values()} <= {"ok", "note"}
    assert findings["data"].detail == "2 of 2 here"
    assert findings["model"].detail == "3 of 3 here"
    assert sorted(tmp_path.rglob("*")) == before
    clip = found(compose(["experiment=toy/clip", f"paths.toyworld={tmp_path}/toyworld"]))
    assert clip["model"].detail == "2 of 2 here"


def test_contradictions_are_a_finding():
    finding = found(composed("model.lora.rank=8"))["settings"]
    assert (finding.level, finding.detail.startswith("model.lora merges")) == ("error", True)
    finding = found(composed("trainer.per_device_train_batch_size=24"))["processes"]
    assert (finding.level, finding.detail.startswith("global_batch_size is 128")) == ("error", True)


def test_memory_that_does_not_fit_comes_with_what_would():
    finding = found(composed("hardware.gpu_memory_gb=24"))["memory estimate"]
    assert finding.level == "error"
    assert finding.detail.endswith("with: trainer.per_device_train_batch_size=4")
    assert found(composed("hardware.gpu_memory_gb=null"))["memory estimate"].level == "note"


def test_the_smallest_gpu_that_is_here_counts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args: True)
    sizes = (80 * 10**9, 24 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=sizes[index]))
    findings = found(composed())
    assert "of 24 GB: does not fit" in findings["memory estimate"].detail
    assert findings["processes"].detail.endswith("; 2 GPUs here")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args: False)
    assert found(composed())["precision"].level == "error"


def test_a_full_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 2e11))
    finding = found(composed(f"output_dir={tmp_path}/a/b"))["disk"]
    assert finding.level == "error"
    assert finding.detail.startswith(f"200 GB free in {tmp_path}; the model takes 14.1 GB, 3 checkpoints of 109.4 GB")
    assert found(composed("trainer.save_strategy=no"))["disk"].level == "ok"
    (tmp_path / "file").write_text("")
    assert "is a file" in found(composed(f"output_dir={tmp_path}/file"))["memory estimate"].detail


def test_shared_memory_for_the_workers(monkeypatch, tmp_path):
    settings = composed()
    memory = plan_memory(settings, meta_model(settings))
    needed = 8 * 4 * 2 * 8 * 3 * 336**2 * 4  # processes, workers, batches ahead, rows of float32 pixels
    for free, count in ((needed - 1, 1), (needed, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: Usage(0, 0, free))
        assert len(list(training.check_workers(settings, memory, tmp_path))) == count


def test_offloading_into_too_little_memory(monkeypatch):
    monkeypatch.setattr(training.os, "sysconf", lambda name: 10**5)
    zero = "trainer.deepspeed.zero_optimization"
    overrides = (f"{zero}.offload_optimizer.device=cpu", "hardware.num_processes=1")
    finding = found(composed(*overrides))["memory"]
    assert (finding.level, finding.detail.startswith("99 GB are offloaded into 10 GB")) == ("error", True)


@pytest.fixture
def hub(monkeypatch):
    """Have the hub give an answer, or raise one."""
    asked = []

    def answer_with(error):
        def answer(url, timeout):
            asked.append((url, timeout))
            if error is not None:
                raise error

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(training, "get_hf_file_metadata", answer)
        return asked

    return answer_with


LANGUAGE = "model.language.pretrained"


def test_names_of_the_hub(hub, monkeypatch):
    settings = composed(experiment="align_7b")
    finding = found(settings)[LANGUAGE]  # the tests are offline
    assert (finding.level, "HF_HUB_OFFLINE is set" in finding.detail) == ("error", True)
    asked = hub(None)
    findings = found(settings)
    assert (findings[LANGUAGE].level, findings["model.vision.pretrained"].level) == ("note", "note")
    assert {url.split("/resolve/")[0].removeprefix("https://huggingface.co/") for url, _ in asked} == {
        "lmsys/vicuna-7b-v1.5",
        "timm/vit_large_patch14_clip_336.openai",
    }
    assert all(timeout <= 5 for _, timeout in asked)
    hub(ConnectionError("no route"))
    finding = found(settings)[LANGUAGE]
    assert (finding.level, "does not answer (no route)" in finding.detail) == ("error", True)
    monkeypatch.setattr(training, "get_token", lambda: None)
    hub(GatedRepoError("gated", response=SimpleNamespace(headers={}, request=None)))
    finding = found(settings)[LANGUAGE]
    assert (finding.level, finding.detail.endswith("there is no token")) == ("error", True)


def test_a_folder_without_weights(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    settings = composed(f"model.language.pretrained={tmp_path}", experiment="align_7b")
    assert found(settings)[LANGUAGE].detail == f"{tmp_path} holds no such files"
    (tmp_path / "model.safetensors").write_text("")
    assert LANGUAGE not in found(settings)


@pytest.mark.parametrize(
    ("environment", "level"), [({}, "error"), ({"WANDB_MODE": "offline"}, "ok"), ({"WANDB_API_KEY": "x"}, "ok")]
)
def test_wandb_asks_no_questions(environment, level, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert found(composed("trainer.report_to=[wandb]"))["reports"].level == level


def test_trackers_that_are_not_installed():
    assert found(composed("trainer.report_to=no_such_tracker"))["reports"].level == "error"
    assert "reports" not in found(composed("trainer.report_to=none"))


def test_precision_in_which_updates_vanish():
    finding = found(composed("trainer.deepspeed=null"))["precision"]
    assert (finding.level, "without float32 copies" in finding.detail) == ("warning", True)
    assert found(composed())["precision"].level == "ok"


def test_attention_that_needs_a_gpu():
    assert found(composed("model.attention=flex_attention"))["attention"].level == "error"


def test_the_command_reads_the_settings_of_train(capsys):
    assert cli.main(["doctor", "experiment=voco_lava"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no experiment=voco_lava; did you mean 'voco_llava'")
    assert cli.main(["doctor", "experiment=voco_1"]) == 2
    assert "error    model.checkpoint: runs/align_7b/final is not here" in capsys.readouterr().out
