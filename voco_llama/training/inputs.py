"""Everything that a training reads from disk or from the hub, as one list; nothing is opened.

Whether it is there (`check_inputs`, and the dry run's and the doctor's own words for it), its fingerprints in the run's
folder, and what the model card says the run started from are views of this list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from voco_llama.data.media.roots import list_archives
from voco_llama.errors import SettingsError
from voco_llama.hub import is_cached, is_hub_name
from voco_llama.provenance import sampled_fingerprint
from voco_llama.settings import ModelSettings, SourceSettings, TrainSettings
from voco_llama.vision_config import CLIP_CONFIG_FILE, OPEN_CLIP_CONFIG_FILE, is_tag, read_vision_config

LANGUAGE_WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
TOWER_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
CONFIG = ("config.json",)
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
CHAT_TEMPLATE_FILE = "chat_template.jinja"
"""Beside a tokenizer; transformers writes it so."""
MANIFEST_FILE = "manifest.json"
"""Of top-k files: what stands for all of them."""

PROBES = {"model": "config.json", "dataset": "README.md", "open_clip": "open_clip_config.json"}
"""A small file of each kind of repository, to ask the hub for."""


@dataclass(frozen=True)
class Input:
    """One thing that a setting names.

    Attributes:
        key: The setting.
        name: A path, or a name on the hub.
        part: `data`, `start` (of the model that is trained), or `other`.
        hub: What it may be on the hub: a `model`, a `dataset`, a tag of `open_clip`; None: it is a path.
        holds: Files of which a folder, or a model on the hub, must hold one.
        hint: What to do if it is not there.
        is_read: False: it stands among the settings, and this training leaves it alone.
        sign: What of it shows a run that it has changed: the whole (`.`), or one file below it; None: nothing does.
    """

    key: str
    name: str
    part: str
    hub: str | None = None
    holds: tuple[str, ...] = ()
    hint: str = ""
    is_read: bool = True
    sign: str | None = None

    @property
    def is_hub(self) -> bool:
        """Whether it would be downloaded."""
        return self.hub is not None and not Path(self.name).exists() and is_hub_name(self.repository)

    @property
    def repository(self) -> str:
        """Its name on the hub; of a tag that open_clip does not know, nothing."""
        if self.hub != "open_clip":
            return self.name
        import open_clip

        architecture, _, tag = self.name.rpartition(" ")
        return (open_clip.get_pretrained_cfg(architecture, tag) or {}).get("hf_hub", "").rstrip("/")

    @property
    def is_here(self) -> bool:
        """There, or in the hub's cache."""
        if self.is_hub:
            return is_cached(self.repository, self.holds, "dataset" if self.hub == "dataset" else "model")
        path = Path(self.name)
        if self.holds and path.is_dir():
            return any((path / file).is_file() for file in self.holds)
        return path.exists()


def list_inputs(settings: TrainSettings) -> list[Input]:
    """All of them, the data's first."""
    sources = enumerate(settings.data.sources)
    of_data = [entry for index, source in sources for entry in _of_source(f"data.sources.{index}", source)]
    of_model = _of_model(settings.model, settings.stage.name == "clip")
    template = settings.prompt.chat_template
    of_prompt = [] if template is None else [Input("prompt.chat_template", template, "other", sign=".")]
    return [*of_data, *of_model, *of_prompt, *_of_teacher(settings)]


def _of_source(where: str, source: SourceSettings) -> Iterator[Input]:
    hub = "dataset" if source.format == "hf_dataset" else None
    yield Input(f"{where}.file", source.file, "data", hub, sign=".")
    if source.media_folder is not None:
        yield Input(f"{where}.media_folder", source.media_folder, "data")
    for prefix, archives in list_archives(source.archives, f"{where}.archives").items():
        yield from (Input(f"{where}.archives.{prefix.rstrip('/')}", archive, "data") for archive in archives)


def _of_model(model: ModelSettings, is_tower: bool) -> Iterator[Input]:
    if model.checkpoint is not None:
        yield _folder("model.checkpoint", model.checkpoint, "start", "; train that stage first, or download it")
        return
    vision, language = model.vision, model.language
    is_path = vision.pretrained is None  # else an architecture's name
    holds, hint = (
        (OPEN_CLIP_CONFIG_FILE, CLIP_CONFIG_FILE),
        "; train stage clip to its end first, or name another",
    )
    yield Input("model.vision.name", vision.name, "start", holds=holds, hint=hint, is_read=is_path, sign=".")
    if vision.pretrained is not None:
        if Path(vision.pretrained).exists() and not is_tag(vision.name, vision.pretrained):
            yield Input("model.vision.pretrained", vision.pretrained, "other")
        else:
            tag = f"{vision.name} {vision.pretrained}"
            yield Input("model.vision.pretrained", tag, "other", "open_clip", TOWER_WEIGHTS)
    for key, name, part, holds, is_read in (
        ("language.pretrained", language.pretrained, "start", LANGUAGE_WEIGHTS, not is_tower),
        ("language.config", language.config, "start", CONFIG, not is_tower),
        ("tokenizer", model.tokenizer, "other", TOKENIZERS, True),
    ):
        if name is not None:
            hint = language_hint(name) if key == "language.pretrained" else ""
            yield Input(f"model.{key}", name, part, "model", holds, hint, is_read, sign=".")
    if model.projector_weights is not None:
        yield Input("model.projector_weights", model.projector_weights, "start", sign=".")


def language_hint(folder: str) -> str:
    """What to do about a language model that is not there."""
    return f"; download it there, or of SmolLM2-135M: voco-llama convert-gguf output={folder}"


def _of_teacher(settings: TrainSettings) -> Iterator[Input]:
    loss = settings.loss
    if loss.teacher in ("checkpoint", "top_k") and loss.teacher_checkpoint is not None:
        sign = "." if loss.teacher == "checkpoint" else None  # else the files' manifest names it
        yield _folder(
            "loss.teacher_checkpoint", loss.teacher_checkpoint, "other", "; train the upper bound first", sign
        )
    if loss.teacher == "top_k" and loss.top_k_folder is not None:
        hint = "; make the files first: voco-llama teacher"
        yield Input("loss.top_k_folder", loss.top_k_folder, "other", hint=hint, sign=MANIFEST_FILE)


def _folder(key: str, name: str, part: str, hint: str, sign: str | None = ".") -> Input:
    """A whole model."""
    return Input(key, name, part, holds=CONFIG, hint=hint, sign=sign)


def check_inputs(settings: TrainSettings, part: str | None = None, coming: Sequence[Path] = ()) -> None:
    """Refuse what is named (of one `Input.part`) and not there; what may be on the hub is left to those who read it.

    `coming` are folders, by absolute paths, that will have been made by then.

    Raises:
        SettingsError: The first that is missing, with what to do.
    """
    for entry in list_inputs(settings):
        if part not in (None, entry.part):
            continue
        if not entry.is_read or entry.hub == "open_clip" or entry.is_hub or entry.is_here:
            continue
        path, hint = Path(entry.name), entry.hint
        if any(path.absolute().is_relative_to(folder) for folder in coming):
            continue
        if not path.exists():
            if path.is_relative_to(settings.paths.toyworld):
                hint = "; make the toy world first: voco-llama toyworld"
            elif entry.key == "model.vision.name" and len(path.parts) == 1 and path.suffix != ".json":
                read_vision_config(entry.name)  # it says which name of open_clip was meant
                hint = "; of a tower of open_clip name the weights too: set model.vision.pretrained"
            elif entry.part == "data":
                hint = "; check the path; how to get the public sets: voco-llama data prepare"
            raise SettingsError(f"{entry.key}: {path} does not exist (from {Path.cwd()}){hint}")
        if entry.hub is None:
            hint = hint if entry.holds != CONFIG else ": name the folder `final` of a finished run"
            raise SettingsError(f"{entry.key}: {path} holds no {' or '.join(entry.holds)}{hint}")


def fingerprints(settings: TrainSettings) -> dict[str, str]:
    """Setting -> fingerprint of the local file or folder that it names."""
    named = {entry.key: Path(entry.name, entry.sign) for entry in list_inputs(settings) if entry.sign is not None}
    if settings.prompt.template == "chat" and settings.prompt.chat_template is None:
        model = settings.model
        folder = model.checkpoint or model.tokenizer or model.language.pretrained
        named["prompt.template"] = Path(folder or "", CHAT_TEMPLATE_FILE)
    return {key: sampled_fingerprint(path) for key, path in named.items() if path.exists()}
