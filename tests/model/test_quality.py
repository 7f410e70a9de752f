"""The number of VoCo tokens chosen by the image: what a head reads and says, chooses, learns, and its file."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.model.heads import model_choices, random_head, telling_quality
from tests.model.rows import answered, batch_of, one_pass_logits, random_images
from tests.tiny import tiny_model, tiny_processor
from voco_llama import VoCoCache, VoCoLlama
from voco_llama.asking import AskSettings, ask
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.inference import Inference, checkpoint_fingerprint, head_fingerprint
from voco_llama.layout import truncate_voco
from voco_llama.model.quality import (
    QUALITY_FILE,
    HeadShape,
    QualityHead,
    divergences,
    fit_head,
    numbers_up_to,
    outcome,
)

MOST = 6


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(num_voco=MOST, order="inline", image_size=24)


@pytest.fixture(scope="module")
def plain(processor):
    return tiny_model(processor)


@pytest.fixture(scope="module")
def pixels(processor):
    return processor.pixels(random_images(12))


@pytest.fixture
def head(plain):
    return random_head(plain, MOST)


@pytest.fixture
def model(plain, head):
    """With a head for the time of a test."""
    plain.set_quality_head(head)
    yield plain
    plain.set_quality_head(None)


def test_numbers_to_choose_from():
    assert numbers_up_to(1) == (1,)
    assert numbers_up_to(6) == (1, 2, 3, 4, 5, 6)
    assert numbers_up_to(16) == (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    assert numbers_up_to(128)[-4:] == (66, 88, 117, 128)


# ---- choosing


def test_each_image_gets_the_fewest_tokens_that_are_enough(model, head, pixels):
    whole = model.compress(pixels, MOST)
    quality = telling_quality(model, head, pixels)
    with torch.no_grad():
        predicted = head(head.features(whole))
    chosen = model_choices(predicted, head, quality)
    cache = model.compress(pixels, quality=quality)
    assert cache.counts.tolist() == chosen
    assert torch.equal(cache.keys, whole.truncate(chosen).keys)
    assert len(set(chosen)) > 2
    alone = [model.compress(pixels[i : i + 1], quality=quality) for i in range(len(pixels))]
    assert [entry.num_voco for entry in alone] == chosen
    assert torch.equal(VoCoCache.cat(alone).counts, cache.counts)


def test_what_is_predicted_falls_with_the_number(model, head, pixels):
    with torch.no_grad():
        predicted = head(head.features(model.compress(pixels, MOST)))
    assert predicted.shape == (12, MOST - 1)
    assert bool((predicted.diff(dim=1) <= 0).all())
    assert bool((predicted > 0).all())


def test_a_stricter_quality_never_keeps_less(model, pixels):
    kept = [model.compress(pixels, quality=quality).counts for quality in (1e9, 3.0, 1.0, 0.3, 0.0)]
    assert kept[0].tolist() == [1] * 12
    assert kept[-1].tolist() == [MOST] * 12
    for loose, strict in pairwise(kept):
        assert bool((strict >= loose).all())


def test_num_voco_is_the_most_then(model, head, pixels):
    quality = telling_quality(model, head, pixels)
    free = model.compress(pixels, quality=quality).counts
    assert torch.equal(model.compress(pixels, 2, quality=quality).counts, free.clamp(max=2))
    assert int(free.max()) > 2
    most = [1 + i % 3 for i in range(12)]
    assert torch.equal(model.compress(pixels, most, quality=quality).counts, free.minimum(torch.tensor(most)))
    for wrong in ([2], [2, 3]):
        with pytest.raises(SettingsError, match=f"there are {len(wrong)} numbers of VoCo tokens for 12 images"):
            model.compress(pixels, wrong, quality=quality)


def test_a_head_is_no_part_of_the_model(plain, head, pixels):
    before, names = plain.fingerprint(), list(plain.state_dict())
    plain.set_quality_head(head)
    assert plain.fingerprint() == before
    assert list(plain.state_dict()) == names
    assert head not in list(plain.modules())
    plain.set_quality_head(None)
    with pytest.raises(SettingsError, match=r"quality=0.05: the checkpoint has no head .*: fit one to it"):
        plain.compress(pixels, quality=0.05)


def test_a_head_of_other_weights_is_refused(model, processor, pixels):
    other = tiny_model(processor, seed=1)
    other.set_quality_head(model.quality_head)
    with pytest.raises(CheckpointError, match="was fitted to other weights: fit it again"):
        other.compress(pixels, quality=0.05)
    with pytest.raises(SettingsError, match="quality is -1: give a divergence in nats an answer token"):
        model.compress(pixels, quality=-1)
    for quality in (float("nan"), float("inf")):
        with pytest.raises(SettingsError, match=f"quality is {quality}"):
            model.compress(pixels, quality=quality)


def test_answers_are_read_from_what_was_chosen(model, head, processor, pixels):
    images = random_images(12)
    inference = Inference(model, processor)
    quality = telling_quality(model, head, pixels)
    cache = inference.compress(images, batch_size=5, quality=quality)
    assert torch.equal(cache.counts, model.compress(pixels, quality=quality).counts)
    answers = inference.answer(["<image>?"] * 12, cache, max_new_tokens=4)
    for image, count, answer in zip(images, cache.counts.tolist(), answers, strict=True):
        assert inference.answer("<image>?", images=image, num_voco=count, max_new_tokens=4) == [answer]


# ---- measuring and fitting


def test_text_is_read_as_the_masked_pass_has_it(plain, processor, pixels):
    texts = ["Is <image> so?", "<image> What is it, and why is it?", "And <image>?"]
    rows = batch_of(processor, [processor.lay_out(answered(text)) for text in texts], "right", labels=True)
    facts = {name: rows[name] for name in ("segment", "voco", "position", "document")}
    for number in (MOST, 2):
        fewer = truncate_voco(rows, number, processor.tokens.pad)
        facts = {name: fewer[name] for name in ("segment", "voco", "position", "document")}
        cache = plain.compress(pixels[:3], number)
        states = plain.read(fewer["input_ids"], cache, **facts)
        text = (fewer["segment"] == 0) & (fewer["document"] >= 0)
        with torch.no_grad():
            expected = plain(
                input_ids=fewer["input_ids"], pixel_values=pixels[:3], with_logits=False, logits_mask=text, **facts
            ).hidden_states
        torch.testing.assert_close(states[text], expected, atol=1e-4, rtol=1e-4)
        assert not states[~text].any()


def test_divergences_are_those_of_the_definition():
    torch.manual_seed(0)
    whole, fewer = torch.randn(5, 7), torch.randn(5, 7)
    p, q = whole.softmax(-1), fewer.softmax(-1)
    torch.testing.assert_close(divergences(whole, fewer), (p * (p / q).log()).sum(-1))
    assert divergences(whole, whole).abs().max() < 1e-6


def test_a_head_learns_which_images_need_more(plain):
    """Of two kinds of images one needs two tokens more; half of the questions on it notice, and the mean is learned."""
    head = random_head(plain, MOST, scale=1.0)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(400, MOST, head.shape.width, generator=generator)
    hard = torch.arange(400) % 2 == 0
    features[hard, :, 0] += 3.0
    measured = torch.zeros(400, MOST - 1)
    measured[hard, :2] = 2.0 * (torch.arange(200) % 2 == 0)[:, None]
    fit_head(head, features, measured, watched=torch.arange(400) % 10 < 2, steps=300)
    with torch.no_grad():
        predicted = head(features)
    chosen = torch.tensor(model_choices(predicted, head, 0.3))
    assert (chosen[hard] == 3).float().mean() > 0.9
    assert (chosen[~hard] == 1).float().mean() > 0.9
    assert predicted[hard, 0].mean().item() == pytest.approx(1.0, abs=0.2)
    found = outcome(predicted, measured, head.shape.numbers, 0.3)
    assert found.tokens == pytest.approx(chosen.float().mean().item())
    assert found.divergence < 0.1
    assert outcome(predicted, measured, head.shape.numbers, 1e9) == (1.0, pytest.approx(0.5), pytest.approx(0.5))


def test_what_a_quality_leads_to():
    """Four images: two keep one token, one keeps two, one all four; worked out by hand."""
    predicted = torch.tensor([[0.1, 0.0], [0.2, 0.1], [0.9, 0.2], [0.9, 0.8]])
    measured = torch.tensor([[0.0, 0.0], [0.4, 0.0], [2.0, 0.2], [4.0, 3.0]])
    found = outcome(predicted, measured, (1, 2, 4), 0.3)
    assert found.tokens == (1 + 1 + 2 + 4) / 4
    assert found.divergence == pytest.approx((0.0 + 0.4 + 0.2 + 0.0) / 4)
    assert found.dealt_out == pytest.approx(0.5 * 1.6 + 0.25 * 0.8 + 0.25 * 0)


# ---- its file


@pytest.fixture
def folder(model, head, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    before = checkpoint_fingerprint(tmp_path)
    head.save(tmp_path, {"rows": 3})
    assert checkpoint_fingerprint(tmp_path) == before
    return tmp_path


def test_a_checkpoint_is_loaded_with_its_head(folder, model, head, pixels):
    loaded = VoCoLlama.from_pretrained(folder)
    quality = telling_quality(model, head, pixels)
    assert torch.equal(loaded.compress(pixels, quality=quality).counts, model.compress(pixels, quality=quality).counts)
    assert len(head_fingerprint(folder)) == 64
    with safe_open(folder / QUALITY_FILE, framework="pt") as opened:
        described = json.loads(opened.metadata()["voco_llama"])
    assert described["found"] == {"rows": 3}
    assert described["fingerprint"] == model.fingerprint()
    half = VoCoLlama.from_pretrained(folder, dtype="bfloat16").compress(pixels.bfloat16(), quality=quality)
    assert half.keys.dtype == torch.bfloat16
    (folder / QUALITY_FILE).unlink()
    assert VoCoLlama.from_pretrained(folder).quality_head is None
    assert head_fingerprint(folder) is None


def test_ask_has_images_choose(folder, tmp_path):
    random_images(1)[0].save(tmp_path / "image.png")
    asked = {"image": tmp_path / "image.png", "questions": "What?", "device": "cpu", "max_new_tokens": 4}

    def said(**more):
        return ask(AskSettings(folder, **asked, **more))

    assert said(quality=0.0) == said() != said(num_voco=1)
    assert said(quality=1e9) == said(num_voco=1)
    with pytest.raises(SettingsError, match="quality=0.1 is about VoCo tokens: leave it out under condition=full"):
        AskSettings(folder, **asked, quality=0.1, condition="full")
    whole = tiny_processor(num_voco=MOST, condition="full", image_size=24)
    tiny_model(whole).save_pretrained(tmp_path / "whole")
    whole.save_pretrained(tmp_path / "whole")
    with pytest.raises(SettingsError, match="quality=0.1 is about VoCo tokens: leave it out under condition=full"):
        ask(AskSettings(tmp_path / "whole", **asked, quality=0.1))  # as it was trained


def _cut_short(file):
    file.write_bytes(file.read_bytes()[:-3])


def _other_version(file):
    with safe_open(file, framework="pt") as opened:
        described = json.loads(opened.metadata()["voco_llama"]) | {"format_version": 9}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, {"voco_llama": json.dumps(described)})


def _of_another_shape(file):
    with safe_open(file, framework="pt") as opened:
        described = json.loads(opened.metadata()["voco_llama"]) | {"numbers": [1, 2]}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, {"voco_llama": json.dumps(described)})


def _something_else(file):
    save_file({"keys": torch.zeros(1)}, file)


def _no_numbers(file):
    _rewritten(file, lambda name, tensor: tensor * torch.nan if name == "out.bias" else tensor)


def _half(file):
    _rewritten(file, lambda name, tensor: tensor.half())


def _said(**described):
    return lambda file: _rewritten(file, lambda name, tensor: tensor, **described)


def _rewritten(file, change, **more):
    with safe_open(file, framework="pt") as opened:
        described = json.loads(opened.metadata()["voco_llama"]) | more
        tensors = {name: change(name, opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, {"voco_llama": json.dumps(described)})


DAMAGES = {
    "cut short": _cut_short,
    "other version": _other_version,
    "another shape": _of_another_shape,
    "something else": _something_else,
    "no numbers": _no_numbers,
    "half precision": _half,
    "not rising": _said(numbers=[1, 3, 2, 4, 5, 6]),
    "below one": _said(numbers=[0, 1, 2, 3, 4, 6]),
    "no whole numbers": _said(numbers=[1, 2, 3, 4, 5.5, 6]),
    "more than memory has room for": _said(numbers=[1, 2, 3, 4, 5, 10**15]),
    "no such layer": _said(layer=2),
    "counted from the end": _said(layer=-3),
    "no fingerprint": _said(fingerprint=None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_head_is_refused(folder, damage):
    DAMAGES[damage](folder / QUALITY_FILE)
    with pytest.raises(CheckpointError, match=r"head.safetensors: .*remove it and fit it again") as error:
        VoCoLlama.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_a_head_that_reads_other_values_than_the_model_has_is_refused(folder, plain):
    head = QualityHead(HeadShape(numbers_up_to(MOST), 1, 7), plain.fingerprint())
    head.save(folder, {})
    with pytest.raises(CheckpointError, match=r"head.safetensors: .*remove it and fit it again"):
        VoCoLlama.from_pretrained(folder)


def test_reading_and_the_masked_pass_differ_where_numbers_do(plain, processor, pixels):
    """Else the comparison above would say nothing."""
    rows = batch_of(processor, [processor.lay_out(answered("Is <image> so?"))], "right")
    fewer = truncate_voco(rows, 2, processor.tokens.pad)
    logits = [one_pass_logits(plain, batch, pixel_values=pixels[:1]) for batch in (rows, fewer)]
    assert not torch.allclose(*logits, atol=1e-3)
