"""The little world that trainings are tested on."""

from tests.training.conftest import one_thread, settings_for, world

__all__ = ["one_thread", "settings_for", "world"]
