"""The laboratory in a real browser: what a reader does, and what the page then shows."""

import json
import re

import pytest
import torch

from minibert import DEMO
from minibert.study import attention_lab
from minibert.study.walk import SENTENCES

from .command_line import load
from .models import model as random_model
from .test_lab_model import METHODS, USUAL, edited
from .test_page import full_tokenizer

pytest.importorskip("selenium", reason="pages are tested in a browser only with selenium")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from .browser import by_id, emulate, press, shown, table, text

LIVE = "</script><img src=x onerror=pwned=1>\u202e{{data}} <b>nice</b>"


@pytest.fixture(scope="module")
def demo():
    model, tokenizer = load(DEMO)
    return model.double(), tokenizer


@pytest.fixture(scope="module")
def page(demo):
    return attention_lab(*demo)


def batch(demo, texts=SENTENCES):
    inputs = demo[1](list(texts), padding=True, return_tensors="pt")
    return inputs.input_ids, inputs.attention_mask


def expected(demo, ids, bits, **changes):
    """Python's steps for the same batch, bits and changes."""
    return edited(demo[0], ids, bits, USUAL | changes)


def assert_logits(browser, steps):
    shown = [[row[2] for row in table(browser, "logits")]]
    assert [number(cell) for cell in shown[0]] == pytest.approx(
        steps["classifier"].flatten().tolist(), abs=5.1e-5, nan_ok=True
    )


def number(cell):
    return float(cell.replace("−", "-"))


def buttons(browser, kind, row):
    return browser.find_elements(By.CSS_SELECTOR, f"#batch .{kind}[data-row='{row}']")


def bits_shown(browser, row=0):
    return [int(button.text) for button in buttons(browser, "bit", row)]


def click(browser, name):
    browser.execute_script(f"document.getElementById('{name}').click()")


def run_number(browser, number):
    browser.execute_script(f"document.getElementById('runs').children[{number}].click()")


def choose(browser, name, value):
    Select(by_id(browser, name)).select_by_value(value)


def test_the_four_runs_have_the_logits_of_python(show, demo, page):
    browser = show(page)
    ids, bits = batch(demo)
    alone = ids[:1, :8]
    ones = torch.ones_like(alone)
    runs = [(alone, ones, "none"), (alone, ones, "finfo.min"), (ids, bits, "none"), (ids, bits, "finfo.min")]
    for i, (run_ids, run_bits, method) in enumerate(runs):
        run_number(browser, i)
        assert_logits(browser, expected(demo, run_ids, run_bits, method=method))
        pressed = browser.execute_script(
            "return [...document.getElementById('runs').children].map(b => b.getAttribute('aria-pressed'))"
        )
        assert pressed == [str(i == j).lower() for j in range(4)]
        moved = {row[3] for row in table(browser, "logits")}
        assert moved == ({"+0.3016", "−0.3280", "0"} if i == 2 else {"0"})
    run_number(browser, 2)
    assert "Row 0: the logit of POSITIVE moved by −0.3280." in text(browser, "notice")
    assert [row[1] for row in table(browser, "drift")] == ["0", "0"]
    assert [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#drift .first")] == ["0.5203"]
    run_number(browser, 3)
    assert text(browser, "notice") == "Every row has the logits of its own run."


def test_bits_are_flipped_by_mouse_drag_and_keyboard(show, demo, page):
    browser = show(page)
    ids, bits = batch(demo)
    row = buttons(browser, "bit", 0)
    row[4].click()  # nice
    bits[0, 4] = 0
    assert bits_shown(browser) == bits[0].tolist()
    assert_logits(browser, expected(demo, ids, bits))
    assert row[4].get_attribute("aria-label") == "mask of row 0, slot 4, nice: 0"
    ActionChains(browser).click_and_hold(row[8]).move_to_element(row[9]).move_to_element(row[11]).release().perform()
    bits[0, [8, 9, 11]] = 1
    hidden = bits_shown(browser)
    assert hidden[8:12] in ([1, 1, 0, 1], [1, 1, 1, 1])  # a fast drag may jump over a bit
    bits[0] = torch.tensor(hidden)
    assert_logits(browser, expected(demo, ids, bits))
    browser.execute_script("arguments[0].focus()", row[0])
    ActionChains(browser).send_keys(Keys.SPACE).perform()
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.ARROW_RIGHT * 2).key_up(Keys.SHIFT).perform()
    assert bits_shown(browser)[:4] == [0, 0, 0, 1]
    press(browser, Keys.ARROW_UP)
    press(browser, Keys.ENTER)
    assert "query 2, is" in text(browser, "numbers-title")
    press(browser, Keys.ARROW_DOWN * 3)
    focused = browser.switch_to.active_element
    assert focused.get_attribute("aria-label") == "mask of row 1, slot 2, what: 1"
    assert browser.execute_script("return document.querySelectorAll('#batch [tabindex=\"0\"]').length") == 1
    click(browser, "reset")
    assert bits_shown(browser) == [1] * 8 + [0] * 5


@pytest.mark.parametrize("precision", ["float64", "float16"])
def test_every_method_shows_the_logits_of_python(show, demo, page, precision):
    browser = show(page)
    ids, bits = batch(demo)
    bits[0, 4] = 0
    browser.execute_script("arguments[0].click()", buttons(browser, "bit", 0)[4])
    choose(browser, "precision", precision)
    for method in METHODS:
        choose(browser, "method", method)
        assert_logits(browser, expected(demo, ids, bits, method=method, precision=precision))
    assert ("Emulated: only the scores" in text(browser, "notice")) == (precision == "float16")


def test_a_row_with_nothing_left_is_explained(show, demo, page):
    flip = ",".join(f"0t{i}" for i in range(8))
    browser = show(page, fragment=f"#flip={flip}")
    ids, bits = batch(demo)
    bits[0] = 0
    for method, word in (
        ("finfo.min", "uniform"),
        ("-inf", "NaN"),
        ("multiply", "zeros"),
        ("-1e4", "without a mask"),
        ("rows", "uniform"),
    ):
        choose(browser, "method", method)
        notice = text(browser, "notice")
        assert "Row 0: every bit is 0, so no key is left." in notice
        assert word in notice
        assert_logits(browser, expected(demo, ids, bits, method=method))


def test_padding_on_either_side_and_any_token_in_it(show, demo, page):
    browser = show(page)
    ids, bits = batch(demo)
    click(browser, "add-pad")
    click(browser, "add-pad")
    click(browser, "remove-pad")
    ids, bits = (torch.nn.functional.pad(x, (0, 1)) for x in (ids, bits))
    choose(browser, "method", "none")
    assert_logits(browser, expected(demo, ids, bits, method="none"))
    buttons(browser, "token", 0)[9].click()
    field = by_id(browser, "token")
    field.clear()
    field.send_keys("terrible", Keys.ENTER)
    ids[0, 9] = demo[1].vocab["terrible"]
    assert buttons(browser, "token", 0)[9].text == "terrible"
    assert_logits(browser, expected(demo, ids, bits, method="none"))
    field.clear()
    field.send_keys("a nice day", Keys.ENTER)
    assert text(browser, "notice") == "“a nice day” is 3 tokens, and a slot holds one: try nice, ##s or [MASK]"
    click(browser, "left")
    choose(browser, "method", "finfo.min")
    left_ids = torch.stack([ids[0].roll(6), ids[1].roll(1)])
    left_bits = torch.stack([bits[0].roll(6), bits[1].roll(1)])
    assert [button.text for button in buttons(browser, "token", 0)][:3] == ["[PAD]", "terrible", "[PAD]"]
    assert_logits(browser, expected(demo, left_ids, left_bits))
    assert "Padding on the left" in text(browser, "notice")
    buttons(browser, "token", 0)[6].click()
    assert not by_id(browser, "token").is_enabled()  # [CLS] is not padding


def test_a_head_is_knocked_out_and_scaled(show, demo, page):
    browser = show(page)
    ids, bits = batch(demo)
    browser.execute_script("document.querySelectorAll('#grid button')[6].click()")
    click(browser, "off")
    browser.execute_script("document.querySelectorAll('#grid button')[1].click()")
    browser.execute_script("scale.value = 2.5; scale.dispatchEvent(new Event('input'))")
    assert_logits(browser, expected(demo, ids, bits, off=["1.2"], scale={"0.1": 2.5}))
    labels = [b.get_attribute("aria-label") for b in browser.find_elements(By.CSS_SELECTOR, "#grid button")]
    assert labels[6] == "layer 1, head 2, 0 to padding, knocked out"
    assert labels[1] == "layer 0, head 1, 0 to padding, scores ×2.5 "
    assert text(browser, "scale-value") == "2.5"


def test_numbers_of_a_query_and_shares_are_those_of_python(show, demo, page):
    browser = show(page)
    run_number(browser, 2)
    ids, bits = batch(demo)
    steps = expected(demo, ids, bits, method="none")
    probs = steps["distilbert.transformer.layer.0.attention.probs"]
    buttons(browser, "token", 0)[3].click()
    rows = table(browser, "numbers")
    assert [row[0] for row in rows][3:9] == ["3 a", "4 nice", "5 day", "6 !", "7 [SEP]", "8 [PAD]"]
    assert [number(row[4]) for row in rows] == pytest.approx(probs[0, 3, 3].tolist(), abs=5.1e-5)
    assert {row[2] for row in rows} == {"none"}
    assert f"[PAD] gets {probs[0, 3, 3, 8:].sum():.1%}" in text(browser, "numbers-note")
    captions = [span.text for span in browser.find_elements(By.CSS_SELECTOR, "#grid span")]
    assert captions[:4] == [f"{probs[0, head, :8, 8:].sum(-1).mean():.1%}" for head in range(4)]
    run_number(browser, 3)
    rows = table(browser, "numbers")
    assert [row[2] for row in rows] == ["0"] * 8 + ["−1.8e+308"] * 5
    assert [row[4] for row in rows][8:] == ["0"] * 5  # exactly
    assert [row[4] for row in rows][:8] == [row[5] for row in rows][:8]  # as in its own run


def test_a_prediction_is_asked_for_before_the_answer_is_shown(show, page):
    browser = show(page)
    click(browser, "predict")
    run_number(browser, 2)
    assert text(browser, "asked") == "Row 0: the logit of POSITIVE was 2.5436. Which way does it go?"
    assert not by_id(browser, "logits").is_displayed()
    assert "moved" not in text(browser, "notice")
    browser.find_element(By.CSS_SELECTOR, "#question [value='-1']").click()
    assert text(browser, "verdict") == "Right: it moved by −0.3280, to 2.2156."
    assert by_id(browser, "logits").is_displayed()
    run_number(browser, 3)
    browser.find_element(By.CSS_SELECTOR, "#question [value='0']").click()
    assert text(browser, "verdict") == "Not so: it moved by +0.3280, to 2.5436."
    browser.execute_script("document.querySelectorAll('#grid button')[5].click()")  # another view, the same batch
    assert by_id(browser, "logits").is_displayed()


def test_the_tour_tells_the_lesson_in_six_steps(show, page):
    browser = show(page)
    by_id(browser, "tour").click()
    told = []
    for step in range(6):
        assert text(browser, "guide-title").startswith(f"{step + 1} of 6: ")
        told.append(text(browser, "guide-text"))
        by_id(browser, "next").click()
    assert not by_id(browser, "guide").is_displayed()
    for sentence, numbers in zip(
        told, (["2.5436"], ["2.5436"], ["−0.3280"], ["67.6%"], ["2.5436"], ["NaN"]), strict=True
    ):
        assert all(n in sentence for n in numbers), sentence
    assert {row[2] for row in table(browser, "logits")[:2]} == {"NaN"}


def test_a_link_restores_the_state_and_a_broken_one_says_what_it_could_not_read(show, demo, page):
    browser = show(page)
    browser.execute_script("arguments[0].click()", buttons(browser, "bit", 0)[4])
    choose(browser, "precision", "bfloat16")
    click(browser, "add-pad")
    browser.execute_script("document.querySelectorAll('#grid button')[7].click(); scale.value = 0.5;")
    browser.execute_script("scale.dispatchEvent(new Event('input'))")
    see = "return [batch.innerText, logits.innerText, numbers.innerText, grid.innerText, precision.value]"
    before = browser.execute_script(see)
    shown(browser, "return location.hash.includes('scale=1.3')", True)
    fragment = browser.execute_script("return location.hash")
    assert browser.execute_script("return state.value") == fragment
    assert browser.execute_script("return localStorage.length + sessionStorage.length") == 0
    assert before == show(page, "other.html", fragment).execute_script(see)
    run_number(browser, 0)
    field = by_id(browser, "state")
    field.clear()
    field.send_keys(fragment, Keys.ENTER)
    assert browser.execute_script(see) == before
    browser = show(page, "broken.html", "#method=magic&pads=-3&put=0p0:99999999&flip=9t1,x&who=<b>&at=1&scale=0.0:NaN")
    notice = text(browser, "notice")
    for part in ("method=magic", "pads=-3", "put=0p0:99999999", "flip=9t1,x", "who=<b>", "at=1", "scale=0.0:NaN"):
        assert part in notice
    assert_logits(browser, expected(demo, *batch(demo)))


def test_texts_are_tokenized_as_they_are_typed(show, demo, page):
    browser = show(page)
    for row, typed in ((0, LIVE), (1, "naïve 漢字 " * 2000)):
        set_text = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        browser.execute_script(set_text, by_id(browser, f"text-{row}"), typed)
    click(browser, "add-text")
    ids, bits = (
        demo[1]([LIVE, "naïve 漢字 " * 2000, "a good film"], padding=True, truncation=True, return_tensors="pt")[name]
        for name in ("input_ids", "attention_mask")
    )
    assert ids.shape == (3, 128)
    for row in range(3):
        tokens = [button.get_attribute("textContent") for button in buttons(browser, "token", row)]
        assert tokens == demo[1].convert_ids_to_tokens(ids[row].tolist())
    assert_logits(browser, expected(demo, ids, bits))
    assert "Text 1 is truncated to the 128 tokens" in text(browser, "notice")
    browser.find_elements(By.CSS_SELECTOR, ".text button")[1].click()
    rows = [0, 2]
    assert_logits(browser, expected(demo, ids[rows], bits[rows]))
    assert (
        browser.execute_script("return typeof pwned + document.images.length + document.scripts.length")
        == "undefined02"
    )


def test_labels_that_are_markup_stay_text(show):
    model = random_model("DistilBertForSequenceClassification", id2label={0: LIVE, 1: "b", 2: "c"})
    browser = show(attention_lab(model, full_tokenizer(), [LIVE, "a"], title=LIVE))
    assert [row[0] for row in table(browser, "logits")][:2] == [f"0 {LIVE}", "0 b"]
    assert browser.execute_script("return typeof pwned + document.images.length") == "undefined0"


def test_the_page_asks_for_nothing(show, page):
    browser = show(page)
    run_number(browser, 2)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        m["params"]["request"]["url"].split("#")[0] for m in messages if m["method"] == "Network.requestWillBeSent"
    }
    assert asked - {"about:blank", "data:,"} == {browser.current_url.split("#")[0]}
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_nothing_moves_when_a_bit_is_flipped(show, page):
    browser = show(page)
    places = """return [...document.querySelectorAll('section, table, canvas, .bar, #notice')].map(e => {
        const { x, y, width, height } = e.getBoundingClientRect(); return [e.id, x, y, width, height].join(' '); })"""
    before = browser.execute_script(places)
    for act in ("document.querySelectorAll('.bit')[4].click()", "document.querySelectorAll('.bit')[8].click()"):
        browser.execute_script(act)
        assert browser.execute_script(places) == before
    choose(browser, "method", "none")
    assert browser.execute_script(places) == before


def test_phones_dark_screens_and_paper(show, page):
    browser = show(page)
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    emulate(browser, "prefers-color-scheme", "dark")
    shown(browser, "return getComputedStyle(document.documentElement).backgroundColor", "rgb(20, 24, 29)")
    pixel = "return [...document.querySelector('#grid canvas').getContext('2d').getImageData(12, 0, 1, 1).data]"
    shown(browser, pixel, [27, 32, 39, 255])
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    shown(browser, pixel, [246, 248, 251, 255])
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    emulate(browser, None, "print")
    assert not by_id(browser, "runs").is_displayed()
    assert by_id(browser, "logits").is_displayed()
    emulate(browser, None, "")


def test_every_control_has_a_name_for_screen_readers(show, page):
    browser = show(page)
    controls = browser.find_elements(By.CSS_SELECTOR, "input, select, button, section, aside")
    assert [e.get_attribute("outerHTML")[:90] for e in controls if e.is_displayed() and not e.accessible_name] == []


def test_a_flipped_bit_of_two_texts_of_32_tokens_is_shown_at_once(show, demo):
    """The best of ten, since other programs run too."""
    texts = [" ".join(["a good film and a nice day"] * 4) + " today is"] * 2
    assert demo[1](texts).input_ids[0].__len__() == 32
    browser = show(attention_lab(*demo, texts))
    taken = browser.execute_script("""
        return Array.from({ length: 10 }, (_, i) => {
          const start = performance.now();
          document.querySelectorAll(".bit")[i + 1].click();
          document.body.offsetHeight;  // the layout too
          return performance.now() - start;
        });""")
    assert min(taken) < 50, taken


def test_a_notebook_shows_it_in_a_frame_of_its_own(show, page):
    browser = show(f'<!DOCTYPE html><body style="margin: 0; width: 1100px">{page._repr_html_()}')
    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
    shown(browser, "return document.documentElement.clientHeight >= document.body.offsetHeight", True)
    run_number(browser, 2)
    shown(browser, "return state.value.startsWith('#text=Today')", True)  # no address of its own: the text is enough
    assert re.search("moved by −0.3280", text(browser, "notice"))
    parts = "return [...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth).length"
    assert browser.execute_script(parts) == 0
    browser.switch_to.default_content()
