"""The instruments: they read and edit what the model computes. The model does not import them."""

from .attribution import gradient_times_input, integrated_gradients, logit_lens, rollout
from .audit import audit
from .compare import compare, compare_checkpoint
from .diagnose import diagnose
from .figure import attention_figure
from .flips import label_flips
from .interventions import ablate_heads, patch
from .lab import attention_lab
from .leak import check_pad_invariance, leak_routes, mask_only, renormalisation
from .masks import compare_masks
from .padding import left_padding, pad_mass, padding_cost, padding_drift, precision_ladder
from .page import attention_page
from .steps import capture, edit
from .trace import trace
from .walk import walk

__all__ = [
    "ablate_heads",
    "attention_figure",
    "attention_lab",
    "attention_page",
    "audit",
    "capture",
    "check_pad_invariance",
    "compare",
    "compare_checkpoint",
    "compare_masks",
    "diagnose",
    "edit",
    "gradient_times_input",
    "integrated_gradients",
    "label_flips",
    "leak_routes",
    "left_padding",
    "logit_lens",
    "mask_only",
    "pad_mass",
    "padding_cost",
    "padding_drift",
    "patch",
    "precision_ladder",
    "renormalisation",
    "rollout",
    "trace",
    "walk",
]
