"""What models and runs save, a little wrong, and overrides of no sense: taken, or refused by one line of ours.

Seeded and bounded, about 1,900 inputs.
"""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.rules.commands import Place
from tests.rules.fuzzing import bounded_memory, fuzz, shown
from tests.rules.mutations import bytes_of, text_of
from tests.rules.settings import settings_of
from tests.tiny import tiny_model, tiny_processor
from voco_llama import cli
from voco_llama.composition import compose
from voco_llama.config_files import CONFIG_DIR
from voco_llama.data.mixture import summarize_bad_records
from voco_llama.inference import Inference
from voco_llama.model.cache import VoCoCache
from voco_llama.model.weights import read_weights
from voco_llama.report.report import ReportSettings, report
from voco_llama.settings import TrainSettings
from voco_llama.training.checks import check_settings
from voco_llama.training.run_folder import RunFolder
from voco_llama.training.teachers.top_k import TopKRows, read_manifest

__all__ = ["bounded_memory"]

pytestmark = pytest.mark.slow


# ---- what is saved of a model


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, Any]:
    """A checkpoint, and its model."""
    folder, processor = tmp_path_factory.mktemp("saved"), tiny_processor()
    model = tiny_model(processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model


def test_a_cache_is_refused_or_what_was_saved(saved, tmp_path):
    _, model = saved
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cache = model.compress(pixels)
    file = tmp_path / "cache.safetensors"
    cache.save(file)
    whole = file.read_bytes()

    def read() -> None:
        loaded = VoCoCache.load(file, model)
        assert torch.equal(loaded.keys, cache.keys), "other keys than were saved"
        assert torch.equal(loaded.values, cache.values), "other values than were saved"

    def draw(data):
        changed = data.draw(bytes_of(whole, 400))
        file.write_bytes(changed)
        return f"cache {shown(changed)}", read

    fuzz(300, draw)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("voco_processor.json", 200),
        ("config.json", 150),
        ("tokenizer_config.json", 80),
        ("tokenizer.json", 80),
        ("model.safetensors", 60),
    ],
)
def test_files_of_a_checkpoint(name, count, saved, tmp_path):
    import shutil

    folder = tmp_path / "checkpoint"
    shutil.copytree(saved[0], folder)
    whole = (folder / name).read_bytes()

    def draw(data):
        changed = data.draw(text_of(whole) if name.endswith("json") else bytes_of(whole, 2000))
        (folder / name).write_bytes(changed)
        return f"{name} {shown(changed)}", lambda: Inference.load(folder, "cpu")

    fuzz(count, draw)


def test_a_projector_of_weights(tmp_path):
    file = tmp_path / "mm_projector.bin"
    torch.save({"model.mm_projector.0.weight": torch.ones(2, 2)}, file)
    whole = file.read_bytes()

    def draw(data):
        changed = data.draw(bytes_of(whole))
        file.write_bytes(changed)
        return f"mm_projector.bin {shown(changed)}", lambda: read_weights(file)

    fuzz(80, draw)


# ---- what is saved of runs


def test_top_k_files(tmp_path):
    folder = tmp_path / "top_k"
    folder.mkdir()
    labels = torch.tensor([-100, 5, 6])
    from voco_llama.training.teachers.top_k import answer_checksum

    count, checksum = answer_checksum(labels)
    tensors = {
        "token_ids": torch.ones(count, 3, dtype=torch.int32), "log_probs": torch.zeros(count, 3),
        "offsets": torch.tensor([0, count]), "checksums": torch.tensor([checksum]),
    }  # fmt: skip
    save_file(tensors, folder / "top_k_00000.safetensors", {"tokens": str(count), "mass": "1.0"})
    wholes = {
        "top_k_00000.safetensors": (folder / "top_k_00000.safetensors").read_bytes(),
        "manifest.json": json.dumps({"format_version": 1, "complete": True, "made_from": {"seed": 0}}).encode(),
    }

    def draw(data):
        name = data.draw(st.sampled_from(sorted(wholes)))
        changed = data.draw(text_of(wholes[name]) if name.endswith("json") else bytes_of(wholes[name], 300))
        for other, whole in wholes.items():
            (folder / other).write_bytes(whole)
        (folder / name).write_bytes(changed)

        def read() -> None:
            read_manifest(folder)
            words = TopKRows([], folder, 1).words(0, labels)
            assert words["teacher_ids"].shape == words["teacher_log_probs"].shape == (count, 3)

        return f"{name} {shown(changed)}", read

    fuzz(150, draw)


def test_result_files(measured: Place, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    wholes = {file.name: file.read_bytes() for file in sorted(measured.results.glob("*.benchmarks.json"))}
    assert len(wholes) == 2

    def draw(data):
        name = data.draw(st.sampled_from(sorted(wholes)))
        changed = data.draw(text_of(wholes[name]))
        for other, whole in wholes.items():
            (folder / other).write_bytes(whole)
        (folder / name).write_bytes(changed)
        return f"{name} {changed_part(wholes[name], changed)}", lambda: report(ReportSettings(folder, tmp_path / "out"))

    fuzz(100, draw)


def changed_part(whole: bytes, changed: bytes) -> str:
    """The keys whose values differ, or the bytes."""
    try:
        before, now = json.loads(whole), json.loads(changed)
    except ValueError:
        return shown(changed)
    if not isinstance(now, dict):
        return shown(changed)
    return str({k: now.get(k, "(gone)") for k in before.keys() | now.keys() if before.get(k) != now.get(k)})[:400]


def test_files_of_a_run(place: Place, tmp_path):
    settings = compose([*place.training(), f"output_dir={tmp_path}/run"])
    run = RunFolder(settings)
    run.begin()
    run.finish({"loss_curve": [{"step": 1, "loss": 2.0}]})
    (run.bad_records).mkdir()
    (run.bad_records / "host-1.jsonl").write_text('{"file": "a", "record": 1, "error": "b"}\n')
    (run.path / "checkpoint-1").mkdir()
    (run.path / "checkpoint-1" / "trainer_state.json").write_text('{"global_step": 1}')
    files = {file: file.read_bytes() for file in sorted(run.path.rglob("*")) if file.is_file()}

    def draw(data):
        file = data.draw(st.sampled_from(sorted(files)))
        changed = data.draw(
            bytes_of(files[file]) if file.suffix == ".yaml" else text_of(files[file], "jsonl" in file.name)
        )
        for other, whole in files.items():
            other.write_bytes(whole)
        file.write_bytes(changed)

        def read() -> None:
            run.checkpoint()
            summarize_bad_records(run.bad_records)
            if run.is_finished():
                run.summary()

        return f"{file.name} {shown(changed)}", read

    fuzz(200, draw)


# ---- settings


VALUES = (
    "", "null", "true", "0", "-1", "1", "3", "1e30", "nan", "abc", "a/b",
    "[]", "[1]", "[a,b]", "{}", "{a:1}", "'a b'", '"x',
    "${seed}", "${nothing}", "???", "a=b", "*", "../x", "é", "1,2", "choice(1,2)", "range(1,3)", "\\${a}", "_", "~",
)  # fmt: skip
GROUPS = sorted(folder.name for folder in CONFIG_DIR.iterdir() if folder.is_dir())


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_overrides(command, tmp_path):
    keys = [leaf.key for leaf in settings_of(command)] + [
        *GROUPS,
        "trainer.max_steps",
        "trainer.nothing",
        "hydra",
        "a.b",
    ]
    choices = [file.stem for file in CONFIG_DIR.glob("*/**/*.yaml")]
    random.Random(0).shuffle(choices)
    value = st.one_of(st.sampled_from(VALUES), st.sampled_from(choices), st.text(max_size=5))
    override = st.one_of(
        st.builds(
            lambda sign, key, value: f"{sign}{key}={value}",
            st.sampled_from(("", "", "", "+", "++", "~")), st.sampled_from(keys), value,
        ),
        st.builds(lambda sign, key: f"{sign}{key}", st.sampled_from(("~", "", "+")), st.sampled_from(keys)),
        st.text(max_size=8),
    )  # fmt: skip

    def draw(data):
        overrides = data.draw(st.lists(override, min_size=1, max_size=3))

        def read() -> None:
            composed = cli.COMMANDS[command].compose(overrides)
            if isinstance(composed, TrainSettings):
                check_settings(composed, paths=False)
            yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(composed), default=str)))

        return f"{command} {overrides}", read

    fuzz(35, draw)
