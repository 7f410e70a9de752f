"""Clips with their frames in order and shuffled: each is compressed once, and its questions stay together."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.evaluation.hub import write_clip
from tests.evaluation.runs import save
from tests.tiny import tiny_processor
from voco_llama.data.media.video import read_frames
from voco_llama.errors import DataError, SettingsError
from voco_llama.evaluation.clips import EvaluateClipsSettings, evaluate_clips, shuffled
from voco_llama.evaluation.results import read_result
from voco_llama.inference import Inference


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips, three questions."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "a.mp4", "red", "green", "blue")
    write_clip(folder / "b.mp4", "blue", "red", "green")
    asked = [("What first?", "red", "a"), ("What comes last of all?", "blue", "b"), ("And then?", "red", "a")]
    (folder / "test.json").write_text(json.dumps([{"q": q, "a": a, "video_id": v} for q, a, v in asked]))
    return folder


def test_clips_in_order_and_shuffled(checkpoint, clips, tmp_path):
    settings = EvaluateClipsSettings(
        checkpoint, clips / "test.json", clips, tmp_path, "video", batch_size=2, max_new_tokens=4, device="cpu"
    )
    result = read_result(evaluate_clips(settings))
    assert (result["questions"], result["clips"], result["num_frames"], result["num_compressed"]) == (3, 2, 3, 6)
    assert (result["tokens_per_clip"], result["kv_bytes_per_clip"]) == (6, 6 * 2 * 2 * 2 * 8 * 4)
    lines = [json.loads(line) for line in (tmp_path / result["answers_file"]).read_text().splitlines()]
    assert [line["clip"] for line in lines] == ["a.mp4", "b.mp4", "a.mp4"]


def test_marks_take_each_clips_frames_in_time_order_and_shuffled(checkpoint, clips, tmp_path, monkeypatch):
    """The entries and the marks of each question, and where its answer goes; batches of two questions."""
    read = []

    def spy(self, prompts, cache, *_, **__):
        read.extend((prompt, cache[range(3 * i, 3 * i + 3)].keys) for i, prompt in enumerate(prompts))
        return [str(len(read) - len(prompts) + i) for i in range(len(prompts))]

    monkeypatch.setattr(Inference, "answer", spy)
    settings = EvaluateClipsSettings(checkpoint, clips / "test.json", clips, tmp_path, "video", batch_size=2)
    result = read_result(evaluate_clips(settings))
    inference = Inference.load(checkpoint, "cpu")
    caches = {name: inference.compress(read_frames(clips / name, 3)) for name in ("a.mp4", "b.mp4")}
    lines = [json.loads(line) for line in (tmp_path / result["answers_file"]).read_text().splitlines()]
    assert len(read) == 2 * len(lines) == 6
    for line in lines:
        for order, steps in (("in_order", (0, 1, 2)), ("shuffled", shuffled(3, f"0/{line['clip']}"))):
            prompt, entries = read[int(line[order])]
            assert prompt.turns[0].text == line["question"].replace("<image>", "<image>" * 3)
            torch.testing.assert_close(entries, caches[line["clip"]][list(steps)].keys)


def test_shuffled_is_a_seeded_permutation_but_the_identity():
    for count in (2, 3, 8):
        orders = [shuffled(count, str(seed)) for seed in range(50)]
        assert all(sorted(order) == list(range(count)) and order != tuple(range(count)) for order in orders)
    assert shuffled(8, "a") == shuffled(8, "a") != shuffled(8, "b")


def test_a_result_of_other_clips_questions_or_ways_of_asking_stays(checkpoint, clips, tmp_path):
    """What the checkpoint has by itself may be named, and the same data may lie elsewhere."""
    made = EvaluateClipsSettings(checkpoint, clips / "test.json", clips, tmp_path, "video", max_new_tokens=2)
    file = evaluate_clips(made)
    before = file.read_bytes()
    moved, other = (Path(shutil.copytree(clips, tmp_path / name)) for name in ("moved", "other"))
    shutil.copy(clips / "b.mp4", other / "a.mp4")
    asked = tmp_path / "asked.json"
    asked.write_text((clips / "test.json").read_text().replace("What first?", "What second?"))
    for changes, differing in (
        ({"max_new_tokens": 1}, r"max_new_tokens \(2 there, 1 now\)"),
        ({"videos": other}, "data .*"),
        ({"questions": asked}, "data .*"),
        ({"num_voco": 1}, r"num_voco \(2 there, 1 now\)"),
    ):
        with pytest.raises(SettingsError, match=f"another evaluation: {differing}: set overwrite=true"):
            evaluate_clips(replace(made, **changes))
        assert file.read_bytes() == before
    same = replace(made, questions=moved / "test.json", videos=moved, num_voco=2, num_frames=3, dtype="float32")
    evaluate_clips(same)
    result = json.loads(file.read_text())
    del result["data_fingerprint"]  # as an older version wrote it
    file.write_text(json.dumps(result))
    with pytest.raises(SettingsError, match=r"another evaluation: videos \(.*moved there"):
        evaluate_clips(replace(same, videos=clips))
    evaluate_clips(same)


def test_a_question_that_fails_is_named_without_the_advice_of_another_command(checkpoint, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("voco_llama.evaluation.questions.read_frames", lambda *_, **__: 1 / 0)
    settings = EvaluateClipsSettings(checkpoint, clips / "test.json", clips, tmp_path, "video")
    with pytest.raises(
        DataError, match=r"cannot be answered \(ZeroDivisionError: .*\): mend it, or take the record out"
    ):
        evaluate_clips(settings)


def test_bad_clip_settings(checkpoint, clips, tmp_path):
    with pytest.raises(SettingsError, match="one frame has no order"):
        EvaluateClipsSettings(checkpoint, clips / "test.json", clips, tmp_path, "video", num_frames=1)
    empty = tmp_path / "empty"
    empty.mkdir()
    settings = EvaluateClipsSettings(checkpoint, clips / "test.json", empty, tmp_path, "video")
    with pytest.raises(DataError, match="no clip"):
        evaluate_clips(settings)


def test_more_frames_than_positions_are_refused_before_any_is_read(checkpoint, clips, tmp_path, monkeypatch):
    """512 positions, two tokens a frame; in full 4 + 2."""
    monkeypatch.setattr("voco_llama.evaluation.questions.read_frames", None)
    for changes, tokens in (({"num_frames": 600}, "1,200"), ({"num_frames": 100, "condition": "full"}, "600")):
        settings = EvaluateClipsSettings(checkpoint, clips / "test.json", clips, tmp_path, "video", **changes)
        complaint = rf"num_frames=.*: the frames of a clip are {tokens} tokens .* 512 \(max_position_embeddings\)"
        with pytest.raises(SettingsError, match=complaint):
            evaluate_clips(settings)


def test_marks_of_a_questions_own(checkpoint, clips, tmp_path):
    """The same answers: a mark that is there already, and one that is too many."""
    raw = json.loads((clips / "test.json").read_text())
    (tmp_path / "test.json").write_text(json.dumps([{**entry, "q": f"<image>\n{entry['q']}"} for entry in raw]))
    given = []
    for name, file in (("plain", clips / "test.json"), ("marked", tmp_path / "test.json")):
        settings = EvaluateClipsSettings(checkpoint, file, clips, tmp_path, name, max_new_tokens=4, device="cpu")
        result = read_result(evaluate_clips(settings))
        lines = [json.loads(line) for line in (tmp_path / result["answers_file"]).read_text().splitlines()]
        given.append([(line["in_order"], line["shuffled"]) for line in lines])
    assert given[0] == given[1]


def test_clips_are_seen_as_the_checkpoint_was_trained(clips, tmp_path):
    folder = save(tmp_path / "full", tiny_processor(num_voco=2, num_frames=3, condition="full"))
    results = [
        read_result(
            evaluate_clips(
                EvaluateClipsSettings(
                    folder, clips / "test.json", clips, tmp_path, f"row{i}", condition=c, max_new_tokens=4, device="cpu"
                )
            )
        )
        for i, c in enumerate((None, "full", "voco"))
    ]
    facts = [(result["condition"], result["num_voco"], result["tokens_per_clip"]) for result in results]
    assert facts == [("full", None, 18), ("full", None, 18), ("voco", 2, 6)]
    with pytest.raises(SettingsError, match="condition is 'blind': choose one of voco, full"):
        EvaluateClipsSettings(folder, clips / "test.json", clips, tmp_path, "x", condition="blind")
