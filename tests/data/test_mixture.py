import json
import logging
import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from voco_llama.data import mixture as mixture_module
from voco_llama.data.mixture import LoadedMixture, Mixture, summarize_bad_records
from voco_llama.data.readers.llava_json import LlavaJson
from voco_llama.data.records import Record
from voco_llama.errors import DataError, SettingsError, own_line


def write_source(
    folder: Path, name: str, count: int, bad: tuple[int, ...] = (), text_only: tuple[int, ...] = ()
) -> Path:
    """Records whose id is `name` and a number; of the bad ones the user alone speaks."""
    records = []
    for i in range(count):
        image = {} if i in text_only else {"image": f"{i}.jpg"}
        question = "What?" if i in text_only else "<image>\nWhat?"
        answerer = "human" if i in bad else "gpt"
        turns = [{"from": "human", "value": question}, {"from": answerer, "value": "x" * (i + 1)}]
        records.append({"id": f"{name}{i}", **image, "conversations": turns})
    (folder / f"{name}.json").write_text(json.dumps(records))
    return folder / f"{name}.json"


@pytest.fixture
def sources(tmp_path) -> tuple[LlavaJson, LlavaJson]:
    return (
        LlavaJson(write_source(tmp_path, "a", 10), tmp_path),
        LlavaJson(write_source(tmp_path, "b", 6, text_only=(1, 4)), tmp_path),
    )


def damaged(tmp_path: Path, count: int, bad: tuple[int, ...], text_only: tuple[int, ...] = (), **options) -> Mixture:
    reader = LlavaJson(write_source(tmp_path, "d", count, bad, text_only), tmp_path)
    return Mixture([reader], shuffle=False, **options)


def record_id(record: Record) -> str:
    return record.id


def fail_on_image_3(record: Record) -> str:
    if record.images and record.images[0].name == "3.jpg":
        raise DataError(f"{record.source}: image {record.images[0].name}: corrupt; fetch it again")
    return record.id


# ---- order and shares


def test_everything_once_by_default(sources):
    mixture = Mixture(sources)
    ids = [record.id for record in mixture]
    everything = [f"a{i}" for i in range(10)] + [f"b{i}" for i in range(6)]
    assert sorted(ids) == everything
    assert ids != everything
    assert [record.id for record in Mixture(sources, shuffle=False)] == everything


def test_order_is_a_function_of_the_seed(sources):
    def ids(seed: int) -> list[str]:
        return [record.id for record in Mixture(sources, weights=[1.5, 0.5], limits=[8, None], seed=seed)]

    assert ids(3) == ids(3)
    assert ids(3) != ids(4)
    assert set(ids(3)) != set(ids(4))


def test_weights(sources):
    mixture = Mixture(sources, weights=[2.5, 0.5])
    counts = Counter(record.id for record in mixture)
    of_a = [counts[f"a{i}"] for i in range(10)]
    of_b = [counts[f"b{i}"] for i in range(6)]
    assert sorted(of_a) == [2] * 5 + [3] * 5
    assert sorted(of_b) == [0] * 3 + [1] * 3
    assert len(mixture) == 28


def test_records_of_a_source(sources):
    mixture = Mixture(sources, weights=[1.5, 0.5], limits=[4, None])
    for source in (0, 1):
        expected = sorted(record for place, record in map(mixture.origin, range(len(mixture))) if place == source)
        assert mixture.records_of(source).tolist() == expected
        assert len(expected) == mixture.num_records[source]


def test_what_an_entry_looks_at(tmp_path):
    """Two sources about the same images, one of them twice: the second time of a record is no other's first."""
    sources = [LlavaJson(write_source(tmp_path, name, 4, text_only=(3,)), tmp_path) for name in ("a", "b")]
    mixture = Mixture(sources, weights=[1, 2])
    seen = {}
    for index, medium in enumerate(mixture.medium.tolist()):
        seen.setdefault(medium, []).append(mixture[index].id)
    assert sorted(seen.pop(0)) == ["a3", "b3", "b3"]
    assert sorted(map(sorted, seen.values())) == [["a0", "b0"], ["a1", "b1"], ["a2", "b2"], ["b0"], ["b1"], ["b2"]]


def test_limits_come_before_weights(sources):
    counts = Counter(record.id for record in Mixture(sources, weights=[2, 1], limits=[4, 100]))
    assert sorted(counts[f"a{i}"] for i in range(10)) == [0] * 6 + [2] * 4
    assert [counts[f"b{i}"] for i in range(6)] == [1] * 6


def test_a_fraction_is_of_the_chosen_records(sources):
    mixtures = [Mixture(sources, weights=[1.5, 0.5], limits=[4, 4], seed=seed) for seed in range(20)]
    for mixture in mixtures:
        counts = Counter(record.id for record in mixture)
        assert sorted(counts[f"a{i}"] for i in range(10)) == [0] * 6 + [1, 1, 2, 2]
        assert sorted(counts[f"b{i}"] for i in range(6)) == [0] * 4 + [1, 1]
        assert mixture.num_records == [6, 2]
    chosen = Counter(name for mixture in mixtures for name in {record.id for record in mixture})
    assert len(chosen) == 16  # whatever the records, some seed takes them


class Grouped(LlavaJson):
    """As a streamed source: its records stand in groups of three."""

    group_starts = np.array([0, 3, 6, 9, 10])


def test_a_limit_of_a_streamed_source_takes_whole_groups(tmp_path):
    file = write_source(tmp_path, "s", 10)
    seen = set()
    for seed in range(10):
        mixture = Mixture([Grouped(file, tmp_path)], limits=[4], seed=seed, shuffle=False)
        records = [int(record.id[1:]) for record in mixture]
        assert records == sorted(set(records))
        assert len(records) == 4
        assert len({record // 3 for record in records}) == 2
        seen.add(tuple(records))
    assert len(seen) > 3


def test_sizes_follow_the_entries(sources):
    mixture = Mixture(sources, weights=[1, 2])
    for i, record in enumerate(mixture):
        assert mixture.media[i] == len(record.images)
        assert mixture.characters[i] == sum(len(turn.text) for turn in record.turns)
    assert mixture.media.dtype == mixture.characters.dtype == np.int32


def test_sizes_load_nothing(tmp_path):
    mixture = damaged(tmp_path, 3, bad=(0, 1, 2))
    assert mixture.media.tolist() == [1, 1, 1]


def test_index_errors(sources):
    mixture = Mixture(sources)
    for index in (16, -1):
        with pytest.raises(IndexError):
            mixture[index]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"weights": [1]}, SettingsError, "2 data sources but 1 weights; give one for each"),
        ({"limits": [1, 2, 3]}, SettingsError, "2 data sources but 3 limits"),
        ({"weights": [0, 1]}, SettingsError, r"a\.json: a weight of 0; give one above 0"),
        ({"weights": [1, float("nan")]}, SettingsError, r"b\.json: a weight of nan"),
        ({"weights": [1, 1e12]}, SettingsError, r"b\.json: a weight of 1000000000000.0 is 6e\+12 records; lower it"),
        ({"limits": [0, None]}, SettingsError, r"a\.json: a limit of 0 records"),
        ({"weights": [0.01, 1]}, DataError, r"a\.json: weight 0\.01 of 10 records is none; raise it"),
    ],
)
def test_bad_settings(sources, options, error, text):
    with pytest.raises(error, match=text):
        Mixture(sources, **options)


def test_no_sources():
    with pytest.raises(DataError, match="no sources; name at least one"):
        Mixture([])


# ---- bad records


def test_bad_record_stops_by_default(tmp_path):
    mixture = damaged(tmp_path, 4, bad=(2,))
    assert mixture.try_load(1, record_id) == "d1"
    with pytest.raises(DataError, match=r"d\.json record 2 \(id 'd2'\): turn 1 is from 'human' where"):
        mixture.try_load(2, record_id)


def test_bad_record_is_replaced_by_the_next_good_one(tmp_path):
    mixture = damaged(tmp_path, 6, bad=(2, 3, 5), skip_bad_records=True)
    expected = ["d0", "d1", "d4", "d4", "d4", "d0"]
    assert [mixture.try_load(i, record_id) for i in range(6)] == expected
    again = damaged(tmp_path, 6, bad=(2, 3, 5), skip_bad_records=True)
    assert [again.try_load(i, record_id) for i in reversed(range(6))] == expected[::-1]


def test_failure_in_loading_counts_too(tmp_path):
    mixture = damaged(tmp_path, 5, bad=(), skip_bad_records=True)
    assert [mixture.try_load(i, fail_on_image_3) for i in range(5)] == ["d0", "d1", "d2", "d4", "d4"]


def test_replacement_keeps_to_the_source_and_its_modality(tmp_path, sources):
    mixed = damaged(tmp_path, 6, bad=(1, 4), text_only=(0, 1, 3), skip_bad_records=True)
    assert [mixed.try_load(i, record_id) for i in range(6)] == ["d0", "d3", "d2", "d3", "d5", "d5"]
    bad_last = LlavaJson(write_source(tmp_path, "c", 3, bad=(2,)), tmp_path)
    several = Mixture([bad_last, *sources], shuffle=False, skip_bad_records=True)
    assert several.try_load(2, record_id) == "c0"


def test_replacement_keeps_to_the_chosen_records(tmp_path):
    mixture = damaged(tmp_path, 20, bad=tuple(range(0, 20, 2)), limits=[8], skip_bad_records=True)
    chosen = {mixture.origin(i)[1] for i in range(len(mixture))}
    assert len(chosen) == 8
    assert {int(mixture.try_load(i, record_id)[1:]) for i in range(len(mixture))} <= chosen


def test_all_bad_ends(tmp_path):
    mixture = damaged(tmp_path, 3, bad=(0, 1, 2), skip_bad_records=True)
    for index in (1, 2):
        with pytest.raises(
            DataError, match=rf"3 records in a row from record {index} on .*record {index} \(id"
        ) as caught:
            mixture.try_load(index, record_id)
        assert "\n" not in str(caught.value)


def test_tries_are_bounded(tmp_path):
    count = mixture_module.MAX_REPLACEMENTS + 5
    mixture = damaged(tmp_path, count, bad=tuple(range(count - 1)), skip_bad_records=True)
    with pytest.raises(DataError, match=f"{mixture_module.MAX_REPLACEMENTS} records in a row from record 0 on"):
        mixture.try_load(0, record_id)
    assert mixture.try_load(count - 3, record_id) == f"d{count - 1}"


@pytest.mark.parametrize("error", [KeyError("a"), OSError("b"), RecursionError("c"), ZeroDivisionError("d")])
def test_whatever_a_library_raises_names_the_record(tmp_path, error):
    def load(record: Record) -> str:
        if record.id == "d1":
            raise error
        return record.id

    message = rf"d\.json record 1: cannot be read \({error}\): mend it, or take it out$"
    with pytest.raises(DataError, match=message):
        damaged(tmp_path, 3, bad=()).try_load(1, load)
    listed = tmp_path / "bad"
    mixture = damaged(tmp_path, 3, bad=(), skip_bad_records=True, bad_records_folder=listed)
    assert [mixture.try_load(i, load) for i in range(3)] == ["d0", "d2", "d2"]
    (entry,) = summarize_bad_records(listed)
    assert entry["record"] == 1
    assert re.search(message, entry["error"])


def test_errors_of_settings_are_not_swallowed(tmp_path):
    def load(record: Record) -> str:
        raise SettingsError("num_frames must be at least 1, not 0")

    with pytest.raises(SettingsError, match="num_frames"):
        damaged(tmp_path, 3, bad=(), skip_bad_records=True).try_load(0, load)


def test_each_bad_record_is_logged_and_listed_once(tmp_path, caplog):
    listed = tmp_path / "run" / "bad"
    mixture = damaged(tmp_path, 4, bad=(1, 2), skip_bad_records=True, bad_records_folder=listed)
    assert summarize_bad_records(listed) == []
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for index in range(4):
                mixture.try_load(index, record_id)
    assert [message.split(":")[0] for message in caplog.messages] == ["bad record skipped"] * 2
    file = str(tmp_path / "d.json")
    assert [(entry["file"], entry["record"]) for entry in summarize_bad_records(listed)] == [(file, 1), (file, 2)]
    assert summarize_bad_records(listed)[0]["error"] == (
        f"{file} record 1 (id 'd1'): turn 1 is from 'human' where the assistant's turn belongs; user and assistant take"
        " turns, the user first"
    )


def test_half_a_line_that_a_kill_left_is_left_out(tmp_path):
    listed = tmp_path / "bad"
    mixture = damaged(tmp_path, 4, bad=(1, 2), skip_bad_records=True, bad_records_folder=listed)
    mixture.try_load(1, record_id)
    (file,) = listed.iterdir()
    (listed / "bad_records.other-1.jsonl").write_bytes(file.read_bytes()[:-9])
    file.write_bytes(file.read_bytes()[:-9])
    again = damaged(tmp_path, 4, bad=(1, 2), skip_bad_records=True, bad_records_folder=listed)
    assert [entry["record"] for entry in summarize_bad_records(listed)] == [1]
    again.try_load(2, record_id)  # a process of the same id goes on in the same file
    assert [entry["record"] for entry in summarize_bad_records(listed)] == [1, 2]


def test_what_is_no_entry_of_a_bad_record_is_left_out(tmp_path):
    good = {"file": "a", "record": 1, "error": "b"}
    lines = ["{}", '{"file": "a", "record": 1}', json.dumps(good | {"file": 3}), "[" * 100_000, json.dumps(good)]
    (tmp_path / "bad_records.x-1.jsonl").write_text("\n".join(lines))
    assert summarize_bad_records(tmp_path) == [good]


# ---- worker processes


@pytest.mark.parametrize(("start", "num_workers"), [("fork", 2), ("spawn", 1)])
def test_workers_replace_and_list(tmp_path, start, num_workers):
    listed = tmp_path / "bad"
    mixture = damaged(tmp_path, 8, bad=(2,), skip_bad_records=True, bad_records_folder=listed)
    expected = ["d0", "d1", "d4", "d4", "d4", "d5", "d6", "d7"]
    loader = DataLoader(
        LoadedMixture(mixture, fail_on_image_3), batch_size=1, num_workers=num_workers, multiprocessing_context=start
    )
    assert [batch[0] for batch in loader] == expected
    assert [batch[0] for batch in DataLoader(LoadedMixture(mixture, fail_on_image_3), batch_size=1)] == expected
    assert len(list(listed.iterdir())) == num_workers + 1
    assert [entry["record"] for entry in summarize_bad_records(listed)] == [2, 3]


def test_error_line_is_recovered_from_a_worker(tmp_path):
    mixture = damaged(tmp_path, 4, bad=(2,))
    with pytest.raises(DataError) as caught:
        list(DataLoader(LoadedMixture(mixture, record_id), num_workers=1))
    assert "Traceback" in str(caught.value)
    expected = (
        f"{tmp_path / 'd.json'} record 2 (id 'd2'): turn 1 is from 'human' where the assistant's turn belongs; user and"
        " assistant take turns, the user first"
    )
    assert own_line(caught.value) == expected
    with pytest.raises(DataError, match=re.escape(expected)) as plain:
        mixture.try_load(2, record_id)
    assert own_line(plain.value) == expected


def test_pickled_mixture_is_the_same(sources):
    mixture = Mixture(sources, weights=[0.5, 2], seed=5)
    assert list(pickle.loads(pickle.dumps(mixture))) == list(mixture)
