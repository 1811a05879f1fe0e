"""A real browser for the tests: headless Chromium (Debian's chromium and chromium-driver), by selenium."""

import shutil
from contextlib import contextmanager

import pytest

pytest.importorskip("selenium", reason="pages are tested in a browser only with selenium")
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("no Chromium: apt-get install chromium chromium-driver", allow_module_level=True)

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1400,1000"
).split()


@contextmanager
def open_browser(profile):
    """Chromium, with its messages and requests logged."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def run_script(browser, script, given):
    """Run a script on an empty page; it reads what is given as `given`."""
    browser.get("about:blank")
    return browser.execute_script(f"const given = arguments[0]; {script}", given)


def emulate(browser, feature, value):
    media = {"features": [{"name": feature, "value": value}]} if feature else {"media": value}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def by_id(browser, name):
    return browser.find_element(By.ID, name)


def text(browser, name):
    return by_id(browser, name).text


def table(browser, name):
    """The cells of a table's body."""
    return browser.execute_script(f"return [...{name}.tBodies[0].rows].map(r => [...r.cells].map(c => c.textContent))")


def press(browser, *keys):
    ActionChains(browser).send_keys(*keys).perform()


def shown(browser, script, value):
    """Wait until a script gives a value: the browser tells the page of new colours a moment later."""
    WebDriverWait(browser, 5, 0.05).until(lambda _: browser.execute_script(script) == value, f"{script}: not {value}")
