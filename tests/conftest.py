"""What every test starts from: a fixed seed, and no network."""

import os

# Before huggingface_hub is imported, which reads them once.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: a second thread would only wait for the first


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
