"""Makes torchvision importable beside a CPU-only torch.

The registry's torchvision is linked against CUDA. Beside a CPU build of torch its compiled library cannot be
loaded, the schemas of its two operators are missing, and `import torchvision` dies with
`operator torchvision::nms does not exist` -- and with it open_clip, timm and parts of transformers. Declaring the
two schemas mends the import; calling the operators still fails with torchvision's own error. Where torchvision
works, or is absent, nothing is done.

It happens when torchvision is imported, by whomever: torch itself is not imported before.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library = None  # torch.library keeps a definition only as long as its Library object lives


class _Finder(MetaPathFinder):
    """Finds torchvision as Python does, and has its import begin with the mend."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        specification = PathFinder.find_spec(name, path) if name == "torchvision" else None
        if specification is None or specification.loader is None:
            return None
        execute = specification.loader.exec_module

        def mend_and_execute(module: ModuleType) -> None:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _mend(Path(specification.submodule_search_locations[0]))
            execute(module)

        specification.loader.exec_module = mend_and_execute
        return specification


def mend_when_imported() -> None:
    """Have torchvision mended when it is first imported; where it has been already, nothing is done."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


def was_mended() -> bool:
    """Whether torchvision was imported and its compiled library could not be loaded."""
    return _library is not None


def _compiled_library_loads(folder: Path) -> bool:
    """Whether torchvision's compiled operators can be loaded beside this torch."""
    import torch

    libraries = list(folder.glob("_C.*"))
    if not libraries:
        return False
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")


def _mend(folder: Path) -> None:
    """Declare torchvision's operator schemas if, and only if, its compiled library cannot be loaded."""
    global _library
    if _library is not None or _compiled_library_loads(folder):
        return
    import torch

    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)
