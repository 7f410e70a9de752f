"""Generation from a cache: token for token what single rows and a model without any cache would say."""

from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, TextStreamer
from transformers.generation import BaseStreamer

from tests.model.rows import asked, greedy_from_scratch, random_images
from tests.tiny import tiny_model, tiny_processor, tiny_text_config
from voco_llama.configuration import max_positions
from voco_llama.errors import CheckpointError, DataError, SettingsError
from voco_llama.model.voco_llama import VoCoLlama

TEXTS = ["Why is it so, and not otherwise?", "<image>?", "Is <image> left of <image>?", "Oh."]
IMAGES_OF = [[], [0], [1, 2], []]
STEPS = 8


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(order="inline")


@pytest.fixture(scope="module")
def model(processor):
    """Never says the end of sequence, so that every row has all its tokens."""
    model = tiny_model(processor)
    model.language_model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def images():
    return random_images(3)


@pytest.fixture(scope="module")
def cache(processor, model, images):
    return model.compress(processor.pixels(images))


def greedy(model, batch, **kwargs):
    return model.generate(**batch, max_new_tokens=STEPS, do_sample=False, **kwargs)


def test_new_tokens_alone_are_returned(processor, model, cache):
    ids = greedy(model, processor(TEXTS), cache=cache)
    assert ids.shape == (4, STEPS)
    assert len({tuple(row.tolist()) for row in ids}) == 4


@pytest.mark.parametrize("condition", ["voco", "full"])
def test_greedy_decoding_equals_recomputing_from_scratch(processor, model, images, condition):
    batch = processor(TEXTS, images=images, condition=condition)
    rows = [processor.lay_out(asked(text), condition=condition) for text in TEXTS]
    pixels = processor.pixels(images)
    expected = greedy_from_scratch(model, processor, rows, pixels, STEPS, condition=condition)
    assert torch.equal(greedy(model, batch), expected)


@pytest.mark.parametrize("order", ["first", "authors"])
def test_the_same_in_the_papers_orders(order, images):
    processor = tiny_processor(order=order)
    model = tiny_model(processor)
    model.language_model.generation_config.eos_token_id = None
    rows = [processor.lay_out(asked(text)) for text in TEXTS]
    expected = greedy_from_scratch(model, processor, rows, processor.pixels(images), STEPS)
    assert torch.equal(greedy(model, processor(TEXTS, images=images)), expected)


def test_full_without_voco_tokens(processor, model, images):
    """The upper bound: what LLaVA does."""
    batch = processor(TEXTS, images=images, condition="full", num_voco=0)
    shape = processor.segment_shape(0)
    rows = [processor.lay_out(asked(text), shape=shape, condition="full") for text in TEXTS]
    expected = greedy_from_scratch(model, processor, rows, processor.pixels(images), STEPS, condition="full")
    assert torch.equal(greedy(model, batch), expected)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_batch_equals_its_rows(processor, model, cache, num_beams):
    together = greedy(model, processor(TEXTS), cache=cache, num_beams=num_beams)
    for text, places, row in zip(TEXTS, IMAGES_OF, together, strict=True):
        alone = greedy(model, processor(text), cache=cache[places] if places else None, num_beams=num_beams)
        assert torch.equal(row, alone[0]), text


@pytest.mark.parametrize("num_beams", [1, 2])
def test_full_a_batch_equals_its_rows(processor, model, images, num_beams):
    together = greedy(model, processor(TEXTS, images=images, condition="full"), num_beams=num_beams)
    for text, places, row in zip(TEXTS, IMAGES_OF, together, strict=True):
        its_images = [images[place] for place in places] or None
        alone = greedy(model, processor(text, images=its_images, condition="full"), num_beams=num_beams)
        assert torch.equal(row, alone[0]), text


def test_beams_may_come_from_a_generation_config(processor, model, cache):
    batch = processor(TEXTS)
    expected = greedy(model, batch, cache=cache, num_beams=3)
    config = GenerationConfig(num_beams=3, max_new_tokens=STEPS, do_sample=False)
    assert torch.equal(model.generate(**batch, cache=cache, generation_config=config), expected)
    assert not torch.equal(expected, greedy(model, batch, cache=cache))


def test_several_samples_of_a_row(processor, model, cache):
    torch.manual_seed(0)
    ids = model.generate(**processor(TEXTS), cache=cache, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert ids.shape == (12, 4)
    assert model.generate(
        **processor(TEXTS), cache=cache, max_new_tokens=4, do_sample=False, num_beams=4, num_return_sequences=2
    ).shape == (8, 4)


def test_a_row_that_has_ended_is_padded(processor, model, cache):
    free = greedy(model, processor(TEXTS), cache=cache)
    end = int(free[1, 2])
    stopped = greedy(model, processor(TEXTS), cache=cache, eos_token_id=end)
    for before, after in zip(free.tolist(), stopped.tolist(), strict=True):
        length = before.index(end) + 1 if end in before else STEPS
        assert after == before[:length] + [processor.tokens.pad] * (STEPS - length)
    assert stopped[1, -1] == processor.tokens.pad


def test_questions_without_a_mark_share_the_whole_cache(processor, model, cache):
    texts = ["What moves?", "And what does not?"]
    together = greedy(model, processor(texts), cache=cache)
    for text, row in zip(texts, together, strict=True):
        assert torch.equal(row, greedy(model, processor(text), cache=cache)[0])
    assert not torch.equal(together, greedy(model, processor(texts)))


def test_text_alone_needs_no_cache(processor, model):
    rows = [processor.lay_out(asked(text)) for text in ("Why?", "Because of what?")]
    expected = greedy_from_scratch(model, processor, rows, None, STEPS)
    assert torch.equal(greedy(model, processor(["Why?", "Because of what?"])), expected)


def test_the_eager_backend_says_the_same(processor, model, images):
    other = tiny_model(processor, attention="eager")
    other.language_model.generation_config.eos_token_id = None
    batch = processor(TEXTS, images=images)
    assert torch.equal(greedy(other, batch), greedy(model, batch))


def test_generation_leaves_the_cache_as_it_was(processor, model, cache):
    keys, values = cache.keys.clone(), cache.values.clone()
    greedy(model, processor(TEXTS), cache=cache)
    assert torch.equal(cache.keys, keys)
    assert torch.equal(cache.values, values)


@pytest.mark.parametrize(
    ("texts", "places", "num_voco", "complaint"),
    [
        (["<image>?"], None, 2, r"the rows read 1 segments of 2 VoCo tokens, but no cache was passed"),
        (["<image>?"], [0, 1], 2, r"but the cache has 2 entries of 2 VoCo tokens: pass one entry for each image mark"),
        (["<image>?", "<image>"], [0], 2, r"read 2 segments of 2 VoCo tokens, but .* has 1 entries of 2"),
        (["<image>?"], [0, 1], 4, r"read 1 segments of 4 VoCo tokens, but the cache has 2 entries of 2"),
        (["<image><image>?"], [0], 1, r"read 2 segments of 1 VoCo tokens, but the cache has 1 entries of 2"),
        (["<image><image>?"], [0, 1], [1, 3], r"read 2 segments of 1, 3 VoCo tokens, but the cache has 2 entries of 2"),
    ],
)
def test_marks_and_entries_must_agree(processor, model, cache, texts, places, num_voco, complaint):
    with pytest.raises(ValueError, match=complaint):
        greedy(model, processor(texts, num_voco=num_voco), cache=None if places is None else cache[places])


def test_what_does_not_go_together_is_refused(processor, model, cache, images):
    batch = processor("<image>?", images=images[0])
    with pytest.raises(ValueError, match="either pixel_values or a cache, not both"):
        greedy(model, batch, cache=cache)
    with pytest.raises(ValueError, match="a cache is read under condition 'voco'"):
        greedy(model, processor("Why?", condition="full"), cache=cache)
    with pytest.raises(ValueError, match="the cache was made by another model"):
        greedy(tiny_model(processor, seed=1), processor("<image>?"), cache=cache[0])


def test_the_lower_bound_reads_caches_of_weights_trained_with_full(images):
    processor = tiny_processor(condition="full", order="inline")
    model = tiny_model(processor)
    assert model.config.condition == "full"
    cache = model.compress(processor.pixels(images))
    ids = greedy(model, processor(TEXTS, condition="voco"), cache=cache)
    batch = processor(TEXTS, images=images, condition="voco")
    assert torch.equal(ids, greedy(model, batch))
    assert not torch.equal(ids, greedy(model, processor(TEXTS, images=images)))


# ---- what transformers returns and streams


@pytest.mark.parametrize("condition", ["voco", "full"])
@pytest.mark.parametrize("more", [{}, {"num_beams": 2, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_a_dictionary_holds_the_new_tokens_and_their_scores(processor, model, images, condition, more):
    batch = processor(TEXTS, images=images, condition=condition)
    expected = greedy(model, batch, **more)
    output = greedy(model, batch, return_dict_in_generate=True, output_scores=True, **more)
    assert torch.equal(output.sequences, expected)
    assert torch.equal(output["sequences"], expected)
    assert len(output.scores) == STEPS
    if not more:
        assert torch.equal(torch.stack(output.scores, dim=1).argmax(dim=-1), expected)
    config = GenerationConfig(max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True, **more)
    assert torch.equal(model.generate(**batch, generation_config=config).sequences, expected)


class Heard(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_a_streamer_hears_the_new_tokens_alone(processor, model, cache, capsys):
    heard, batch = Heard(), processor(TEXTS[1])
    (expected,) = greedy(model, batch, cache=cache[0], streamer=heard).tolist()
    assert (heard.tokens, heard.ended) == (expected, True)
    said = processor.tokenizer.decode(expected)
    for skip_prompt in (False, True):
        greedy(model, batch, cache=cache[0], streamer=TextStreamer(processor.tokenizer, skip_prompt=skip_prompt))
        assert capsys.readouterr().out == f"{said}\n"


@pytest.mark.parametrize("name", ["attention_mask", "past_key_values", "use_cache", "inputs_embeds", "position_ids"])
def test_arguments_that_the_rows_stand_for_are_refused(processor, model, name):
    with pytest.raises(SettingsError, match=f"generate takes no {name}"):
        model.generate(**processor("Why?"), **{name: None})


# ---- where answers end


@pytest.mark.parametrize(
    ("configured", "ends"),
    [(7, [2, 7]), (None, 2), ([9, 2, 7], [2, 9, 7]), (2, 2)],
    ids=["other", "none", "list", "same"],
)
def test_answers_end_at_what_was_taught_and_at_the_configurations_ends(tmp_path, processor, configured, ends):
    """The tokenizer's end is 2; so it is in a checkpoint that is loaded, and in one that was saved before it knew."""
    model = tiny_model(processor, text_config=tiny_text_config(eos_token_id=configured))
    assert model.language_model.generation_config.eos_token_id == model.config.eos_token_id == ends
    model.save_pretrained(tmp_path)
    assert VoCoLlama.from_pretrained(tmp_path).language_model.generation_config.eos_token_id == ends
    model.config.eos_token_id = None
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = VoCoLlama.from_pretrained(tmp_path)
    assert loaded.language_model.generation_config.eos_token_id == ends
    assert loaded.fingerprint() == model.fingerprint()  # caches of before can be read
    with torch.no_grad():  # says the taught end, whatever it is asked
        loaded.get_output_embeddings().weight.zero_()
        loaded.language_model.model.norm.weight.zero_()
        loaded.get_output_embeddings().bias = torch.nn.Parameter(
            torch.nn.functional.one_hot(torch.tensor(2), 261) * 1.0
        )
    assert loaded.generate(**processor(["Why?", "When?"]), max_new_tokens=9).tolist() == [[2], [2]]


def test_an_end_that_is_no_id_is_refused(processor):
    with pytest.raises(CheckpointError, match="eos_token_id is .*: give token ids"):
        tiny_model(processor).end_answers_at(["</s>"])


# ---- the positions of the language model


def of_positions(processor, limit, **config):
    model = tiny_model(processor, text_config=tiny_text_config(max_position_embeddings=limit, **config))
    model.language_model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize(("condition", "advice"), [("voco", "num_voco"), ("full", "condition=voco")])
def test_rows_longer_than_the_positions_are_refused(processor, images, condition, advice):
    batch = processor(TEXTS, images=images, condition=condition)
    longest = max(
        len(row) - (4 * images_of if condition == "voco" else 0)
        for row, images_of in zip(
            (processor.lay_out(asked(text), condition=condition) for text in TEXTS), map(len, IMAGES_OF), strict=True
        )
    )
    assert greedy(of_positions(processor, longest), batch).shape[0] == len(TEXTS)
    complaint = f"takes {longest} tokens, and the language model was made for {longest - 1} .max_position.*{advice}"
    with pytest.raises(DataError, match=complaint):
        greedy(of_positions(processor, longest - 1), batch)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_answers_end_with_the_positions(processor, model, cache, num_beams):
    """The last token needs no position; a row of a batch ends where it would alone."""
    texts = ["<image>?", "<image>Is it longer than that?"]
    lengths = [len(processor.lay_out(asked(text), shape=processor.segment_shape().cached)) for text in texts]
    short = of_positions(processor, lengths[1] + 2)
    short.load_state_dict(model.state_dict())
    picked = cache[:2]
    picked = replace(picked, fingerprint=short.fingerprint())
    room = [short.config.text_config.max_position_embeddings - length + 1 for length in lengths]
    assert room[1] == 3
    alone = [
        short.generate(**processor(text), cache=picked[i], max_new_tokens=99, do_sample=False, num_beams=num_beams)
        for i, text in enumerate(texts)
    ]
    assert [ids.shape[1] for ids in alone] == room
    together = short.generate(**processor(texts), cache=picked, max_new_tokens=99, do_sample=False, num_beams=num_beams)
    assert [row[:length].tolist() for row, length in zip(together, room, strict=True)] == [
        ids[0].tolist() for ids in alone
    ]


def test_a_segment_longer_than_the_positions_is_refused(processor, images):
    with pytest.raises(SettingsError, match="an image takes 6 tokens, and the language model was made for 5"):
        of_positions(processor, 5).compress(processor.pixels(images))


@pytest.mark.parametrize(
    ("stated", "rope", "limit"),
    [
        (4096, None, 4096),
        (4096, {"rope_type": "linear", "factor": 4.0}, 16384),  # vicuna-7b-v1.5-16k
        (32768, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),  # Qwen2.5
        (131072, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        (
            131072,
            {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            131072,
        ),
    ],
)  # fmt: skip
def test_positions_of_scaled_models(stated, rope, limit):
    scaling = {} if rope is None else {"rope_parameters": {"rope_theta": 1e4, **rope}}
    assert max_positions(LlamaConfig(max_position_embeddings=stated, **scaling)) == limit
