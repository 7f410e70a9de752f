"""How much code of others may take: a chat template comes with a checkpoint, and Jinja's sandbox limits no loop."""

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

_MEMORY_FILE = Path("/proc/self/statm")
"""Of Linux; its first number is the pages of this process."""


@contextmanager
def bounded(seconds: float, memory: int) -> Iterator[None]:
    """Within it the main thread takes so much of the processor's time and so many more bytes, where the system counts.

    Bytes are the whole process's: once it has a GPU, whose driver takes addresses as it likes, they are not limited.

    Raises:
        MemoryError: It wants more bytes; raised where it asks for them.
        TimeoutError: It takes longer, anywhere inside.
    """
    if threading.current_thread() is not threading.main_thread():  # signals go to the main thread
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it takes more than {seconds:g} seconds")

    handler = signal.signal(signal.SIGVTALRM, end)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        if _MEMORY_FILE.is_file() and not torch.cuda.is_initialized():
            pages = int(_MEMORY_FILE.read_text().split()[0])
            wanted = pages * resource.getpagesize() + memory
            if limits[0] == resource.RLIM_INFINITY or wanted < limits[0]:
                resource.setrlimit(resource.RLIMIT_AS, (wanted, limits[1]))
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
