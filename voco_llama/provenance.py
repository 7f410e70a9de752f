"""Where a result comes from: versions, commit, hardware, command."""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "voco-llama",
    "torch",
    "transformers",
    "accelerate",
    "deepspeed",
    "open_clip_torch",
    "datasets",
    "lmms_eval",
    "numpy",
)
SAMPLED = (".json", ".safetensors", ".bin")
TABLES = (".parquet", ".arrow")
SAMPLES, SAMPLE_BYTES = 16, 1 << 16
"""Of each file in `sampled_fingerprint`, spread from its first byte to its last."""


def provenance() -> dict[str, Any]:
    """Time, package versions (None: not installed), git commit, hardware and command of this process."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_commit": git_commit(),
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "accelerator": device},
    }


def versions() -> dict[str, str | None]:
    """Of Python, and of the packages that results depend on (None: not installed)."""
    return {"python": platform.python_version(), **{name: installed_version(name) for name in PACKAGES}}


def git_commit() -> str | None:
    """Commit of the checkout that the package lies in, with `-dirty` if tracked files differ; None outside one."""
    repository = Path(__file__).resolve().parents[1]
    if not (repository / ".git").exists() or shutil.which("git") is None:
        return None
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def installed_version(package: str) -> str | None:
    """Of a package; None: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def fingerprint_files(files: Iterable[Path]) -> str:
    """A hash of the names and contents of files, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def sampled_fingerprint(path: Path) -> str:
    """A hash of a file, or of a folder's JSON, weights and table files: names, sizes and samples of the contents.

    It reads at most 1 MiB of each file, so that it costs nothing before a run on gigabytes, and yet tells weights
    that were trained anew from those that were there before.
    """
    digest = hashlib.sha256()
    files = [path]
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix in SAMPLED]
        files += [file for file in path.rglob("*") if file.suffix in TABLES]
        files = [file for file in files if file.is_file()]
    for file in sorted(files, key=lambda file: file.name):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\0".encode())
        with file.open("rb") as opened:
            for sample in range(SAMPLES):
                opened.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(opened.read(SAMPLE_BYTES))
    return digest.hexdigest()


def fingerprint_data(data: Any) -> str:
    """A hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
