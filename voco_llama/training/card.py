"""The model card: `README.md` of a trained model, written from the records of its run and nothing else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from voco_llama.settings import LOSSES, TrainSettings
from voco_llama.text import markdown
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.inputs import list_inputs

CARD_FILE = "README.md"
TAGS = ["voco-llama", "vision-language", "image-text-to-text"]

USE = """```python
from voco_llama import VoCoLlama, VoCoProcessor

model, processor = VoCoLlama.from_pretrained("."), VoCoProcessor.from_pretrained(".")
```
"""


def write_card(
    folder: Path,
    name: str,
    settings: TrainSettings,
    num_records: list[int],
    result: dict[str, Any],
    starts: list[dict[str, Any]],
) -> None:
    """Write the card of a trained model into its folder, under a name: what its run saw of each source, how it went."""
    head = {"library_name": "voco-llama", "pipeline_tag": "image-text-to-text", "tags": TAGS}
    start = {entry.key: entry.name for entry in list_inputs(settings) if entry.part == "start"}
    if all(not Path(name).exists() for name in start.values()):
        head["base_model"] = sorted(set(start.values()))
    curve, compression = result["loss_curve"], settings.compression
    seen = f"{compression.num_voco} VoCo tokens an image" if compression.condition == "voco" else "images seen in full"
    sources = zip(settings.data.sources, num_records, strict=True)
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# {name}\n",
        f"A model of voco-llama (VoCo-LLaMA, arXiv 2406.12275): condition `{compression.condition}`, {seen}, stage"
        f" `{settings.stage.name}`.\n",
        USE,
        "## Data\n",
        markdown(
            ("file", "format", "weight", "records an epoch"),
            ((f"`{source.file}`", source.format, source.weight, f"{count:,}") for source, count in sources),
        ),
        "\n## Recipe\n",
        *_recipe(settings, start, result, starts[-1]),
        "\nAll settings stand in `settings.yaml` of the run.\n",
        "## Results\n",
        *(f"Training loss at step {last.get('step', result['steps'])}: {last['loss']:.4f}." for last in curve[-1:]),
        f"Records that could not be used: {len(result['bad_records'])}. Benchmarks: `voco-llama evaluate row=NAME"
        " checkpoint=FOLDER`.\n",
    ]
    (folder / CARD_FILE).write_text("\n".join(lines), encoding="utf-8")


def _recipe(
    settings: TrainSettings, start: dict[str, str], result: dict[str, Any], last: dict[str, Any]
) -> Iterator[str]:
    trainer = settings.trainer
    rows = {
        **{f"started from `{key}`": f"`{name}`" for key, name in start.items()},
        "parts trained": ", ".join(settings.stage.trains),
        "low-rank adapters": f"rank {settings.model.lora.rank}" if settings.model.lora.rank else "none",
        "loss": " + ".join(f"{weight} x {name.upper()}" for name in LOSSES if (weight := getattr(settings.loss, name)))
        + (", scheduled" if settings.loss.schedule else "")
        + (
            f", {settings.loss.own_answers:.0%} of the rows with answers of its own"
            if settings.loss.own_answers
            else ""
        ),
        "steps": result["steps"],
        "samples a step": GlobalBatch.of(settings, last["processes"]).size,
        "learning rate": trainer.get("learning_rate", "the Trainer's default"),
        "learning rate of the projector": settings.projector_learning_rate or "the same",
        "prompt": f"{settings.prompt.template}, images {settings.prompt.order}",
        "seed": settings.seed,
        "time": f"{result['seconds'] / 3600:.2f} h on {last['processes']} x"
        f" {last['hardware']['accelerator'] or last['hardware']['machine']}",
        "commit": f"`{last['git_commit']}`",
        "versions": ", ".join(f"{name} {version}" for name, version in last["versions"].items() if version),
    }
    yield from (f"- {name}: {value}" for name, value in rows.items())
