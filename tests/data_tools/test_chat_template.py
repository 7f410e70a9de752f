"""The data tools with rows in a chat template."""

import json

import pytest

from tests.data.chat.families import new_tokenizer, template_of
from tests.data_tools.conftest import RECORDS, conversation, record
from tests.training.test_chat import parts, save_language
from voco_llama import cli
from voco_llama.composition import compose
from voco_llama.data_tools.check import check_data
from voco_llama.data_tools.chunks import find_processor
from voco_llama.data_tools.settings import DataCheckSettings
from voco_llama.preflight.finding import run_checks
from voco_llama.preflight.training import check_prompt

THOUGHT = record("thought", answer="<think>\nHm.\n</think>\n\nA cat.")
ODD = {
    "empty question": record("empty question", question="<image>", answer="A cat."),
    "empty answer": record("empty answer", answer=""),
    "unanswered": record("unanswered", conversations=conversation("<image>\nWhat?", "A.", "Why?")),
    "assistant first": record("first", conversations=[{"from": "gpt", "value": "Hi."}, *record("x")["conversations"]]),
    "two users": record("two", conversations=[{"from": "human", "value": "Hi."}, *record("x")["conversations"]]),
    "system": record("system", conversations=[{"from": "system", "value": "Hi."}, *record("x")["conversations"]]),
    "thought": THOUGHT,
}
"""What LLaVA's data has, or might have."""


@pytest.fixture
def in_chat(overrides, images, tmp_path):
    """Settings of the tools for some records in a family's chat template."""

    def make(family: str, records: list) -> list[str]:
        new_tokenizer(family).save_pretrained(tmp_path / family)
        (tmp_path / "records.json").write_text(json.dumps(records), encoding="utf-8")
        given = overrides(("llava_json", tmp_path / "records.json", images))
        kept = [text for text in given if not text.startswith(("prompt=", "model.tokenizer=", "workers="))]
        return [*kept, "prompt=chat", f"model.tokenizer={tmp_path / family}"]

    return make


@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_records_that_the_template_cannot_write_are_counted(in_chat, family, tmp_path):
    settings = compose(
        [*in_chat(family, list(ODD.values())), f"report={tmp_path}/report.json", "data.max_length=400", "workers=0"],
        "data_check",
        DataCheckSettings,
    )
    counts = check_data(settings).counts
    counts.pop("duplicate", None)
    expected = {"empty_turn": 1, "unanswered": 2, "left_out_turn": 1, "roles": 3}
    assert counts == expected | ({"chat_template": 1} if family == "qwen3" else {})
    problems = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["problems"]
    found = [problem for problem in problems if problem["kind"] == "chat_template"]
    assert all("the chat template writes what follows 'What?' otherwise" in one["message"] for one in found)


def test_a_preview_shows_its_rows(in_chat, tmp_path, capsys):
    given = in_chat("smollm2", RECORDS[:1])
    assert cli.main(["data", "preview", *given, f"output={tmp_path}/preview", "samples=1"]) == 0
    page = (tmp_path / "preview" / "preview.html").read_text(encoding="utf-8")
    assert "template chat, order first, system text as it has it" in page
    assert "&lt;|im_end|&gt;" in page


def test_a_template_that_cannot_be_used_is_one_line_everywhere(in_chat, tmp_path, capsys):
    given = in_chat("smollm2", RECORDS[:1])
    (tmp_path / "smollm2" / "chat_template.jinja").write_text("{{ messages }}")
    settings = compose([*given, f"report={tmp_path}/report.json"], "data_check", DataCheckSettings)
    processor, line = find_processor(settings)
    assert processor is None
    assert line.startswith("not measured: prompt.template=chat: the chat template ")
    assert cli.main(["data", "preview", *given, f"output={tmp_path}/preview"]) == 2
    assert "prompt.template=chat: the chat template" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("is_good", [True, False])
def test_the_doctor_tries_it(in_chat, tmp_path, is_good):
    tokenizer = new_tokenizer("llama3", template_of("llama3") if is_good else "{{ messages }}")
    save_language(tmp_path / "language", tokenizer, eos_token_id=tokenizer.eos_token_id)
    given = [*in_chat("llama3", RECORDS[:1]), *parts(tmp_path / "language")]
    settings = compose(["experiment=voco_1", *given, "model.checkpoint=null", "model.vision.pretrained=null"])
    (finding,) = run_checks([("prompt", lambda: check_prompt(settings))])
    assert finding.level == ("ok" if is_good else "error")
    expected = "the tokenizer's chat template; answers end with <|eot_id|>" if is_good else "prompt.template=chat: "
    assert finding.detail.startswith(expected)
