"""What contradicts what among losses, teachers and adapters; a part of `voco_llama.training.checks`."""

from pathlib import Path

from voco_llama.errors import require
from voco_llama.settings import LOSSES, LossPoint, LossSettings, TrainSettings
from voco_llama.sharding import sharding_of

DISTILLED_STAGES = ("voco", "video")
"""Stages in which a student that reads through VoCo tokens learns."""

NEEDED = {
    "checkpoint": ("teacher_checkpoint", "the folder of the upper bound"),
    "top_k": ("top_k_folder", "what voco-llama teacher wrote"),
}
"""Teacher -> what of `loss` it needs, and what that names."""


def check_losses(settings: TrainSettings) -> None:
    """Refuse losses, a teacher or adapters that contradict each other or the stage; nothing is read from disk."""
    loss = settings.loss
    _check_numbers(loss)
    _check_lora(settings)
    hears_teacher = has_term(loss, "kl")
    name = "loss.kl" if loss.schedule is None else "loss.schedule's kl"
    require(
        not hears_teacher or loss.teacher != "none",
        f"{name} is above 0, but there is no teacher: set loss.teacher to checkpoint, adapters_off, most_voco or top_k",
    )
    require(
        hears_teacher or loss.teacher == "none",
        f"loss.teacher is {loss.teacher}, but {name} is 0, so that it would not be heard: raise it, or set"
        " loss.teacher=none",
    )
    if settings.stage.name == "clip":
        require(loss.is_plain, "stage clip has a loss of its own: use loss=lm")
    require(0 <= loss.own_answers <= 1, f"loss.own_answers is {loss.own_answers}: give a part of the rows, from 0 to 1")
    require(
        hears_teacher or loss.own_answers == 0,
        f"loss.own_answers is {loss.own_answers}, and what the student writes is judged by the KL term alone: choose"
        " loss=kl or loss=lm_kl, or set loss.own_answers=0",
    )
    _check_budgets(settings)
    if hears_teacher:
        _check_student(settings, "the KL term teaches", "loss=lm")
        _check_teacher(settings)
        if loss.own_answers:
            _check_own_answers(settings)
    if has_term(loss, "reconstruction"):
        without = "loss.reconstruction=0" if loss.schedule is None else "loss.schedule without its reconstruction"
        _check_student(settings, "the reconstruction is for", without)


def has_term(loss: LossSettings, name: str) -> bool:
    """Whether this one of `LOSSES` counts at any moment."""
    return any(getattr(point, name) > 0 for point in loss.schedule or [loss])


def teacher_budgets(loss: LossSettings) -> list[int]:
    """The numbers of VoCo tokens that the teacher reads images through, each in its time; none if it sees them."""
    return [point.teacher_num_voco for point in loss.schedule or () if point.teacher_num_voco is not None]


def _moments(loss: LossSettings) -> dict[str, LossSettings | LossPoint]:
    """What has the weights, by its setting's name: the points of the schedule, or the loss itself."""
    if loss.schedule is None:
        return {"loss": loss}
    return {f"loss.schedule.{index}": point for index, point in enumerate(loss.schedule)}


def _check_numbers(loss: LossSettings) -> None:
    points = loss.schedule
    require(points is None or bool(points), "loss.schedule is empty: list points {at, lm, kl}, or set it to null")
    for where, point in _moments(loss).items():
        at = getattr(point, "at", 0)
        require(0 <= at <= 1, f"{where}.at is {at}: give a fraction of the training, from 0 to 1")
        _check_weights(where, point)
    at = [point.at for point in points or ()]
    require(at == sorted(set(at)), f"loss.schedule's points are at {at}: list them in order, each moment once")


def _check_weights(where: str, point: LossSettings | LossPoint) -> None:
    weights = {name: getattr(point, name) for name in LOSSES}
    shown = ", ".join(f"{name} {weight}" for name, weight in weights.items())
    require(min(weights.values()) >= 0, f"{where} has the weights {shown}: none may be below 0")
    require(
        max(weights.values()) > 0,
        f"{where}: all weights ({', '.join(weights)}) are 0, and nothing would be learned: raise one",
    )


def _check_lora(settings: TrainSettings) -> None:
    lora = settings.model.lora
    require(lora.rank >= 0, f"model.lora.rank is {lora.rank}: give 0 (no adapters) or more")
    if lora.rank == 0:
        return
    require(0 <= lora.dropout < 1, f"model.lora.dropout is {lora.dropout}: give a number from 0 to below 1")
    require(bool(lora.targets), "model.lora.targets is empty: name linear layers, such as q_proj")
    require(
        "lm_head" not in lora.targets,
        "model.lora.targets names lm_head, which stays as it is: name layers of the decoder",
    )
    require(
        "language" in settings.stage.trains,
        f"model.lora.rank is {lora.rank}, but stage.trains={settings.stage.trains} leaves the language model out: add"
        " language, or set the rank to 0",
    )
    require(
        not sharding_of(settings.trainer).cuts_weights,
        "model.lora merges whole matrices at the end, and ZeRO-3 and FSDP cut them into pieces: use trainer=zero2 (with"
        " adapters there is little else to divide)",
    )


def _check_student(settings: TrainSettings, what: str, without: str) -> None:
    """`without`: what leaves the term out."""
    stage, compression = settings.stage.name, settings.compression
    require(
        stage in DISTILLED_STAGES and compression.condition == "voco",
        f"{what} a student that reads through VoCo tokens, but stage is {stage} and"
        f" compression.condition {compression.condition}: use stage {' or '.join(DISTILLED_STAGES)} with"
        f" compression=voco_N, or {without}",
    )
    require(
        compression.compressor == "language_model",
        f"compression.compressor={compression.compressor} leaves no vision tokens in the rows: use {without}",
    )


def _check_teacher(settings: TrainSettings) -> None:
    loss = settings.loss
    if loss.teacher in NEEDED:
        key, what = NEEDED[loss.teacher]
        missing = f"loss.teacher={loss.teacher}, but loss.{key} is not set: name {what}"
        require(getattr(loss, key) is not None, missing)
    if loss.teacher_checkpoint is not None:
        inside = Path(loss.teacher_checkpoint).resolve().is_relative_to(Path(settings.output_dir).resolve())
        require(
            not inside,
            f"loss.teacher_checkpoint: {loss.teacher_checkpoint} is this run's own output, the student itself: name"
            " another model",
        )
    if loss.teacher == "most_voco":
        _check_own_readings(settings)
    if loss.teacher == "adapters_off":
        require(
            settings.model.lora.rank > 0,
            "loss.teacher=adapters_off, but there are no adapters, so that the teacher would be the student: set"
            " model.lora.rank, or use loss.teacher=checkpoint",
        )
        require(
            settings.stage.trains == ["language"] and settings.compression.voco_embeddings == "shared",
            "loss.teacher=adapters_off shares projector and VoCo offsets with the student, and would move with them:"
            " set stage.trains=[language] and compression.voco_embeddings=shared",
        )


def _check_budgets(settings: TrainSettings) -> None:
    loss = settings.loss
    for where, point in _moments(loss).items():
        if (number := getattr(point, "teacher_num_voco", None)) is not None:
            require(
                loss.teacher == "checkpoint",
                f"{where}.teacher_num_voco is {number}, but loss.teacher is {loss.teacher}: of teachers, a checkpoint"
                " alone reads VoCo tokens; set it to null, or loss.teacher=checkpoint",
            )
            require(
                1 <= number <= settings.compression.num_voco,
                f"{where}.teacher_num_voco is {number}: give 1 to {settings.compression.num_voco}, as many as the rows"
                " have (compression.num_voco), or null, to let the teacher see the image",
            )


def _check_own_readings(settings: TrainSettings) -> None:
    compression, loss = settings.compression, settings.loss
    require(
        compression.num_voco_choices is not None and compression.readings > 1,
        "loss.teacher=most_voco is one of several readings of a row, which teaches the others, and there is but one:"
        " set compression.num_voco_choices and compression.readings=2 or more",
    )
    for where, point in _moments(loss).items():
        require(
            point.lm > 0 or point.kl == 0,
            f"loss.teacher=most_voco: {where}.lm is 0, so that nothing would teach the reading that teaches the others:"
            " raise it",
        )


def _check_own_answers(settings: TrainSettings) -> None:
    loss = settings.loss
    name = f"loss.own_answers={loss.own_answers}"
    require(
        loss.teacher != "top_k",
        f"{name}: the files of loss.teacher=top_k know nothing of answers that are written while it trains: use"
        " checkpoint, adapters_off or most_voco",
    )
    require(
        not sharding_of(settings.trainer).cuts_weights,
        f"{name}: answers have unequal lengths, and ZeRO-3 and FSDP would gather the weights for every word of each:"
        " use trainer=zero2, or set loss.own_answers=0",
    )
    require(
        settings.prompt.template != "plain",
        f"{name}: captions of prompt.template=plain have no end at which the student could stop: use another template",
    )
    require(
        loss.own_answers < 1 or not has_term(loss, "lm"),
        f"{name} leaves no answer for the cross entropy, whose weight is above 0: choose loss=kl, or a smaller part",
    )
