"""Training in a chat template: what ends answers is kept, and a base model may be given a template."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration

from tests.data.chat.families import TEMPLATES, new_tokenizer
from tests.tiny import tiny_text_config
from voco_llama import VoCoLlama, VoCoProcessor, cli
from voco_llama.composition import compose
from voco_llama.errors import SettingsError
from voco_llama.training.build import build_or_load, build_processor
from voco_llama.training.checks import check_settings
from voco_llama.training.inputs import fingerprints
from voco_llama.training.run import train


def save_language(folder: Path, tokenizer, **ends) -> None:
    config = tiny_text_config(vocab_size=len(tokenizer) - 2, bos_token_id=None, pad_token_id=None, **ends)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def parts(folder: Path) -> list[str]:
    """Settings that take a language model and its tokenizer from a folder."""
    return [f"model.language.pretrained={folder}", "model.language.config=null", "model.tokenizer=null"]


def always_says(model: torch.nn.Module, token: int) -> None:
    """Have a model's head name one token, whatever it is asked."""
    with torch.no_grad():
        head = model.get_output_embeddings()
        head.weight.zero_()
        head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(token), len(head.weight)) * 1.0)


@pytest.fixture
def language(tmp_path) -> Path:
    """Llama 3's way: configuration and tokenizer name another end than the chat template writes."""
    tokenizer = new_tokenizer("llama3")
    save_language(tmp_path / "language", tokenizer, eos_token_id=tokenizer.eos_token_id)
    return tmp_path / "language"


def test_a_model_of_parts_ends_answers_where_its_prompts_do(world, language, caplog):
    common = ["experiment=toy/voco_1", f"model.vision.name={world}/clip/tiny_clip.json", "model.checkpoint=null"]
    ends = {}
    for prompt in ("chat", "vicuna_v1"):
        model, processor = build_or_load(compose([*common, *parts(language), f"prompt={prompt}"]))
        assert model.config.eos_token_id == model.language_model.generation_config.eos_token_id
        ends[prompt] = model.config.eos_token_id
        assert ("for an instruct model choose prompt=chat" in caplog.text) == (prompt == "vicuna_v1")
    assert set(ends["chat"]) == {ends["vicuna_v1"], *processor.tokenizer.convert_tokens_to_ids(["<|eot_id|>"])}


@pytest.mark.parametrize("name", ["model.checkpoint", "model.tokenizer", "model.language.pretrained"])
def test_a_chat_template_that_changed_is_another_input(tmp_path, name):
    """It decides every row; transformers writes it beside the tokenizer, in a file of its own."""
    (tmp_path / "chat_template.jinja").write_text("a")
    nothing = ("model.checkpoint", "model.tokenizer", "model.language.pretrained", "model.language.config")
    named = [f"{key}={tmp_path if key == name else 'null'}" for key in nothing]
    settings = compose(["experiment=toy/voco_1", "prompt=chat", *named])
    before = fingerprints(settings)
    (tmp_path / "chat_template.jinja").write_text("b")
    after = fingerprints(settings)
    assert [key for key in after if after[key] != before[key]] == ["prompt.template"]
    assert "prompt.template" not in fingerprints(replace(settings, prompt=replace(settings.prompt, template="plain")))


@pytest.mark.slow
def test_answers_end_where_training_taught_it_saved_read_back_and_exported(settings_for, language, tmp_path):
    settings = settings_for("toy/instruct", *parts(language), "prompt=chat", "trainer.max_steps=2")
    final = train(settings)
    processor, model = VoCoProcessor.from_pretrained(final), VoCoLlama.from_pretrained(final)
    taught, other = processor.ends[0], processor.tokenizer.eos_token_id
    assert processor.tokenizer.convert_ids_to_tokens([taught, other]) == ["<|eot_id|>", "<|end_of_text|>"]
    assert set(model.config.eos_token_id) == {taught, other}
    question = processor(["Why?"], condition="full")
    for end in (taught, other):
        always_says(model, end)
        assert model.generate(**question, max_new_tokens=5).tolist() == [[end]]
    assert cli.main(["export", f"checkpoint={final}", "layout=llava_hf", f"output={tmp_path}/hf"]) == 0
    again = VoCoProcessor.from_pretrained(tmp_path / "hf")
    assert (again.style, again.ends) == (processor.style, processor.ends)
    assert torch.equal(again(["Why?"], condition="full")["input_ids"], question["input_ids"])
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf")
    for end in (taught, other):
        always_says(theirs, end)
        answer = theirs.generate(input_ids=question["input_ids"], max_new_tokens=5)
        assert answer[0, question["input_ids"].shape[1] :].tolist() == [end]
    assert set(VoCoLlama.from_pretrained(tmp_path / "hf").config.eos_token_id) == {taught, other}


@pytest.mark.slow
def test_a_model_is_trained_on_in_another_prompt(settings_for, language, tmp_path):
    """Its tokenizer's end, and the template's, end answers both: what one stage taught, another may teach anew."""
    first = train(settings_for("toy/instruct", *parts(language), "trainer.max_steps=1"))
    assert VoCoLlama.from_pretrained(first).config.eos_token_id == AutoTokenizer.from_pretrained(language).eos_token_id
    settings = settings_for(
        "toy/instruct",
        f"model.checkpoint={first}",
        "prompt=chat",
        "trainer.max_steps=1",
        f"output_dir={tmp_path}/second",
    )
    second = train(settings)
    taught = VoCoProcessor.from_pretrained(second).ends
    assert set(taught) < set(VoCoLlama.from_pretrained(second).config.eos_token_id)


# ---- the setting


@pytest.fixture
def base(tmp_path) -> Path:
    """A base model: its tokenizer has no chat template."""
    tokenizer = new_tokenizer("qwen2")
    tokenizer.chat_template = None
    save_language(tmp_path / "base", tokenizer, eos_token_id=tokenizer.eos_token_id)
    return tmp_path / "base"


def test_a_base_model_takes_a_template_from_a_file_and_keeps_it(world, base, tmp_path):
    given = f"prompt.chat_template={TEMPLATES}/qwen2.jinja"
    common = ["experiment=toy/voco_1", f"paths.toyworld={world}", f"model.vision.name={world}/clip/tiny_clip.json"]
    common += ["model.checkpoint=null", *parts(base), "prompt=chat"]
    settings = compose([*common, given])
    processor = build_processor(settings)
    processor.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == (TEMPLATES / "qwen2.jinja").read_text()
    assert VoCoProcessor.from_pretrained(tmp_path / "saved").ends == processor.ends
    with pytest.raises(
        SettingsError, match="the tokenizer has no chat template, .*: set prompt.chat_template to a file"
    ):
        build_processor(compose(common))
    with pytest.raises(SettingsError, match="prompt.chat_template: .*gone.jinja does not exist"):
        check_settings(compose([*common, "prompt.chat_template=gone.jinja"]))
    with pytest.raises(SettingsError, match="prompt.chat_template: .*base: cannot be read"):
        build_processor(compose([*common, f"prompt.chat_template={base}"]))


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["prompt=chat", "prompt.order=authors"], "prompt.order=authors puts the first token of a row inside its segm"),
        (["prompt.template=vicuna", "prompt.order=first"], "prompt.template is 'vicuna': choose one of"),
    ],
)
def test_what_contradicts_the_template_is_refused_before_anything_is_read(overrides, complaint):
    with pytest.raises(SettingsError, match=complaint):
        check_settings(compose(["experiment=toy/voco_1", *overrides]), paths=False)


def test_a_template_that_is_not_read_is_refused(capsys):
    assert cli.main(["train", "experiment=toy/voco_1", "prompt.chat_template=a.jinja"]) == 2
    assert "prompt.chat_template" in capsys.readouterr().err
