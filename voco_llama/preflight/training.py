"""Checks of one training against this machine: its settings, inputs, disk, launch, and its memory on a GPU."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from voco_llama.errors import one_line
from voco_llama.files import check_writable
from voco_llama.preflight.dry_run import check_parts
from voco_llama.preflight.finding import GB, SECONDS, SHARED_MEMORY, Check, Finding, judged, num_cores
from voco_llama.preflight.plan import Memory, count_saved, plan_memory, uncounted, verdict
from voco_llama.preflight.shapes import meta_model
from voco_llama.settings import TrainSettings
from voco_llama.sharding import sharding_of
from voco_llama.training.batch import GlobalBatch, num_processes, world_size
from voco_llama.training.checks import check_settings
from voco_llama.training.inputs import PROBES, Input, list_inputs
from voco_llama.training.trackers import check_trackers

PREFETCHED = 2
"""Batches a data worker holds ready (PyTorch's `prefetch_factor`)."""


def training_checks(settings: TrainSettings) -> list[tuple[str, Check]]:
    """Name and function of each check, the cheap ones first; none reads data, weights or more than a file's name."""
    checks = {
        "settings": check_combination,
        "data": partial(check_inputs, what="data"),
        "model": partial(check_inputs, what="model"),
        "prompt": check_prompt,
        "processes": check_processes,
        "precision": check_precision,
        "reports": check_reports,
        "memory estimate": check_sizes,
    }
    if settings.stage.name == "clip":
        del checks["memory estimate"]
    return [(name, partial(check, settings)) for name, check in checks.items()]


def check_combination(settings: TrainSettings) -> Iterator[Finding]:
    """Contradictions, as `train` refuses them."""
    check_settings(settings, paths=False)
    yield Finding("ok", "settings", f"stage {settings.stage.name}, nothing contradicts")


def check_inputs(settings: TrainSettings, what: str) -> Iterator[Finding]:
    """Files and folders that are named, of the `data` or the `model`, must be there; names of the hub, to be had."""
    inputs = [entry for entry in list_inputs(settings) if entry.is_read and (entry.part == "data") == (what == "data")]
    missing = [entry for entry in inputs if not entry.is_here]
    if len(missing) < len(inputs):
        yield Finding("ok", what, f"{len(inputs) - len(missing)} of {len(inputs)} here")
    otherwise = "voco-llama data prepare says where it comes from" if what == "data" else "name another"
    for entry in missing:
        if entry.is_hub:
            yield _ask_hub(entry)
        else:
            advice = entry.hint.removeprefix("; ") or otherwise
            problem = "holds no such files" if Path(entry.name).is_dir() else f"is not here (from {Path.cwd()})"
            yield Finding("error", entry.key, f"{entry.name} {problem}", advice)


def _ask_hub(entry: Input) -> Finding:
    """One request for a small file's head."""
    name, kind = entry.repository, "dataset" if entry.hub == "dataset" else "model"
    download = f"hf download {name}" + (" --repo-type dataset" if kind == "dataset" else "")
    if constants.HF_HUB_OFFLINE:
        text = f"{name} is not in the cache, and HF_HUB_OFFLINE is set"
        return Finding("error", entry.key, text, f"unset it, or on a machine with a network: {download}")
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


def check_prompt(settings: TrainSettings) -> Iterator[Finding]:
    """A chat template is tried, where its tokenizer is here."""
    if settings.prompt.template == "chat" and (processor := check_parts(settings)) is not None:
        ends = ", ".join(processor.tokenizer.convert_ids_to_tokens(list(processor.ends)))
        yield Finding("ok", "prompt", f"the tokenizer's chat template; answers end with {ends}")


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
    processes = num_processes(settings)
    return min(processes, torch.cuda.device_count() or processes)


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
    if names := check_trackers(settings.trainer):
        yield Finding("ok", "reports", ", ".join(names))


def check_sizes(settings: TrainSettings) -> Iterator[Finding]:
    """Memory of a GPU, of the machine where something is offloaded, and the disk."""
    meta = meta_model(settings)
    planned = settings
    if torch.cuda.is_available():  # the smallest GPU that is here, else what the settings plan for
        sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
        planned = replace(settings, hardware=replace(settings.hardware, gpu_memory_gb=min(sizes) / GB))
    memory = plan_memory(planned, meta)
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


def _check_disk(settings: TrainSettings, memory: Memory) -> Finding:
    folder = Path(settings.output_dir).absolute()
    check_writable("output_dir", folder)
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    free, saved = shutil.disk_usage(existing).free, count_saved(settings, memory.plan)
    text = (
        f"{free / GB:.0f} GB free in {existing}; the model takes {saved.final / GB:.1f} GB, {saved.kept} checkpoints of"
        f" {saved.checkpoint / GB:.1f} GB at most"
    )
    advice = "set paths.runs to a larger disk, or lower trainer.save_total_limit"
    return judged(free >= saved.total, "disk", text, "error", advice)
