"""The instrument: it reads and edits what the model computes; the model knows nothing of it."""

from .attribution import gradient_times_input, integrated_gradients, logit_lens, rollout
from .interventions import ablate_heads, patch
from .steps import capture, capture_nbytes, edit

__all__ = [
    "ablate_heads",
    "capture",
    "capture_nbytes",
    "edit",
    "gradient_times_input",
    "integrated_gradients",
    "logit_lens",
    "patch",
    "rollout",
]
