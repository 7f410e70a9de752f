"""Where a result comes from: versions, commit, hardware, command; and files written whole or not at all."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("voco-llama", "torch", "transformers", "accelerate", "deepspeed", "open_clip_torch", "datasets", "numpy")


def provenance() -> dict[str, Any]:
    """Package versions (None: not installed), git commit, hardware and command of this process."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join(sys.argv),
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "accelerator": device},
    }


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


def _version(package: str) -> str | None:
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


def fingerprint_data(data: Any) -> str:
    """A hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_atomically(file: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the whole new one, and a kill leaves no half."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
