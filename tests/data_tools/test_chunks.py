import logging
import os

import pytest

from voco_llama.data_tools import chunks as chunks_module
from voco_llama.data_tools.chunks import CHUNK, chunks_of, in_order
from voco_llama.errors import DataError


def squares(source, records):
    return source, [record**2 for record in records], os.getpid()


def test_chunks_cover_each_record_once_in_order():
    records = [range(2 * CHUNK + 1), range(0), range(5, 7)]
    parts = chunks_of(records)
    assert [source for source, _ in parts] == [0, 0, 0, 2]
    assert [record for _, part in parts for record in part] == [*records[0], *records[2]]
    assert max(len(part) for _, part in parts) == CHUNK


@pytest.mark.parametrize("workers", [0, 2, None])
def test_results_come_in_order(workers):
    parts = chunks_of([range(CHUNK * 5), range(3)])
    results = list(in_order(squares, parts, workers, "squares"))
    assert [record for _, part, _ in results for record in part] == [i**2 for i in [*range(CHUNK * 5), *range(3)]]
    assert (os.getpid() in {process for _, _, process in results}) == (workers == 0)


def fail(source, records):
    raise DataError("record 3: broken", "roles")


def test_an_error_is_not_swallowed():
    with pytest.raises(DataError, match="record 3: broken"):
        list(in_order(fail, chunks_of([range(3)]), 1, "failing"))


def test_lines_of_progress_without_a_terminal(monkeypatch, caplog, capsys):
    monkeypatch.setattr(chunks_module, "LOG_SECONDS", -1.0)
    with caplog.at_level(logging.INFO):
        list(in_order(squares, chunks_of([range(CHUNK + 1)]), 0, "squares"))
    assert caplog.messages == [f"squares: {done} of {CHUNK + 1} records" for done in (CHUNK, CHUNK + 1)]
    assert capsys.readouterr().err == ""
