"""The bridge to lmms-eval: our model as one of its models. Its evaluator is called in `lmms_evaluator`.

Through our command (`voco-llama evaluate`), or, where torchvision is whole, through lmms-eval's own:

    lmms_eval --model voco_llama --model_args pretrained=runs/voco_1/final,num_voco=1 --tasks gqa --batch_size 32
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ImageFile

from voco_llama.errors import DataError, SettingsError, one_line
from voco_llama.evaluation.answering import Answerer, Counts
from voco_llama.evaluation.guard import document
from voco_llama.evaluation.questions import Question
from voco_llama.inference import Inference, checkpoint_fingerprint, head_fingerprint

MODEL_NAME = "voco_llama"


def manifest() -> "ModelManifest":
    """The entry point `lmms_eval.models`: where lmms-eval finds our model.

    It stands above the imports of lmms_eval, for these look all entry points up, this one too.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_NAME, simple_class_path=f"{__name__}.VoCoLlamaAdapter")


os.environ.setdefault("HF_HOME", str(Path("~/.cache/huggingface").expanduser()))  # videochatgpt fails without

try:
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise SettingsError(
        f"lmms-eval cannot be imported ({error}): install the package with its extra, pip install 'voco-llama[eval]'"
    ) from error

if TYPE_CHECKING:
    import torch
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.registry_v2 import ModelManifest

TIMED_QUESTIONS = 5
"""The first ones, for the time to the first token."""
DEFAULT_NEW_TOKENS = 1024
"""Where a task does not say (SEED-Bench), as LLaVA's own adapter has it."""
_CONTROL_CHARACTERS = dict.fromkeys({*range(0x20)} - {ord("\t"), ord("\n"), ord("\r")})
"""Left out of answers: tasks write tables for servers (MMBench's is a spreadsheet) that cannot hold them."""
_IGNORED_GENERATION = ("image_aspect_ratio",)  # images are prepared as the checkpoint's processor says
_PASSED_GENERATION = ("max_new_tokens", "num_beams", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty")


class VoCoLlamaAdapter(lmms):
    """Requests of lmms-eval become questions to an `Answerer`; answers come in their order."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        condition: str | None = None,
        num_voco: int | None = None,
        batch_size: int | str = 32,
        device: str | None = None,
        dtype: str = "auto",
        reuse: bool = True,
        go_on: bool = False,
        max_new_tokens: int | None = None,
        quality: float | None = None,
        **unknown: Any,
    ) -> None:
        """Load the checkpoint, the folder `pretrained`; arguments are settings of `evaluate`, others are refused.

        Raises:
            SettingsError: An argument is unknown, or the model cannot do what is asked.
            CheckpointError: The folder holds no saved model.
        """
        super().__init__()
        if unknown:
            known = "pretrained, condition, num_voco, quality, batch_size, device, dtype, reuse, go_on, max_new_tokens"
            raise SettingsError(f"model argument {sorted(unknown)[0]!r} is unknown: choose from {known}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise SettingsError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
        self._rank, self._world_size = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
        if self._world_size > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator()  # joins the processes, before lmms-eval loads data in the first one first
            device = device or str(self.accelerator.device)
        inference = Inference.load(Path(pretrained), device, dtype)
        self.max_new_tokens = max_new_tokens
        self.timed_questions: list[Question] = []
        self.first_token_seconds: dict[str, float | None] = {}
        self.answerer = Answerer(inference, condition, num_voco, int(batch_size), bool(reuse), bool(go_on), quality)
        cap = "" if max_new_tokens is None else f", at most {max_new_tokens} new tokens"
        if quality is not None:
            cap += f", quality {quality} by head {head_fingerprint(Path(pretrained))}"
        self.checkpoint_fingerprint = checkpoint_fingerprint(Path(pretrained))
        condition, num_voco = self.answerer.condition, self.answerer.num_voco
        identity = (self.checkpoint_fingerprint, condition, f"{num_voco}{cap}", inference.model.dtype)
        self._identity = f"{MODEL_NAME}({', '.join(map(str, identity))})"

    @property
    def device(self) -> "torch.device":
        """Where processes exchange how many questions each has."""
        return self.answerer.inference.model.device

    def __str__(self) -> str:
        """All that an answer depends on: lmms-eval keys its store of answers by it."""
        return self._identity

    def questions(self, requests: Sequence["Instance"]) -> list[Question]:
        """Requests as questions; images are decoded when their turn comes."""
        return [self._question(*request.args) for request in requests]

    def _question(
        self, context: str, gen_kwargs: Mapping[str, Any], look: Any, doc_id: int, task: str, split: str
    ) -> Question:
        generation, until = read_generation(gen_kwargs, self.max_new_tokens)
        documents = self.task_dict[task][split]

        def look_at() -> Sequence[Any]:
            try:
                return look(documents[doc_id]) or ()
            except SystemExit as error:  # how ActivityNet-QA's task says that a clip is missing
                raise DataError(f"the task gave up ({one_line(error)})") from error

        return Question(document(task, doc_id), context, look_at, generation, until)

    def generate_until(self, requests: "list[Instance]") -> Iterator[str]:
        """Answer in request order; what was answered before a crash has been given."""
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # lmms-eval sets it: what is missing of an image would be black
        questions = self.questions(requests)
        failed = self.answerer.counts.failures.copy()  # those that could not be read
        asked = [question for question in questions if question.id not in failed]
        self.timed_questions = asked[:TIMED_QUESTIONS]
        answers = (text.translate(_CONTROL_CHARACTERS) for text in self.answerer.answer(asked))
        return ("" if question.id in failed else next(answers) for question in questions)

    def generate_until_multi_round(self, requests: "list[Instance]") -> list[str]:
        """Not supported."""
        raise SettingsError("a task of several rounds cannot be evaluated: choose one of single questions")

    def loglikelihood(self, requests: "list[Instance]") -> list[tuple[float, bool]]:
        """Not supported."""
        raise SettingsError("a task scored by likelihoods cannot be evaluated: choose the one that generates answers")


def read_generation(gen_kwargs: Mapping[str, Any], limit: int | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A task's generation keywords as those of `generate`, of at most `limit` new tokens, and where answers end.

    The task's own are not changed, for lmms-eval keys its store by them.

    Raises:
        SettingsError: A keyword is not understood.
    """
    given = {key: value for key, value in gen_kwargs.items() if key not in _IGNORED_GENERATION}
    until = given.pop("until", None) or ()
    unknown = [key for key in given if key not in _PASSED_GENERATION]
    if unknown:
        raise SettingsError(
            f"the task's generation keyword {unknown[0]!r} is not understood: choose from"
            f" {', '.join(_PASSED_GENERATION)}"
        )
    generation = {key: value for key, value in given.items() if value is not None}
    if not generation.get("temperature"):  # greedy: what shapes a distribution has no meaning
        for key in ("temperature", "top_p", "top_k"):
            generation.pop(key, None)
        generation["do_sample"] = False
    generation.setdefault("max_new_tokens", DEFAULT_NEW_TOKENS)
    generation["max_new_tokens"] = min(generation["max_new_tokens"], limit or generation["max_new_tokens"])
    return generation, (until,) if isinstance(until, str) else tuple(until)


def gathered_counts(adapter: VoCoLlamaAdapter) -> Counts:
    """What answering took in all processes together; seconds are those of the slowest."""
    counts = [adapter.answerer.counts]
    if adapter.world_size > 1:
        import torch

        counts = [Counts()] * adapter.world_size
        torch.distributed.all_gather_object(counts, adapter.answerer.counts)
    return Counts(
        sum(c.answers for c in counts),
        sum(c.compressed for c in counts),
        sum(c.visuals for c in counts),
        max(c.seconds for c in counts),
        max(c.model_seconds for c in counts),
        {id: error for c in counts for id, error in c.failures.items()},
        {id: looked for c in counts for id, looked in c.looked.items()},
    )
