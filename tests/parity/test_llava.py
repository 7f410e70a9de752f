"""LLaVA-1.5 from its own files, in each layout: the logits of transformers' own implementation."""

import copy

import pytest
import torch

from tests.model.rows import asked, batch_of, random_images, two_step_logits
from tests.parity.llava_files import parts_of, tiny_llava, write_hub, write_own
from tests.tiny import tiny_tokenizer
from voco_llama import VoCoLlama, VoCoProcessor
from voco_llama.asking import AskSettings, ask
from voco_llama.errors import CheckpointError
from voco_llama.evaluation.answering import Answerer
from voco_llama.evaluation.questions import Question
from voco_llama.inference import Inference

TEXTS = ("<image>\nWhat is it?", "<image>\nIs it red, or is it\nblue?")
LAYOUTS = {
    "llava": lambda llava, folder: write_own(llava, folder),
    "llava, its tower elsewhere": lambda llava, folder: write_own(llava, folder, tower="elsewhere"),
    "llava-hf, old names": lambda llava, folder: write_hub(llava, folder, "old"),
    "llava-hf, new names": lambda llava, folder: write_hub(llava, folder, "new"),
    "llava-hf, as transformers saves": lambda llava, folder: write_hub(llava, folder, "saved"),
}


@pytest.fixture(scope="module")
def llava():
    return tiny_llava()


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(request, llava, tmp_path_factory):
    return LAYOUTS[request.param](llava, tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def processor(folder):
    return VoCoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours(folder):
    return VoCoLlama.from_pretrained(folder)


@pytest.fixture(scope="module")
def pixels(processor):
    return processor.pixels(random_images(2))


@pytest.fixture(scope="module")
def batch(processor):
    return batch_of(processor, [processor.lay_out(asked(text)) for text in TEXTS], "left")


def their_ids(batch, llava, processor):
    """Their vocabulary has `<image>` at one place; ours may have it elsewhere."""
    ids = batch["input_ids"]
    return torch.where(ids == processor.tokens.image, llava.config.image_token_id, ids)


def test_it_is_an_upper_bound_out_of_the_box(folder, processor, ours):
    assert (processor.condition, processor.style.order, processor.num_voco) == ("full", "llava", 0)
    assert (ours.config.condition, ours.config.segment_shape()) == ("full", processor.segment_shape())
    assert (ours.config.image_token_id, ours.config.voco_token_id) == (processor.tokens.image, processor.tokens.voco)
    config = type(ours.config).from_pretrained(folder)
    kept = ("text_config", "vision_config", "vision_layer", "condition", "num_voco", "voco_token_id", "projector_type")
    mine, read = ours.config.to_dict(), config.to_dict()
    assert {k: mine[k] for k in kept[1:]} == {k: read[k] for k in kept[1:]}
    assert config.text_config.vocab_size == ours.config.text_config.vocab_size


@torch.no_grad()
def test_patch_features(llava, ours, pixels):
    theirs = llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(ours.vision(pixels), theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_logits_of_a_batch_padded_left(processor, llava, ours, pixels, batch):
    real = batch["document"] >= 0
    assert not real.all()
    ids = their_ids(batch, llava, processor)
    their_logits = llava(input_ids=ids, attention_mask=real.long(), pixel_values=pixels).logits
    known = len(tiny_tokenizer())  # the rows of added tokens are ours
    our_logits = ours(**batch, pixel_values=pixels, logits_mask=real).logits
    torch.testing.assert_close(our_logits[:, :known], their_logits[real][:, :known], atol=1e-4, rtol=1e-4)
    read = two_step_logits(ours, batch, pixel_values=pixels)
    torch.testing.assert_close(read[:, :known], their_logits[:, -1, :known], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_lower_bound_reads_images_through_untrained_voco_tokens(processor, ours, pixels):
    """LLaVA's weights under the VoCo mask: one pass equals two steps, and text sees the image through the token.

    In float64: these random towers give features of 400 and more, on which float32's own rounding is 2e-5.
    """
    ours, pixels = copy.deepcopy(ours).double(), pixels.double()
    shape = processor.segment_shape(1)
    rows = [processor.lay_out(asked(text), shape=shape, condition="voco") for text in TEXTS]
    batch = batch_of(processor, rows, "left")
    assert batch["voco"].sum(dim=1).tolist() == [1, 1]
    last = torch.zeros_like(batch["voco"])
    last[:, -1] = True
    in_one = ours(**batch, pixel_values=pixels, logits_mask=last, condition="voco").logits
    in_two = two_step_logits(ours, batch, pixel_values=pixels, condition="voco")
    torch.testing.assert_close(in_two, in_one, atol=1e-5, rtol=1e-5)

    cache = ours.compress(pixels, num_voco=1)
    assert cache.num_voco == 1
    questions = [
        Question(
            str(i),
            text.removeprefix("<image>\n"),
            lambda i=i: random_images(2)[i : i + 1],
            {"max_new_tokens": 6, "do_sample": False},
        )
        for i, text in enumerate(TEXTS)
    ]
    answerer = Answerer(Inference(ours, processor), "voco", num_voco=1)
    ids = ours.generate(**batch, pixel_values=pixels, condition="voco", max_new_tokens=6, do_sample=False)
    said = [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert list(answerer.answer(questions)) == said


def test_generation(processor, llava, ours, pixels, batch):
    unknown = list(range(len(tiny_tokenizer()), llava.config.text_config.vocab_size))
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "suppress_tokens": unknown}
    attended = (batch["document"] >= 0).long()
    ids = their_ids(batch, llava, processor)
    theirs = llava.generate(input_ids=ids, attention_mask=attended, pixel_values=pixels, **options)
    mine = ours.generate(**batch, pixel_values=pixels, **options)
    assert torch.equal(mine, theirs[:, ids.shape[1] :])


def test_weights_are_theirs_and_added_rows_are_means(llava, ours, processor):
    theirs, known = parts_of(llava), len(tiny_tokenizer())
    language = ours.language_model.state_dict()
    assert language.keys() == theirs.language.keys()
    for name, tensor in theirs.language.items():
        rows = known if name in ("model.embed_tokens.weight", "lm_head.weight") else None
        assert torch.equal(language[name][:rows], tensor[:rows]), name
    table = ours.get_input_embeddings().weight
    others = [row for row in range(len(processor.tokenizer)) if row != processor.tokens.voco]
    if processor.tokens.image >= known and len(table) == known + 2:  # LLaVA's own layout: both tokens are new
        others.remove(processor.tokens.image)
    torch.testing.assert_close(table[processor.tokens.voco], table[others].mean(dim=0))
    assert ours.projector.state_dict().keys() == theirs.projector.keys()


def test_it_is_saved_and_loaded_as_one_of_ours(processor, ours, pixels, batch, tmp_path):
    ours.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, read = VoCoLlama.from_pretrained(tmp_path), VoCoProcessor.from_pretrained(tmp_path)
    assert read.segment_shape() == processor.segment_shape()
    with torch.no_grad():
        mine, theirs = (model(**batch, pixel_values=pixels).logits for model in (again, ours))
    assert torch.equal(mine, theirs)


def test_it_ends_where_its_generation_config_says_too(llava, tmp_path):
    folder = write_own(llava, tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    assert VoCoLlama.from_pretrained(folder).language_model.generation_config.eos_token_id == [5, 2]
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(CheckpointError, match="eos_token_id is .*: give token ids"):
        VoCoLlama.from_pretrained(folder)


def test_asked_it_sees_the_image(folder, processor, ours, tmp_path):
    (image,) = random_images(1)
    image.save(tmp_path / "image.png")
    settings = AskSettings(folder, tmp_path / "image.png", questions=["What is it?"], device="cpu", max_new_tokens=6)
    inputs = processor(["<image>\nWhat is it?"], images=image)
    ids = ours.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert ask(settings) == [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]
