"""VoCo-LLaMA: a language model compresses an image into a few VoCo tokens by its attention mask alone.

The public face (loaded on first use, so that importing the package stays cheap):

    from voco_llama import VoCoLlama, VoCoProcessor, VoCoCache
"""

from importlib import import_module
from typing import Any

from voco_llama import _torchvision

_torchvision.mend_when_imported()

__version__ = "0.1.0"

_PUBLIC = {
    "VoCoLlama": "voco_llama.model.voco_llama",
    "VoCoLlamaConfig": "voco_llama.configuration",
    "VoCoCache": "voco_llama.model.cache",
    "VoCoProcessor": "voco_llama.data.processor",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'voco_llama' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
