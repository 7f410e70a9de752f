"""Checks of the machine, each against a machine that is broken in its way."""

import shutil
import subprocess
from collections import namedtuple
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from voco_llama import cli
from voco_llama.errors import DataError
from voco_llama.preflight import doctor as machine
from voco_llama.preflight.doctor import doctor
from voco_llama.preflight.finding import Finding, format_findings, run_checks


def levels(findings):
    return [(finding.level, finding.what) for finding in findings]


def test_this_machine_is_sound():
    findings = doctor()
    assert not [finding for finding in findings if finding.level == "error"]
    assert {"python", "packages", "torch", "deepspeed", "processor", "memory"} <= {finding.what for finding in findings}


def test_a_broken_part_is_a_line_and_the_others_go_on():
    def broken():
        yield Finding("ok", "first", "fine")
        raise RuntimeError("CUDA driver\nbroken")

    def mistaken():
        raise DataError("x: y")

    findings = run_checks([("GPU", broken), ("data", mistaken), ("last", lambda: [Finding("ok", "last", "fine")])])
    assert levels(findings) == [("ok", "first"), ("error", "GPU"), ("error", "data"), ("ok", "last")]
    assert "RuntimeError: CUDA driver" in findings[1].detail
    text = format_findings(findings)
    assert text.splitlines()[2] == "error    data: x: y"
    assert text.count("\n") == 4


@pytest.mark.parametrize(
    ("environment", "level", "text"),
    [
        ({}, "ok", "no torchrun"),
        ({"WORLD_SIZE": "8"}, "error", "WORLD_SIZE set, but not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        (dict.fromkeys(machine.LAUNCH_VARIABLES, "1"), "ok", "process 1 of 1"),
    ],
)
def test_launch(environment, level, text):
    (finding,) = machine.check_launch(environment)
    assert finding.level == level
    assert text in finding.detail


def test_packages_that_are_absent_or_of_another_version(monkeypatch):
    wanted = ["torch<2", "no-such-thing>=1", "numpy", "lmms-eval==99; extra == 'eval'", "ruff; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    torch_, absent, right = machine.check_packages()
    assert (torch_.level, absent.level, right.level) == ("error", "error", "ok")
    assert torch_.detail.startswith("torch is ")
    assert torch_.detail.endswith(", wanted <2")
    assert torch_.advice == "pip install 'torch<2'"
    assert absent.detail == "no-such-thing is not installed"
    assert right.detail.startswith("1 in ")
    (extra,) = machine.check_lmms_eval()
    assert (extra.level, extra.what) == ("note", "lmms-eval")
    monkeypatch.setattr(machine.platform, "python_version", lambda: "3.9.1")
    (python,) = machine.check_python()
    assert (python.level, python.detail.startswith("3.9.1 is not")) == ("error", True)


@pytest.mark.parametrize("version", ["2.13.0+cu130", "2.12.0a0+d3b2.nv26.1"])
def test_vendors_versions_are_in_range(monkeypatch, version):
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch<2.14,>=2.11"])
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert levels(machine.check_packages()) == [("ok", "packages")]


Usage = namedtuple("Usage", "total used free")


def test_little_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 64e6))
    (finding,) = machine.check_shared_memory(tmp_path)
    assert finding.level == "warning"
    assert "--shm-size" in finding.advice
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 64e9))
    assert levels(machine.check_shared_memory(tmp_path)) == [("ok", "shared memory")]
    assert levels(machine.check_shared_memory(tmp_path / "none")) == [("note", "shared memory")]


def test_a_container_with_less_memory(monkeypatch, tmp_path):
    (tmp_path / "limit").write_text("2000000000\n")
    monkeypatch.setattr(machine, "CGROUP_LIMIT", tmp_path / "limit")
    (finding,) = machine.check_memory()
    assert finding.detail.endswith("this container may take 2 GB")


def test_a_driver_that_torch_does_not_see(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_nvidia_driver", lambda: "570.1")
    (finding,) = machine.check_gpus()
    assert (finding.level, finding.advice[:20]) == ("error", "install a CUDA build")
    monkeypatch.setattr(machine, "_nvidia_driver", lambda: None)
    assert levels(machine.check_gpus()) == [("note", "GPU")]


def test_the_driver_is_asked_for_its_version(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(stdout="570.86\n570.86\n"))
    assert machine._nvidia_driver() == "570.86"


@pytest.mark.parametrize(("bf16", "level"), [(True, "ok"), (False, "warning")])
def test_gpus_are_listed(monkeypatch, bf16, level):
    from contextlib import nullcontext

    for name, value in {
        "is_available": True,
        "device_count": 2,
        "mem_get_info": (70e9, 85e9),
        "is_bf16_supported": bf16,
        "get_device_name": "H100",
        "device": nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value, **kwargs: value)
    findings = list(machine.check_gpus())
    assert levels(findings) == [(level, "GPU 0"), (level, "GPU 1")]
    assert findings[0].detail.startswith("H100, 70 of 85 GB free")


def test_no_ninja(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (finding,) = machine.check_sharding()
    assert (finding.level, finding.what) == ("warning", "deepspeed")


def test_the_command_ends_in_status_2_on_errors_alone(monkeypatch, capsys):
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("ok       python: ")
    assert printed.err == ""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["doctor"]) == 2
    printed = capsys.readouterr()
    assert "error    launch: WORLD_SIZE set" in printed.out
    assert printed.err.startswith("error: doctor: 1 of ")
    assert printed.err.count("\n") == 1
