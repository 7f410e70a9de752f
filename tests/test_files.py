"""Files read and written as a whole, and what a damaged one says."""

import pytest
import torch

from voco_llama.errors import CheckpointError, DataError, SettingsError, refused_as
from voco_llama.files import read_json


def test_any_exception_of_a_library_becomes_one_line_of_ours():
    for raised in (SyntaxError("no\nTIFF"), RecursionError(), MemoryError(), KeyError("a"), AssertionError("b")):
        line = r"^a.png: cannot be read \(.+\): take it out$"
        with pytest.raises(DataError, match=line) as caught, refused_as(DataError, "a.png", "take it out"):
            raise raised
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is raised


def test_our_own_errors_and_interrupts_pass():
    for raised in (SettingsError("as it is"), KeyboardInterrupt()):
        with pytest.raises(type(raised)) as caught, refused_as(DataError, "a.png"):
            raise raised
        assert caught.value is raised


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b"\xff\xfe{}", b"[" * 100_000],
    ids=["absent", "empty", "cut", "list", "utf16", "deep"],
)
def test_a_file_that_holds_no_json_object_is_one_line(tmp_path, content):
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a.json: cannot be read \(.+\): mend it$") as caught:
        read_json(file, advice="mend it")
    assert "\n" not in str(caught.value)
    file.write_text('{"a": 1}')
    assert read_json(file) == {"a": 1}


def test_torch_s_advice_to_run_what_a_file_holds_is_not_passed_on(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"\x00" * 100)
    with pytest.raises(CheckpointError, match="Weights only load failed") as caught, refused_as(CheckpointError, "a"):
        torch.load(tmp_path / "a.pt", weights_only=True)
    assert "weights_only" not in str(caught.value)
