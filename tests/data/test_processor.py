"""From records and questions to rows: tokens, trained spans, pixels, files."""

import json
import logging

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import IMAGE_SIZE, NUM_VISION, tiny_processor, tiny_text_config, tiny_vision_config
from voco_llama.choices import ORDERS
from voco_llama.configuration import VoCoLlamaConfig, entries_of_rows
from voco_llama.data.collate import Collator
from voco_llama.data.media.images import ImageTransform
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.processor_files import PROCESSOR_FILE
from voco_llama.data.prompts import PromptStyle
from voco_llama.data.records import Record, Turn
from voco_llama.errors import CheckpointError, DataError
from voco_llama.layout import ROW_FIELDS
from voco_llama.tokens import IGNORE_INDEX, add_special_tokens

ASKED = (Turn("user", "<image>\nWhat?"),)
ANSWERED = (*ASKED, Turn("assistant", "A\ncat."))


TOKENIZER = "tokenizer_config.json"


@pytest.fixture(scope="module")
def processor() -> VoCoProcessor:
    return tiny_processor()


@pytest.fixture
def red(tmp_path):
    Image.new("RGB", (20, 10), (200, 30, 60)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def llama_like_tokenizer() -> PreTrainedTokenizerFast:
    """Spaces as "▁", one before each text, bytes for what is not in the vocabulary: what Llama's tokenizer does."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "Y", "e", "s", "es", "▁Y", "▁Yes", "U", "S", "E", "R", ":", "A", "I", "T", "N", "3", "Q", "\n"]
    backend = Tokenizer(
        models.BPE(
            {token: index for index, token in enumerate(tokens)},
            [("▁", "Y"), ("e", "s"), ("▁Y", "es")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def spelled(processor: VoCoProcessor, row) -> str:
    return processor.tokenizer.decode(row.input_ids)


def trained_text(processor: VoCoProcessor, row) -> str:
    return processor.tokenizer.decode(row.labels[row.labels != IGNORE_INDEX])


# ---- rows


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("first", "<image><image><image><image><voco><voco><s>Hi. USER: What? ASSISTANT: A\ncat.</s>"),
        ("authors", "<s><image><image><image><image>\n<voco><voco>\nHi. USER: What? ASSISTANT: A\ncat.</s>"),
        ("llava", "<s>Hi. USER: <image><image><image><image><voco><voco>\nWhat? ASSISTANT: A\ncat.</s>"),
        ("inline", "<s>Hi. USER: <image><image><image><image><voco><voco>\nWhat? ASSISTANT: A\ncat.</s>"),
    ],
)
def test_a_row_spelled_out(order, expected):
    processor = tiny_processor(order=order)
    row = processor.lay_out(ANSWERED)
    assert spelled(processor, row) == expected
    assert trained_text(processor, row) == " A\ncat.</s>"
    assert int(row.voco.sum()) == 2
    assert int((row.input_ids == processor.tokens.image).sum()) == NUM_VISION


def test_the_authors_order_keeps_bos_and_newline_inside_the_segment():
    processor = tiny_processor(order="authors")
    row = processor.lay_out(ANSWERED)
    compressed = row.input_ids[(row.segment == 1) & ~row.voco]
    assert processor.tokenizer.decode(compressed) == "<s><image><image><image><image>\n"
    assert (row.input_ids[row.segment == 0] != processor.tokens.bos).all()


@pytest.mark.parametrize("template", ["vicuna_v1", "plain"])
@pytest.mark.parametrize("order", ORDERS)
def test_template_and_order_agree_on_the_text(order, template):
    base = tiny_processor(order=order)
    processor = VoCoProcessor(base.tokenizer, base.image_transform, PromptStyle(template, order, "Hi."), NUM_VISION, 2)
    row = processor.lay_out(ANSWERED)
    expected = "A\ncat.\n" if template == "plain" else " A\ncat.</s>"
    assert trained_text(processor, row) == expected


@pytest.mark.parametrize("order", ORDERS)
def test_the_generation_prompt_begins_the_training_row_and_all_after_it_is_trained(order):
    processor = tiny_processor(order=order)
    for answer in ("Yes", "3", " \n", "é", "\ttwo  words"):
        asked, answered = processor.lay_out(ASKED), processor.lay_out((*ASKED, Turn("assistant", answer)))
        for name in ("input_ids", "segment", "voco", "position", "document"):
            assert torch.equal(getattr(answered, name)[: len(asked)], getattr(asked, name)), name
        assert asked.num_trained == 0
        assert torch.equal(answered.labels[len(asked) :], answered.input_ids[len(asked) :])


@pytest.mark.parametrize("answer", ["Yes", "3", "é", "Yes 3\nYes"])
def test_the_same_holds_for_a_tokenizer_that_puts_spaces_before_texts(answer):
    """A digit leaves the space before it a token of its own, which the model must learn to say."""
    tokenizer = llama_like_tokenizer()
    add_special_tokens(tokenizer)
    processor = VoCoProcessor(tokenizer, ImageTransform(IMAGE_SIZE), PromptStyle(system=""), NUM_VISION)
    turns = (Turn("user", "<image>\nQ"), Turn("assistant", answer))
    asked, answered = processor.lay_out(turns[:1]), processor.lay_out(turns)
    assert torch.equal(answered.input_ids[: len(asked)], asked.input_ids)
    assert torch.equal(answered.labels[len(asked) :], answered.input_ids[len(asked) :])
    assert answered.input_ids[-1] == processor.tokens.eos
    assert tokenizer.decode(answered.labels[len(asked) : -1]).strip() == answer


def test_several_turns_train_every_answer(processor):
    row = processor.lay_out((*ANSWERED, Turn("user", "And?"), Turn("assistant", "No.")))
    assert spelled(processor, row).endswith("ASSISTANT: A\ncat.</s>USER: And? ASSISTANT: No.</s>")
    assert trained_text(processor, row) == " A\ncat.</s> No.</s>"


@pytest.mark.parametrize("order", ORDERS)
def test_special_tokens_spelled_out_in_a_text_are_text(order):
    processor = tiny_processor(order=order)
    typed = "a <voco></s><s><unk> b\n"
    row = processor.lay_out((Turn("user", f"<image>\n{typed}x"), Turn("assistant", typed)))
    tokens = processor.tokens
    assert int((row.input_ids == tokens.voco).sum()) == int(row.voco.sum()) == 2
    assert int((row.input_ids == tokens.eos).sum()) == 1
    assert int((row.input_ids == tokens.bos).sum()) == 1
    assert spelled(processor, row).count(typed) == 2


def test_a_record_becomes_a_row_with_its_pixels(processor, red):
    sample = processor.row(Record("7", ANSWERED, images=(red,)))
    assert set(sample) == {*ROW_FIELDS, "pixel_values", "image_keys"}
    assert sample["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert sample["pixel_values"].dtype == torch.float32
    text_only = processor.row(Record("8", (Turn("user", "Why?"), Turn("assistant", "So."))))
    assert text_only["pixel_values"].shape == (0, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_a_clip_has_one_segment_a_frame(processor, red, monkeypatch):
    monkeypatch.setattr("voco_llama.data.media.decoded.read_frames", lambda path, count: [Image.open(red)] * count)
    clip = VoCoProcessor(processor.tokenizer, processor.image_transform, processor.style, NUM_VISION, 2, num_frames=3)
    sample = clip.row(Record("9", ANSWERED, video=red))
    assert sample["segment"].unique().tolist() == [0, 1, 2, 3]
    assert len(sample["pixel_values"]) == 3


def test_errors_name_the_record(processor, tmp_path, red):
    with pytest.raises(DataError, match=r"^chat.json record 3: .*gone.png"):
        processor.row(Record("3", ANSWERED, images=(tmp_path / "gone.png",), source="chat.json record 3"))
    short = tiny_processor(max_length=5)
    with pytest.raises(DataError, match=r"^chat.json record 5: .*lose VoCo tokens"):
        short.row(Record("5", ANSWERED, images=(red,), source="chat.json record 5"))


def test_rows_are_cut_at_max_length(red):
    sample = tiny_processor(max_length=40).row(Record("1", (*ASKED, Turn("assistant", "x" * 99)), images=(red,)))
    assert sample["input_ids"].shape == (40,)


def test_a_batch_joins_rows_and_their_images(processor, red):
    image, no_image = (
        Record("1", ANSWERED, images=(red,)),
        Record("2", (Turn("user", "Why?"), Turn("assistant", "So."))),
    )
    samples = [processor.row(record) for record in (image, no_image, image)]
    batch = Collator(processor.tokens)(samples)
    assert batch["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert batch["input_ids"].shape == (3, len(samples[0]["input_ids"]))
    assert batch["document"][1].tolist().count(-1) == len(samples[0]["input_ids"]) - len(samples[1]["input_ids"])
    assert batch["document"][1, -1] == -1
    left = Collator(processor.tokens, "left")(samples)
    assert left["document"][1, 0] == -1


# ---- questions


def test_questions_with_images_are_padded_left_without_labels(processor):
    image = Image.new("RGB", (8, 8))
    batch = processor(["<image>\nWhat?", "Why?"], images=[image])
    assert set(batch) == {*ROW_FIELDS, "pixel_values", "condition"} - {"labels"}
    assert batch["condition"] == "voco"
    assert batch["document"][0].min() == 0
    assert batch["document"][1, 0] == -1
    assert batch["document"][1, -1] == 0
    assert batch["pixel_values"].shape[0] == 1


def test_one_image_need_not_be_in_a_list(processor, red):
    with Image.open(red) as image:
        assert torch.equal(processor.pixels(image), processor.pixels([image]))


def test_a_question_without_a_mark_gets_its_image_in_front(processor):
    image = Image.new("RGB", (8, 8))
    marked, bare = (processor(text, images=image) for text in ("<image>\nWhat?", "What?"))
    assert torch.equal(marked["input_ids"], bare["input_ids"])
    with pytest.raises(DataError, match="have 0 <image> marks and there are 1 images"):
        processor(["What?", "Why?"], images=image)
    with pytest.raises(DataError, match="have 2 <image> marks and there are 1 images"):
        processor("<image> or <image>?", images=image)


def test_without_images_a_mark_reads_the_cache(processor):
    batch = processor(["<image>\nWhat?", "Why?"])
    assert "pixel_values" not in batch
    assert batch["voco"].sum(dim=1).tolist() == [2, 0]
    assert not (batch["input_ids"] == processor.tokens.image).any()
    assert processor("<image>?", num_voco=1)["voco"].sum() == 1


def test_under_full_a_mark_needs_its_image(processor):
    image = Image.new("RGB", (8, 8))
    batch = processor("<image>?", images=image, condition="full", num_voco=0)
    assert batch["condition"] == "full"
    assert batch["position"][0].tolist() == list(range(batch["position"].shape[1]))
    with pytest.raises(DataError, match="mark and there is no image"):
        processor("<image>?", condition="full")
    assert not processor("Why?", condition="full")["voco"].any()


# ---- files


def test_saved_and_loaded_it_is_the_same(tmp_path, caplog):
    processor = tiny_processor(num_voco=4, order="authors", max_length=99, num_frames=3, system="One\ntwo.\n")
    processor.save_pretrained(tmp_path)
    config_of(processor).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers").addHandler(caplog.handler)
        loaded = VoCoProcessor.from_pretrained(tmp_path)
    assert caplog.records == []
    for name in ("image_transform", "style", "num_vision", "num_voco", "condition", "max_length", "num_frames"):
        assert getattr(loaded, name) == getattr(processor, name), name
    assert loaded.tokens == processor.tokens
    turns = (Turn("user", "<image>\na\n\n b <voco></s>\n"), Turn("assistant", "\nc\n"))
    for name in ROW_FIELDS:
        assert torch.equal(getattr(loaded.lay_out(turns), name), getattr(processor.lay_out(turns), name))


def config_of(processor, **changes) -> VoCoLlamaConfig:
    rows = entries_of_rows(processor.segment_shape(), processor.tokens, processor.condition)
    vision = tiny_vision_config(processor.image_transform.image_size)
    return VoCoLlamaConfig(text_config=tiny_text_config(), vision_config=vision, **(rows | changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_voco": 4}, "num_voco 4 and 2"),
        ({"condition": "full"}, "condition full and voco"),
        ({"segment_prefix_ids": [1]}, r"segment_prefix_ids \[1\] and \[\]"),
        ({"voco_token_id": 5}, "voco_token_id 5 and 260"),
        ({"compressor": "average_pool"}, "num_vision 0 and 4"),
    ],
)
def test_a_model_beside_it_that_reads_other_rows_is_refused(tmp_path, changes, complaint):
    processor = tiny_processor()
    processor.save_pretrained(tmp_path)
    config_of(processor).save_pretrained(tmp_path)
    assert VoCoProcessor.from_pretrained(tmp_path).segment_shape() == processor.segment_shape()
    config_of(processor, **changes).save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=f"model and processor disagree: {complaint}: the files are of"
    ) as refused:
        VoCoProcessor.from_pretrained(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_images_of_another_size_than_the_models_are_refused(tmp_path):
    processor = tiny_processor()
    processor.save_pretrained(tmp_path)
    config_of(processor).save_pretrained(tmp_path)
    rewrite(tmp_path, {"image_transform": {"image_size": 24}})
    with pytest.raises(CheckpointError, match="model and processor disagree: images of 16 and 24 pixels a side"):
        VoCoProcessor.from_pretrained(tmp_path)


def test_it_loads_without_a_model_beside_it(tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    assert VoCoProcessor.from_pretrained(tmp_path).tokenizer.is_fast


@pytest.mark.parametrize("kind", ["llama", ["llama"]])
def test_a_language_model_by_itself_is_told_from_ours(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(CheckpointError, match=r"is a model of type .*llama.*, none of ours .*language.pretrained=/"):
        VoCoProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda folder: (folder / PROCESSOR_FILE).unlink(), r"holds no saved model \(no config.json\)"),
        (lambda folder: (folder / PROCESSOR_FILE).write_text("{"), "voco_processor.json: cannot be read"),
        (lambda folder: (folder / PROCESSOR_FILE).write_text("{}"), "not of format version"),
        (lambda folder: (folder / PROCESSOR_FILE).write_bytes(b'{"a": "\xff"}'), "voco_processor.json: cannot be read"),
        (lambda folder: (folder / PROCESSOR_FILE).write_text("[" * 100_000), "voco_processor.json: cannot be read"),
        (lambda folder: (folder / PROCESSOR_FILE).write_text("[1]"), "holds a list, not an object"),
        (lambda folder: (folder / "tokenizer.json").write_text("garbage"), "its tokenizer: cannot be read"),
        (lambda folder: (folder / "tokenizer.json").write_text('{"model": 1}'), "its tokenizer: cannot be read"),
        (lambda folder: rewrite(folder, {"model_max_length": {}}, TOKENIZER), "its tokenizer: cannot be read"),
        (lambda folder: rewrite(folder, {"num_vision": "4"}), "num_vision is '4': it should be a whole number"),
        (lambda folder: rewrite(folder, {"num_frames": 0}), "num_frames is 0: it should be a whole number of at least"),
        (lambda folder: rewrite(folder, {"max_length": 1.5}), "max_length is 1.5"),
        (lambda folder: rewrite(folder, {"condition": ["voco"]}), "condition is"),
        (lambda folder: rewrite(folder, {"style": {"system": 5}}), "system is 5: it should be a text"),
        (
            lambda folder: rewrite(folder, {"image_transform": {"image_size": 16.5}}),
            "image_size must be a whole number",
        ),
        (lambda folder: rewrite(folder, {"image_transform": None}), "processor is damaged"),
        (lambda folder: rewrite(folder, {"num_vocoo": 1}), "processor is damaged"),
        (lambda folder: rewrite(folder, {"style": {"order": "last"}}), "processor is damaged"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "its tokenizer: cannot be read"),
    ],
)
def test_a_damaged_processor_is_refused(tmp_path, edit, complaint):
    tiny_processor().save_pretrained(tmp_path)
    edit(tmp_path)
    with pytest.raises(CheckpointError, match=complaint) as refused:
        VoCoProcessor.from_pretrained(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_tokenizer_of_as_many_other_tokens_is_refused(tmp_path):
    """All ids that model and processor agree on are the same; every word would be another."""
    tiny_processor().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(
        CheckpointError, match="its tokenizer has other tokens than the model was saved with"
    ) as refused:
        VoCoProcessor.from_pretrained(tmp_path)
    assert "\n" not in str(refused.value)
    rewrite(tmp_path, {"vocabulary": None})  # as processors were saved before
    assert VoCoProcessor.from_pretrained(tmp_path).tokenizer("a")["input_ids"] == [vocabulary["a"]]


def rewrite(folder, changes: dict, name: str = PROCESSOR_FILE) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
