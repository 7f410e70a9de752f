"""Top-k files: what is in them, a kill in the middle, and everything that makes them stale."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.conftest import settings_in
from voco_llama.cli import main
from voco_llama.composition import compose
from voco_llama.data.collate import Collator
from voco_llama.data.mixture import LoadedMixture
from voco_llama.errors import CheckpointError, DataError, SettingsError
from voco_llama.files import locked
from voco_llama.settings import TeacherSettings
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.training.build import build_processor, open_mixture
from voco_llama.training.run import train
from voco_llama.training.teachers import write_top_k as command_module
from voco_llama.training.teachers.teacher import load_teacher, read_uncompressed
from voco_llama.training.teachers.top_k import open_top_k, read_manifest
from voco_llama.training.teachers.write_top_k import LOCK_FILE, write_top_k

K, RECORDS, PER_FILE = 5, 42, 16


def command_arguments(world: Path, upper: Path, folder: Path, *overrides: str) -> list[str]:
    """What a user gives to `voco-llama teacher`, on the little world."""
    images = f"{world}/instruct/images"
    return [
        "experiment=toy/voco_1",
        f"paths.toyworld={world}",
        f"output_dir={folder}_run",
        f"data.sources=[{{format: llava_json, file: {world}/instruct/train.json, media_folder: {images}}}]",
        f"model.checkpoint={upper}",
        f"loss.teacher_checkpoint={upper}",
        f"loss.top_k_folder={folder}",
        f"k={K}",
        f"records_per_file={PER_FILE}",
        *overrides,
    ]


@pytest.fixture
def command(world, upper, tmp_path):
    """Settings of the command for this test's folder `top_k`."""

    def make(*overrides: str) -> TeacherSettings:
        return compose(command_arguments(world, upper, tmp_path / "top_k", *overrides), "teacher", TeacherSettings)

    return make


@pytest.fixture(scope="module")
def files(world, upper, tmp_path_factory):
    """A folder that the command wrote; tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("written") / "top_k"
    assert write_top_k(compose(command_arguments(world, upper, folder), "teacher", TeacherSettings)) == folder
    return folder


def training(world, upper, folder: Path, tmp_path, *overrides: str):
    return settings_in(
        world,
        tmp_path / "run",
        "toy/voco_1",
        f"model.checkpoint={upper}",
        "loss=kl",
        "loss.teacher=top_k",
        f"loss.top_k_folder={folder}",
        *overrides,
    )


def opened(settings):
    mixture, processor = open_mixture(settings), build_processor(settings)
    rows = LoadedMixture(mixture, processor.row)
    return rows, processor, open_top_k(settings, mixture, processor, rows)


def test_a_folder_is_written_by_one_process(command):
    settings = command()
    folder = Path(settings.loss.top_k_folder)
    with locked(folder / LOCK_FILE), pytest.raises(SettingsError, match=f"is at work in {folder}"):
        write_top_k(settings)


def test_what_the_files_hold(files, world, upper, tmp_path):
    manifest = read_manifest(files)
    assert sorted(path.name for path in files.iterdir()) == [
        "manifest.json",
        *[f"top_k_{number:05}.safetensors" for number in range(3)],
    ]
    rows, processor, reader = opened(training(world, upper, files, tmp_path))
    assert manifest["complete"]
    assert (manifest["k"], manifest["made_from"]["records"], len(rows)) == (K, RECORDS, RECORDS)
    settings = training(world, upper, files, tmp_path, f"loss.teacher_checkpoint={upper}")
    teacher = load_teacher(settings).eval()
    tokens, mass = 0, 0.0
    for index in (0, 15, 16, 41):
        row = rows[index]
        words = reader.words(index, row["labels"])
        batch = Collator(processor.tokens)([row])
        with torch.no_grad():
            states = read_uncompressed(teacher, batch, 1, processor.tokens.pad)
            expected, ids = teacher.get_output_embeddings()(states).log_softmax(-1).topk(K)
        torch.testing.assert_close(words["teacher_log_probs"], expected, atol=1e-4, rtol=1e-4)
        assert (words["teacher_ids"] == ids).float().mean() > 0.95  # near ties may be told apart otherwise
    for file in sorted(files.glob("*.safetensors")):
        tensors = load_file(file)
        tokens += len(tensors["token_ids"])
        mass += float(tensors["log_probs"].double().exp().sum())
        assert tensors["token_ids"].dtype == torch.int32
    assert manifest["trained_tokens"] == tokens == sum(int((row["labels"] >= 0).sum()) for row in rows)
    assert manifest["coverage"] == pytest.approx(mass / tokens)
    assert 0 < manifest["coverage"] < 1


def test_rows_bring_their_words_and_batches_join_them(files, world, upper, tmp_path):
    rows, processor, reader = opened(training(world, upper, files, tmp_path))
    with_words = pickle.loads(pickle.dumps(reader))  # as a spawned worker gets it
    batch = Collator(processor.tokens)([with_words[index] for index in (20, 3, 40)])
    expected = torch.cat([reader.words(index, rows[index]["labels"])["teacher_ids"] for index in (20, 3, 40)])
    assert torch.equal(batch["teacher_ids"], expected)
    assert len(batch["teacher_log_probs"]) == (batch["labels"] != IGNORE_INDEX).sum()
    assert len(with_words) == RECORDS


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def test_a_killed_command_goes_on(command, files, monkeypatch, tmp_path):
    written = command_module.save_file

    def killed(tensors, file, metadata):
        written(tensors, file, metadata)
        if "00001" in str(file):
            raise Killed

    monkeypatch.setattr(command_module, "save_file", killed)
    with pytest.raises(Killed):
        write_top_k(command())
    folder = tmp_path / "top_k"
    assert not read_manifest(folder)["complete"]
    assert [path.name for path in sorted(folder.glob("top_k*"))] == ["top_k_00000.safetensors"]
    kept = (folder / "top_k_00000.safetensors").stat().st_mtime_ns
    monkeypatch.undo()
    write_top_k(command())
    assert (folder / "top_k_00000.safetensors").stat().st_mtime_ns == kept
    assert not list(folder.glob(".*"))
    manifest, uninterrupted = read_manifest(folder), read_manifest(files)
    assert manifest["complete"]
    for key in ("trained_tokens", "made_from", "teacher"):
        assert manifest[key] == uninterrupted[key]
    assert manifest["coverage"] == pytest.approx(uninterrupted["coverage"])

    monkeypatch.setattr(command_module, "load_teacher", None)  # finished: nothing is loaded
    assert write_top_k(command()) == folder


def test_the_command_line(world, upper, tmp_path, capsys):
    arguments = ["teacher", *command_arguments(world, upper, tmp_path / "top_k", "data.sources.0.limit=10")]
    assert main(arguments) == 0
    assert read_manifest(tmp_path / "top_k")["made_from"]["records"] == 10
    others = [f"k={K + 1}" if argument.startswith("k=") else argument for argument in arguments]
    assert main(others) == 2
    assert "its top-k files are stale, made from other k (5 there, 6 now)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.teacher_checkpoint=null"], "loss.teacher_checkpoint is not set: name the teacher"),
        (["loss.top_k_folder=null"], "loss.top_k_folder is not set: name the output folder"),
        (["k=0"], "k is 0: give 1 or more"),
        (["records_per_file=0"], "records_per_file is 0"),
        (["k=100000"], "k is 100000, and the teacher knows 677 words"),
        (["stage=instruct", "compression=full"], "the KL term teaches a student that reads through VoCo tokens"),
    ],
)
def test_what_the_command_refuses(command, overrides, message):
    with pytest.raises(SettingsError) as raised:
        write_top_k(command(*overrides))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_command_runs_in_one_process(command, monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="runs in one process"):
        write_top_k(command())


@pytest.mark.parametrize(
    ("overrides", "differs"),
    [
        (["seed=1"], r"order \(.* there, .* now\), seed \(0 there, 1 now\)"),
        (["data.sources.0.limit=20"], r"data.sources.0.limit \(None there, 20 now\), order .*, records \(42 there"),
        (["data.sources.0.weight=2"], r"data.sources.0.weight \(1.0 there, 2.0 now\)"),
        (["data.max_length=100"], r"data.max_length \(256 there, 100 now\)"),
        (["loss.temperature=2"], r"loss.temperature \(1.0 there, 2.0 now\)"),
        (["prompt.system=Hello"], r"prompt.system \( there, Hello now\)"),
        (["prompt.order=llava"], r"prompt.order \(first there, llava now\)"),
    ],
)
def test_stale_files_are_refused_before_training(files, world, upper, tmp_path, overrides, differs):
    with pytest.raises(CheckpointError, match=f"its top-k files are stale, made from other {differs}") as raised:
        train(training(world, upper, files, tmp_path, *overrides))
    assert "\n" not in str(raised.value)


def test_files_of_another_teacher_are_refused_if_one_is_named(files, world, upper, tmp_path):
    opened(training(world, upper, files, tmp_path, f"loss.teacher_checkpoint={upper}"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"stale, made from other teacher \("):
        opened(training(world, upper, files, tmp_path, f"loss.teacher_checkpoint={other}"))


def test_a_student_of_more_tokens_reads_the_same_files(files, world, upper, tmp_path):
    rows, _, reader = opened(training(world, upper, files, tmp_path, "compression.num_voco=4"))
    assert len(reader.words(3, rows[3]["labels"])["teacher_ids"]) > 0


def copied(files: Path, folder: Path, **changes) -> Path:
    folder.mkdir()
    for file in files.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_files_older_than_a_setting_had_its_default(files, world, upper, tmp_path):
    made_from = read_manifest(files)["made_from"]
    del made_from["data"]["sources"][0]["weight"], made_from["prompt"]["order"]
    older = copied(files, tmp_path / "older", made_from=made_from)
    opened(training(world, upper, older, tmp_path))
    with pytest.raises(CheckpointError, match=r"data.sources.0.weight \(1.0 there, 2.0 now\)"):
        opened(training(world, upper, older, tmp_path, "data.sources.0.weight=2"))


def test_incomplete_or_foreign_folders(files, world, upper, tmp_path):
    incomplete = copied(files, tmp_path / "a", complete=False)
    with pytest.raises(CheckpointError, match="its top-k files are incomplete: let voco-llama teacher finish"):
        opened(training(world, upper, incomplete, tmp_path))
    newer = copied(files, tmp_path / "b", format_version=2)
    with pytest.raises(CheckpointError, match="format version 2, and this code reads 1"):
        opened(training(world, upper, newer, tmp_path))
    (tmp_path / "c").mkdir()
    with pytest.raises(CheckpointError, match=r"manifest.json: cannot be read \(.+\): make the files first"):
        opened(training(world, upper, tmp_path / "c", tmp_path))


def test_files_of_which_nothing_says_what_they_are_are_not_taken(files, command, tmp_path):
    folder = copied(files, tmp_path / "top_k")
    (folder / "manifest.json").unlink()
    (folder / "top_k_00000.safetensors").write_bytes(b"another teacher's")
    write_top_k(command())
    assert sorted(path.name for path in folder.glob("top_k_*")) == sorted(path.name for path in files.glob("top_k_*"))
    assert load_file(folder / "top_k_00000.safetensors").keys() == load_file(files / "top_k_00000.safetensors").keys()


def test_a_row_of_other_answers_is_refused_when_it_is_read(files, world, upper, tmp_path):
    rows, _, reader = opened(training(world, upper, files, tmp_path))
    labels = rows[17]["labels"].clone()
    reader.words(17, labels)
    place = int((labels != IGNORE_INDEX).nonzero()[0])
    labels[place] += 1
    with pytest.raises(DataError, match=r"top_k_00001.safetensors: entry 1 is about other answer tokens"):
        reader.words(17, labels)
    labels[place] = IGNORE_INDEX
    with pytest.raises(DataError, match=r"about other answer tokens \((\d+)\) than record 17 of the data now has"):
        reader.words(17, labels)


def test_a_file_that_is_gone_or_damaged(files, world, upper, tmp_path):
    folder = copied(files, tmp_path / "a")
    rows, _, reader = opened(training(world, upper, folder, tmp_path))
    (folder / "top_k_00002.safetensors").unlink()
    (folder / "top_k_00001.safetensors").write_bytes(b"half")
    for index in (40, 20):
        with pytest.raises(CheckpointError, match=r"cannot be read .* make the files again"):
            reader.words(index, rows[index]["labels"])


def test_a_flipped_bit_of_a_word_is_found(files, world, upper, tmp_path):
    folder = copied(files, tmp_path / "a")
    file = folder / "top_k_00000.safetensors"
    whole = {name: tensor.clone() for name, tensor in load_file(file).items()}  # not mapped: the file is written anew
    rows, _, reader = opened(training(world, upper, folder, tmp_path))
    labels = rows[3]["labels"]
    reader.words(3, labels)
    for name in ("token_ids", "log_probs"):
        tensors = {key: tensor.clone() for key, tensor in whole.items()}
        tensors[name][tensors["offsets"][3], 1].view(torch.int32).bitwise_xor_(1)
        save_file(tensors, file)
        _, _, reader = opened(training(world, upper, folder, tmp_path))
        reader.words(2, rows[2]["labels"])
        with pytest.raises(
            CheckpointError, match=r"top_k_00000.*entry 3 is not what was written.*make the files again"
        ):
            reader.words(3, labels)
    older = {name: tensor for name, tensor in whole.items() if name != "words"}
    save_file(older, file)
    _, _, reader = opened(training(world, upper, folder, tmp_path))
    assert torch.equal(reader.words(3, labels)["teacher_ids"], whole["token_ids"][slice(*whole["offsets"][3:5])])


@pytest.mark.parametrize(
    "changes",
    [{"made_from": []}, {"teacher": None}, {"records_per_file": "20"}, {"records_per_file": 0}, {"complete": 1}],
)
def test_a_manifest_of_other_types(files, tmp_path, changes):
    folder = copied(files, tmp_path / "a", **changes)
    with pytest.raises(
        CheckpointError, match=r"manifest.json: cannot be read \(.+\): remove .* and make the files again"
    ):
        read_manifest(folder)
    (folder / "manifest.json").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"manifest.json: cannot be read \(.+\): make the files first"):
        read_manifest(folder)


def test_a_row_keeps_its_own_tokens_alone(files, world, upper, tmp_path):
    rows, _, reader = opened(training(world, upper, files, tmp_path))
    words = reader.words(3, rows[3]["labels"])
    for tensor in words.values():
        assert tensor.untyped_storage().nbytes() == 4 * K * int((rows[3]["labels"] != IGNORE_INDEX).sum())
