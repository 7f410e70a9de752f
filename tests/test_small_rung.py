"""Every step of the small rung at its true widths, with random weights: a few records in the layouts of the real sets.

SmolLM2-135M's hidden size, heads, MLP and vocabulary in three of its 30 layers, with tied embeddings and an end that
also pads; all of CLIP's ViT-B/16. Nothing is downloaded, so weights are random and the tokenizer has the size of
SmolLM2's and knows bytes alone.
"""

import json
import shutil

import open_clip
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.evaluation.hub import write_pope
from voco_llama.cli import main
from voco_llama.evaluation.results import read_result
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.preflight.shapes import SHAPES_DIR

LANGUAGE, TOWER = "HuggingFaceTB/SmolLM2-135M-Instruct", "ViT-B-16-quickgelu"
WORDS, WIDTH, LAYERS, PATCHES = 49152, 576, 3, 196
CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
KV_BYTES = 2 * LAYERS * 3 * 64 * 4
"""Of a token, in float32: three key-value heads of 64."""
SHORT = ("data.max_length=512", "data.index_folder=null", "global_batch_size=2")
ON_A_CPU = (
    "trainer.use_cpu=true",
    "trainer.bf16=false",
    "trainer.dataloader_num_workers=0",
    "trainer.per_device_train_batch_size=2",
    "trainer.max_steps=1",
    "trainer.warmup_steps=0",
    "trainer.save_strategy=no",
    "trainer.report_to=none",
)


def write_language(folder):
    """Random weights, and a tokenizer whose beginning and end are SmolLM2's."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = AutoConfig.from_pretrained(SHAPES_DIR / f"{LANGUAGE}.json", num_hidden_layers=LAYERS, **ends)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    known = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = [*known, *(f"unused{index}" for index in range(WORDS - len(known)))]
    backend = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = {"unk_token": special[0], "bos_token": special[1], "eos_token": special[2], "pad_token": special[2]}
    PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=CHATML, **names).save_pretrained(folder)


def write_data(folder):
    """Two captions as LCS-558K has them; of mix665k two questions on an image, one on another, and text alone."""

    def written(name, records):
        file = folder / name
        for record in records:
            if "image" in record:
                image = file.parent / "images" / record["image"]
                image.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (500, 375), (200, 20, 20)).save(image)
        file.write_text(json.dumps(records))

    def turns(*texts):
        return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]

    (folder / "LLaVA-Pretrain").mkdir(parents=True)
    (folder / "LLaVA-Instruct-150K").mkdir()
    captions = [
        {"id": f"00453937{n}", "image": f"00453/00453937{n}.jpg", "conversations": turns(question, "a red wall")}
        for n, question in enumerate(("<image>\nDescribe the image concisely.", "What is this?\n<image>"))
    ]
    written("LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", captions)
    coco = turns("<image>\nIs it red?\nAnswer the question using a single word or phrase.", "Yes", "Sure?", "Yes")
    questions = [
        {"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "conversations": coco},
        {"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "conversations": coco[:2]},
        {"id": "n1", "image": "gqa/images/n1.jpg", "conversations": turns("<image>\nWhich color?", "Red")},
        {"id": "wq1", "model": "", "conversations": turns("Hello", "Hi.")},
    ]
    written("LLaVA-Instruct-150K/llava_v1_5_mix665k.json", questions)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Runs a command beside language model, tower, data and benchmark, with a model file of one's own."""
    monkeypatch.chdir(tmp_path)
    write_language(tmp_path / "language")
    (tmp_path / "tower.json").write_text(json.dumps(open_clip.get_model_config(TOWER)))
    write_data(tmp_path / "data")
    write_pope(tmp_path / "hub")
    own = tmp_path / "own/model"
    own.mkdir(parents=True)
    own.joinpath("mine.yaml").write_text(
        "defaults: [smollm2_135m]\nvision: {name: tower.json, pretrained: null}\nlanguage: {pretrained: language}\n"
    )

    def run(command, *overrides):
        assert main([command, "--config-dir", str(tmp_path / "own"), *overrides]) == 0

    return run


@pytest.mark.slow
def test_every_step_at_its_true_widths(small, tmp_path):
    runs = tmp_path / "runs/small/language"

    def trained(name):
        small("train", f"experiment=small/{name}", "model=mine", *SHORT, *ON_A_CPU)
        log = json.loads((runs / name / "result.json").read_text())["loss_curve"]
        assert all(0 < entry["loss"] < 20 for entry in log if "loss" in entry)
        return VoCoLlama.from_pretrained(runs / name / "final")

    def evaluated(row, name, *overrides):
        small(
            *("evaluate", f"row={row}", f"checkpoint={runs}/{name}/final", "hub=hub", "tasks=[pope]", "limit=2"),
            *("max_new_tokens=2", "batch_size=2", "device=cpu", "output=results", *overrides),
        )
        return read_result(tmp_path / f"results/{row}.benchmarks.json")

    begun = AutoModelForCausalLM.from_pretrained(tmp_path / "language").get_input_embeddings().weight
    aligned = trained("align")
    table = aligned.get_input_embeddings().weight
    assert table.shape == (WORDS + 2, WIDTH)
    assert aligned.get_output_embeddings().weight is table  # still tied, with two words more
    assert torch.equal(table[:WORDS], begun)
    assert (aligned.config.num_vision_tokens, aligned.config.image_size) == (PATCHES, 224)

    del aligned, table

    assert not torch.equal(trained("instruct").get_input_embeddings().weight[:WORDS], begun)
    assert evaluated("upper", "instruct", "condition=full")["tokens_per_image"] == PATCHES + 1
    assert evaluated("lower", "instruct", "condition=voco")["tokens_per_image"] == 1
    shutil.rmtree(runs / "instruct")

    config = trained("voco_4").config
    assert (config.num_voco, config.condition) == (4, "voco")
    answered = evaluated("voco_4", "voco_4")
    assert (answered["tokens_per_image"], answered["kv_bytes_per_image"]) == (4, 4 * KV_BYTES)
    shutil.rmtree(runs / "voco_4")

    trained("elastic")
    answered = evaluated("elastic_at_2", "elastic", "num_voco=2")
    assert (answered["tokens_per_image"], answered["kv_bytes_per_image"]) == (2, 2 * KV_BYTES)
    small("report", "results=results", "output=report", "allow_limited=true")
