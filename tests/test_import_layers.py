"""Imports inside the package keep the contracts of pyproject.toml: down only, no circles, libraries in few files."""

from pathlib import Path

from importlinter.cli import lint_imports


def test_contracts_are_kept(capsys):
    status = lint_imports(str(Path(__file__).parents[1] / "pyproject.toml"), no_cache=True, no_logo=True)
    assert status == 0, capsys.readouterr().out
