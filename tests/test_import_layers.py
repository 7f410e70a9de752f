"""Imports inside the package go down only, and three outside packages stay in their few files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "voco_llama"

# Lowest first. A unit is a module or a folder right below the package; it may import its own layer and those before it.
LAYERS = (
    ("_torchvision", "errors", "provenance", "hub", "files", "text", "choices", "sharding"),
    ("tokens", "settings", "composition"),
    ("layout", "visibility", "vision_config", "llava_folder", "configuration"),
    ("model", "data"),
    ("training", "evaluation", "export", "inference"),
    ("report", "preflight", "toyworld"),
    ("sweep", "data_tools"),
    ("__init__", "cli", "__main__"),
)
APART = ({"model", "data"}, {"training", "evaluation"})
CONFINED = {
    "hydra": {"composition.py", "sweep/grid.py"},
    "omegaconf": {"composition.py", "settings.py"},
    "lmms_eval": {"evaluation/lmms_adapter.py"},
}

RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}


def imported_names(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of all that a module of `package` imports, at any depth of its code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def violations(path: str, source: str) -> list[str]:
    """What is wrong with the imports of the module at `path`, which is relative to the package."""
    unit = Path(path).parts[0].removesuffix(".py")
    if unit not in RANK:
        return [f"{path}: '{unit}' stands in no layer: add it to LAYERS"]
    package = ".".join(["voco_llama", *Path(path).parent.parts])
    wrong = []
    for line, name in imported_names(source, package):
        top, *rest = name.split(".")
        if top in CONFINED and path not in CONFINED[top]:
            wrong.append(f"{path}:{line} imports {top}, which belongs in {sorted(CONFINED[top])}")
        if top != "voco_llama":
            continue
        # `from voco_llama import X` takes a module of that name, else a name of the package's public face
        target = rest[0] if rest and rest[0] in RANK else "__init__"
        if RANK[target] > RANK[unit]:
            wrong.append(f"{path}:{line} imports {name}, which is above it")
        elif target != unit and any({unit, target} <= pair for pair in APART):
            wrong.append(f"{path}:{line} imports {name}: {unit} and {target} know nothing of each other")
    return wrong


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_keeps_the_layers(path):
    assert not violations(str(path.relative_to(PACKAGE)), path.read_text())


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("layout.py", "from voco_llama.model.cache import VoCoCache", "above it"),
        ("data/media/images.py", "import voco_llama.model", "know nothing"),
        ("data/media/images.py", "from ...model import cache", "know nothing"),
        ("evaluation/run.py", "def f():\n    from voco_llama.training.run import train", "know nothing"),
        ("model/cache.py", "from voco_llama import VoCoLlama", "above it"),
        ("data/media/images.py", "from voco_llama.cli import main", "above it"),
        ("training/trainer.py", "import omegaconf", "belongs in"),
        ("cli.py", "import hydra", "belongs in"),
        ("evaluation/run.py", "from hydra.utils import instantiate", "belongs in"),
        ("evaluation/run.py", "import lmms_eval.api", "belongs in"),
        ("training/run.py", "from voco_llama.sweep.run import sweep", "above it"),
        ("stray.py", "", "no layer"),
    ],
)
def test_violation_is_seen(path, source, complaint):
    (found,) = violations(path, source)
    assert complaint in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli.py", "from voco_llama.training.run import train"),
        ("layout.py", "from voco_llama import tokens\nimport torch"),
        (
            "toyworld/world.py",
            "from ..data.records import Record\nfrom . import scenes\nfrom ..errors import DataError",
        ),
        ("evaluation/run.py", "from voco_llama.data.media.video import read_frames"),
    ],
)
def test_allowed_import_passes(path, source):
    assert violations(path, source) == []
