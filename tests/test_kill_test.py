"""`scripts/kill_test`: its short form, of ten kills, and that it would see what is lost."""

import json
import random
from collections import Counter

import pytest

from scripts import kill_test


def test_faults_come_in_order_and_from_a_seed():
    drawn = kill_test.draw_faults(10, 50, random.Random(0))
    assert Counter(fault.kind for fault in drawn) == {
        "kill": 4,
        "all": 2,
        "saving": 2,
        "torn": 2,
        "term": 1,
        "usr1": 1,
        "full": 1,
    }
    assert [fault.step for fault in drawn] == sorted(fault.step for fault in drawn)
    assert drawn == kill_test.draw_faults(10, 50, random.Random(0))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("backends", ["one,zero2"])
def test_ten_kills_lose_nothing(tmp_path, monkeypatch, capsys, backends):
    file = tmp_path / "found.json"
    monkeypatch.setattr("sys.argv", ["kill_test", "--kills=5", f"--backends={backends}", f"--output={file}"])
    assert kill_test.main() == 0, capsys.readouterr().out
    found = json.loads(file.read_text())["trainings"]
    assert [one["backend"] for one in found] == backends.split(",")
    assert all(one["lost"] == one["repeated"] == 0 and one["bitwise"] for one in found)
    assert sum(fault["kind"] != kill_test.LATE for one in found for fault in one["faults"]) >= 10  # of 14
