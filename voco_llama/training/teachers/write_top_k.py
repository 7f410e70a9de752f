"""`voco-llama teacher`: a teacher reads a data set once, and its top-k predictions go to disk.

The command goes on where a kill stopped it: finished files are kept, each is written whole or not at all, and a
folder made from anything else is refused.
"""

import dataclasses
import json
import logging
import math
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import TrainingArguments

from voco_llama.data.collate import Collator
from voco_llama.data.mixture import LoadedMixture
from voco_llama.errors import CheckpointError, SettingsError, refused_as
from voco_llama.files import locked, write_atomically, writing, written_aside
from voco_llama.model.losses import top_k
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.provenance import provenance, sampled_fingerprint
from voco_llama.settings import TeacherSettings
from voco_llama.sharding import undivided
from voco_llama.text import duration
from voco_llama.training.arguments import training_arguments
from voco_llama.training.batch import world_size
from voco_llama.training.build import build_processor, open_mixture
from voco_llama.training.checks import check_settings
from voco_llama.training.inputs import MANIFEST_FILE
from voco_llama.training.teachers.teacher import check_teacher, load_teacher, read_uncompressed
from voco_llama.training.teachers.top_k import (
    FORMAT_VERSION,
    answer_checksum,
    check_same,
    made_from,
    read_manifest,
    top_k_file,
    words_checksum,
)

logger = logging.getLogger(__name__)

LOCK_FILE = ".teacher.lock"


def write_top_k(settings: TeacherSettings) -> Path:
    """Write the top-k files of one training's data into `loss.top_k_folder`, or go on with them.

    Raises:
        VoCoError: Settings, data, or the teacher cannot be used, or the folder holds files made from something else.
    """
    settings = _settings_of_the_command(settings)
    folder = Path(settings.loss.top_k_folder)
    advice = "make room, or choose another loss.top_k_folder; the same command goes on from what is whole"
    with writing(folder, advice), locked(folder / LOCK_FILE, remains=False):
        _write(settings, folder)
    return folder


def _write(settings: TeacherSettings, folder: Path) -> None:
    teacher_folder = Path(settings.loss.teacher_checkpoint)
    arguments = training_arguments(settings)
    processor, mixture = build_processor(settings), open_mixture(settings)
    config = check_teacher(str(teacher_folder), processor)
    if settings.k > config.text_config.vocab_size:
        raise SettingsError(f"k is {settings.k}, and the teacher knows {config.text_config.vocab_size} words: lower it")
    num_voco = min(config.num_voco, processor.num_voco)
    manifest = {
        "format_version": FORMAT_VERSION,
        "complete": False,
        "k": settings.k,
        "records_per_file": settings.records_per_file,
        "teacher": {"fingerprint": sampled_fingerprint(teacher_folder), "num_voco": config.num_voco},
        "made_from": made_from(settings, mixture, processor, config.num_voco),
    }
    if not _begin(folder, manifest):
        logger.info("%s is complete: nothing to do", folder)
        return

    teacher = load_teacher(settings).to(arguments.device).eval()
    rows = LoadedMixture(mixture, processor.row)
    count = math.ceil(len(rows) / settings.records_per_file)
    started = time.perf_counter()
    for number in range(count):
        if top_k_file(folder, number).is_file():
            continue
        first = number * settings.records_per_file
        loader = DataLoader(
            Subset(rows, range(first, min(first + settings.records_per_file, len(rows)))),
            batch_size=arguments.per_device_train_batch_size,
            collate_fn=Collator(processor.tokens),
            num_workers=arguments.dataloader_num_workers,
        )
        write_file(top_k_file(folder, number), teacher, loader, arguments, settings, num_voco)
        logger.info("file %d/%d  %s", number + 1, count, duration(time.perf_counter() - started))
    _finish(folder, manifest, count)


def _settings_of_the_command(settings: TeacherSettings) -> TeacherSettings:
    """The same without what only concerns training; checked.

    Raises:
        SettingsError: A contradiction, or several processes.
    """
    for name in ("teacher_checkpoint", "top_k_folder"):
        if getattr(settings.loss, name) is None:
            raise SettingsError(f"loss.{name} is not set: name the {'teacher' if 'check' in name else 'output folder'}")
    if (world_size() or 1) > 1:
        raise SettingsError("voco-llama teacher runs in one process: start it without torchrun")
    loss = dataclasses.replace(settings.loss, teacher="checkpoint", lm=0.0, kl=1.0, schedule=None)
    settings = dataclasses.replace(settings, loss=loss, trainer=undivided(settings.trainer))
    check_settings(settings)
    return settings


def _begin(folder: Path, manifest: dict) -> bool:
    """Whether there is something to do; the manifest is there afterwards.

    Raises:
        CheckpointError: The folder's files were made from something else.
    """
    if not (folder / MANIFEST_FILE).is_file():
        for file in folder.glob("top_k_*.safetensors"):
            logger.warning("%s: no %s says what it was made from: it is made again", file, MANIFEST_FILE)
            file.unlink()
        write_atomically(folder / MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n")
        return True
    there = read_manifest(folder)
    compared = [
        entries["made_from"] | {key: entries[key] for key in ("k", "records_per_file", "teacher")}
        for entries in (there, manifest)
    ]
    check_same(folder, *compared)
    return not there["complete"]


@torch.no_grad()
def write_file(
    file: Path,
    teacher: VoCoLlama,
    loader: DataLoader,
    arguments: TrainingArguments,
    settings: TeacherSettings,
    num_voco: int,
) -> None:
    """Write one file, whole or not at all: what a teacher, shown `num_voco` VoCo tokens, says of a loader's entries."""
    device, loss = arguments.device, settings.loss
    dtype = torch.float16 if arguments.fp16 else torch.bfloat16
    parts: dict[str, list[Tensor]] = {"token_ids": [], "log_probs": []}
    counts, checksums = [0], []
    for batch in loader:
        checked = [answer_checksum(labels) for labels in batch["labels"]]
        counts += [count for count, _ in checked]
        checksums += [checksum for _, checksum in checked]
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.autocast(device.type, dtype=dtype, enabled=arguments.bf16 or arguments.fp16):
            states = read_uncompressed(teacher, batch, num_voco, loader.collate_fn.tokens.pad)
            ids, log_probs = top_k(
                teacher.get_output_embeddings(), states, settings.k, loss.temperature, loss.chunk_size
            )
        parts["token_ids"].append(ids.int().cpu())
        parts["log_probs"].append(log_probs.cpu())
    tensors = {name: torch.cat(values) for name, values in parts.items()}
    offsets = torch.tensor(counts).cumsum(0)
    pieces = (tensors[name].tensor_split(offsets[1:-1]) for name in ("token_ids", "log_probs"))
    words = [words_checksum(*piece) for piece in zip(*pieces, strict=True)]
    tensors |= {"offsets": offsets, "checksums": torch.tensor(checksums), "words": torch.tensor(words)}
    mass = tensors["log_probs"].double().exp().sum().item()
    with written_aside(file) as aside:
        save_file(tensors, aside, {"tokens": str(sum(counts)), "mass": repr(mass)})


def _finish(folder: Path, manifest: dict, count: int) -> None:
    """Complete the manifest by what all files hold together."""
    tokens, mass = 0, 0.0
    for number in range(count):
        file = top_k_file(folder, number)
        advice = "remove it, and the same command makes it again"
        with refused_as(CheckpointError, file, advice), safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
            tokens += int(metadata["tokens"])
            mass += float(metadata["mass"])
    records, coverage = manifest["made_from"]["records"], mass / max(tokens, 1)
    found = {"complete": True, "trained_tokens": tokens, "coverage": coverage, "environment": provenance()}
    write_atomically(folder / MANIFEST_FILE, json.dumps(manifest | found, indent=2) + "\n")
    logger.info("%s: %d records, %d trained tokens, coverage %.4f", folder, records, tokens, coverage)
