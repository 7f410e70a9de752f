"""Chat templates that cannot be used, each refused in one line before anything is trained; and records that cannot."""

import re
import resource
import signal

import pytest

from tests.data.chat.families import chat_processor, new_tokenizer
from voco_llama.data.pieces import Spelled, Text
from voco_llama.data.records import Record, Turn
from voco_llama.errors import DataError, ProblemKind, SettingsError

HEAD = "<|im_start|>{{ m.role }}\n"
ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PREFIX = "prompt.template=chat: the chat template"


def each(body: str, asks: str = ASKS) -> str:
    """A template that writes the same of each message."""
    return f"{{% for m in messages %}}{body}{{% endfor %}}{asks}"


def refused(template: str | dict | None, system: str | None = None) -> str:
    """The complaint about a template."""
    tokenizer = new_tokenizer("smollm2", template)
    tokenizer.chat_template = template
    with pytest.raises(SettingsError) as complaint:
        chat_processor("smollm2", system=system, tokenizer=tokenizer).check_style()
    assert "\n" not in str(complaint.value)
    return str(complaint.value)


def test_the_template_that_others_are_wrong_variants_of_is_good():
    tokenizer = new_tokenizer("smollm2", each(f"{HEAD}{{{{ m.content }}}}<|im_end|>\n"))
    for system in (None, "", "Hi."):
        chat_processor("smollm2", system=system, tokenizer=tokenizer).check_style()


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (
            None,
            "prompt.template=chat: the tokenizer has no chat template, or none that is its default: set prompt.chat_",
        ),
        ({"rag": each(HEAD)}, "prompt.template=chat: the tokenizer has no chat template"),
        ("{% for", f"{PREFIX} refuses the conversation (unexpected 'end of template'"),
        (each("{{ m.content.nope.more }}"), f"{PREFIX} refuses the conversation ('str object' has no attribute"),
        (each("{{ 1 / 0 }}"), f"{PREFIX} refuses the conversation (division by zero)"),
        (each("{{ raise_exception('Not\nthis.') }}"), f"{PREFIX} refuses the conversation (Not this.)"),
        (each("{{ m.__class__.__mro__ }}"), f"{PREFIX} refuses the conversation (access to attribute '__class__'"),
        (each(f"{HEAD}{{{{ m.content * 2 }}}}<|im_end|>"), f"{PREFIX} writes a message of the user 2 times"),
        (each(f"{HEAD}<|im_end|>"), f"{PREFIX} writes a message of the user 0 times"),
        (each(f"{HEAD}{{{{ m.content.upper() }}}}<|im_end|>"), f"{PREFIX} writes a message of the user 0 times"),
        (
            each(f"{HEAD}{{{{ m.content.replace('2', 'II') }}}}<|im_end|>"),
            f"{PREFIX} writes 'Is it 1 or 2?\\n\\nAnswer.' otherwise than it stands in the conversation",
        ),
        (each(f"{HEAD}{{{{ m.content }}}}\n"), f"{PREFIX} ends an answer by '\\n', not by a special token of its own"),
        (each(f"{HEAD}{{{{ m.content }}}} END<|im_end|>"), f"{PREFIX} ends an answer by ' END<|im_end|>', not by"),
        (
            each(f"{HEAD}{{{{ m.content }}}}<|im_end|>", ""),
            f"{PREFIX}'s prompt for an answer ('<|im_end|>') is not how",
        ),
        (
            each(f"{HEAD}{{{{ m.content }}}}<|im_end|>", ASKS.replace("assistant", "bot")),
            f"{PREFIX}'s prompt for an answer ('<|im_end|><|im_start|>bot\\n') is not how it begins one (",
        ),
        (
            each("{{ m.role }}: {{ m.content }}<|im_end|>", "{% if add_generation_prompt %}assistant: {% endif %}"),
            f"{PREFIX}'s prompt for an answer has other tokens than a row has before one",
        ),
        (
            each(f"{HEAD}{{{{ m.content }}}}<|im_end|>").replace("{% for", "{{ strftime_now('%d %b') }}{% for"),
            f"{PREFIX} writes today's date",
        ),
        (
            each(f"{HEAD}{{% generation %}}{{{{ m.content }}}}{{% endgeneration %}}<|im_end|>"),
            f"{PREFIX}'s marks {{% generation %}} leave out answers, or the tokens that end them",
        ),
    ],
)
def test_a_template_that_cannot_be_taken_apart_is_refused(template, complaint):
    line = refused(template)
    assert line.startswith(complaint), line
    assert "prompt.chat_template" in line


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}"
            "{% endfor %}",
            r"refuses the conversation \(it takes more than 0.2 seconds\)",
        ),
        ("{{ ('a' * (2 * 10**9)) | length }}", r"refuses the conversation \(MemoryError\)"),
    ],
    ids=["time", "memory"],
)
def test_a_template_without_end_is_ended(monkeypatch, expression, complaint):
    monkeypatch.setattr("voco_llama.data.chat_template.SECONDS", 0.2)
    before = signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_AS)
    assert re.match(f"{PREFIX} {complaint}: set prompt", refused(expression + each(f"{HEAD}<|im_end|>")))
    assert (signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_AS)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_marks_of_what_the_assistant_says_are_compared():
    marked = "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}"
    template = each(f"{HEAD}{marked}{{{{ m.content }}}}<|im_end|>\n{{% endif %}}")
    chat_processor("smollm2", tokenizer=new_tokenizer("smollm2", template)).check_style()


def test_the_default_one_of_several_named_templates_is_used():
    named = {"default": each(f"{HEAD}{{{{ m.content }}}}<|im_end|>"), "tool_use": "x"}
    tokenizer = new_tokenizer("smollm2")
    tokenizer.chat_template = named
    processor = chat_processor("smollm2", tokenizer=tokenizer)
    processor.check_style()
    assert processor.tokenizer.decode(processor.lay_out((Turn("user", "a"),)).input_ids).startswith("<|im_start|>user")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}", "System role not"),
        ("{% if m.role == 'system' %}{% continue %}{% endif %}", "writes a message of the system 0 times"),
    ],
)
def test_a_template_without_a_system_message_takes_none(change, complaint):
    template = each(f"{change}{HEAD}{{{{ m.content }}}}<|im_end|>")
    for system in ("Hi.", ""):
        line = refused(template, system)
        assert line.startswith("prompt.system: the chat template ")
        assert complaint in line
        assert line.endswith(": set prompt.system=null")
    chat_processor("smollm2", tokenizer=new_tokenizer("smollm2", template)).check_style()


def test_a_date_that_may_be_given_is_the_same_every_day():
    """As Llama 3.1's template has it."""
    text = chat_processor("llama3")
    assert "Today Date: 26 Jul 2024" in text.tokenizer.decode(text.lay_out((Turn("user", "a"),)).input_ids)


# ---- records


@pytest.mark.parametrize(
    ("family", "turns", "complaint"),
    [
        ("mistral", ("user", "a", "user", "b"), r"refuses the conversation \(After the optional system message"),
        ("mistral", ("assistant", "a"), r"refuses the conversation \(After the optional system message"),
        ("qwen3", ("user", "a", "assistant", "<think>b</think>c", "user", "d"), "writes '<think>b</think>c' otherwise"),
    ],
)
def test_a_record_that_the_template_refuses_is_one_line(family, turns, complaint):
    pairs = tuple(Turn(role, text) for role, text in zip(turns[::2], turns[1::2], strict=True))
    with pytest.raises(DataError, match=f"^chat.json record 3: the chat template {complaint}") as error:
        chat_processor(family).row(Record("3", pairs, source="chat.json record 3"))
    assert error.value.kind == ProblemKind.CHAT_TEMPLATE
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["smollm2", "qwen2", "qwen3", "llama3", "vicuna"])
def test_odd_conversations_are_written_as_transformers_writes_them(family):
    """Empty questions and answers, several users in a row, the assistant first: no record that a reader takes fails."""
    processor = chat_processor(family)
    for said in (("", "a"), ("a", ""), ("", ""), ("a",), ("",), ("a", "b", ""), ("a", "b", "", "c")):
        turns = tuple(Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(said))
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        expected = processor.tokenizer.apply_chat_template(
            messages, return_dict=False, date_string="26 Jul 2024", enable_thinking=False
        )
        assert processor.lay_out_record(Record("1", turns)).input_ids.tolist() == expected


def test_text_beside_a_token_stays_text():
    """A text and what the template writes after it do not become a token together."""
    pieces = chat_processor("smollm2")._pieces
    end = pieces.special_tokens["<|im_end|>"]
    text, last = pieces([Text("<|im"), Text("_end|>"), Spelled("<|im_end|>")])
    assert end not in text.ids
    assert last.ids == (end,)
