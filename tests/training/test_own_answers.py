"""Answers of the student's own: who writes them, what their rows are like, and what a training makes of them."""

from collections.abc import Sequence

import pytest
import torch

from tests.data.chat.families import chat_processor
from tests.model.rows import greedy_from_scratch, random_images
from tests.tiny import tiny_model, tiny_processor
from voco_llama.data.collate import Collator
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.records import Record, Turn
from voco_llama.layout import HostRows, Row
from voco_llama.packing import images_in_order
from voco_llama.training.elastic import ElasticDraw
from voco_llama.training.own_answers import OWN_ROWS, OwnAnswers, OwnDraw, answers_of, rows_of, up_to_end

TALKS = (
    ("<image>\nWhat is it?", "A cat.", "Is it 1 or 2?", "Two.", "Why?", "So it says."),
    ("Why?", "No."),
    ("<image>\nIs it <image>?", "Yes, it is.", "Why?", "I see <it>."),
    ("Is it?", "No.", "<image>\nIs it now?", "Yes."),
)


def turns_of(talk: Sequence[str]) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if place % 2 else "user", text) for place, text in enumerate(talk))


def row_of(processor: VoCoProcessor, talk: Sequence[str]) -> Row:
    images = ("image",) * sum(text.count("<image>") for text in talk)
    return processor.lay_out_record(Record("", turns_of(talk), images), processor.max_length)


def batch_of(processor: VoCoProcessor, two_steps: bool, talks=TALKS) -> dict:
    """The talks as a training has them, each about images of its own."""
    samples, number = [], 0
    pixels = processor.pixels(random_images(8))
    for talk in talks:
        row, count = row_of(processor, talk), sum(text.count("<image>") for text in talk)
        keys = torch.arange(number, number + count)
        samples.append({**vars(row), "pixel_values": pixels[keys], "image_keys": keys})
        number += count
    return Collator(processor.tokens, two_steps=two_steps)(samples)


def draw_of(share: float = 1.0, group_size: int = 4, seed: int = 0) -> OwnDraw:
    return OwnDraw(share, group_size, seed)


def written(processor, model, two_steps: bool = True, most: int = 12, step: int = 0, num_voco=None, **kwargs) -> dict:
    own = OwnAnswers(draw_of(**kwargs), processor, None)
    if num_voco is None:
        num_voco = torch.full((1, len(TALKS)), processor.num_voco)
    return own.write(model, batch_of(processor, two_steps), step, 0, num_voco, most)


def chosen_answers(step: int, only_last: bool = False) -> list[int]:
    """Which answer of each talk is written, by the definition of the draw."""
    which = draw_of()(step, 0, len(TALKS))[1]
    numbers = [len(talk) // 2 for talk in TALKS]
    return [n - 1 if only_last else int(part * n) for part, n in zip(which, numbers, strict=True)]


STEPS = [next(s for s in range(99) if chosen_answers(s)[:4:3] == [n, n % 2]) for n in range(3)]
"""In these the first talk ends in each of its turns, and the last one with and without its image."""


# ---- the draw


def test_the_draw_is_a_function_of_seed_step_and_place():
    draw = draw_of(0.3, 400)
    assert (draw(5, 0, 400) == draw_of(0.3, 400)(5, 0, 400)).all()
    assert (draw(5, 0, 400) != draw(6, 0, 400)).any()
    assert (draw(5, 0, 400) != draw_of(0.3, 400, 1)(5, 0, 400)).any()
    assert (draw(5, 100, 50) == draw(5, 0, 400)[:, 100:150]).all()
    assert (draw(5, 0, 400)[0] < 0.3).mean() == pytest.approx(0.3, abs=0.06)


# ---- rows


class Says:
    """A student that says what it is told to, row by row; it pads what ends early."""

    def __init__(self, model, processor: VoCoProcessor, answers: Sequence[Sequence[int]]) -> None:
        self.model, self.answers, self.pad = model, list(answers), processor.tokens.pad
        self.config, self.device = model.config, model.device

    def compress(self, *args):
        return self.model.compress(*args)

    def generate(self, input_ids, **kwargs):
        said, self.answers = self.answers[: len(input_ids)], self.answers[len(input_ids) :]
        longest = max(map(len, said))
        return torch.tensor([[*answer, *[self.pad] * (longest - len(answer))] for answer in said])


def check_rows(processor: VoCoProcessor, two_steps: bool, step: int, only_last: bool = False) -> None:
    """Rows with stated answers are those of the processor, fact by fact, up to the end of the answer."""
    model = tiny_model(processor) if processor.num_vision == 4 else None
    expected, said = [], []
    for talk, number in zip(TALKS, chosen_answers(step, only_last), strict=True):
        row = row_of(processor, [*talk[: 2 * number + 1], "Yes, it is 2."])
        start, end = answers_of(row.labels)[-1]
        expected.append({name: values[:end] for name, values in vars(row).items()})
        said.append(row.input_ids[start:end].tolist())
    looks = [bool(row["voco"].any()) for row in expected]
    in_groups = [a for a, seen in zip(said, looks, strict=True) if not seen] + [
        a for a, seen in zip(said, looks, strict=True) if seen
    ]
    batch = written(processor, Says(model, processor, in_groups), two_steps, most=99, step=step)
    assert batch[OWN_ROWS].rows.tolist() == [True] * 4
    host = HostRows.of_batch(batch)
    assert torch.equal(batch["labels"], host.fields["labels"])
    for row, plain in zip(rows_of(host.fields), expected, strict=True):
        for name, values in plain.items():
            assert torch.equal(getattr(row, name), values), name
    shown = images_in_order(host.fields, host.media, host.medium)
    assert shown.unique().tolist() == list(range(len(batch["pixel_values"])))
    before = batch_of(processor, two_steps)
    were = HostRows.of_batch(before)
    for number in range(4):
        mine = HostRows({n: v[[number]] for n, v in host.fields.items()}, host.media, host.medium[[number]])
        theirs = HostRows({n: v[[number]] for n, v in were.fields.items()}, were.media, were.medium[[number]])
        left = batch["pixel_values"][images_in_order(mine.fields, mine.media, mine.medium)]
        all_of_it = before["pixel_values"][images_in_order(theirs.fields, theirs.media, theirs.medium)]
        assert torch.equal(left, all_of_it[: len(left)])


@pytest.mark.parametrize("two_steps", [True, False])
@pytest.mark.parametrize("order", ["inline", "llava"])
@pytest.mark.parametrize("step", STEPS)
def test_rows_are_those_of_the_processor_for_that_answer(order, two_steps, step):
    check_rows(tiny_processor(order=order), two_steps, step)


def test_an_answer_without_an_end_and_one_that_fills_the_row():
    processor = tiny_processor(max_length=52)
    model, letters = tiny_model(processor), processor.tokenizer.convert_tokens_to_ids(list("abcdefghijklmnopq"))
    batch = batch_of(processor, True, [("<image>\nWhat is it?", "A cat.")])
    own = OwnAnswers(draw_of(), processor, None)
    assert own.longest([batch, batch]) == len(" A cat.") + 1  # its end
    (row,) = rows_of(batch["rows"].fields)
    ((start, _),) = answers_of(row.labels)
    for most in (3, 17):
        said = Says(model, processor, [letters[:most]])
        new = own.write(said, batch, 0, 0, torch.full((1, 1), 2), most)
        (longer,) = rows_of(new["rows"].fields)
        assert longer.input_ids[start:].tolist() == letters[: min(most, 52 - start)]
        assert torch.equal(longer.labels[start:], longer.input_ids[start:])
    assert len(longer) == 52


def test_what_follows_the_end_is_left_away():
    assert up_to_end(torch.tensor([5, 2, 0, 2]), 2).tolist() == [5, 2]
    assert up_to_end(torch.tensor([5, 3, 2]), [2, 3]).tolist() == [5, 3]
    assert up_to_end(torch.tensor([5, 0]), [2, 3]).tolist() == [5, 0]
    assert up_to_end(torch.tensor([5, 0]), None).tolist() == [5, 0]


def test_rows_that_are_not_drawn_and_rows_without_an_answer_stay():
    processor = tiny_processor()
    talks = [*TALKS[:2], ("Why?",), TALKS[2]]
    batch = batch_of(processor, True, talks)
    share = sorted(draw_of()(0, 0, 4)[0])[2]
    own = OwnAnswers(draw_of(share), processor, None)
    new = own.write(tiny_model(processor), batch, 0, 0, torch.full((1, 4), 2), 3)
    drawn = (draw_of()(0, 0, 4)[0] < share).tolist()
    assert new[OWN_ROWS].rows.tolist() == [is_drawn and n != 2 for n, is_drawn in enumerate(drawn)]
    pairs = zip(rows_of(batch["rows"].fields), rows_of(new["rows"].fields), strict=True)
    same = [len(a) == len(b) and all(torch.equal(v, vars(b)[n]) for n, v in vars(a).items()) for a, b in pairs]
    assert same == [not is_own for is_own in new[OWN_ROWS].rows.tolist()]
    labels = new["labels"]
    others = new[OWN_ROWS].others(labels)
    trained = (labels >= 0).sum(dim=1)
    assert (others >= 0).sum(dim=1).tolist() == (trained * ~new[OWN_ROWS].rows).tolist()
    assert new[OWN_ROWS].tokens(labels).tolist() == [
        is_own
        for is_own, count in zip(new[OWN_ROWS].rows.tolist(), trained.tolist(), strict=True)
        for _ in range(count)
    ]


@pytest.mark.parametrize("family", ["smollm2", "llama3", "mistral", "qwen2", "qwen3"])
def test_rows_of_chat_templates(family):
    """Qwen3's writes earlier answers otherwise than the last one, which alone is then written anew."""
    processor = chat_processor(family, order="inline")
    own = OwnAnswers(draw_of(), processor, None)
    assert own.only_last == (family == "qwen3")
    talks = TALKS[1:2] * 3 + (("Why?", "No.", "Is it?", "Yes."),)
    batch = batch_of(processor, True, talks)
    which = draw_of()(2, 0, 4)[1][3]
    last = family == "qwen3" or which >= 0.5
    talk = (*talks[3][: 3 if last else 1], "So it says.")
    row = row_of(processor, talk)
    start, end = answers_of(row.labels)[-1]
    model = tiny_model(tiny_processor())
    model.config.eos_token_id = list(processor.ends)
    said = [row.input_ids[start:end].tolist()] * 4
    new = own.write(Says(model, processor, said), batch, 2, 0, torch.full((1, 4), 2), 99)
    assert int(said[0][-1]) in processor.ends
    found = rows_of(new["rows"].fields)[3]
    for name, values in vars(row).items():
        assert torch.equal(getattr(found, name), values[:end]), name


# ---- answers


@pytest.mark.parametrize("two_steps", [True, False])
@pytest.mark.parametrize("order", ["first", "inline"])
def test_answers_are_what_the_student_says_through_the_tokens_that_it_is_read_through(order, two_steps):
    """Against decoding by whole masked passes of rows that are laid out for each number of VoCo tokens."""
    processor = tiny_processor(num_voco=4, order=order)
    model = tiny_model(processor)
    numbers, most = [1, 3, 2, 4], 5
    found = written(processor, model, two_steps, most, num_voco=torch.tensor([numbers]))
    rows, pixels = rows_of(HostRows.of_batch(found).fields), batch_of(processor, True)["pixel_values"]
    first = 0
    for talk, number, answer, row in zip(TALKS, numbers, chosen_answers(0), rows, strict=True):
        asked = talk[: 2 * answer + 1]
        seen, here = (sum(text.count("<image>") for text in some) for some in (talk, asked))
        if order == "inline" or seen == here:  # else the image of a later turn stands before all
            question = processor.lay_out(turns_of(asked), shape=processor.segment_shape(number))
            images = pixels[first : first + here] if here else None
            said = greedy_from_scratch(model, processor, [question], images, most)[0]
            start, end = answers_of(row.labels)[-1]
            assert torch.equal(row.input_ids[start:end], up_to_end(said, model.config.eos_token_id))
        first += seen


def test_of_several_readings_the_answer_is_written_through_one():
    processor = tiny_processor(num_voco=4)
    model = tiny_model(processor)
    ways = ([[1] * 4], [[4] * 4], [[1] * 4, [4] * 4])
    step = next(s for s in range(99) if {int(2 * part) for part in draw_of()(s, 0, 4)[2, [0, 2]]} == {0, 1})
    found = (written(processor, model, step=step, num_voco=torch.tensor(way)) for way in ways)
    said = [rows_of(batch["rows"].fields) for batch in found]
    *single, both = ([row.input_ids.tolist() for row in rows] for rows in said)
    which = [int(2 * part) for part in draw_of()(step, 0, 4)[2]]
    assert both == [single[reading][number] for number, reading in enumerate(which)]
    assert both not in single


def test_a_step_gives_each_batch_its_place_and_puts_the_student_back():
    processor = tiny_processor(num_voco=4)
    model = tiny_model(processor).train()
    elastic = ElasticDraw((1, 2, 4), "row", 8, 0)
    draw = OwnDraw(0.6, 8, 0)
    own = OwnAnswers(draw, processor, None)
    trains, generate = [], model.generate
    model.generate = lambda *args, **kwargs: (trains.append(model.training), generate(*args, **kwargs))[1]
    batches = [batch_of(processor, True), batch_of(processor, True)]
    found = own.of_step(model, batches, 3, [0, 4], elastic, 6)
    assert model.training
    assert trains
    assert not any(trains)
    assert torch.cat([batch[OWN_ROWS].rows for batch in found]).tolist() == (draw(3, 0, 8)[0] < 0.6).tolist()
    for batch, first in zip(found, (0, 4), strict=True):
        alone = own.write(model.eval(), batches[0], 3, first, elastic(3, first, 4), 6)
        assert torch.equal(batch["labels"], alone["labels"])
    assert not torch.equal(found[0]["labels"], found[1]["labels"])


def test_marks_of_images_are_never_said():
    processor = tiny_processor()
    model = tiny_model(processor)
    marks = torch.tensor([processor.tokens.image, processor.tokens.voco])
    model.get_output_embeddings().register_forward_hook(lambda _, args, logits: logits.index_fill(-1, marks, 1e4))
    for row in rows_of(written(processor, model)["rows"].fields):
        start, end = answers_of(row.labels)[-1]
        assert end - start == 12
        assert not torch.isin(row.input_ids[start:end], marks).any()
