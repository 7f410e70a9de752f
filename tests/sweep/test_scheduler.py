"""Which task starts when, with processes that are counters."""

import pytest

from voco_llama.sweep import scheduler
from voco_llama.sweep.scheduler import Progress, Task, duration, run_side_by_side


class FakeProcess:
    """Runs for so many polls."""

    def __init__(self, polls: int, status: int = 0):
        self.polls, self.status, self.events = polls, status, []

    def poll(self):
        if self.polls is None:
            raise KeyboardInterrupt
        self.polls -= 1
        return None if self.polls > 0 else self.status

    def stop(self):
        self.events.append("stopped")

    def wait(self):
        self.events.append("waited")

    def last_words(self):
        return "    error: no\n  more in x.log"


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0)


@pytest.fixture
def run():
    """Run tasks whose processes are given by name; failures, and what started in which slot."""

    def run(tasks, slots, **processes):
        started = []

        def start(task, slot):
            started.append((task.name, slot))
            return processes[task.name]

        return run_side_by_side(tasks, slots, start, Progress(len(tasks), slots=slots)), started

    return run


def test_a_free_slot_takes_the_next(run):
    tasks = [Task(name) for name in "abcd"]
    failed, started = run(tasks, 2, a=FakeProcess(3), b=FakeProcess(1), c=FakeProcess(1), d=FakeProcess(9))
    assert failed == {}
    assert started == [("a", 0), ("b", 1), ("c", 1), ("d", 1)]


def test_a_task_waits_for_what_it_needs_and_others_go_before(run):
    tasks = [Task("base_0", counts=False), Task("a", "base_0"), Task("base_1", counts=False), Task("b", "base_1")]
    processes = dict(base_0=FakeProcess(3), a=FakeProcess(1), base_1=FakeProcess(1), b=FakeProcess(1))
    failed, started = run(tasks, 2, **processes)
    assert failed == {}
    assert [name for name, _ in started] == ["base_0", "base_1", "b", "a"]


def test_what_is_not_among_the_tasks_is_there_already(run):
    assert run([Task("a", "base")], 1, a=FakeProcess(1)) == ({}, [("a", 0)])


def test_a_failure_stops_only_what_needs_it(run, caplog):
    tasks = [Task("base", counts=False), Task("a", "base"), Task("b"), Task("c")]
    failed, started = run(tasks, 1, base=FakeProcess(1, 2), b=FakeProcess(1, -9), c=FakeProcess(1))
    assert failed == {"base": "status 2", "a": "not run, as base failed", "b": "status -9"}
    assert [name for name, _ in started] == ["base", "b", "c"]
    assert "b: FAILED after 0 s; 2 of 4 rows, 0 s so far\n    error: no\n  more in x.log" in caplog.text


def test_an_interrupt_stops_all_that_run_at_once(run):
    processes = dict(a=FakeProcess(9), b=FakeProcess(None), c=FakeProcess(1))
    with pytest.raises(KeyboardInterrupt):
        run([Task(name) for name in "abc"], 2, **processes)
    assert {name: process.events for name, process in processes.items()} == {
        "a": ["stopped", "waited"],
        "b": ["stopped", "waited"],
        "c": [],
    }


def test_the_time_left_is_the_mean_of_what_was_done(caplog):
    caplog.set_level("INFO")
    progress = Progress(total=9, done=2, slots=2)
    progress.ended(Task("a"), 100.0)
    progress.ended(Task("base", counts=False), 1e6)
    progress.ended(Task("b"), 300.0)
    progress.ended(Task("c"), 1.0, "failed")
    messages = [record.getMessage().split("; ")[1].split("\n")[0] for record in caplog.records]
    assert messages == [
        "3 of 9 rows, 0 s so far, about 5.0 min left",  # 100 s x 6 rows / 2
        "3 of 9 rows, 0 s so far, about 5.0 min left",
        "4 of 9 rows, 0 s so far, about 8.3 min left",  # 200 s x 5 rows / 2
        "5 of 9 rows, 0 s so far, about 6.7 min left",  # 200 s x 4 rows / 2
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (90, "1.5 min"), (5400, "1.5 h")])
def test_duration(seconds, text):
    assert duration(seconds) == text
