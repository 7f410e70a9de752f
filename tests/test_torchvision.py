"""Importing the package is cheap, and torchvision can be imported beside a CPU-only torch wherever it is."""

import subprocess
import sys

import pytest


def run(source: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_neither_torch_nor_transformers():
    slow = "[name for name in sys.modules if name.partition('.')[0] in ('torch', 'transformers', 'torchvision')]"
    assert run(f"import sys, voco_llama, voco_llama.cli; print({slow})") == "[]"


def test_looking_for_torchvision_does_not_import_torch():
    found = "importlib.util.find_spec('torchvision') is not None, 'torch' in sys.modules"
    source = f"import sys, voco_llama, importlib.util; print({found})"
    assert run(source) == "True False"


@pytest.mark.parametrize("library", ["torchvision.transforms", pytest.param("open_clip", marks=pytest.mark.slow)])
def test_what_needs_torchvision_can_be_imported(library):
    finders = "[finder for finder in sys.meta_path if type(finder).__module__ == 'voco_llama._torchvision']"
    source = f"import sys, voco_llama; assert len({finders}) == 1; import {library}; print({finders})"
    assert run(source) == "[]"


def test_a_torchvision_that_is_imported_already_is_left_alone():
    source = """
import sys, types
sys.modules["torchvision"] = mine = types.ModuleType("torchvision")
finders = list(sys.meta_path)
import voco_llama
from voco_llama._torchvision import was_mended
import torchvision
print(torchvision is mine, sys.meta_path == finders, was_mended(), "torch" in sys.modules)
"""
    assert run(source) == "True True False False"


def test_without_torchvision_there_is_nothing_to_find():
    source = """
import sys, voco_llama
sys.path[:] = [folder for folder in sys.path if "packages" not in folder]
try:
    import torchvision
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run(source) == "torchvision"
