"""The page of `voco-llama data preview`: its tokens and texts, held against the rows that training would see."""

from functools import partial

import pytest
import torch

from tests.data_tools.preview_page import ATTACK, RECORDS, counts, page_of, rows_of, settings_in
from voco_llama import cli
from voco_llama.data_tools.preview import preview
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.training.build import open_mixture
from voco_llama.training.elastic import ElasticDraw


@pytest.fixture
def settings_for(tmp_path):
    return partial(settings_in, tmp_path)


def expected_counts(row: dict[str, torch.Tensor]) -> dict[str, int]:
    """By the vectors alone; for orders without text inside a segment."""
    real = row["document"] >= 0
    found = {
        "vision": (row["segment"] > 0) & ~row["voco"],
        "voco": row["voco"],
        "answer": row["labels"] != IGNORE_INDEX,
        "padding": ~real,
    }
    numbers = {name: int(where.sum()) for name, where in found.items()}
    numbers["prompt"] = len(real) - sum(numbers.values())
    return {name: number for name, number in numbers.items() if number}


# ---- tokens


@pytest.mark.parametrize("condition", ["voco_2", "full"])
def test_tokens_are_counted_as_the_vectors_say(settings_for, condition):
    settings = settings_for("records=[0,1,2]", f"compression={condition}")
    page = page_of(settings)
    assert [sample["title"].split("(")[1] for sample in page.samples] == ["id 'one')", "id 'two')", "id 'text')"]
    for sample, row in zip(page.samples, rows_of(settings), strict=True):
        assert counts(sample) == expected_counts(row)
    assert counts(page.samples[2])["padding"] > 0


def test_the_text_is_the_prompt(settings_for):
    sample = page_of(settings_for("records=[0]", "prompt.system=Hi.")).samples[0]
    text = "".join(text for _, _, text, _ in sample["tokens"])
    assert text == "V × 4CC<s>Hi. USER: What is it? ASSISTANT: A cat.</s>"
    trained = "".join(text for kind, _, text, _ in sample["tokens"] if kind == "answer")
    assert trained == " A cat.</s>"
    assert sample["tokens"][0][3] == "token 0 to 3, id 259, segment 1, position -4 to -1, document 0"
    assert sample["tokens"][1][3] == "token 4, id 260, segment 1, position 0, document 0"


def test_a_newline_is_shown_and_breaks_the_line(settings_for):
    sample = page_of(settings_for("records=[1]", "prompt.order=first")).samples[0]
    assert "\n" in RECORDS[0]["conversations"][0]["value"]
    text = "".join(text for _, _, text, _ in sample["tokens"])
    assert "Is↵\nlike↵\n?" in text


def test_text_inside_a_segment_is_prompt(settings_for):
    """The authors' order has BOS and a newline there."""
    sample = page_of(settings_for("records=[0]", "prompt.order=authors")).samples[0]
    assert [(kind, count) for kind, count, _, _ in sample["tokens"][:4]] == [
        ("prompt", 1),
        ("vision", 4),
        ("prompt", 1),
        ("voco", 1),
    ]


def test_bytes_of_one_character_are_shown_as_it(settings_for):
    sample = page_of(settings_for("records=[6]")).samples[0]
    answer = [text for kind, _, text, _ in sample["tokens"] if kind == "answer"]
    assert "".join(answer) == " Grü·n \u4f60\u597d·····.</s>"


def test_elastic_rows_have_the_numbers_that_step_0_draws(settings_for):
    elastic = ("compression.num_voco=4", "compression.num_voco_choices=[1,2,4]", "seed=3")
    sample, other, text = page_of(settings_for("records=[0,1,2]", *elastic)).samples
    drawn = ElasticDraw([1, 2, 4], "row", 3, 3)(0, 0, 3)[0].tolist()
    assert len(set(drawn)) > 1
    assert [counts(sample)["voco"], counts(other)["voco"], counts(text)["voco"]] == [drawn[0], 2 * drawn[1], 0]


def test_what_is_cut_is_said(settings_for):
    sample = page_of(settings_for("records=[5]", "data.max_length=300")).samples[0]
    whole = page_of(settings_for("records=[5]", "data.max_length=6000")).samples[0]
    assert counts(sample).total() == 300
    assert f"{counts(whole).total() - 300} tokens cut at data.max_length=300" in sample["items"]
    assert f"{counts(whole)['answer']} of them trained; nothing cut" in whole["items"]


# ---- untrusted text


def test_what_a_record_says_stays_text(settings_for):
    page = page_of(settings_for("records=[3,4]", "prompt.system=Hi."))
    assert not {"script", "b", "iframe", "link", "object"} & set(page.tags)
    assert not {name for name in page.attributes if name.startswith("on")}
    assert page.policy.startswith("default-src 'none'")
    attacked, gone = page.samples
    text = "".join(text for _, _, text, _ in attacked["tokens"]).replace("·", "")
    shown = ATTACK.replace("\u202e", "\ufffd").replace("\x00", "\ufffd")
    assert text == f"<s>Hi. USER: {shown} ASSISTANT: Says: {shown}</s>"
    assert "<script>" in attacked["title"]
    assert "<b>gone</b>.png: no such file" in gone["error"]


def test_records_that_cannot_be_used_are_shown_as_their_error(settings_for):
    settings = settings_for("records=[4,0,7]")
    gone, fine, half = page_of(settings).samples
    assert gone["title"].endswith("records.json record 4")
    assert not gone["tokens"]
    assert counts(fine)["answer"] > 0
    assert "holds half a surrogate pair" in half["error"]
    page_of(settings_for("records=[4]"))  # none of them can be used


# ---- files


def test_the_page_is_a_function_of_the_settings(settings_for, tmp_path):
    def page(*overrides: str) -> bytes:
        return preview(settings_for("samples=2", *overrides)).read_bytes()

    first = page()
    assert page() == first != page("seed=5")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["preview.html"]


def test_samples_are_the_first_of_the_mixture(settings_for):
    settings = settings_for("samples=3")
    mixture = open_mixture(settings)
    numbers = [mixture.origin(index)[1] for index in range(3)]
    titles = [sample["title"] for sample in page_of(settings).samples]
    assert all(f"record {number}" in title for number, title in zip(numbers, titles, strict=True))
    assert len(page_of(settings_for("samples=100")).samples) == len(RECORDS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["records=[0,8]"], "records names 8: .*records.json has 8 records, counted from 0"),
        (["records=[-1]"], "records names -1"),
        (["records=[0]", "source=1"], "source is 1: data.sources has 1"),
    ],
)
def test_what_is_not_there(settings_for, overrides, message):
    with pytest.raises(SettingsError, match=message):
        preview(settings_for(*overrides))


def test_a_checkpoint_that_is_not_there(settings_for):
    with pytest.raises(CheckpointError, match=r"^model.checkpoint: /no/run: .*no such folder.*model.checkpoint=null"):
        preview(settings_for("model.checkpoint=/no/run"))


def test_the_command(settings_for, tmp_path, capsys):
    settings_for()
    source = f"{{format: llava_json, file: {tmp_path}/records.json, media_folder: {tmp_path}}}"
    arguments = ["data", "preview", f"data.sources=[{source}]", f"model.vision.name={tmp_path}/vision.json"]
    arguments += [f"model.tokenizer={tmp_path}/tokenizer", "records=[0]", f"output={tmp_path}/page"]
    assert cli.main(arguments) == 0
    assert (tmp_path / "page" / "preview.html").is_file()
    assert cli.main([*arguments, "compression.num_voco=0"]) == 2
    assert "compression.num_voco is 0" in capsys.readouterr().err
