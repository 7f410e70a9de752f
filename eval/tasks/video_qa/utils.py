"""Open-ended questions on clips: where a clip lies, and Video-ChatGPT's judge.

The judge is asked through lmms-eval's `llm_judge`. lmms-eval tries a scoring function that raises four times more and
then raises an error that does not name the question. So a question that the judge fails on is written down, and the
aggregation raises; and after the first question without any answer the judge is not asked again, since each would take
minutes of waiting. Each loading of a task makes this module anew, and so begins with nothing written down.
"""

import ast
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.llm_judge import Request, ServerConfig, get_server

from voco_llama.data.media.roots import resolve_inside
from voco_llama.errors import DataError, VoCoError, one_line

MAX_SCORE = 5
MAX_JUDGE_TOKENS = 64
CHAT_PATH = "/chat/completions"
INSTRUCTIONS = (
    "You are an intelligent chatbot designed for evaluating the correctness of generative outputs for question-answer"
    " pairs. Your task is to compare the predicted answer with the correct answer and determine if they match"
    " meaningfully. Here's how you can accomplish the task:------##INSTRUCTIONS: - Focus on the meaningful match"
    " between the predicted answer and the correct answer.\n- Consider synonyms or paraphrases as valid matches.\n-"
    " Evaluate the correctness of the prediction compared to the answer."
)
PAIR = (
    "Please evaluate the following video-based question-answer pair:\n\nQuestion: {question}\nCorrect Answer:"
    " {answer}\nPredicted Answer: {prediction}\n\nProvide your evaluation only as a yes/no and score where the score"
    " is an integer value between 0 and 5, with 5 indicating the highest meaningful match. Please generate the"
    " response in the form of a Python dictionary string with keys 'pred' and 'score', where value of 'pred' is  a"
    " string of 'yes' or 'no' and value of 'score' is in INTEGER, not STRING.DO NOT PROVIDE ANY OTHER OUTPUT TEXT OR"
    " EXPLANATION. Only provide the Python dictionary string. For example, your response should look like this:"
    " {{'pred': 'yes', 'score': 4.8}}."
)
"""Both texts are Video-ChatGPT's, to the letter."""
_without_reply: list[str] = []


def doc_to_visual(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> list[str]:
    """The path of the question's clip.

    Raises:
        DataError: The clip is not there, or lies outside the data set's folder of clips.
    """
    named = Path(lmms_eval_specific_kwargs["videos"])
    folder = named.parent.resolve() / named.name  # of the hub that the working directory links to
    path = resolve_inside(folder, doc["video"], _name(doc))
    if not path.is_file():
        raise DataError(
            f"{_name(doc)}: no clip {doc['video']!r} in {folder}: put it there, or run `voco-llama data prepare` again"
        )
    return [str(path)]


def judge_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The judge's verdict on an answer, or the `error` that there is none; the same for both metrics."""
    entry = {name: doc[name] for name in ("video_name", "question_id", "question", "answer")} | {"pred": results[0]}
    try:
        entry["Correctness"], entry["score"] = read_verdict(_ask(doc, results[0]))
    except VoCoError as error:
        entry["error"] = str(error)
    return {"gpt_eval_score": entry, "gpt_eval_accuracy": entry}


def read_verdict(reply: str) -> tuple[str, int]:
    """`yes` or `no`, and a score of 0 to 5 (a fraction is cut off, as Video-ChatGPT does).

    Raises:
        VoCoError: The reply does not say both.
    """
    try:
        verdict = ast.literal_eval(re.search(r"\{.*?\}", reply, re.DOTALL)[0])
        word, score = verdict["pred"].strip().lower(), int(verdict["score"])
    except Exception as error:
        raise VoCoError(f"the judge's reply {reply!r} cannot be read ({one_line(error)})") from error
    if word not in ("yes", "no") or not 0 <= score <= MAX_SCORE:
        raise VoCoError(f"the judge's reply {reply!r} is not yes or no and a score of 0 to {MAX_SCORE}")
    return word, score


def mean_score(results: Sequence[Mapping[str, Any]]) -> float:
    """Mean score, 0 to 5.

    Raises:
        VoCoError: The judge failed on a question; it is named.
    """
    _check(results)
    return sum(result["score"] for result in results) / len(results)


def accuracy(results: Sequence[Mapping[str, Any]]) -> float:
    """Share of `yes`, in per cent.

    Raises:
        VoCoError: The judge failed on a question; it is named.
    """
    _check(results)
    return 100 * sum(result["Correctness"] == "yes" for result in results) / len(results)


def _ask(doc: Mapping[str, Any], prediction: str) -> str:
    if _without_reply:
        raise VoCoError(f"not asked, since the judge gave no reply to {_without_reply[0]}")
    pair = PAIR.format(question=doc["question"], answer=doc["answer"], prediction=prediction)
    messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": pair}]
    try:
        return _judge().evaluate(Request(messages=messages)).content
    except Exception as error:  # no connection, a refusal, a reply that is not a completion
        _without_reply.append(_name(doc))
        raise VoCoError(
            f"the judge gave no reply ({type(error).__name__}: {one_line(error)}): check API_TYPE, its address and key,"
            " and MODEL_VERSION"
        ) from error


def _judge() -> Any:
    """lmms-eval's judge; its address may end in `/chat/completions`, as the address of activitynetqa's judge must."""
    kind = os.environ.get("API_TYPE", "openai")
    judge = get_server(kind, ServerConfig(os.environ["MODEL_VERSION"], max_tokens=MAX_JUDGE_TOKENS))
    if kind == "openai":
        judge.use_client, judge.base_url = False, judge.base_url.removesuffix(CHAT_PATH)
    return judge


def _check(results: Sequence[Mapping[str, Any]]) -> None:
    failed = [result for result in results if "error" in result]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise VoCoError(f"{_name(failed[0])}{more}: {failed[0]['error']}")


def _name(doc: Mapping[str, Any]) -> str:
    return f"question {doc['question_id']!r} on clip {doc['video_name']!r}"
