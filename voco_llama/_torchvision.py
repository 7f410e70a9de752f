"""Makes torchvision importable beside a CPU-only torch.

The registry's torchvision is linked against CUDA. Beside a CPU build of torch its compiled library cannot be
loaded, the schemas of its two operators are missing, and `import torchvision` dies with
`operator torchvision::nms does not exist` -- and with it open_clip, timm and parts of transformers. Declaring the
two schemas mends the import; calling the operators still fails with torchvision's own error. Where torchvision
works, or is absent, nothing is done.
"""

import importlib.util
import sys
from pathlib import Path

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library = None  # torch.library keeps a definition only as long as its Library object lives


def _compiled_library_loads() -> bool:
    """Whether torchvision's compiled operators can be loaded beside this torch."""
    import torch

    specification = importlib.util.find_spec("torchvision")
    if specification is None or not specification.submodule_search_locations:
        return True  # no torchvision, nothing to mend
    libraries = list(Path(specification.submodule_search_locations[0]).glob("_C.*"))
    if not libraries:
        return False
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")


def mend() -> None:
    """Declare torchvision's operator schemas if, and only if, its compiled library cannot be loaded."""
    global _library
    if _library is not None or "torchvision" in sys.modules or _compiled_library_loads():
        return
    import torch

    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)
