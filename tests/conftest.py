"""For all tests: a fixed seed, no network, skipped tests that the machine cannot run, and shared fixtures."""

import os

# Before huggingface_hub is imported, which reads them once.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
import torch

from . import machine
from .checkpoints import saved
from .command_line import OFFICIAL, save_classifier
from .hub import files, loopback_hub

# scripts/simulate.py sets both variables. The models are tiny: a second thread makes them slower.
torch.set_num_threads(int(os.environ.get("MINIBERT_THREADS", "1")))
for name in filter(None, os.environ.get("MINIBERT_WITHOUT", "").split(",")):  # "mkl", "mkldnn"
    getattr(torch.backends, name).is_available = lambda: False
    if name == "mkldnn":
        torch.backends.mkldnn.enabled = False


def pytest_configure(config):
    try:
        machine.required()
    except ValueError as error:
        raise pytest.UsageError(f"MINIBERT_REQUIRE: {error}") from None


@pytest.hookimpl(tryfirst=True)  # before the seed is set and anything is patched
def pytest_runtest_setup(item):
    machine.skip_or_fail(item)


@pytest.fixture
def torch_as_before():
    """For scripts that set the number of threads, or ask for deterministic algorithms."""
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on loopback, empty, the only one that huggingface_hub knows; see tests/hub.py."""
    with loopback_hub(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A classifier with random weights under the official one's name, to be read only."""
    folder = tmp_path_factory.mktemp("checkpoints") / OFFICIAL
    save_classifier(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory):
    """The files of a small classifier, by name, to be put on the Hub on loopback."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    saved(folder)
    return files(folder)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """One headless Chromium for all tests of pages."""
    from .browser import open_browser  # skips where there is none

    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def show(browser, tmp_path):
    """Open a page from disk, in light colours; afterwards there must be no error in the console."""
    from .browser import emulate

    def show_page(page, name="page.html", fragment=""):
        file = tmp_path / name
        file.write_text(page, encoding="utf-8")
        browser.get(file.as_uri() + fragment)
        return browser

    emulate(browser, "prefers-color-scheme", "light")
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    yield show_page
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
