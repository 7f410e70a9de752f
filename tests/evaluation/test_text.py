"""The loss on plain text is transformers' own on the same windows, and the same before a training and without one."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.rules.commands import seen
from tests.tiny import tiny_processor, tiny_tokenizer, tiny_vision_config, unlike_its_start
from voco_llama import VoCoLlama
from voco_llama.evaluation.results import read_result
from voco_llama.evaluation.text import TEXTS_DIR, EvaluateTextSettings, evaluate_text, measure, own_rows, windows
from voco_llama.tokens import add_special_tokens, extend_embeddings

TEXT = "It's plain text, naïve and short: <image> </s> are text too.\n\nNothing is to be seen.\n"


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (10, 6, 3, [(0, 1, 6), (3, 6, 9), (4, 9, 10)]),
        (6, 6, 3, [(0, 1, 6)]),
        (3, 6, 3, [(0, 1, 3)]),
        (7, 4, 1, [(0, 1, 4), (1, 4, 5), (2, 5, 6), (3, 6, 7)]),
    ],
)
def test_windows(length, window, stride, expected):
    assert [tuple(one) for one in windows(length, window, stride)] == expected


def language_model(folder=None, rows: int | None = None) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A random language model, before anything of ours, its head of so many rows."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=rows or len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = unlike_its_start(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"), 0.3).eval()
    if folder is not None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model, tokenizer


def test_it_is_transformers_loss_on_the_same_windows():
    model, tokenizer = language_model()
    ids = torch.tensor(tokenizer(TEXT, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    sums, lines = measure(model, tokenizer, TEXT, window=16, stride=8)
    total = 0.0
    for line, (begin, predicted, end) in zip(lines, windows(len(ids), 16, 8), strict=True):
        labels = ids[begin:end].clone()
        labels[: predicted - begin] = -100
        kept = end - predicted
        nats = model(ids[None, begin:end], labels=labels[None]).loss.item() * kept
        assert (line["first"], line["tokens"]) == (predicted, kept)
        assert line["nats"] == pytest.approx(nats, rel=1e-5)
        total += nats
    assert sums["tokens"] == len(ids) - 1 == len(TEXT.encode()) - 1 == sums["bytes"]  # one token a byte
    assert sums["nats_per_token"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    assert sums["bits_per_byte"] == pytest.approx(total / math.log(2) / len(TEXT.encode()[1:]), rel=1e-5)


def test_a_window_longer_than_the_text_is_one_pass():
    model, tokenizer = language_model()
    ids = torch.tensor(tokenizer("Short text.", add_special_tokens=False)["input_ids"])[None]
    sums, lines = measure(model, tokenizer, "Short text.", window=64, stride=32)
    assert len(lines) == 1
    assert sums["nats_per_token"] == pytest.approx(model(ids, labels=ids).loss.item(), rel=1e-5)


@pytest.mark.parametrize("spare", [0, 7], ids=["no spare rows", "padded table"])
def test_the_added_tokens_change_nothing(spare):
    """Even where their rows would be likely; with a table that is padded they take rows that were in its softmax."""
    model, tokenizer = language_model(rows=len(tiny_tokenizer()) + spare)
    before, _ = measure(model, tokenizer, TEXT, 16, 8)
    ids = add_special_tokens(tokenizer)
    extend_embeddings(model, ids, len(tokenizer))
    with torch.no_grad():
        model.get_input_embeddings().weight[[ids.image, ids.voco]] *= 50
    after, _ = measure(model, tokenizer, TEXT, 16, 8)
    assert after["nats"] == pytest.approx(before["nats"], rel=1e-6)
    assert int(own_rows(model, tokenizer).sum()) == len(tokenizer) - 2


@pytest.fixture
def folders(tmp_path):
    """A language model by itself, and a model of ours made of it; texts of two languages."""
    model, _ = language_model(tmp_path / "language")
    processor = tiny_processor(2)
    parts = (model, tiny_vision_config(), None, processor.tokens, len(processor.tokenizer), processor.segment_shape())
    VoCoLlama.from_parts(*parts).save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    (tmp_path / "one.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "two.txt").write_text("Zwei Sätze. Mehr nicht.\r\n", encoding="utf-8", newline="")
    return tmp_path


def settings(folders, checkpoint="language", **changes) -> EvaluateTextSettings:
    plain = dict(
        checkpoint=folders / checkpoint, output=folders / "results", row="before", window=16, stride=8, device="cpu",
        texts=[folders / "one.txt", folders / "two.txt"],
    )  # fmt: skip
    return EvaluateTextSettings(**plain | changes)


def test_the_result_of_an_untrained_model_is_that_of_its_language_model(folders):
    before = read_result(evaluate_text(settings(folders)))
    after = read_result(evaluate_text(settings(folders, "ours", row="after", seed=3)))
    for key in ("nats_per_token", "bits_per_byte"):
        assert after[key] == pytest.approx(before[key], rel=1e-6)
        for name in ("one", "two"):
            assert after["texts"][name][key] == pytest.approx(before["texts"][name][key], rel=1e-6)
    for key in ("tokens", "bytes", "vocabulary", "data_fingerprint", "window", "stride"):
        assert before[key] == after[key]
    assert after["seed"] == 3
    assert before["checkpoint_fingerprint"] != after["checkpoint_fingerprint"]
    both = before["texts"].values()
    assert before["nats_per_token"] == pytest.approx(sum(t["nats"] for t in both) / sum(t["tokens"] for t in both))
    assert before["bytes"] == sum((folders / f"{n}.txt").stat().st_size - 1 for n in ("one", "two"))
    lines = [json.loads(line) for line in (folders / "results" / before["answers_file"]).read_text().splitlines()]
    assert sum(line["nats"] for line in lines) == pytest.approx(before["nats"])
    assert {"git_commit", "command", "hardware", "versions", "settings", "wall_seconds"} <= before.keys()


def test_the_texts_of_the_repository_are_plain_and_taken_where_none_is_named(folders, monkeypatch):
    """ASCII without control characters, of which every vocabulary has all (SmolLM2's lacks some bytes)."""
    told = {"nats": 2.0, "tokens": 1, "bytes": 1, "nats_per_token": 2.0, "bits_per_byte": 2.9}
    monkeypatch.setattr("voco_llama.evaluation.text.measure", lambda *_: (told, []))
    result = json.loads(evaluate_text(settings(folders, texts=[])).read_text())
    assert set(result["texts"]) == {"docs", "explained", "story"}
    for name in result["texts"]:
        text = (TEXTS_DIR / f"{name}.txt").read_bytes()
        assert text.isascii()
        assert not set(text) & {*range(32)} - {ord("\n")}


def refused(folders, *overrides: str) -> str:
    line = [f"checkpoint={folders}/language", f"output={folders}/results", "row=before", "device=cpu"]
    ended = seen(["evaluate-text", *line, f"texts=[{folders}/one.txt]", "window=16", "stride=8", *overrides])
    assert ended.is_refused, ended
    return ended.error[0]


def test_what_is_refused(folders):
    (folders / "empty.txt").write_text(" \n")
    (folders / "a.txt").write_text("a")
    (folders / "latin.txt").write_bytes("für".encode("latin-1"))
    (folders / "wide.txt").write_bytes("a wide text".encode("utf-16-le"))
    (folders / "more").mkdir()
    (folders / "more" / "one.txt").write_text("Another.")
    assert "it is empty" in refused(folders, f"texts=[{folders}/empty.txt]")
    assert "two or more" in refused(folders, f"texts=[{folders}/a.txt]")
    assert "UTF-8" in refused(folders, f"texts=[{folders}/latin.txt]")
    assert "bytes of 0" in refused(folders, f"texts=[{folders}/wide.txt]")
    assert "is no file" in refused(folders, f"texts=[{folders}/none.txt]")
    assert "named alike" in refused(folders, f"texts=[{folders}/one.txt,{folders}/more/one.txt]")
    assert "made for 64 tokens" in refused(folders, "window=65")
    assert "stride must be" in refused(folders, "stride=16")
    assert "no saved model" in refused(folders, f"checkpoint={folders}/more")


def test_weights_that_are_no_numbers_are_refused(folders):
    model = AutoModelForCausalLM.from_pretrained(folders / "language")
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    model.save_pretrained(folders / "language")
    assert "one: the loss from token 1 on is nan: the model's weights are damaged" in refused(folders)
    assert not (folders / "results").exists()


def test_a_tokenizer_of_another_model_is_refused(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders / "language")
    tokenizer.add_tokens(["more", "tokens"])
    tokenizer.save_pretrained(folders / "language")
    assert "not of the same model" in refused(folders)


def test_another_result_is_not_written_over(folders):
    file = evaluate_text(settings(folders))
    evaluate_text(settings(folders))
    assert "stride" in refused(folders, "stride=4", f"texts=[{folders}/one.txt,{folders}/two.txt]")
    assert "data_fingerprint" in refused(folders)
    assert "checkpoint_fingerprint" in refused(folders, f"checkpoint={folders}/ours")
    before = file.read_text()
    evaluate_text(settings(folders, stride=4, overwrite=True))
    assert file.read_text() != before
