"""Which task starts when, with tasks that end when the test says."""

from collections import namedtuple
from concurrent.futures import Future

import pytest

from voco_llama.sweep import scheduler
from voco_llama.sweep.scheduler import Progress, Task, run_side_by_side


@pytest.fixture
def run(monkeypatch):
    """Run tasks that end after so many rounds, with a failure or without; failures, and what started in which slot."""

    def run(tasks, slots, **ends):
        started, running = [], {}

        def start(task, slot):
            started.append((task.name, slot))
            running[future := Future()] = ends[task.name]
            return future

        def wait(futures, return_when):
            assert set(futures) == running.keys()
            for future, (rounds, failure) in list(running.items()):
                if rounds == 1:
                    future.set_result(failure)
                    del running[future]
                else:
                    running[future] = (rounds - 1, failure)
            return namedtuple("Waited", "done")({future for future in futures if future.done()})

        monkeypatch.setattr(scheduler, "wait", wait)
        return run_side_by_side(tasks, slots, start, Progress(len(tasks), slots=slots)), started

    return run


def after(rounds, status=0):
    return rounds, (f"status {status}", "    error: no\n  more in x.log") if status else None


def test_a_free_slot_takes_the_next(run):
    tasks = [Task(name) for name in "abcd"]
    failed, started = run(tasks, 2, a=after(3), b=after(1), c=after(1), d=after(9))
    assert failed == {}
    assert started == [("a", 0), ("b", 1), ("c", 1), ("d", 1)]


def test_a_task_waits_for_what_it_needs_and_others_go_before(run):
    tasks = [Task("base_0", counts=False), Task("a", "base_0"), Task("base_1", counts=False), Task("b", "base_1")]
    processes = dict(base_0=after(3), a=after(1), base_1=after(1), b=after(1))
    failed, started = run(tasks, 2, **processes)
    assert failed == {}
    assert [name for name, _ in started] == ["base_0", "base_1", "b", "a"]


def test_what_is_not_among_the_tasks_is_there_already(run):
    assert run([Task("a", "base")], 1, a=after(1)) == ({}, [("a", 0)])


def test_a_failure_stops_only_what_needs_it(run, caplog):
    tasks = [Task("base", counts=False), Task("a", "base"), Task("b"), Task("c")]
    failed, started = run(tasks, 1, base=after(1, 2), b=after(1, -9), c=after(1))
    assert failed == {"base": "status 2", "a": "not run, as base failed", "b": "status -9"}
    assert [name for name, _ in started] == ["base", "b", "c"]
    assert "b: FAILED after 0s; 2 of 4 rows, 0s so far\n    error: no\n  more in x.log" in caplog.text


def test_the_time_left_is_the_mean_of_what_was_done(caplog):
    caplog.set_level("INFO", "voco_llama")
    progress = Progress(total=9, done=2, slots=2)
    progress.ended(Task("a"), 100.0)
    progress.ended(Task("base", counts=False), 1e6)
    progress.ended(Task("b"), 300.0)
    progress.ended(Task("c"), 1.0, "failed")
    messages = [record.getMessage().split("; ")[1].split("\n")[0] for record in caplog.records]
    assert messages == [
        "3 of 9 rows, 0s so far, about 5m00s left",  # 100 s x 6 rows / 2
        "3 of 9 rows, 0s so far, about 5m00s left",
        "4 of 9 rows, 0s so far, about 8m20s left",  # 200 s x 5 rows / 2
        "5 of 9 rows, 0s so far, about 6m40s left",  # 200 s x 4 rows / 2
    ]
