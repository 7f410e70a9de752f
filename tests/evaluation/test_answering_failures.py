"""Whatever a question fails with is the question's, but for a device that is lost."""

from types import SimpleNamespace

import pytest
import torch

from voco_llama.errors import DataError, SettingsError
from voco_llama.evaluation.answering import Answerer
from voco_llama.evaluation.questions import Question
from voco_llama.inference import Inference


def answerer(**settings):
    config = SimpleNamespace(condition="voco", num_voco=2, compressor="language_model")
    stub = SimpleNamespace(config=config, check_num_voco=lambda num_voco: None)
    return Answerer(Inference(stub, None), **settings)


def failing(error):
    def look():
        raise error

    return [Question("q 0", "?", look)]


@pytest.mark.parametrize(
    "error",
    [
        SyntaxError("not a TIFF file (header b'no tiff ' not valid)"), AssertionError("gt_ans"), KeyError("image"),
        IndexError("list index out of range"), AttributeError("no 'convert'"), TypeError("NoneType"), MemoryError(),
        ValueError("bad\nvalue"), SettingsError("too long"), ZeroDivisionError("by zero"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_any_exception_is_named_or_listed(error):
    with pytest.raises(DataError, match=rf"^q 0: cannot be answered \({type(error).__name__}: ") as caught:
        list(answerer().answer(failing(error)))
    assert "\n" not in str(caught.value)
    one = answerer(go_on=True)
    assert list(one.answer(failing(error))) == [""]
    assert list(one.counts.failures) == ["q 0"]


def test_a_lost_device_ends_it_even_where_the_rest_would_go_on():
    """Else each of the remaining questions would be listed as failed, and the rest scored."""
    lost = torch.AcceleratorError("CUDA error: device-side assert triggered")
    with pytest.raises(DataError, match=r"^q 0: the device was lost \(AcceleratorError: CUDA error: .*same command"):
        list(answerer(go_on=True).answer(failing(lost)))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_end_that_was_asked_for_is_no_failure(error):
    with pytest.raises(error):
        list(answerer(go_on=True).answer(failing(error())))
