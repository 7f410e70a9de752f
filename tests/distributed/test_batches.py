"""Two processes give the loss curve of one on batches of every kind: each kind with each way of dividing that it meets.

Rows with no image, one, two of them and clips come in one order, so that one process has what the other has not.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.launch import launch, losses, run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

LORA = ["model.lora.rank=2", "model.lora.alpha=8", "stage.trains=[language]", "projector_learning_rate=null"]
ELASTIC = ["compression.num_voco=2", "compression.num_voco_choices=[1,2]"]
Q_FORMER = [
    "compression=q_former_2",
    *(f"compression.q_former.{name}={size}" for name, size in (("layers", 2), ("width", 16), ("heads", 2))),
]
RECONSTRUCTION = [*ELASTIC, "compression.readings=2", "loss.reconstruction=0.3"]
KINDS = {
    "mixed": (ELASTIC, ("cpu", "zero1", "zero3", "fsdp2")),
    "reconstruction": (RECONSTRUCTION, ("cpu", "zero3", "fsdp2")),
    "distinct": (["compression.num_voco=3", "compression.voco_embeddings=distinct"], ("zero3", "fsdp2")),
    "q_former": (Q_FORMER, ("zero3", "fsdp2")),
    "adapters_off": ([*LORA, "loss=kl", "loss.teacher=adapters_off"], ("cpu", "zero2")),
    "top_k": (["loss=lm_kl", "loss.teacher=top_k", "data.keep_in_memory=false"], ("zero2", "fsdp2")),
    "masked": (["compression.segment_attention=bidirectional", "model.attention=eager"], ("fsdp2",)),
}
FRESH = {"q_former": "final", "reconstruction": "checkpoint-1"}
"""Kinds that have weights which the model they start from has not, and where those of one step are."""
ONE_STEP = ("trainer.max_steps=1", "trainer.save_strategy=steps", "trainer.save_steps=1")
CASES = [(kind, group) for kind, (_, groups) in KINDS.items() for group in groups]


def world_of(settings: list[str]) -> Path:
    return Path(next(entry for entry in settings if entry.startswith("paths.toyworld=")).partition("=")[2])


def mixed_sources(world: Path, folder: Path) -> list[str]:
    """Overrides for the world's questions and clips, and rows of two images each."""
    rows = json.loads((world / "instruct" / "train.json").read_text())
    shown = [row for row in rows if "image" in row]
    paired = [
        {
            "id": f"{a['id']}_{b['id']}",
            "image": [a["image"], b["image"]],
            "conversations": [{"from": "human", "value": "<image>\n<image>\nWhich is it?"}, a["conversations"][1]],
        }
        for a, b in zip(shown[::2], shown[1::2], strict=True)
    ]
    (folder / "pairs.json").write_text(json.dumps(paired))
    images, clips = world / "instruct" / "images", world / "clips"
    sources = (
        f"{{format: llava_json, file: {world / 'instruct' / 'train.json'}, media_folder: {images}}}",
        f"{{format: llava_json, file: {folder / 'pairs.json'}, media_folder: {images}}}",
        f"{{format: video_chatgpt, file: {clips / 'train.json'}, media_folder: {clips / 'videos'}}}",
    )
    return [f"data.sources=[{', '.join(sources)}]", "data.num_frames=2", "data.grouping=none", "trainer.max_steps=4"]


@pytest.fixture(scope="module")
def curve_of(overrides, start, tmp_path_factory):
    """The losses of a training of a kind by so many processes; each is made once."""
    folder, curves = tmp_path_factory.mktemp("mixed"), {}

    def make(kind: str, processes: int, group: str) -> list[float]:
        if (kind, processes, group) not in curves:
            name, before = f"{kind}_{group}_{processes}", start
            if kind in FRESH:  # what is new depends on all that was drawn before it
                settings, made = overrides(f"{kind}_start", 1, *KINDS[kind][0], start=start)
                run(1, [*settings, *ONE_STEP])  # once: it is finished then
                before = made / FRESH[kind]
            settings, output = overrides(name, processes, f"trainer={group}", start=before)
            settings += [*mixed_sources(world_of(settings), folder), *KINDS[kind][0]]
            if kind == "top_k":
                settings.append(f"loss.top_k_folder={folder / 'top_k'}")
            if kind == "top_k" and not (folder / "top_k").exists():
                launch(1, ["teacher", *settings, f"loss.teacher_checkpoint={start}", "k=8"]).check()
            run(processes, settings)
            curves[kind, processes, group] = losses(output)
        return curves[kind, processes, group]

    return make


@pytest.mark.parametrize(("kind", "group"), CASES)
def test_two_processes_give_the_curve_of_one(curve_of, kind, group):
    one = curve_of(kind, 1, "cpu")
    assert len(one) == 4
    np.testing.assert_allclose(curve_of(kind, 2, group), one, rtol=1e-4)
