"""A little world, a training on it and its results: made once, and left as they are by every test of the rules."""

import os

import pytest

from tests.rules.commands import Place, make_place, seen
from tests.training.conftest import one_thread

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    """All that commands read."""
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="session")
def measured(place) -> Place:
    """The same, with the results of two evaluations to report on."""
    for row, condition in (("upper", "full"), ("lower", "voco")):
        line = [f"row={row}", f"condition={condition}", f"output={place.results}", *place.evaluation()]
        ended = seen(["evaluate", *line, f"datasets_cache={place.root / 'datasets_cache'}"])
        assert ended.status == 0, ended
    return place


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory, a home and a cache of this test's own."""
    for name in ("cwd", "home", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for name, folder in (("HOME", "home"), ("XDG_CACHE_HOME", "cache"), ("HF_HOME", "cache")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
