"""What a training reads from disk or from the hub, and whether it is here; nothing is opened."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from voco_llama.data.media.roots import list_archives
from voco_llama.data.readers.hf_dataset import is_hub_name
from voco_llama.settings import ModelSettings, SourceSettings, TrainSettings

LANGUAGE_WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
TOWER_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Input:
    """One thing that a setting names.

    Attributes:
        key: The setting.
        name: A path, or the name of a repository on the hub.
        is_hub: Whether it would be downloaded.
        is_here: There, or in the hub's cache.
        probe: For the hub: a small file of the repository, to ask for.
        repo_type: For the hub: `model` or `dataset`.
    """

    key: str
    name: str
    is_hub: bool
    is_here: bool
    probe: str = "config.json"
    repo_type: str = "model"


def data_inputs(settings: TrainSettings) -> list[Input]:
    """Files, folders and archives of the data sets."""
    return [entry for index, source in enumerate(settings.data.sources) for entry in _source_inputs(index, source)]


def _source_inputs(index: int, source: SourceSettings) -> Iterator[Input]:
    where = f"data.sources.{index}"
    if source.format == "hf_dataset" and is_hub_name(source.file):
        cached = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=source.file, repo_type="dataset")
        yield Input(f"{where}.file", source.file, True, cached.is_dir(), "README.md", "dataset")
    else:
        yield _path(f"{where}.file", source.file)
    if source.media_folder is not None:
        yield _path(f"{where}.media_folder", source.media_folder)
    for prefix, archives in list_archives(source.archives, f"{where}.archives").items():
        yield from (_path(f"{where}.archives.{prefix.rstrip('/')}", archive) for archive in archives)


def model_inputs(settings: TrainSettings) -> list[Input]:
    """Checkpoints, weights and tokenizers."""
    return list(_model_inputs(settings))


def _model_inputs(settings: TrainSettings) -> Iterator[Input]:
    model, loss = settings.model, settings.loss
    is_tower = settings.stage.name == "clip"
    if model.checkpoint is not None:
        yield _path("model.checkpoint", model.checkpoint)
    else:
        yield _tower(model)
        for part, files in (("pretrained", LANGUAGE_WEIGHTS), ("config", ("config.json",))):
            name = getattr(model.language, part)
            if name is not None and not is_tower:
                yield _local_or_hub(f"model.language.{part}", name, files)
        if model.tokenizer is not None:
            yield _local_or_hub("model.tokenizer", model.tokenizer, ("tokenizer.json", "tokenizer.model"))
        if model.projector_weights is not None:
            yield _path("model.projector_weights", model.projector_weights)
    if loss.teacher == "checkpoint" and loss.teacher_checkpoint is not None:
        yield _path("loss.teacher_checkpoint", loss.teacher_checkpoint)
    if loss.teacher == "top_k" and loss.top_k_folder is not None:
        yield _path("loss.top_k_folder", loss.top_k_folder)


def _path(key: str, name: str) -> Input:
    return Input(key, name, False, Path(name).exists())


def _local_or_hub(key: str, name: str, files: tuple[str, ...]) -> Input:
    """A folder, or a repository of the hub, that must hold one of `files`."""
    if Path(name).is_dir():
        return Input(key, name, False, any((Path(name) / file).is_file() for file in files))
    if Path(name).exists() or not is_hub_name(name):
        return _path(key, name)
    return Input(key, name, True, is_cached(name, files))


def _tower(model: ModelSettings) -> Input:
    vision = model.vision
    if vision.pretrained is None:
        return _path("model.vision.name", vision.name)
    if Path(vision.pretrained).exists():
        return _path("model.vision.pretrained", vision.pretrained)
    import open_clip

    repository = (open_clip.get_pretrained_cfg(vision.name, vision.pretrained) or {}).get("hf_hub", "").rstrip("/")
    if not repository:
        return Input("model.vision.pretrained", vision.pretrained, False, False)
    is_here = is_cached(repository, TOWER_WEIGHTS)
    return Input("model.vision.pretrained", repository, True, is_here, "open_clip_config.json")


def is_cached(repository: str, files: tuple[str, ...]) -> bool:
    """Whether one of these files of a repository lies in the hub's cache."""
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)
