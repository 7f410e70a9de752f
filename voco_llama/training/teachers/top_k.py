"""Top-k files: what a teacher predicts for every trained token of a data set, on disk.

    manifest.json        what the files were made from; `complete` is true once all are there
    top_k_00000.safetensors, ...

A file holds `records_per_file` entries of the mixture, in its order:

    token_ids   [tokens, k] int32      the k likeliest words of each trained token, likeliest first
    log_probs   [tokens, k] float32    their log-probabilities at the manifest's temperature
    offsets     [entries + 1] int64    the tokens of entry i are offsets[i] to offsets[i + 1]
    checksums   [entries] int64        CRC-32 of the ids of its trained tokens
    words       [entries] int64        CRC-32 of its `token_ids` and `log_probs`; older files have none

Files are memory-mapped: a row reads its own tokens and no more.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from voco_llama.composition import difference, to_plain
from voco_llama.data.mixture import Mixture
from voco_llama.data.processor import VoCoProcessor
from voco_llama.errors import CheckpointError, DataError, refused_as
from voco_llama.files import read_json
from voco_llama.provenance import fingerprint_data, sampled_fingerprint
from voco_llama.settings import TrainSettings
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.training.inputs import MANIFEST_FILE
from voco_llama.training.teachers.teacher import TOP_K_ENTRIES

FORMAT_VERSION = 1


def made_from(settings: TrainSettings, mixture: Mixture, processor: VoCoProcessor, teacher_num_voco: int) -> dict:
    """All that decides which tokens of a training count, in which order, and what the teacher reads before them.

    A set on the hub has but its name. What is returned are nested dictionaries that JSON can hold.
    """
    sources = []
    for source in settings.data.sources:
        file = sampled_fingerprint(Path(source.file)) if Path(source.file).exists() else source.file
        sources.append(to_plain(source) | {"file": file, "media_folder": None, "archives": None})
    return {
        "loss": {"temperature": settings.loss.temperature},
        "tokenizer": fingerprint_data(processor.tokenizer.get_vocab()),
        "prompt": to_plain(settings.prompt),
        "image": processor.image_transform.to_dict(),
        "num_voco": min(teacher_num_voco, processor.num_voco),
        "data": {
            "max_length": settings.data.max_length,
            "num_frames": settings.data.num_frames,
            "sources": sources,
        },
        "seed": settings.seed,
        "records": len(mixture),
        "order": mixture.order_fingerprint,
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of top-k files.

    Raises:
        CheckpointError: There is none, it is damaged, or of another format version.
    """
    file = folder / MANIFEST_FILE
    manifest = read_json(file, advice="make the files first, with voco-llama teacher")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: format version {manifest.get('format_version')}, and this code reads {FORMAT_VERSION}: make the"
            " files again, with voco-llama teacher"
        )
    with refused_as(CheckpointError, file, _again(folder)):
        needed = manifest["made_from"], manifest["complete"], manifest["teacher"]["fingerprint"]
        numbers = manifest["teacher"]["num_voco"], manifest["records_per_file"]
        if list(map(type, (*needed, *numbers))) != [dict, bool, str, int, int] or numbers[1] < 1:
            raise ValueError("an entry is of another type than it should be")
    return manifest


def _again(folder: Path) -> str:
    return f"remove {folder} and make the files again, with voco-llama teacher"


def check_same(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse files that were made from something else; settings that are younger than they had their default.

    Raises:
        CheckpointError: It names what differs.
    """
    differing = difference(there, here, TrainSettings)
    if differing:
        raise CheckpointError(
            f"{folder}: its top-k files are stale, made from other {differing}: choose another loss.top_k_folder, or"
            " remove it and make them again with voco-llama teacher"
        )


def open_top_k(
    settings: TrainSettings, mixture: Mixture, processor: VoCoProcessor, rows: Sequence[dict[str, Tensor]]
) -> "TopKRows":
    """Rows with the words of the files that `loss.top_k_folder` names, if those are of this training.

    Raises:
        CheckpointError: They are missing, incomplete, or made from something else.
    """
    folder = Path(settings.loss.top_k_folder)
    manifest = read_manifest(folder)
    here = made_from(settings, mixture, processor, manifest["teacher"]["num_voco"])
    there = manifest["made_from"]
    if settings.loss.teacher_checkpoint is not None:
        there = there | {"teacher": manifest["teacher"]["fingerprint"]}
        here["teacher"] = sampled_fingerprint(Path(settings.loss.teacher_checkpoint))
    check_same(folder, there, here)
    if not manifest["complete"]:
        raise CheckpointError(f"{folder}: its top-k files are incomplete: let voco-llama teacher finish")
    return TopKRows(rows, folder, manifest["records_per_file"])


def top_k_file(folder: Path, number: int) -> Path:
    """The `number`-th file."""
    return folder / f"top_k_{number:05}.safetensors"


def answer_checksum(labels: Tensor) -> tuple[int, int]:
    """Number of trained tokens of a row, and the CRC-32 of their ids (as int64, little-endian)."""
    answers = labels[labels != IGNORE_INDEX]
    return len(answers), zlib.crc32(answers.numpy().astype("<i8").tobytes())


def words_checksum(token_ids: Tensor, log_probs: Tensor) -> int:
    """CRC-32 of what the teacher predicts for an entry, `[tokens, k]` int32 and float32 (little-endian)."""
    ids, numbers = token_ids.numpy().astype("<i4").tobytes(), log_probs.numpy().astype("<f4").tobytes()
    return zlib.crc32(numbers, zlib.crc32(ids))


class TopKRows(Sequence[dict[str, Tensor]]):
    """Rows of a mixture with what a teacher predicts for them; each process maps the files when it first reads."""

    def __init__(self, rows: Sequence[dict[str, Tensor]], folder: Path, records_per_file: int) -> None:
        self._rows = rows
        self.folder = folder
        self.records_per_file = records_per_file
        self._opened: dict[int, tuple[Any, dict[str, Tensor]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}  # a mapping does not travel to a spawned worker

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self._rows[index]
        return row | self.words(index, row["labels"])

    def _open(self, number: int) -> tuple[Any, dict[str, Tensor]]:
        if number not in self._opened:
            opened = safe_open(top_k_file(self.folder, number), framework="pt")
            index = {"offsets", "checksums", "words"} & set(opened.keys())
            self._opened[number] = opened, {name: opened.get_tensor(name) for name in index}
        return self._opened[number]

    def words(self, index: int, labels: Tensor) -> dict[str, Tensor]:
        """What the teacher predicts for entry `index` of the mixture, whose labels are `[length]`.

        Returns:
            `teacher_ids` int32 and `teacher_log_probs` float32, both `[trained tokens, k]`.

        Raises:
            DataError: The row's trained tokens are not those that the teacher read.
            CheckpointError: The file is missing or damaged.
        """
        number, place = divmod(index, self.records_per_file)
        file = top_k_file(self.folder, number)
        with refused_as(CheckpointError, file, _again(self.folder)):
            opened, entries = self._open(number)
            start, stop = entries["offsets"][place : place + 2].tolist()
            count, checksum = answer_checksum(labels)
            if (stop - start, entries["checksums"][place].item()) != (count, checksum):
                raise DataError(
                    f"{file}: entry {place} is about other answer tokens ({stop - start}) than record {index} of the"
                    f" data now has ({count}): make the files again, with voco-llama teacher"
                )
            # Copied: a view would drag the whole file along when the row goes to another process.
            tensors = [opened.get_slice(name)[start:stop].clone() for name in ("token_ids", "log_probs")]
            if "words" in entries and words_checksum(*tensors) != entries["words"][place].item():
                raise ValueError(f"entry {place} is not what was written")
        return dict(zip(TOP_K_ENTRIES, tensors, strict=True))
