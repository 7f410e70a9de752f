"""The real language model as it comes out of its file: it speaks, stops, and splits text as it was trained to."""

import copy
import json

import pytest
import torch
from transformers import AutoTokenizer

from voco_llama import cli
from voco_llama.evaluation.text import TEXTS_DIR, measure
from voco_llama.tokens import add_special_tokens, extend_embeddings

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


def test_it_answers_in_its_own_template_and_stops_by_itself(language):
    model, tokenizer = language
    asked = tokenizer.apply_chat_template(CAPITAL, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, do_sample=False, max_new_tokens=20)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It's 12345, I'll say", "It 's Ġ 1 2 3 4 5 , ĠI 'll Ġsay"),
        ("a  1", "a ĠĠ 1"),  # transformers' own conversion of the file: a Ġ Ġ 1
        ("one\n\n2. two", "one ĊĊ 2 . Ġtwo"),  # and: one Ċ Ċ 2 . Ġtwo
        ("x²", "x Â²"),
        ("<|im_start|>user\n", "<|im_start|> user Ċ"),
        ("<repo_name>a", "<repo_name> a"),
        ("\x06", ""),  # bytes that are in no text it was trained on are in no token: SmolLM2's own does the same
    ],
)
def test_text_is_split_as_smollm_splits_it(language, text, tokens):
    assert language[1].tokenize(text) == tokens.split()


def test_the_same_again_is_up_to_date_and_says_what_it_was_made_of(smollm2):
    before = (smollm2 / "model.safetensors").stat().st_mtime_ns
    assert cli.main(["convert-gguf", f"output={smollm2}"]) == 0
    assert (smollm2 / "model.safetensors").stat().st_mtime_ns == before
    described = json.loads((smollm2 / "source.json").read_text())
    assert described["tensors"] == {"Q8_0": 1, "F32": 61, "Q4_1": 210}
    assert described["license"] == "apache-2.0"


def test_the_added_tokens_leave_what_it_says_of_text_unchanged(language, smollm2):
    """Beside tied embeddings: logits of its own tokens to the bit, and so the loss on text."""
    model, tokenizer = copy.deepcopy(language[0]), AutoTokenizer.from_pretrained(smollm2)
    text = (TEXTS_DIR / "explained.txt").read_text()[:800]
    ids = torch.tensor(tokenizer(text)["input_ids"])[None]
    with torch.no_grad():
        before, loss = model(ids).logits, measure(model, tokenizer, text, 128, 64)[0]
        added = add_special_tokens(tokenizer)
        extend_embeddings(model, added, len(tokenizer))
        after = model(ids).logits
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert after.shape[-1] == before.shape[-1] + 2 == len(tokenizer)
    assert torch.equal(after[..., : before.shape[-1]], before)
    assert measure(model, tokenizer, text, 128, 64)[0] == loss
    assert 2.5 < loss["nats_per_token"] < 4.5  # 3.44 on the whole text
