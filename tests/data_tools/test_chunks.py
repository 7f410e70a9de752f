import logging
import os

import pytest
from huggingface_hub import constants

from tests.tiny import tiny_processor
from voco_llama.data_tools import chunks as chunks_module
from voco_llama.data_tools.chunks import CHUNK, chunks_of, find_processor, in_order
from voco_llama.errors import DataError, ProblemKind


def squares(chunk):
    source, records = chunk
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


def fail(chunk):
    raise DataError("record 3: broken", ProblemKind.ROLES)


def test_an_error_is_not_swallowed():
    with pytest.raises(DataError, match="record 3: broken"):
        list(in_order(fail, chunks_of([range(3)]), 1, "failing"))


def test_lines_of_progress_without_a_terminal(monkeypatch, caplog, capsys):
    monkeypatch.setattr(chunks_module, "LOG_SECONDS", -1.0)
    with caplog.at_level(logging.INFO):
        list(in_order(squares, chunks_of([range(CHUNK + 1)]), 0, "squares"))
    assert caplog.messages == [f"squares: {done} of {CHUNK + 1} records" for done in (CHUNK, CHUNK + 1)]
    assert capsys.readouterr().err == ""


# ---- the processor


@pytest.fixture
def chosen(settings, defects, images):
    return lambda **own: settings(("llava_json", defects, images), **own)


def test_the_processor_of_the_training(chosen, tmp_path):
    processor, said = find_processor(chosen())
    assert (processor.max_length, processor.style.system) == (128, "")
    assert said == (
        f"measured by the tokenizer of {tmp_path / 'tokenizer'}; template vicuna_v1, order first, no system text;"
        " data.max_length 128; 4 vision and 1 VoCo tokens an image"
    )


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"model.tokenizer": "/no/such/folder"}, "model.tokenizer: /no/such/folder is neither a folder here nor in"),
        ({"model.tokenizer": "nobody/nothing"}, "model.tokenizer: nobody/nothing is neither"),
        (
            {"model.checkpoint": "no/such/run"},
            "model.checkpoint: no/such/run is neither a folder here nor in the hub's cache; fetch or name another, or"
            " set model.checkpoint=null",
        ),
        ({"model.tokenizer": None, "model.language.pretrained": None}, "model.tokenizer: None is neither"),
        ({"model.vision.name": "none.json"}, "none.json: cannot be read"),
    ],
)
def test_nothing_at_hand(chosen, own, reason, caplog):
    processor, said = find_processor(chosen(**own))
    assert processor is None
    assert said.startswith(f"not measured: {reason}")
    assert said.removeprefix("not measured: ") in caplog.text


def test_a_tokenizer_in_the_cache_of_the_hub_is_used(chosen, tmp_path, monkeypatch):
    repository = tmp_path / "cache" / "models--somebody--something"
    snapshot = repository / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    before = chosen()
    (tmp_path / "tokenizer").rename(snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    built = tiny_processor()
    monkeypatch.setattr("voco_llama.data_tools.chunks.build_processor", lambda settings: built)
    before.model.tokenizer = "somebody/something"
    processor, said = find_processor(before)
    assert processor is built
    assert said.startswith("measured by the tokenizer of somebody/something; ")
