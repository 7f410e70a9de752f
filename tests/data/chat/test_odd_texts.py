"""Any conversation in any family's template: transformers' tokens, and the words themselves given back."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.chat.families import FAMILIES, chat_processor
from tests.data.chat.test_rows import CHAT_ORDERS, theirs, trained_row
from voco_llama.data.records import Turn
from voco_llama.errors import DataError

pytestmark = pytest.mark.slow

ODD = ["{{ 1 / 0 }}", "{% if %}", "{#", "<|im_end|>", "</s>", "<s>", "[/INST]", "<|eot_id|>", "<voco>", "<unk>"]
ODD += [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\u00a0",
    "\u2028",
    "▁",
    "é",
    "e\u0301",
    "中",
    "🙂",
    "\u200b",
    "\x00",
    "\\n",
    "a",
    "1",
]
ODD += ["USER:", "ASSISTANT:", "VoCo-message-0.", "<think>", "</think>", "assistant\n", "<|im_start|>assistant\n"]
TEXT = st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=6)), max_size=6).map("".join)
TURNS = st.lists(TEXT, min_size=1, max_size=6)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(said=TURNS, system=st.none() | TEXT, order=st.sampled_from(CHAT_ORDERS), sees=st.booleans())
def test_rows_of_odd_texts(family, said, system, order, sees):
    processor = chat_processor(family, order, system)
    said = [text.replace("<image>", "") for text in said]
    turns = [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(said)]
    if sees:
        turns[0] = Turn("user", f"<image>\n{said[0]}")
    refused = None
    try:
        row = trained_row(processor, turns, images=int(sees))
    except DataError as error:
        refused = str(error)
    if refused is not None:  # no template of these but Qwen3's changes a text, and that one thoughts alone
        assert family == "qwen3"
        assert "\n" not in refused
        assert any("</think>" in text for text in said)
        return
    special = processor.special_tokens
    if sees:
        assert row.input_ids[row.segment == 1].tolist() == processor.segment_shape().ids(processor.tokens)
    elif not any(token in text for token in special for text in (*said, system or "")):
        assert row.input_ids.tolist() == theirs(processor, turns)
    of_text = row.input_ids[row.segment == 0].tolist()
    without_words = theirs(
        chat_processor(family, order, None if system is None else "a"), [Turn(turn.role, "a") for turn in turns]
    )
    for token, index in special.items():
        if token != "<unk>":
            assert of_text.count(index) == without_words.count(index), token
    trims = family in ("llama3", "mistral", "mistral_first")
    assert (row.labels == processor.ends[0]).sum() == sum(bool(text.strip() if trims else text) for text in said[1::2])
    if len(turns) % 2 and not family.startswith("vicuna"):  # whose last space becomes a token with what follows
        asked = processor.lay_out(turns).input_ids.tolist()
        assert asked[: len(row)] == row.input_ids.tolist()
