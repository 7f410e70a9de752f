"""Rows against the positions of the language model, before anything is loaded, in all that trains or plans."""

import json

import pytest

from tests.tiny import tiny_text_config, tiny_vision_config
from voco_llama.composition import compose
from voco_llama.errors import SettingsError
from voco_llama.preflight.dry_run import dry_run
from voco_llama.preflight.training import check_sizes
from voco_llama.training.checks import check_settings
from voco_llama.training.position_checks import check_positions

NO_VISION = "compression=average_pool_1"
KL = ("loss=kl", "loss.teacher_checkpoint=upper")


@pytest.mark.parametrize(
    ("overrides", "limit", "most"),
    [
        (["experiment=voco_1"], 4096, 4096),
        (["experiment=instruct_7b"], 4096, 4096),
        (["experiment=video_7b"], 4096, 4096 + 8 * 576),  # the frames' vision tokens take no positions from the text
        (["experiment=video_7b", "data.num_frames=4"], 4096, 4096 + 4 * 576),
        (["experiment=video_7b", NO_VISION], 4096, 4096),
        (["experiment=video_7b", *KL], 4096, 4096),  # the teacher sees the frames whole
        (["experiment=video_7b", "compression=full"], 4096, 4096),
    ],
)
def test_the_longest_row_that_has_positions(overrides, limit, most):
    def check(max_length):
        settings = compose([*overrides, f"data.max_length={max_length}"])
        check_positions(settings, 8 if "num_frames=4" not in str(overrides) else 4, limit, 576)

    check(most)
    with pytest.raises(
        SettingsError, match=rf"data.max_length is .* {limit:,} positions .*data.max_length to {most} or less"
    ):
        check(most + 1)


def test_a_segment_has_positions_and_what_is_not_known_is_not_checked():
    settings = compose(["experiment=voco_1", "data.max_length=1000"])
    with pytest.raises(SettingsError, match="an image is 2,305 tokens, and the language model was made for 2,048"):
        check_positions(settings, 1, 2048, 2304)
    check_positions(settings, 1, None, 2304)


def test_train_reads_the_limit_from_whatever_it_starts_from(tmp_path):
    """A language model's folder, and a model of ours; what cannot be read is said by who reads it."""
    text = tiny_text_config(max_position_embeddings=300)
    (tmp_path / "rows.json").write_text("[]")
    (tmp_path / "tower.json").write_text(json.dumps(tiny_vision_config()))
    text.save_pretrained(tmp_path / "language")
    (tmp_path / "language" / "model.safetensors").touch()
    described = {"model_type": "voco_llama", "text_config": text.to_dict(), "vision_config": tiny_vision_config()}
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "config.json").write_text(json.dumps(described))
    data = ["data=toy_captions", f"data.sources.0.file={tmp_path}/rows.json", "data.sources.0.media_folder=null"]
    parts = [
        f"model.vision.name={tmp_path}/tower.json", f"model.language.config={tmp_path}/language",
        "model.language.pretrained=null", f"model.tokenizer={tmp_path}/language",
    ]  # fmt: skip
    (tmp_path / "language" / "tokenizer.json").touch()
    for start in (parts, [f"model.checkpoint={tmp_path}/final"]):
        check_settings(compose([*data, *start, "data.max_length=300"]))
        with pytest.raises(SettingsError, match=r"data.max_length is 301 tokens, .* made for 300 positions"):
            check_settings(compose([*data, *start, "data.max_length=301"]))


def test_dry_run_and_doctor_say_it_too():
    settings = compose(["experiment=video_7b", "compression=full", "stage=instruct"])
    complaint = r"data.max_length is 6,144 tokens, .* 4,096 positions \(max_position_embeddings\): .* 4096 or less"
    with pytest.raises(SettingsError, match=complaint):
        dry_run(settings)
    with pytest.raises(SettingsError, match=complaint):
        list(check_sizes(settings))
