"""The authors' order under our layout: their masks and their logits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.model.rows import one_pass_logits, two_step_logits
from tests.parity.convert import below, load_parts, vision_to_open_clip
from voco_llama.layout import SegmentMark, SegmentShape, TextSpan, lay_out, pad_rows
from voco_llama.model.checkpoints import build_model
from voco_llama.tokens import TokenIds
from voco_llama.visibility import TokenFacts, dense_mask

DATA = Path(__file__).parent / "data"
MASKS = load_file(DATA / "masks.safetensors")
TOWER = "model.vision_tower.vision_tower.vision_model."


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    prefix, vision, voco, text = map(int, name.split("_")[1:])
    tokens = TokenIds(image=90, voco=91, bos=1, eos=2, pad=0)
    shape = SegmentShape(vision, voco, prefix=(tokens.bos,) * prefix)
    row = lay_out([SegmentMark(), TextSpan((10,) * text, (False,) * text)], tokens, shape, "voco")
    facts = TokenFacts.of_rows(row.segment[None], row.voco[None], row.document[None])
    assert torch.equal(dense_mask(facts, facts, "voco")[0], MASKS[name])


@pytest.fixture(scope="module")
def theirs():
    return load_file(DATA / "authors.safetensors")


@pytest.fixture(scope="module")
def ours(theirs):
    """Our model with their weights, its tokens and the shape of its segments."""
    known = theirs["embedded_ids"].tolist()
    tokens = TokenIds(image=len(known), voco=known.index(32000), bos=known.index(1), eos=2, pad=known.index(0))
    shape = SegmentShape(16, 2, prefix=(tokens.bos,), infix=(known.index(13),))
    config = LlamaConfig(
        vocab_size=len(known) + 1,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        rms_norm_eps=1e-5,
        pad_token_id=tokens.pad,
        eos_token_id=None,
    )
    vision = {"image_size": 28, "patch_size": 7, "width": 32, "layers": 3, "head_width": 8, "mlp_ratio": 2.0}
    vision_config = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision}
    language_model = AutoModelForCausalLM.from_config(config)
    model = build_model(language_model, vision_config, None, tokens, len(known) + 1, shape).eval()
    model.set_output_embeddings(nn.Linear(16, 256, bias=False))
    language = {name: theirs[name] for name in model.language_model.state_dict() if name in theirs}
    image_row = torch.zeros(1, 16)
    language["model.embed_tokens.weight"] = torch.cat([theirs["model.embed_tokens.weight"], image_row])
    projector = tuple(below(theirs, f"model.mm_projector.{place}.") for place in (0, 2))
    load_parts(model, vision_to_open_clip(below(theirs, TOWER), 3, 16), projector, language)
    return model, tokens, shape


@pytest.fixture(scope="module")
def batches(theirs, ours):
    """Their two rows in our layout, whole and as a cache leaves them."""
    _, tokens, shape = ours
    known = theirs["embedded_ids"].tolist()
    texts = []
    for ids, kept in zip(theirs["input_ids"], theirs["attention_mask"], strict=True):
        _, image, _, *voco, _ = ids[kept][:6].tolist()
        assert (image, voco) == (-200, [32000, 32000])
        text = [known.index(token) for token in ids[kept][5:].tolist()]
        texts.append([SegmentMark(), TextSpan(tuple(text), (False,) * len(text))])
    made = []
    for its_shape in (shape, shape.cached):
        batch = pad_rows([lay_out(parts, tokens, its_shape, "voco") for parts in texts], tokens, "left")
        del batch["labels"]
        made.append(batch)
    return made


def test_logits_of_every_token(theirs, ours, batches):
    model, batch = ours[0], batches[0]
    real = batch["document"] >= 0
    with torch.no_grad():
        logits = model(**batch, pixel_values=theirs["pixel_values"], logits_mask=real).logits
    torch.testing.assert_close(logits, theirs["logits"][real], atol=1e-5, rtol=1e-5)


def test_logits_after_compression(theirs, ours, batches):
    model, (whole, cached) = ours[0], batches
    read = two_step_logits(model, cached, cache=model.compress(theirs["pixel_values"]))
    torch.testing.assert_close(read, theirs["logits"][:, -1], atol=1e-5, rtol=1e-5)
    expected = one_pass_logits(model, whole, pixel_values=theirs["pixel_values"])
    torch.testing.assert_close(read, expected, atol=1e-5, rtol=1e-5)
