"""FLOPs by arithmetic against those that torch counts, on shapes where nothing but matrix products matters."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import tiny_model, tiny_processor, tiny_text_config
from voco_llama.layout import HostRows, SegmentMark, TextSpan, lay_out, pad_rows
from voco_llama.model.flops import HALF, answer_flops, compress_flops, tower_flops, training_flops
from voco_llama.model.losses import Objective

TEXT, IMAGE_SIZE, WHOLE = 90, 96, 1.0


@pytest.fixture(scope="module")
def model():
    """144 vision tokens and one VoCo token, three layers."""
    model = tiny_model(tiny_processor(1, image_size=IMAGE_SIZE), text_config=tiny_text_config(3, hidden_size=64))
    model.vision.requires_grad_(False)
    return model


def counted(work):
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops()


def row(model):
    tokens, words = tiny_processor(1).tokens, tuple(range(10, 10 + TEXT))
    parts = [SegmentMark(), TextSpan(words, (False,) + (True,) * (TEXT - 1))]
    return lay_out(parts, tokens, model.config.segment_shape(), "voco"), tokens


@pytest.fixture(params=["causal", "independent"])
def attention(request, model):
    """Of the vision tokens among themselves."""
    model.config.segment_attention = request.param
    yield request.param
    model.config.segment_attention = "causal"


@pytest.fixture(params=[False, True], ids=["", "reconstruction"])
def objective(request, model):
    """What a training step minimizes: with a reconstruction, the last layer runs on vision tokens too."""
    if request.param:
        model.add_reconstruction()
    yield Objective(reconstruction=1.0)
    model.remove_reconstruction()


@pytest.mark.usefixtures("attention")
def test_compressing(model):
    pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    expected = compress_flops(model.config, 2, causal=WHOLE)
    assert counted(lambda: model.compress(pixels)) == pytest.approx(expected, rel=0.01)


def test_an_answer_from_a_cache(model):
    _, tokens = row(model)
    text, new = 10, 20
    cache = model.compress(torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE))
    question = TextSpan(tuple(range(10, 10 + text)), (False,) * text)
    batch = pad_rows([lay_out([SegmentMark(), question], tokens, model.config.segment_shape().cached, "voco")], tokens)
    batch.pop("labels")
    exactly = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    expected = answer_flops(model.config, text, new, 1, causal=WHOLE)
    assert counted(lambda: model.generate(**batch, cache=cache, **exactly)) == pytest.approx(expected, rel=0.01)


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("shared", [False, True])
def test_a_training_step_in_two_steps(model, objective, shared):
    """Two rows: with one image in common, it is compressed once."""
    row_, tokens = row(model)
    images = 1 if shared else 2
    media, medium = torch.arange(images)[:, None], torch.tensor([0, 0 if shared else 1])
    rows = HostRows(pad_rows([row_, row_], tokens), media, medium)
    pixels = torch.randn(images, 3, IMAGE_SIZE, IMAGE_SIZE)
    trained = 2 * (TEXT - 1)

    def step():
        model.train()(rows=rows, pixel_values=pixels, two_steps=True, objective=objective).loss.backward()

    # The head runs again in the backward pass, which is no need of the method.
    again = trained * 2 * model.config.text_config.hidden_size * model.config.text_config.vocab_size
    expected = training_flops(model.config, [TEXT, TEXT], [1, 1], images, trained, causal=WHOLE) + again
    assert counted(step) == pytest.approx(expected, rel=0.01)


def test_causal_attention_is_half_a_square_and_a_frozen_tower_runs_forward_only(model):
    config = model.config
    whole, half = (training_flops(config, [TEXT], [0], 0, 0, causal=causal) for causal in (WHOLE, HALF))
    assert whole - half == 3 * config.text_config.num_hidden_layers * 4 * 64 * TEXT**2 // 2
    parts = [("projector", "language"), ("vision", "projector", "language")]
    frozen, trains = (training_flops(config, [], [], 1, 0, trains) for trains in parts)
    assert trains - frozen > 2 * tower_flops(config)
