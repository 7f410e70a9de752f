"""Does what hypothesis draws, seeded, and lists each kind of what must not come out: a type, and where it came from."""

import re
import resource
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from voco_llama.errors import VoCoError, own_line

Act = Callable[[], Any]


def fuzz(count: int, draw: Callable[[st.DataObject], tuple[str, Act]]) -> None:
    """Does what is drawn, so many times; fails with a line for each kind of what must not come out."""
    found: dict[str, str] = {}
    ended = {"taken": 0, "refused": 0}
    started = time.perf_counter()

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def run(data: st.DataObject) -> None:
        what, act = draw(data)
        try:
            with warnings.catch_warnings(action="ignore"):
                act()
            ended["taken"] += 1
        except VoCoError as error:
            ended["refused"] += 1
            if "\n" in own_line(error) or not own_line(error):
                found.setdefault(f"several lines: {own_line(error)[:200]!r}", what)
        except Exception as error:
            found.setdefault(kind_of(error), what)

    run()
    seconds = time.perf_counter() - started
    print(f"{sum(ended.values()) + len(found)} tried in {seconds:.1f} s, {ended}")  # noqa: T201
    lines = [f"{kind}\n        from {what}" for kind, what in sorted(found.items())]
    assert not found, f"{len(found)} kinds:\n" + "\n".join(lines)


def kind_of(error: BaseException) -> str:
    """Its type, and where it passed through a file of ours last."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = next((f for f in reversed(frames) if "voco_llama" in Path(f.filename).parts), frames[-1])
    text = re.sub(r"\d+|'[^']*'", "..", " ".join(str(error).split()))[:80]
    return f"{type(error).__name__} in {'/'.join(Path(ours.filename).parts[-2:])}:{ours.lineno} {ours.name}: {text}"


def shown(data: bytes) -> str:
    """An input short enough for a line, or its beginning."""
    return repr(data) if len(data) < 400 else f"{data[:200]!r}... ({len(data)} bytes)"


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """A number in a damaged file may ask for any amount of memory: two gigabytes more than now, and no more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
