"""What tasks fail with, whatever it is: named by document, or listed and passed over."""

from types import SimpleNamespace

import pytest

from tests.evaluation.hub import change_pope_image, change_rows, write_gqa, write_mme, write_pope, write_seed
from tests.evaluation.runs import lines_of
from voco_llama.errors import DataError
from voco_llama.evaluation.guard import Guard, last_try
from voco_llama.evaluation.results import read_result
from voco_llama.evaluation.run import evaluate


@pytest.fixture
def hub(tmp_path):
    for write in (write_pope, write_mme, write_seed):
        write(tmp_path / "hub")
    return tmp_path / "hub"


def one(**changes):
    """Change the second row."""
    return lambda rows: [rows[0], rows[1] | changes, *rows[2:]]


@pytest.mark.parametrize(
    ("data_set", "change", "task", "message", "listed"),
    [
        pytest.param(
            "POPE", one(answer="perhaps"), "pope",
            r"^pope document 1: cannot be scored \(AssertionError: AssertionError\): mend it, or set go_on=true",
            ["pope document 1"], id="a task's assertion",
        ),
        pytest.param(
            "POPE", one(answer=None), "pope", r"^pope document 1: cannot be scored \(AttributeError: .*'lower'",
            ["pope document 1"], id="no reference",
        ),
        pytest.param(
            "POPE", one(question=None), "pope", r"^pope document 1: cannot be read \(AttributeError: .*'strip'",
            ["pope document 1"], id="no question",
        ),
        pytest.param(
            "MME", lambda rows: rows[:3] + rows[4:], "mme",
            r"^mme document 2: cannot be scored, as mme is scored by pairs \(DataError: category 'count', question_id"
            r" 'count/a.png' has 1 questions, documents 2\): mend it",
            ["mme document 2"], id="a row of MME is missing",
        ),
        pytest.param(
            "MME", lambda rows: [rows[0], *rows], "mme",
            r"^mme document 0: cannot be scored, as .* has 3 questions, documents 0, 1, 2\)",
            ["mme document 0", "mme document 1", "mme document 2"], id="a row of MME is there twice",
        ),
    ],
)  # fmt: skip
def test_a_damaged_row_is_named_or_listed(settings_for, hub, tmp_path, data_set, change, task, message, listed):
    change_rows(hub, data_set, change)
    settings = {"tasks": [task], "hub": hub, "keep_answers": True}
    with pytest.raises(DataError, match=message) as caught:
        evaluate(settings_for(**settings))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.json"))
    file = evaluate(settings_for(**settings, go_on=True))
    result = read_result(file)
    assert [failure["id"] for failure in result["failures"]] == listed
    benchmark = result["benchmarks"][task]
    assert 0 <= benchmark["accuracy"] <= 1
    assert benchmark["questions"] == len(lines_of(file))


def test_answers_are_kept_when_one_cannot_be_scored(settings_for, hub):
    change_rows(hub, "POPE", one(answer="perhaps"))
    with pytest.raises(DataError, match="pope document 1: cannot be scored"):
        evaluate(settings_for(tasks=["pope"], hub=hub, keep_answers=True))
    result = read_result(evaluate(settings_for(tasks=["pope"], hub=hub, keep_answers=True, go_on=True)))
    assert result["num_answers"] == 0
    assert result["benchmarks"]["pope"]["questions"] == 9 - 1


def test_scores_that_cannot_be_put_together_name_the_task(settings_for, hub):
    change_rows(hub, "SEED-Bench", one(answer=None))
    with pytest.raises(DataError, match=r"^task seedbench: its scores cannot be put together \(AttributeError: "):
        evaluate(settings_for(tasks=["seedbench"], hub=hub, go_on=True))


def with_broken_exif(png):
    """A PNG with an EXIF chunk that is none."""
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.open(BytesIO(png)).save(buffer, "PNG", exif=b"no tiff header")
    return buffer.getvalue()


@pytest.mark.parametrize("row", [0, 1])
def test_an_image_fails_with_any_exception(settings_for, hub, row):
    """PIL raises a SyntaxError; lmms-eval looks at the first document while it loads a task."""
    change_pope_image(hub, row, with_broken_exif)
    with pytest.raises(DataError, match=rf"^pope document {row}: cannot be answered \(SyntaxError: not a TIFF"):
        evaluate(settings_for(tasks=["pope"], hub=hub))
    result = read_result(evaluate(settings_for(tasks=["pope"], hub=hub, go_on=True)))
    assert [failure["id"] for failure in result["failures"]] == [f"pope document {row}"]


def test_a_failure_of_every_question_is_no_score(settings_for, hub):
    for row in range(9):
        change_pope_image(hub, row, lambda whole: whole[:50])
    with pytest.raises(DataError, match=r"^task pope: not one question was answered and scored .first: pope document "):
        evaluate(settings_for(tasks=["pope"], hub=hub, go_on=True))


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more"])
def test_a_damaged_table_is_named(settings_for, hub, content):
    table = next((hub / "lmms-lab-encoder" / "POPE").rglob("test*.parquet"))
    table.write_bytes(content)
    with pytest.raises(DataError, match=r"^task pope: its data set .*POPE: cannot be read \(.*\): put the data set"):
        evaluate(settings_for(tasks=["pope"], hub=hub))


@pytest.mark.parametrize(
    ("logged", "fails"),
    [
        (["HTTP error on attempt 1: 500"], False),
        (["HTTP error on attempt 1: 500", "Error for Question ID: 7: no reply"], True),
        (["Syntax error parsing the review string: invalid syntax"], True),
    ],
)
def test_a_judge_without_a_verdict_is_no_zero(logged, fails):
    """Video-ChatGPT's tasks log an error and score 0."""
    from loguru import logger

    def process(item, *, task):
        for text in logged:
            logger.error(text)
        return 0

    given_up = []
    scored = Guard(lambda *failure: given_up.append(failure)).scoring(process, None)
    task = SimpleNamespace(config=SimpleNamespace(task="videochatgpt_temporal"))
    assert scored((3, {}, []), task=task) == (None if fails else 0)
    assert [(name, str(error)) for name, _, error in given_up] == (
        [("videochatgpt_temporal document 3", logged[-1])] if fails else []
    )


def test_a_cut_image_of_gqa_is_no_black_one(settings_for, hub):
    """Its task decodes all images while it is loaded, where lmms-eval would have what is missing black."""
    write_gqa(hub)
    cut = lambda rows: [rows[0] | {"image": {"bytes": rows[0]["image"]["bytes"][:60], "path": "x.png"}}, *rows[1:]]  # noqa: E731
    change_rows(hub, "GQA/testdev_balanced_images", cut)
    with pytest.raises(
        DataError, match=r"^task gqa: its data set .*GQA: cannot be read \(.*truncated.*\): put the data"
    ):
        evaluate(settings_for(tasks=["gqa"], hub=hub))


def test_the_last_try_says_why():
    error = ValueError("why")
    assert last_try(error) is error
    assert (
        last_try(type("RetryError", (Exception,), {"last_attempt": SimpleNamespace(exception=lambda: error)})())
        is error
    )
