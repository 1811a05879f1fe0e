"""Ctrl-C at any moment leaves no hook on a model: the next result would be edited without a word."""

import contextlib
import itertools
import sys

import pytest
from torch.nn.modules import module as torch_module

from minibert.study import ablate_heads, capture, edit, steps

from .models import model

FILES = {steps.__file__, contextlib.__file__, torch_module.__file__}


def interrupt_at(number):
    """Return a tracer that raises KeyboardInterrupt at the line of this number, counted over all of FILES."""
    lines = itertools.count()

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in FILES or frame.f_code.co_name == "__exit__":
            return None  # no Python code can guard the first moment of __exit__
        if event == "line" and next(lines) == number:
            raise KeyboardInterrupt  # Python stops tracing then
        return trace

    return trace


@pytest.mark.filterwarnings("ignore:the edit of .* changed nothing")  # no forward runs
@pytest.mark.parametrize(
    "enter",
    [
        lambda each: capture(each, "*.probs"),
        lambda each: edit(each, {"*.probs": lambda probs: probs * 0}),
        lambda each: ablate_heads(each, [(0, 3)], "mean"),
    ],
    ids=["capture", "edit", "ablate_heads"],
)
def test_ctrl_c_leaves_no_hook_behind(enter):
    each = model(n_layers=1)
    tracing = sys.gettrace()
    for number in itertools.count():
        interrupted = None
        sys.settrace(interrupt_at(number))
        try:
            with enter(each):
                pass
        except KeyboardInterrupt as error:
            interrupted = error  # with its traceback, as an interactive session keeps it
        finally:
            sys.settrace(tracing)
        left = [name for name, part in each.named_modules() if part._forward_hooks]
        assert not left, f"line {number}"
        if interrupted is None:
            break
    assert number > 30
