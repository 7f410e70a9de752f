"""The command lines that the tests of the rules vary: all commands have one, and each ends well."""

import pytest

from tests.rules.commands import LINES, SLOW, seen
from voco_llama import cli


def test_every_command_has_a_line():
    assert list(LINES) == list(cli.COMMANDS)


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in LINES]
)
def test_each_line_ends_well(command, place, tmp_path, request):
    if command == "report":
        request.getfixturevalue("measured")
    ended = seen([command, *LINES[command](place, tmp_path / "out")])
    assert (ended.status, ended.error, ended.escaped) == (0, [], "")
