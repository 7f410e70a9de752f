"""A saved checkpoint through the benchmarks and clips to result files that describe themselves, and to a report."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import tiny_model, tiny_processor
from voco_llama.errors import CheckpointError, DataError, SettingsError
from voco_llama.evaluation.clips import EvaluateClipsSettings, evaluate_clips, shuffled
from voco_llama.evaluation.report import ReportSettings, report
from voco_llama.evaluation.results import read_result
from voco_llama.evaluation.run import EvaluateSettings, evaluate


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    processor = tiny_processor(num_voco=2, num_frames=3)
    tiny_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def settings_for(checkpoint, benchmarks_root, output, **changes):
    plain = {"row": "voco_2", "condition": "voco", "batch_size": 4, "max_new_tokens": 4, "device": "cpu"} | changes
    return EvaluateSettings(checkpoint=checkpoint, benchmarks_root=benchmarks_root, output=output, **plain)


def test_result_describes_itself(checkpoint, benchmarks_root, tmp_path):
    file = evaluate(settings_for(checkpoint, benchmarks_root, tmp_path))
    assert file == tmp_path / "voco_2.benchmarks.json"
    result = read_result(file)
    assert list(result["benchmarks"]) == ["GQA", "MMBench", "MME", "POPE", "VQAv2"]
    assert {name: d["questions"] for name, d in result["benchmarks"].items()} == {
        "GQA": 2, "MMBench": 3, "MME": 2, "POPE": 2, "VQAv2": 2,
    }  # fmt: skip
    assert result["num_answers"] == 11
    assert result["num_compressed"] == 2 + 2 + 1 + 1 + 2
    assert (result["tokens_per_image"], result["kv_bytes_per_image"]) == (2, 2 * 2 * 2 * 8 * 2 * 4)
    assert {"git_commit", "versions", "hardware", "command", "seed", "wall_seconds"} <= set(result)
    assert len(result["config_fingerprint"]) == len(result["checkpoint_fingerprint"]) == 64
    answers = [json.loads(line) for line in (tmp_path / result["answers_file"]).read_text().splitlines()]
    assert len(answers) == 11
    assert answers[0]["prompt"].startswith("What color is it?")
    assert not list(tmp_path.glob(".*"))


def test_an_external_compressor_is_evaluated_and_described(benchmarks_root, tmp_path):
    processor = replace(tiny_processor(num_voco=2), num_vision=0)
    model = tiny_model(processor, compressor="q_former", q_former={"layers": 1, "width": 8, "heads": 2})
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    result = read_result(evaluate(settings_for(tmp_path / "model", benchmarks_root, tmp_path, benchmarks=["POPE"])))
    described = result["model"]
    assert (described["compressor"], described["trained_condition"], described["trained_num_voco"]) == (
        "q_former",
        "voco",
        2,
    )
    size = sum(parameter.numel() for parameter in model.compressor.parameters())
    assert described["million_parameters"]["compressor"] == size / 1e6
    assert (result["tokens_per_image"], result["num_compressed"]) == (2, 1)


def test_rows_to_report(checkpoint, benchmarks_root, tmp_path):
    few = {"benchmarks": ["GQA", "POPE"]}
    rows = {
        "upper": {"condition": "full"},
        "lower": {"num_voco": 1},
        "blind": {"condition": "blind"},
        "voco_1": {"num_voco": 1},
    }
    files = [
        evaluate(settings_for(checkpoint, benchmarks_root, tmp_path, row=row, **few, **changes))
        for row, changes in rows.items()
    ]
    read = [read_result(file) for file in files]
    assert [result["tokens_per_image"] for result in read] == [4 + 2, 1, 0, 1]
    assert len({result["checkpoint_fingerprint"] for result in read}) == 1
    assert len({result["config_fingerprint"] for result in read}) == 4
    text = report(ReportSettings(tmp_path, tmp_path / "report"))
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert [name for name in names if name in rows] == ["upper", "voco_1", "lower", "blind"] * 2


def test_checkpoint_fingerprint_follows_the_weights(checkpoint, benchmarks_root, tmp_path):
    processor = tiny_processor(num_voco=2)
    other = tmp_path / "other"
    tiny_model(processor, seed=1).save_pretrained(other)
    processor.save_pretrained(other)
    one, two = (
        read_result(evaluate(settings_for(folder, benchmarks_root, tmp_path, benchmarks=["POPE"], row=row)))
        for folder, row in ((checkpoint, "one"), (other, "two"))
    )
    assert one["checkpoint_fingerprint"] != two["checkpoint_fingerprint"]
    assert one["benchmarks"]["POPE"]["data_fingerprint"] == two["benchmarks"]["POPE"]["data_fingerprint"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition": "lower"}, "condition 'lower' is unknown"),
        ({"benchmarks": ["GQA", "SEED"]}, "no benchmark 'SEED'"),
        ({"benchmarks": []}, "no benchmark is named"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"num_voco": 0}, "num_voco must be at least 1"),
        ({"row": "../x"}, "names a file"),
    ],
)
def test_bad_settings_fail_at_once(tmp_path, changes, message):
    with pytest.raises(SettingsError, match=message):
        settings_for(tmp_path, tmp_path, tmp_path, **changes)


def test_folder_without_a_model(benchmarks_root, tmp_path):
    with pytest.raises(CheckpointError, match="holds no saved model"):
        evaluate(settings_for(tmp_path, benchmarks_root, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips of noise, three questions."""
    import av

    folder = tmp_path_factory.mktemp("clips")
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=4, options={"crf": "0"})
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv444p"
            for _ in range(6):
                pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
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
    from voco_llama.data.video import read_frames
    from voco_llama.evaluation.results import load_checkpoint

    read = []  # the caches of the batches: questions 0 and 2 on clip a, then 1 on clip b, each in order and shuffled

    def spy(model, processor, laid_out, cache, max_new_tokens):
        read.append(cache)
        return [str(len(read))] * len(laid_out["input_ids"])

    monkeypatch.setattr("voco_llama.evaluation.clips.generate_texts", spy)
    settings = EvaluateClipsSettings(checkpoint, clips / "test.json", clips, tmp_path, "video", batch_size=2)
    result = read_result(evaluate_clips(settings))
    model, processor = load_checkpoint(checkpoint, None)
    keys = {name: model.compress(processor.pixels(read_frames(clips / name, 3))).keys for name in ("a.mp4", "b.mp4")}
    order = {name: shuffled(3, f"0/{name}") for name in keys}
    torch.testing.assert_close(read[0].keys, keys["a.mp4"].repeat(1, 2, 1, 1, 1))
    torch.testing.assert_close(read[1].keys, keys["a.mp4"][:, order["a.mp4"]].repeat(1, 2, 1, 1, 1))
    torch.testing.assert_close(read[2].keys, keys["b.mp4"])
    torch.testing.assert_close(read[3].keys, keys["b.mp4"][:, order["b.mp4"]])
    lines = [json.loads(line) for line in (tmp_path / result["answers_file"]).read_text().splitlines()]
    assert [(line["in_order"], line["shuffled"]) for line in lines] == [("1", "2"), ("3", "4"), ("1", "2")]


def test_shuffled_is_a_seeded_permutation_but_the_identity():
    for count in (2, 3, 8):
        orders = [shuffled(count, str(seed)) for seed in range(50)]
        assert all(sorted(order) == list(range(count)) and order != list(range(count)) for order in orders)
    assert shuffled(8, "a") == shuffled(8, "a") != shuffled(8, "b")
    with pytest.raises(ValueError, match="1 frame"):
        shuffled(1, "a")


def test_bad_clip_settings(checkpoint, clips, tmp_path):
    with pytest.raises(SettingsError, match="one frame has no order"):
        EvaluateClipsSettings(checkpoint, clips / "test.json", clips, tmp_path, "video", num_frames=1)
    empty = tmp_path / "empty"
    empty.mkdir()
    settings = EvaluateClipsSettings(checkpoint, clips / "test.json", empty, tmp_path, "video")
    with pytest.raises(DataError, match="no clip"):
        evaluate_clips(settings)
