"""What a stranger's model folder or checkpoint may do to a training: no code in it is run, whoever answers a prompt."""

import ast
import builtins
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import voco_llama
from voco_llama.errors import CheckpointError
from voco_llama.files import read_json
from voco_llama.training.manifest import MANIFEST_FILE, Manifest
from voco_llama.training.run import train

STEPS = ("trainer.max_steps=4", "trainer.save_strategy=steps", "trainer.save_steps=2")


class Harmful:
    """Its pickle makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def calls_of_auto_classes() -> list[tuple[str, str]]:
    found = []
    for file in Path(voco_llama.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = ast.unparse(node.func)
                if name.startswith("Auto") and name.endswith((".from_pretrained", ".from_config")):
                    found.append((f"{file.name}:{node.lineno}", ast.unparse(node)))
    return found


def test_every_class_that_could_run_a_folders_code_is_told_not_to():
    calls = calls_of_auto_classes()
    assert len(calls) > 5
    asked = {where for where, call in calls if not call.endswith(("trust_remote_code=False)", "**options)"))}
    assert asked == set()
    whole = "\n".join(file.read_text(encoding="utf-8") for file in Path(voco_llama.__file__).parent.rglob("*.py"))
    assert "trust_remote_code=True" not in whole


@pytest.fixture
def with_code(world, tmp_path, monkeypatch):
    """A language model's folder that brings code of its own, which makes the folder `ran`; prompts are said yes to."""
    folder = tmp_path / "theirs"
    shutil.copytree(world / "language", folder)
    for file in (world / "tokenizer").iterdir():
        shutil.copy(file, folder)
    code = (
        f"import os\nos.makedirs({str(tmp_path / 'ran')!r}, exist_ok=True)\nfrom transformers import LlamaConfig as C\n"
    )
    (folder / "theirs.py").write_text(code)
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    return folder


def brings_code(file: Path, **more: object) -> None:
    content = read_json(file) if file.exists() else {}
    classes = {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.C", "AutoTokenizer": ["theirs.C", None]}
    file.write_text(json.dumps(content | {"auto_map": classes} | more))


@pytest.mark.parametrize("key", ["pretrained", "config"])
def test_a_language_model_that_brings_code_is_refused(settings_for, with_code, tmp_path, key):
    brings_code(with_code / "config.json", model_type="theirs")
    other = {"pretrained": "config", "config": "pretrained"}[key]
    more = (f"model.language.{key}={with_code}", f"model.language.{other}=null", f"model.tokenizer={with_code}")
    with pytest.raises(CheckpointError, match="custom code which must be executed") as caught:
        train(settings_for("toy/language", *more))
    assert "trust_remote_code" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_that_brings_code_is_read_without_it_or_refused(settings_for, with_code, tmp_path):
    brings_code(with_code / "tokenizer_config.json", tokenizer_class="Theirs")
    with pytest.raises(CheckpointError, match=r"model.tokenizer: \S+ cannot be loaded"):
        train(settings_for("toy/language", f"model.tokenizer={with_code}"))
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def interrupted(settings_for):
    """Settings of a run with two checkpoints, which goes on from the last one."""
    settings = settings_for("toy/voco_1", *STEPS)
    train(settings)
    run = Path(settings.output_dir)
    (run / "result.json").unlink()
    shutil.rmtree(run / "final")
    return settings


def put(checkpoint: Path, name: str, harmful: object) -> None:
    """A stranger's file, and a list of files that has it."""
    manifest = Manifest.read(checkpoint)
    if name.endswith(".metadata"):  # of torch.distributed.checkpoint
        (checkpoint / name).write_bytes(pickle.dumps(harmful))
    else:
        torch.save(harmful, checkpoint / name)
    (checkpoint / MANIFEST_FILE).unlink()
    manifest.write(checkpoint)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_runs_no_code(interrupted, tmp_path, name):
    put(Path(interrupted.output_dir) / "checkpoint-4", name, Harmful(tmp_path / "ran"))
    with pytest.raises(CheckpointError, match=r"checkpoint-4: .*Weights only load failed"):
        train(interrupted)
    assert not (tmp_path / "ran").exists()


def test_what_is_not_read_of_a_checkpoint_harms_nobody(interrupted, tmp_path):
    put(Path(interrupted.output_dir) / "checkpoint-4", "training_args.bin", Harmful(tmp_path / "ran"))
    train(interrupted)
    assert not (tmp_path / "ran").exists()
