"""Checks of one training against this machine: its settings, inputs, disk, launch, and its memory on a GPU."""

import importlib
import netrc
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from voco_llama.errors import SettingsError, one_line
from voco_llama.preflight.dry_run import Memory, count_saved, plan_memory, verdict
from voco_llama.preflight.finding import GB, SECONDS, SHARED_MEMORY, Check, Finding, num_cores
from voco_llama.preflight.plan import uncounted
from voco_llama.preflight.shapes import MetaModel, meta_model
from voco_llama.settings import TrainSettings
from voco_llama.sharding import sharding_of
from voco_llama.training.batch import GlobalBatch, num_processes, world_size
from voco_llama.training.checks import check_settings
from voco_llama.training.inputs import PROBES, Input, list_inputs

PREFETCHED = 2
"""Batches a data worker holds ready (PyTorch's `prefetch_factor`)."""


def training_checks(settings: TrainSettings) -> list[tuple[str, Check]]:
    """Name and function of each check, the cheap ones first; none reads data, weights or more than a file's name."""
    checks: list[tuple[str, Check]] = [
        ("settings", lambda: check_combination(settings)),
        ("data", lambda: check_inputs(settings, "data")),
        ("model", lambda: check_inputs(settings, "model")),
        ("processes", lambda: check_processes(settings)),
        ("precision", lambda: check_precision(settings)),
        ("reports", lambda: check_reports(settings)),
    ]
    if settings.stage.name != "clip":
        checks.append(("memory estimate", lambda: check_sizes(settings)))
    return checks


def check_combination(settings: TrainSettings) -> Iterator[Finding]:
    """Contradictions, as `train` refuses them."""
    check_settings(settings, paths=False)
    yield Finding("ok", "settings", f"stage {settings.stage.name}, nothing contradicts")


def check_inputs(settings: TrainSettings, what: str) -> Iterator[Finding]:
    """Files and folders that are named, of the `data` or the `model`, must be there; names of the hub, to be had."""
    inputs = [entry for entry in list_inputs(settings) if entry.is_read and (entry.part == "data") == (what == "data")]
    here = [entry for entry in inputs if entry.is_here]
    if here:
        yield Finding("ok", what, f"{len(here)} of {len(inputs)} here")
    for entry in inputs:
        if entry.is_here:
            continue
        if entry.is_hub:
            yield _ask_hub(entry)
        else:
            otherwise = "voco-llama data prepare says where it comes from" if what == "data" else "name another"
            advice = entry.hint.removeprefix("; ") or otherwise
            problem = "holds no such files" if Path(entry.name).is_dir() else f"is not here (from {Path.cwd()})"
            yield Finding("error", entry.key, f"{entry.name} {problem}", advice)


def _ask_hub(entry: Input) -> Finding:
    """One request for a small file's head."""
    name, kind = entry.repository, "dataset" if entry.hub == "dataset" else "model"
    download = f"hf download {name}" + (" --repo-type dataset" if kind == "dataset" else "")
    if constants.HF_HUB_OFFLINE:
        return Finding(
            "error",
            entry.key,
            f"{name} is not in the cache, and HF_HUB_OFFLINE is set",
            f"unset it, or on a machine with a network: {download}",
        )
    try:
        get_hf_file_metadata(hf_hub_url(name, PROBES[entry.hub], repo_type=kind), timeout=SECONDS)
    except (GatedRepoError, RepositoryNotFoundError):
        token = "the token does not open it" if get_token() else "there is no token"
        advice = "accept its licence on its page and run: hf auth login"
        return Finding("error", entry.key, f"{name} is closed or does not exist: {token}", advice)
    except Exception as error:  # the HTTP client below, and its errors, differ between versions of huggingface_hub
        text = f"{name} is not in the cache, and the hub does not answer ({one_line(error)})"
        return Finding("error", entry.key, text, f"on a machine with a network: {download}")
    return Finding("note", entry.key, f"{name} would be downloaded", f"or before: {download}")


def check_processes(settings: TrainSettings) -> Iterator[Finding]:
    """GPUs, cores and shared memory for the processes, and how they are started."""
    processes, gpus = num_processes(settings), torch.cuda.device_count()
    text = str(GlobalBatch.of(settings))
    uses_cpu = bool(settings.trainer.get("use_cpu"))
    if not uses_cpu and not gpus:
        yield Finding("warning", "processes", f"{text}; no GPU here", "train on another machine")
    elif not uses_cpu and world_size() is None and processes > gpus:
        yield Finding("warning", "processes", f"{text}; {gpus} GPUs here", "use several machines, or set hardware=...")
    else:
        yield Finding("ok", "processes", text)
    if settings.model.attention == "flex_attention" and (uses_cpu or not gpus):
        yield Finding("error", "attention", "flex_attention trains on GPUs alone", "set model.attention=sdpa")
    sharding = sharding_of(settings.trainer)
    if sharding.needs_torchrun and "RANK" not in os.environ:
        command = f"torchrun --nproc_per_node {processes} -m voco_llama.cli train ..."
        yield Finding("note", "launch", f"{sharding.name} needs torchrun, also for one process", command)
    workers = _workers_here(settings)
    if workers > num_cores():
        text = f"{workers} data workers, of all processes here, on {num_cores()} cores"
        yield Finding("warning", "data workers", text, "lower trainer.dataloader_num_workers")


def _processes_here(settings: TrainSettings) -> int:
    """Of this machine: no more than it has GPUs, if it has any."""
    return min(num_processes(settings), torch.cuda.device_count() or num_processes(settings))


def _workers_here(settings: TrainSettings) -> int:
    return settings.trainer.get("dataloader_num_workers", 0) * _processes_here(settings)


def check_precision(settings: TrainSettings) -> Iterator[Finding]:
    """Types of weights and arithmetic that the GPU lacks, or in which small updates vanish."""
    trainer, dtype, sharding = settings.trainer, settings.model.dtype, sharding_of(settings.trainer)
    if trainer.get("bf16") and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
        yield Finding("error", "precision", "this GPU has no bf16", "set trainer.bf16=false trainer.fp16=true")
    elif dtype != "float32" and not sharding.keeps_masters and "language" in settings.stage.trains:
        text = f"weights of {dtype} train without float32 copies: updates below their rounding are lost"
        yield Finding("warning", "precision", text, "set trainer=zero2 (one GPU too), or model.dtype=float32")
    else:
        half = next((name for name in ("bf16", "fp16") if trainer.get(name)), "float32")
        yield Finding("ok", "precision", f"weights {dtype}, arithmetic {half}")
    if (lacking := sharding.lacking()) is not None:
        yield Finding("error", sharding.name.lower(), lacking)


def check_reports(settings: TrainSettings) -> Iterator[Finding]:
    """Whether the trackers that `report_to` names can be reached without a question."""
    reports = settings.trainer.get("report_to") or []
    for name in [reports] if isinstance(reports, str) else reports:
        if name in ("none", "all"):
            continue
        if importlib.util.find_spec(name) is None:
            yield Finding("error", "reports", f"{name} is not installed", "change trainer.report_to")
        elif name == "wandb" and not _wandb_is_set_up():
            advice = "run wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline"
            yield Finding("error", "reports", "wandb would ask who you are", advice)
        else:
            yield Finding("ok", "reports", name)


def _wandb_is_set_up() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def check_sizes(settings: TrainSettings) -> Iterator[Finding]:
    """Memory of a GPU, of the machine where something is offloaded, and the disk."""
    meta = meta_model(settings)
    memory = _memory(settings, meta)
    for note in (*meta.notes, *uncounted(settings)):
        yield Finding("note", "shapes", note)
    level = {True: "ok", False: "error", None: "note"}[memory.fits]
    yield Finding(level, "memory estimate", verdict(memory))
    host = memory.estimate.host_bytes * _processes_here(settings)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if host > total:
        text = f"{host / GB:.0f} GB are offloaded into {total / GB:.0f} GB"
        yield Finding("error", "memory", text, "offload less, or divide it over more machines")
    yield from check_workers(settings, memory)
    yield _check_disk(settings, memory)


def check_workers(settings: TrainSettings, memory: Memory, folder: Path = SHARED_MEMORY) -> Iterator[Finding]:
    """Shared memory for the batches that data workers hold ready."""
    workers = _workers_here(settings)
    needed = workers * PREFETCHED * memory.estimate.of("images")
    if folder.is_dir() and shutil.disk_usage(folder).free < needed:
        free = shutil.disk_usage(folder).free
        text = f"{free / GB:.1f} GB free, but {workers} data workers hold up to {needed / GB:.1f} GB"
        yield Finding("error", "shared memory", text, "enlarge it (--shm-size), or use fewer workers")


def _memory(settings: TrainSettings, meta: MetaModel) -> Memory:
    """On the smallest GPU that is here, else on what the settings plan for."""
    if torch.cuda.is_available():
        sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
        settings = replace(settings, hardware=replace(settings.hardware, gpu_memory_gb=min(sizes) / GB))
    return plan_memory(settings, meta)


def _check_disk(settings: TrainSettings, memory: Memory) -> Finding:
    folder = Path(settings.output_dir).absolute()
    if folder.is_file():
        raise SettingsError(f"output_dir: {folder} is a file, not a folder")
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    free, saved = shutil.disk_usage(existing).free, count_saved(settings, memory.plan)
    text = (
        f"{free / GB:.0f} GB free in {existing}; the model takes {saved.final / GB:.1f} GB, {saved.kept} checkpoints of"
        f" {saved.checkpoint / GB:.1f} GB at most"
    )
    if not os.access(existing, os.W_OK):
        return Finding("error", "disk", f"{existing} cannot be written to", "set output_dir or paths.runs elsewhere")
    if free >= saved.total:
        return Finding("ok", "disk", text)
    return Finding("error", "disk", text, "set paths.runs to a larger disk, or lower trainer.save_total_limit")
