"""What tests of whole evaluations share: saved checkpoints, and answers as they were written down."""

import json

from tests.tiny import tiny_model
from voco_llama.evaluation.results import read_result


def save(folder, processor, **model):
    tiny_model(processor, **model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def lines_of(file):
    answers = file.with_name(read_result(file)["answers_file"]).read_text(encoding="utf-8")
    return [json.loads(line) for line in answers.splitlines()]
