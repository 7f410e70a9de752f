"""What a teacher says about a batch: itself under `full`, on rows of its own number of VoCo tokens."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from tests.model.rows import answered, batch_of, random_images
from tests.tiny import tiny_model, tiny_processor, tiny_text_config
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.layout import HostRows, SegmentShape, pack_rows
from voco_llama.settings import LoraSettings
from voco_llama.training.lora import add_adapters
from voco_llama.training.teachers.teacher import (
    AdaptersOffTeacher,
    CheckpointTeacher,
    TopKTeacher,
    check_teacher,
    contiguous_positions,
)

TEXTS = ("<image>\nWhat is it?", "Why?", "Left <image> or right <image>?")
CPU = SimpleNamespace(device=torch.device("cpu"), fsdp=None)


@pytest.fixture(scope="module")
def student_processor():
    return tiny_processor(num_voco=3, order="inline")


@pytest.fixture(scope="module")
def batch(student_processor):
    """A batch of the student, with text-only, ragged rows."""
    rows = [student_processor.lay_out(answered(text, "Yes." * (1 + i))) for i, text in enumerate(TEXTS)]
    pixels = student_processor.pixels(random_images(3))
    return batch_of(student_processor, rows, side="right", labels=True) | {"pixel_values": pixels}


def by_itself(teacher, processor, num_voco: int, pixels, condition: str = "full") -> torch.Tensor:
    """Logits of the teacher alone, on rows laid out for it, of so many VoCo tokens."""
    shape = SegmentShape(processor.num_vision, num_voco)
    rows = [
        processor.lay_out(answered(text, "Yes." * (1 + i)), shape=shape, condition=condition)
        for i, text in enumerate(TEXTS)
    ]
    with torch.no_grad():
        return teacher(**batch_of(processor, rows, labels=True), pixel_values=pixels, condition=condition).logits


def test_positions_are_contiguous_in_each_document():
    document = torch.tensor([[0, 0, 0, 1, 1, -1], [0, 1, 1, 1, 2, 2]])
    assert contiguous_positions(document).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 0, 1]]


def test_positions_are_those_of_a_row_laid_out_under_full(student_processor):
    rows = [student_processor.lay_out(answered(text), condition="full") for text in TEXTS]
    packed = pack_rows(rows)
    assert torch.equal(contiguous_positions(packed.document[None])[0], packed.position)


@pytest.mark.parametrize(("trained_with", "shown"), [(1, 1), (3, 3), (9, 3)])
def test_a_checkpoint_says_what_it_says_by_itself(student_processor, batch, trained_with, shown):
    model = tiny_model(tiny_processor(num_voco=trained_with, order="inline"), seed=1)
    teacher = CheckpointTeacher(model.train(), student_processor.tokens.pad)
    teacher.prepare(Accelerator(cpu=True), CPU)
    said = teacher.read(None, batch)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    logits = said.head(said.hidden_states)
    expected = by_itself(model, student_processor, shown, batch["pixel_values"])
    assert not logits.requires_grad
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert (batch["labels"] >= 0).sum() == len(said)


@pytest.mark.parametrize("two_steps", [True, False])
@pytest.mark.parametrize("num_voco", [1, 3])
def test_a_checkpoint_reads_so_many_voco_tokens(student_processor, batch, num_voco, two_steps):
    teacher = CheckpointTeacher(tiny_model(tiny_processor(num_voco=4, order="inline"), seed=1), pad_token_id=0)
    teacher.prepare(Accelerator(cpu=True), CPU)
    pixels = batch["pixel_values"]
    read = {"labels": batch["labels"], "rows": HostRows.of_batch(batch), "pixel_values": pixels} if two_steps else batch
    said = teacher.read(None, read, num_voco)
    expected = by_itself(teacher.model, student_processor, num_voco, pixels, "voco")
    torch.testing.assert_close(said.head(said.hidden_states), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, by_itself(teacher.model, student_processor, num_voco, pixels), atol=1e-2)


@pytest.mark.parametrize("tied", [False, True])
def test_without_adapters_the_student_is_what_it_was(student_processor, batch, tied):
    base, student = (
        tiny_model(student_processor, text_config=tiny_text_config(tie_word_embeddings=tied)) for _ in range(2)
    )
    adapters = add_adapters(student, LoraSettings(rank=2, dropout=0.5))
    torch.manual_seed(0)
    for parameter in adapters.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    student.train()
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    teacher = AdaptersOffTeacher(adapters, num_voco=2, pad_token_id=student_processor.tokens.pad)
    teacher.prepare(Accelerator(cpu=True), CPU)
    said = teacher.read(student, batch)
    expected = by_itself(base, student_processor, 2, batch["pixel_values"])
    torch.testing.assert_close(said.head(said.hidden_states), expected, atol=1e-5, rtol=1e-5)

    assert student.training  # and it is the student again
    assert {name for name, parameter in student.named_parameters() if parameter.requires_grad} == trained
    with torch.no_grad():
        adapted = by_itself(student.eval(), student_processor, 2, batch["pixel_values"])
    assert not torch.allclose(adapted, expected, atol=0.1)


def test_top_k_comes_with_the_batch():
    ids, log_probs = torch.tensor([[3, 1]], dtype=torch.int32), torch.tensor([[-0.5, -1.0]])
    said = TopKTeacher().read(None, {"teacher_ids": ids, "teacher_log_probs": log_probs})
    assert said.token_ids.dtype == torch.int64
    assert torch.equal(said.log_probs, log_probs)


def test_adapters_need_layers_that_are_there(student_processor):
    with pytest.raises(
        SettingsError, match=r"model.lora.targets: the language model has no layer c_attn: choose from .*q_proj"
    ):
        add_adapters(tiny_model(student_processor), LoraSettings(rank=2, targets=["c_attn", "q_proj"]))


# ---- refused before its weights are loaded


@pytest.fixture
def folder(tmp_path, student_processor):
    """A teacher's processor and configuration, without weights."""

    def make(processor=student_processor, **changes):
        processor.save_pretrained(tmp_path)
        config = tiny_model(processor).config
        for name, value in changes.items():
            setattr(config, name, value)
        config.save_pretrained(tmp_path)
        return str(tmp_path)

    return make


def test_a_fitting_teacher_passes(folder, student_processor):
    assert check_teacher(folder(), student_processor).num_voco == 3
    assert check_teacher(folder(tiny_processor(num_voco=1, condition="full")), student_processor).num_voco == 1


def test_a_teacher_that_has_not_learned_to_read_so_many_voco_tokens(folder, student_processor):
    assert check_teacher(folder(), student_processor, [3, 1]).num_voco == 3
    with pytest.raises(CheckpointError, match=r"with condition voco and 3 VoCo tokens, and a teacher_num_voco .* is 4"):
        check_teacher(folder(), student_processor, [1, 4])
    with pytest.raises(CheckpointError, match=r"was trained with condition full, and a teacher_num_voco .* is 1"):
        check_teacher(folder(tiny_processor(num_voco=3, condition="full")), student_processor, [1])


def test_a_teacher_of_another_tokenizer(folder, student_processor):
    other = tiny_processor(num_voco=3)
    other.tokenizer.add_tokens(["another"])
    with pytest.raises(CheckpointError, match=r"has another tokenizer \(262 tokens, the student 261\)"):
        check_teacher(folder(other), student_processor)


def test_a_teacher_of_another_tower(folder, student_processor):
    with pytest.raises(CheckpointError, match=r"makes 16 vision tokens of an image of 32 pixels, the student 4 of 16"):
        check_teacher(folder(tiny_processor(image_size=32)), student_processor)


def test_a_teacher_that_sees_no_vision_tokens(folder, student_processor):
    pooling = folder(compressor="average_pool")
    replace(student_processor, num_vision=0).save_pretrained(pooling)
    with pytest.raises(CheckpointError, match=r"reads images through its average_pool alone"):
        check_teacher(pooling, student_processor)


def test_no_teacher_at_all(tmp_path, student_processor):
    with pytest.raises(CheckpointError, match=r"holds no saved model \(no config.json\)"):
        check_teacher(str(tmp_path), student_processor)
