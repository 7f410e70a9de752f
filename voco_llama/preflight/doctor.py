"""`doctor`: all checks, of the machine and what is installed on it and, if a training is named, of that.

A training's are in `voco_llama.preflight.training`; they are imported only then, so that a machine on which a library
is broken can be looked at.
"""

import importlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from voco_llama.preflight.finding import GB, SECONDS, SHARED_MEMORY, Check, Finding, judged, num_cores, run_checks
from voco_llama.settings import TrainSettings

PACKAGE = "voco-llama"
SMALL_SHARED_MEMORY = 1e9
"""Bytes; containers are started with 64 MB where nobody asked for more, and data workers pass batches through it."""

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""torchrun sets all of them."""


def doctor(settings: TrainSettings | None = None) -> list[Finding]:
    """Look at the machine and, if a training's settings are given, at all it needs; nothing is loaded or written."""
    findings = run_checks(machine_checks())
    if settings is not None:
        from voco_llama.preflight.training import training_checks

        findings += run_checks(training_checks(settings))
    return findings


def machine_checks() -> list[tuple[str, Check]]:
    """Name and function of each check, the cheap ones first."""
    return [
        ("python", check_python),
        ("packages", check_packages),
        ("lmms-eval", check_lmms_eval),
        ("launch", lambda: check_launch(os.environ)),
        ("processor", lambda: [Finding("ok", "processor", f"{num_cores()} cores ({platform.machine()})")]),
        ("memory", check_memory),
        ("shared memory", check_shared_memory),
        ("torch", check_torch),
        ("GPU", check_gpus),
        ("sharding", check_sharding),
    ]


def check_python() -> Iterator[Finding]:
    """Python's version against `requires-python`."""
    wanted, here = metadata.metadata(PACKAGE)["Requires-Python"], platform.python_version()
    is_fit = SpecifierSet(wanted).contains(here)
    text = here if is_fit else f"{here} is not {wanted}"
    yield judged(is_fit, "python", text, "error", "make an environment of such a version")


def check_packages() -> Iterator[Finding]:
    """Versions of what the package depends on against its ranges."""
    problems = {requirement: _problem(requirement) for requirement in _requirements(extra="")}
    for requirement, problem in problems.items():
        if problem is not None:
            yield Finding("error", "packages", problem, f"pip install '{requirement.name}{requirement.specifier}'")
    right = list(problems.values()).count(None)
    yield Finding("ok", "packages", f"{right} in the versions that pyproject.toml names")


def check_lmms_eval() -> Iterator[Finding]:
    """The extra that evaluation needs."""
    for requirement in _requirements(extra="eval"):
        problem = _problem(requirement)
        text = metadata.version(requirement.name) if problem is None else f"{problem}: trainings do without"
        yield judged(problem is None, requirement.name, text, "note", "pip install '.[eval]'")


def _requirements(extra: str) -> list[Requirement]:
    """Of the installed package; those of an extra alone, or those without any."""
    found = [Requirement(text) for text in metadata.requires(PACKAGE) or ()]
    found = [entry for entry in found if entry.marker is None or entry.marker.evaluate({"extra": extra})]
    return [entry for entry in found if ("extra" in str(entry.marker)) == bool(extra)]


def _problem(requirement: Requirement) -> str | None:
    try:
        here = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(here, prereleases=True):
        return None
    return f"{requirement.name} is {here}, wanted {requirement.specifier}"


def check_launch(environment: Mapping[str, str]) -> Iterator[Finding]:
    """The variables by which torchrun tells processes of each other."""
    there = [name for name in LAUNCH_VARIABLES if environment.get(name)]
    missing = [name for name in LAUNCH_VARIABLES if name not in there]
    if not there:
        yield Finding("ok", "launch", "no torchrun around this command")
    elif missing:
        text = f"{', '.join(there)} set, but not {', '.join(missing)}"
        yield Finding("error", "launch", text, "unset them, or start with torchrun")
    else:
        yield Finding("ok", "launch", f"process {environment['RANK']} of {environment['WORLD_SIZE']}")


def check_memory() -> Iterator[Finding]:
    """Memory of the machine, or of the container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    text = f"{total / GB:.0f} GB, {free / GB:.0f} GB of them unused"
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    if limit.isdigit() and int(limit) < total:
        text += f"; this container may take {int(limit) / GB:.0f} GB"
    yield Finding("ok", "memory", text)


def check_shared_memory(folder: Path = SHARED_MEMORY) -> Iterator[Finding]:
    """Where data workers put batches."""
    if not folder.is_dir():
        yield Finding("note", "shared memory", f"no {folder} on this system")
        return
    free = shutil.disk_usage(folder).free
    text = f"{free / GB:.1f} GB free in {folder}"
    advice = "start the container with --ipc=host or --shm-size=16g, or set trainer.dataloader_num_workers=0"
    yield judged(free >= SMALL_SHARED_MEMORY, "shared memory", text, "warning", advice)


def check_torch() -> Iterator[Finding]:
    """The build of PyTorch, and whether torchvision is of the same."""
    import torch

    from voco_llama import _torchvision

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield Finding("ok", "torch", f"{torch.__version__}, built for {build}")
    text = importlib.import_module("torchvision").__version__
    if mended := _torchvision.was_mended():
        text += ", built for another torch: its compiled operators are left out"
    yield judged(not mended, "torchvision", text, "note", "nothing here needs them")


def check_gpus() -> Iterator[Finding]:
    """Names, memory and bf16 of the GPUs that PyTorch sees."""
    import torch

    driver = _nvidia_driver()
    if not torch.cuda.is_available():
        if driver is None:
            yield Finding("note", "GPU", "none", "7B trainings need one; the toy world does not")
        else:
            text = f"driver {driver} is here, but this torch ({torch.__version__}) sees no GPU"
            yield Finding("error", "GPU", text, "install a CUDA build of torch that the driver serves")
        return
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            free, total = torch.cuda.mem_get_info()
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(index)
        text = f"{name}, {free / GB:.0f} of {total / GB:.0f} GB free, driver {driver}"
        text += "" if has_bf16 else ", without bf16"
        yield judged(has_bf16, f"GPU {index}", text, "warning", "set trainer.bf16=false trainer.fp16=true")


def _nvidia_driver() -> str | None:
    """Version of the driver; None: no program says so."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    return answer.stdout.split("\n", 1)[0].strip() or None


def check_sharding() -> Iterator[Finding]:
    """Whether what divides trainings can be imported, and compile what some settings of it need."""
    from voco_llama.sharding import installation

    yield Finding(*installation())
