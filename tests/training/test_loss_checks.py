"""Losses, teachers and adapters that contradict each other, each one clear line, before anything is loaded."""

import json

import pytest

from voco_llama.composition import compose
from voco_llama.errors import SettingsError
from voco_llama.settings import LOSSES
from voco_llama.training.checks import check_settings
from voco_llama.training.losses import ScheduledLoss

KL = ("loss=kl", "loss.teacher_checkpoint=runs/upper/final")
LORA = ("model.lora.rank=4", "stage.trains=[language]")
BUDGETS = "[{at: 0, lm: 1, kl: 1}, {at: 0.5, lm: 1, kl: 1, teacher_num_voco: 16}]"
MOST = ("loss=lm_kl", "loss.teacher=most_voco", "compression=elastic_16", "compression.readings=2")
SCHEDULE = "[{at: 0, lm: 1, kl: 0}, {at: 0.5, lm: 0, kl: 1}]"


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        KL,
        ("loss=lm_kl", KL[1]),
        (*KL, "stage=video", "compression=voco_2"),
        (*KL, f"loss.schedule={SCHEDULE}", "loss.kl=0"),
        (*KL, "loss.teacher=top_k", "loss.teacher_checkpoint=null", "loss.top_k_folder=somewhere"),
        (*KL, "loss.teacher=adapters_off", *LORA),
        (*KL, "compression=elastic_16"),
        (*KL, "compression=elastic_16", f"loss.schedule={BUDGETS}"),
        MOST,
        (*MOST, "loss.own_answers=0.5", "stage=video"),
        (*KL, "loss.own_answers=1", "loss.own_answer_tokens=32"),
        (*KL, "loss.lm=1", "loss.own_answers=0.5", "trainer=zero2"),
        (*KL, "loss.teacher=adapters_off", *LORA, "loss.own_answers=0.5"),
        ("loss.lm=0.5",),
        LORA,
        (*LORA, "trainer=zero2"),
    ],
)
def test_what_passes(overrides):
    check_settings(compose([*overrides]), paths=False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.kl=1"], "loss.kl is above 0, but there is no teacher: set loss.teacher"),
        ([f"loss.schedule={SCHEDULE}"], "loss.schedule's kl is above 0, but there is no teacher"),
        ([*KL, "loss.kl=0", "loss.lm=1"], "loss.teacher is checkpoint, but loss.kl is 0"),
        ([*KL, "loss.schedule=[{at: 0, lm: 1, kl: 0}]"], "loss.teacher is checkpoint, but loss.schedule's kl is 0"),
        (
            ["stage=instruct", "compression=full", "loss.reconstruction=1"],
            "use stage voco or video with compression=voco_N, or loss.reconstruction=0",
        ),
        (
            ["compression=average_pool_1", "loss.reconstruction=1"],
            "leaves no vision tokens in the rows: use loss.reconstruction=0",
        ),
        (
            ["compression=average_pool_1", "loss.schedule=[{at: 0, lm: 1, kl: 0, reconstruction: 1}]"],
            "leaves no vision tokens in the rows: use loss.schedule without its reconstruction",
        ),
        (["loss.lm=0"], "loss: all weights (lm, kl, reconstruction) are 0"),
        ([*KL, "loss.schedule=[{at: 0, lm: 0, kl: 1}, {at: 1, lm: 0, kl: 0}]"], "loss.schedule.1: all weights"),
        (["loss.lm=-1"], "loss has the weights lm -1.0, kl 0.0, reconstruction 0.0: none may be below 0"),
        ([*KL, "loss.temperature=0"], "loss.temperature is 0.0"),
        ([*KL, "loss.chunk_size=0"], "loss.chunk_size is 0"),
        ([*KL, "loss.schedule=[]"], "loss.schedule is empty"),
        ([*KL, "loss.schedule=[{at: 2, lm: 0, kl: 1}]"], "loss.schedule.0.at is 2.0: give a fraction"),
        (
            [*KL, "loss.schedule=[{at: 0.5, lm: 0, kl: 1}, {at: 0.2, lm: 0, kl: 1}]"],
            "points are at [0.5, 0.2]: list them in order",
        ),
        ([*KL, "loss.schedule=[{at: 0.5, lm: 0, kl: 1}, {at: 0.5, lm: 1, kl: 1}]"], "each moment once"),
        (["loss=kl"], "loss.teacher_checkpoint is not set"),
        ([*KL, "output_dir=runs/upper"], "runs/upper/final is this run's own output, the student itself"),
        ([*KL, "loss.teacher=adapters_off"], "there are no adapters, so that the teacher would be the student"),
        (
            [*KL, "loss.teacher=adapters_off", "model.lora.rank=4"],
            "set stage.trains=[language] and compression.voco_embeddings=shared",
        ),
        (
            [*KL, "loss.teacher=adapters_off", *LORA, "compression.voco_embeddings=distinct"],
            "set stage.trains=[language] and compression.voco_embeddings=shared",
        ),
        ([*KL, "loss.teacher=top_k"], "loss.top_k_folder is not set"),
        ([*KL, "stage=instruct", "compression=full"], "but stage is instruct and compression.condition full"),
        ([*KL, "stage=align"], "but stage is align and compression.condition voco"),
        ([*KL, "stage=video", "compression=full"], "but stage is video and compression.condition full"),
        ([*KL, "compression=average_pool_1"], "leaves no vision tokens in the rows: use loss=lm"),
        (["stage=clip", "model.vision.name=tiny.json", "loss.lm=2"], "stage clip has a loss of its own"),
        (["loss.teacher=me"], "loss.teacher is 'me': choose one of none, checkpoint, adapters_off, most_voco, top_k"),
        ([*MOST[:2]], "most_voco is one of several readings of a row, which teaches the others, and there is but one"),
        ([*MOST[:3]], "set compression.num_voco_choices and compression.readings=2 or more"),
        ([*MOST, "loss.lm=0"], "loss.lm is 0, so that nothing would teach the reading that teaches the others"),
        ([*MOST, f"loss.schedule={SCHEDULE}"], "most_voco: loss.schedule.1.lm is 0"),
        (["loss.own_answers=0.5"], "loss.own_answers is 0.5, and what the student writes is judged by the KL term"),
        ([*KL, "loss.own_answers=1.5"], "loss.own_answers is 1.5: give a part of the rows, from 0 to 1"),
        ([*KL, "loss.own_answers=-1"], "loss.own_answers is -1.0: give a part"),
        ([*KL, "loss.own_answers=0.5", "loss.own_answer_tokens=0"], "loss.own_answer_tokens is 0: give 1 or more"),
        (
            [*KL, "loss.teacher=top_k", "loss.top_k_folder=x", "loss.own_answers=0.5"],
            "the files of loss.teacher=top_k know nothing of answers that are written while it trains",
        ),
        (
            [*KL, "loss.own_answers=0.5", "trainer=zero3", "model.checkpoint=x"],
            "ZeRO-3 and FSDP would gather the weights",
        ),
        ([*KL, "loss.own_answers=0.5", "trainer=fsdp2"], "ZeRO-3 and FSDP would gather the weights"),
        ([*KL, "loss.own_answers=0.5", "prompt.template=plain"], "captions of prompt.template=plain have no end"),
        ([*KL, "loss.lm=1", "loss.own_answers=1"], "leaves no answer for the cross entropy, whose weight is above 0"),
        ([f"loss.schedule={BUDGETS}".replace("kl: 1", "kl: 0")], "teacher_num_voco is 16, but loss.teacher is none"),
        (
            [*MOST, f"loss.schedule={BUDGETS}"],
            "loss.schedule.1.teacher_num_voco is 16, but loss.teacher is most_voco: of teachers, a checkpoint alone",
        ),
        ([*KL, f"loss.schedule={BUDGETS}"], "loss.schedule.1.teacher_num_voco is 16: give 1 to 1, as many as the rows"),
        (["model.lora.rank=-1"], "model.lora.rank is -1"),
        ([*LORA, "model.lora.alpha=0"], "model.lora.alpha is 0.0"),
        ([*LORA, "model.lora.dropout=1"], "model.lora.dropout is 1.0"),
        ([*LORA, "model.lora.targets=[]"], "model.lora.targets is empty"),
        ([*LORA, "model.lora.targets=[q_proj,lm_head]"], "model.lora.targets names lm_head"),
        (["model.lora.rank=4", "stage.trains=[projector]"], "leaves the language model out"),
        ([*LORA, "trainer=zero3", "model.checkpoint=x"], "ZeRO-3 and FSDP cut them into pieces"),
    ],
)
def test_contradictions(overrides, message):
    with pytest.raises(SettingsError) as raised:
        check_settings(compose(overrides), paths=False)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_teacher_that_is_not_there(settings_for, tmp_path, upper):
    kl = ("loss=kl", f"loss.teacher_checkpoint={tmp_path / 'gone'}")
    with pytest.raises(
        SettingsError, match=r"^loss.teacher_checkpoint: .*gone does not exist .*; train the upper bound"
    ):
        check_settings(settings_for("toy/voco_1", *kl))
    (tmp_path / "gone").mkdir()
    with pytest.raises(SettingsError, match=r"gone holds no config.json: name the folder `final`"):
        check_settings(settings_for("toy/voco_1", *kl))
    top_k = ("loss=kl", "loss.teacher=top_k", f"loss.top_k_folder={tmp_path / 'none'}")
    with pytest.raises(SettingsError, match=r"^loss.top_k_folder: .*none does not exist .*voco-llama teacher$"):
        check_settings(settings_for("toy/voco_1", *top_k))
    check_settings(settings_for("toy/voco_1", "loss=kl", f"loss.teacher_checkpoint={upper}"))


def test_the_schedule_is_linear_between_its_points():
    points = "[{at: 0.2, lm: 1, kl: 0}, {at: 0.6, lm: 0.5, kl: 2, reconstruction: 1}]"
    loss = ScheduledLoss(compose([*KL, f"loss.schedule={points}"]).loss, None)
    for done, expected in (
        (0, (1, 0, 0)),
        (0.2, (1, 0, 0)),
        (0.4, (0.75, 1, 0.5)),
        (0.6, (0.5, 2, 1)),
        (1, (0.5, 2, 1)),
    ):
        assert loss.weights(done) == pytest.approx(dict(zip(LOSSES, expected, strict=True)))
    assert ScheduledLoss(compose([*KL, "loss.lm=3"]).loss, None).weights(0.7) == {"lm": 3, "kl": 1, "reconstruction": 0}


def test_the_teacher_s_budget_is_a_step_function():
    points = "[{at: 0.2, lm: 1, kl: 1, teacher_num_voco: 4}, {at: 0.6, lm: 1, kl: 1}, {at: 0.8, lm: 1, kl: 1, "
    loss = ScheduledLoss(compose([*KL, f"loss.schedule={points}teacher_num_voco: 2}}]"]).loss, None)
    found = {done: loss.teacher_num_voco(done) for done in (0, 0.2, 0.5, 0.6, 0.7, 0.8, 1)}
    assert found == {0: 4, 0.2: 4, 0.5: 4, 0.6: None, 0.7: None, 0.8: 2, 1: 2}
    assert ScheduledLoss(compose([*KL]).loss, None).teacher_num_voco(0.5) is None


def test_single_losses_are_said_where_there_is_more_than_cross_entropy():
    assert compose([]).loss.is_plain
    assert not compose(["loss.lm=0.5"]).loss.is_plain
    assert not compose([f"loss.schedule={SCHEDULE}"]).loss.is_plain


@pytest.mark.parametrize(("level", "is_fit"), [(2, True), (3, False)])
def test_adapters_and_a_deepspeed_configuration_in_a_file(tmp_path, level, is_fit):
    gather = {"stage3_gather_16bit_weights_on_model_save": True} if level == 3 else {}
    file = tmp_path / "zero.json"
    options = {"gradient_clipping": "auto", "zero_optimization": {"stage": level, **gather}}
    file.write_text(json.dumps(options))
    settings = compose(["model.lora.rank=4", "model.language.config=null", "model.language.pretrained=some/model"])
    settings.trainer["deepspeed"] = str(file)
    if is_fit:
        check_settings(settings, paths=False)
        return
    with pytest.raises(SettingsError, match="model.lora merges whole matrices"):
        check_settings(settings, paths=False)
