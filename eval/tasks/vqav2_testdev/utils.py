"""VQAv2 test-dev: the answers as the VQA challenge's server takes them."""

import json
from pathlib import Path
from typing import Any

from lmms_eval.tasks._task_utils.file_utils import generate_submission_file
from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

from voco_llama.files import write_atomically

SUBMISSION = "vqav2_testdev_submission.json"


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """A question's line of the submission; the answer is normalized as LLaVA-1.5 does it before it submits."""
    return {"submission": {"question_id": doc["question_id"], "answer": EvalAIAnswerProcessor()(results[0])}}


def write_submission(results: list[dict[str, Any]], args: Any) -> None:
    """Write `<output_path>/submissions/vqav2_testdev_submission.json`; there is no score to return."""
    write_atomically(Path(generate_submission_file(SUBMISSION, args)), json.dumps(results))
