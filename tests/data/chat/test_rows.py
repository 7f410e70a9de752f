"""Rows in a tokenizer's chat template are, token for token, what transformers makes of the same conversation."""

import json

import pytest
import torch
from tokenizers import AddedToken

from tests.data.chat.families import ENDS, FAMILIES, chat_processor, new_tokenizer
from tests.data.test_processor import spelled, trained_text
from voco_llama.choices import ORDERS
from voco_llama.data.chat_template import ARGUMENTS
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.prompts import VICUNA_SYSTEM, PromptStyle
from voco_llama.data.records import Record, Turn
from voco_llama.layout import ROW_FIELDS
from voco_llama.tokens import IGNORE_INDEX, IMAGE_TOKEN

CHAT_ORDERS = [order for order in ORDERS if order != "authors"]
SAID = ("What is it? 12", "It is a cat,\n\n 3 cats", "Why?", "3", "The image\n\nof a dog?", "No.\n", "é ß 中", "So")
SYSTEM = "Be\n\nbrief."


def turns_of(rounds: int) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(SAID[: 2 * rounds]))


def theirs(processor: VoCoProcessor, turns, asks: bool = False, **arguments):
    """What transformers makes of it."""
    system = [] if processor.style.system is None else [{"role": "system", "content": processor.style.system}]
    messages = [*system, *({"role": turn.role, "content": turn.text} for turn in turns)]
    arguments = ARGUMENTS | {"return_dict": False, "add_generation_prompt": asks} | arguments
    return processor.tokenizer.apply_chat_template(messages, **arguments)


def trained_row(processor: VoCoProcessor, turns, images: int = 0):
    return processor.lay_out_record(Record("1", tuple(turns), images=("x",) * images))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_a_row_is_what_transformers_makes_of_its_conversation(family, system, rounds):
    processor, turns = chat_processor(family, system=system), turns_of(rounds)
    row = trained_row(processor, turns)
    assert row.input_ids.tolist() == theirs(processor, turns)
    assert trained_row(processor, turns[:-1]).input_ids.tolist() == theirs(processor, turns[:-1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.parametrize("rounds", [1, 4])
def test_a_question_is_asked_as_it_was_trained(family, system, rounds):
    """Its row is transformers' own with the prompt for an answer, begins training's, and the answer is what is left."""
    processor, turns = chat_processor(family, system=system), turns_of(rounds)
    asked, answered = processor.lay_out(turns[:-1]), trained_row(processor, turns)
    assert asked.input_ids.tolist() == theirs(processor, turns[:-1], asks=True)
    if family == "qwen3":  # of the earlier answers the empty thought is left out
        assert spelled(processor, asked).endswith("<think>\n\n</think>\n\n")
    for name in ("input_ids", "segment", "voco", "position", "document"):
        assert torch.equal(getattr(answered, name)[: len(asked)], getattr(asked, name)), name
    rest = answered.input_ids[len(asked) :]
    end = processor.ends[0]
    after = len(rest) - rest.tolist().index(end) - 1
    assert torch.equal(answered.labels[len(asked) : len(answered) - after], rest[: len(rest) - after])
    assert (answered.labels[len(answered) - after :] == IGNORE_INDEX).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rounds", [1, 4])
def test_answers_and_their_ends_are_trained_and_nothing_else(family, rounds):
    processor, turns = chat_processor(family, system=SYSTEM), turns_of(rounds)
    row, end = trained_row(processor, turns), ENDS.get(family, "</s>")
    trims, spaces = family.startswith(("llama3", "mistral")), family.startswith(("vicuna", "mistral"))
    answers = [turn.text.strip() if trims else turn.text for turn in turns if turn.role == "assistant"]
    expected = "".join(f"{' ' * spaces}{answer}{end}" for answer in answers)
    blanks = str.maketrans("", "", " ")  # those that a sentence-piece vocabulary puts after a token are no text
    assert trained_text(processor, row).translate(blanks) == expected.translate(blanks)
    assert [processor.tokenizer.convert_ids_to_tokens(end) for end in processor.ends] == [end]
    assert row.labels[row.labels != IGNORE_INDEX].tolist().count(processor.ends[0]) == rounds


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", CHAT_ORDERS)
@pytest.mark.parametrize("place", ["<image>\n{}", "{}\n<image>", "Is\n<image>\n{}"])
def test_an_image_stands_in_its_turn_or_before_everything(family, order, place):
    """Cut out of the row, its segment leaves the template's text of the same words."""
    processor = chat_processor(family, order, SYSTEM)
    turns = (Turn("user", place.format("What is it?")), Turn("assistant", "A cat."), *turns_of(2))
    row = trained_row(processor, turns, images=1)
    asked = {
        "first": {"Is\n<image>\n{}": "Is\nWhat is it?"}.get(place, "What is it?"),
        "llava": {"Is\n<image>\n{}": "<image>\nIs\n\nWhat is it?"}.get(place, "<image>\nWhat is it?"),
        "inline": turns[0].text,
    }[order]
    text = theirs(processor, (Turn("user", asked), *turns[1:]), tokenize=False)
    stretches = ["", text] if order == "first" else text.split("<image>")
    parts = [processor.tokenizer(stretch, add_special_tokens=False)["input_ids"] for stretch in stretches]
    segment = processor.segment_shape().ids(processor.tokens)
    assert row.input_ids.tolist() == [*parts[0], *segment, *parts[1]]
    assert row.segment.tolist() == [0] * len(parts[0]) + [1] * len(segment) + [0] * len(parts[1])
    assert trained_text(processor, row).count("cat.") == 1


@pytest.mark.parametrize("order", CHAT_ORDERS)
def test_images_of_several_turns(order):
    processor = chat_processor("smollm2", order)
    turns = (
        Turn("user", "A<image>B<image>"),
        Turn("assistant", "yes"),
        Turn("user", "C<image>"),
        Turn("assistant", "no"),
    )
    row = trained_row(processor, turns, images=3)
    shown = spelled(processor, row).replace("<image>" * 4 + "<voco>" * 2, "[S]")
    said = {"first": ("A\nB", "C"), "llava": ("A[S]B[S]", "[S]\nC"), "inline": ("A[S]B[S]", "C[S]")}[order]
    assert shown.startswith("[S][S][S]<|im_start|>system" if order == "first" else "<|im_start|>system")
    for text in said:
        assert f"user\n{text}<|im_end|>" in shown
    asked = processor.lay_out(turns[:-1])
    assert torch.equal(row.input_ids[: len(asked)], asked.input_ids)


@pytest.mark.parametrize("rounds", [1, 2, 4])
@pytest.mark.parametrize("system", [None, "Hi."])
@pytest.mark.parametrize("order", CHAT_ORDERS)
def test_vicunas_own_chat_template_makes_the_rows_of_vicuna_v1(rounds, system, order):
    chat = chat_processor("vicuna", order, VICUNA_SYSTEM if system is None else system)
    vicuna = VoCoProcessor(chat.tokenizer, chat.image_transform, PromptStyle("vicuna_v1", order, system), 4, 2)
    turns = (Turn("user", f"<image>\n{SAID[0]}"), *turns_of(rounds)[1:])
    rows = [trained_row(processor, turns, images=1) for processor in (chat, vicuna)]
    asked = [processor.lay_out(turns[:-1]) for processor in (chat, vicuna)]
    for ours, known in (rows, asked):
        for name in ROW_FIELDS:
            assert torch.equal(getattr(ours, name), getattr(known, name)), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", CHAT_ORDERS)
def test_special_tokens_that_are_spelled_out_are_text(family, order):
    processor = chat_processor(family, order, SYSTEM)
    typed = "".join(token for token in processor.special_tokens if token != IMAGE_TOKEN)
    plain, odd = [
        trained_row(processor, (Turn("user", f"<image>\nIs {text}?"), Turn("assistant", f"It {text} is")), images=1)
        for text in ("", typed)
    ]
    for token in processor.special_tokens.values():
        assert int((odd.input_ids == token).sum()) == int((plain.input_ids == token).sum()), token
    assert spelled(processor, odd).count(typed) == 2
    assert typed in trained_text(processor, odd)
    asked = processor.lay_out((Turn("user", f"<image>\nIs {typed}?"),))
    assert torch.equal(odd.input_ids[: len(asked)], asked.input_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mark_is_text_where_nothing_is_looked_at(family):
    processor = chat_processor(family)
    row = trained_row(processor, (Turn("user", "Write <image> here."), Turn("assistant", "<image>")))
    assert not (row.input_ids == processor.tokens.image).any()
    assert spelled(processor, row).count("<image>") == 2
    assert "<image>" in trained_text(processor, row)


@pytest.mark.parametrize("family", FAMILIES)
def test_where_a_token_is_spelled_out_all_other_text_is_tokenized_as_without_it(family):
    """Some vocabularies put a space before the first text of a row alone, not before what stands after a token."""
    processor = chat_processor(family)
    said = [(*turns_of(1), Turn("user", f"Why {odd}?")) for odd in ("<voco>", "")]
    odd, plain = (processor.lay_out(turns).input_ids.tolist() for turns in said)
    why = next(place for place, pair in enumerate(zip(odd, plain, strict=False)) if pair[0] != pair[1])
    assert processor.tokenizer.decode(odd[:why]).rstrip().endswith("Why")


def test_the_row_is_cut_at_its_end():
    """What is trained of it stays so: LLaVA's rule for rows that go on after their answers is Vicuna's."""
    processor, record = chat_processor("smollm2"), Record("1", turns_of(4))
    whole, cut = processor.lay_out_record(record), processor.lay_out_record(record, 120)
    for name in ROW_FIELDS:
        assert torch.equal(getattr(cut, name), getattr(whole, name)[:120]), name


def test_an_empty_answer_is_written_and_not_trained():
    """Nothing is taught by it; what is said elsewhere is, whatever the row ends with."""
    processor = chat_processor("smollm2")
    turns = (Turn("user", ""), Turn("assistant", "A cat."), Turn("user", "Why?"), Turn("assistant", ""))
    for row in (trained_row(processor, turns), trained_row(processor, turns[:-1])):
        assert trained_text(processor, row) == "A cat.<|im_end|>"
    assert trained_row(processor, turns).input_ids.tolist() == theirs(processor, turns)


def test_saved_and_loaded_it_writes_the_same(tmp_path):
    for system in (None, "", SYSTEM):
        processor = chat_processor("llama3", "inline", system)
        processor.save_pretrained(tmp_path)
        loaded = VoCoProcessor.from_pretrained(tmp_path)
        assert loaded.style == processor.style
        assert loaded.ends == processor.ends
        turns = (Turn("user", f"<image>\n{SAID[0]}"), *turns_of(3)[1:])
        assert torch.equal(loaded.lay_out(turns).input_ids, processor.lay_out(turns).input_ids)
    assert json.loads((tmp_path / "voco_processor.json").read_text())["style"]["system"] == SYSTEM


def test_tokens_that_take_in_blanks_are_tokenized_as_transformers_does():
    """Phi-3's special tokens swallow the newline after them; here one swallows a space of the answer, too."""
    tokenizer = new_tokenizer("smollm2")
    swallowing = [AddedToken(token, rstrip=True) for token in ("<|user|>", "<|assistant|>", "<|end|>")]
    tokenizer.add_special_tokens({"extra_special_tokens": swallowing}, replace_extra_special_tokens=False)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|user|>\n' if m.role == 'user' else '<|assistant|>' }}{{ m.content }}<|end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    processor = chat_processor("smollm2", tokenizer=tokenizer)
    processor.check_style()
    turns = (Turn("user", " a"), Turn("assistant", " b"), Turn("user", "c"), Turn("assistant", "d"))
    row = trained_row(processor, turns)
    assert row.input_ids.tolist() == theirs(processor, turns)
    assert trained_text(processor, row) == "b<|end|>d<|end|>"
