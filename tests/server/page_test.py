"""The chat page in a headless Chromium: a picture goes in, its grid is shown, the answer streams, nothing else is loaded."""

import os
import shutil
import subprocess
import time

import pytest
from conftest import png_bytes, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver")


@pytest.fixture(scope="module")
def served():
    # TESSERA_PAGE_MODEL lets the same test speak to a real model.
    server = serving(os.environ.get("TESSERA_PAGE_MODEL", "mock:echo?step_us=8000"))
    yield server
    assert server.stop()[0] == 0


@pytest.fixture()
def browser(served):
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1100,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    driver.get(served.url + "/")
    until(lambda: "session of" in driver.find_element("id", "model").text)
    yield driver
    problems = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE" and "status of 4" not in entry["message"]]
    driver.quit()
    assert not problems, problems  # a breach of the Content-Security-Policy would be one


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            value = condition()
            if value:
                return value
        except Exception:  # an element that is not there yet
            pass
        time.sleep(0.05)
    raise AssertionError("did not happen in time")


def say(browser, text):
    browser.find_element("id", "prompt").send_keys(text)
    browser.find_element("id", "send").click()


def answers(browser):
    return browser.find_elements("css selector", ".message.assistant:not(.busy)")


def test_picture_and_answer(browser, served, tmp_path):
    picture = os.environ.get("TESSERA_PAGE_PICTURE", "")
    if not picture:
        picture = str(tmp_path / "wide.png")
        open(picture, "wb").write(png_bytes(896, 448))
    browser.find_element("id", "files").send_keys(picture)
    until(lambda: "tiles" in browser.find_element("css selector", "#pictures figcaption").text)
    if "TESSERA_PAGE_PICTURE" not in os.environ:
        assert "896 × 448, 2 × 1 tiles + thumbnail: 770 tokens" in browser.find_element("css selector", "#pictures figcaption").text
        assert "1 picture, 3 tiles, 770 tokens of the session's 8,192" == browser.find_element("id", "cost").text
    shot = os.environ.get("TESSERA_PAGE_SHOTS")
    if shot:
        browser.find_element("id", "prompt").send_keys(os.environ.get("TESSERA_PAGE_QUESTION", "Describe"))
        browser.save_screenshot(shot + "/before.png")
        browser.find_element("id", "prompt").clear()
    say(browser, os.environ.get("TESSERA_PAGE_QUESTION", "Some **bold** words"))
    node = until(lambda: answers(browser))[0]
    text = node.find_element("css selector", ".text").text
    if "TESSERA_PAGE_MODEL" not in os.environ:
        assert text == "Some bold words" and node.find_element("css selector", "strong").text == "bold"
        assert "256 of pictures" in node.find_element("css selector", ".facts").text
    else:
        assert text
    if shot:
        browser.save_screenshot(shot + "/after.png")
        browser.find_element("id", "settings-toggle").click()
        browser.save_screenshot(shot + "/settings.png")
        browser.find_element("id", "settings-toggle").click()
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
        browser.set_window_size(420, 800)
        browser.find_element("id", "settings-toggle").click()
        browser.save_screenshot(shot + "/phone-dark.png")
        browser.find_element("id", "settings-toggle").click()
        browser.save_screenshot(shot + "/phone-dark-chat.png")


def test_answers_are_never_html(browser):
    hostile = '<img src=x onerror="document.title=1"><script>document.title=2</script> [x](javascript:alert(1)) <b>b</b>'
    if "TESSERA_PAGE_MODEL" in os.environ:
        pytest.skip("the echo engine says what it is told to")
    say(browser, hostile)
    node = until(lambda: answers(browser))[0].find_element("css selector", ".text")
    assert node.text == hostile
    assert not node.find_elements("css selector", "img, script, b, a") and browser.title == "Tessera"


def test_stop_button(browser, served):
    if "TESSERA_PAGE_MODEL" in os.environ:
        pytest.skip("needs a long answer")
    say(browser, "x" * 2000)
    until(lambda: browser.find_element("id", "stop").is_displayed() and len(browser.find_element("css selector", ".assistant .text").text) > 5)
    browser.find_element("id", "stop").click()
    until(lambda: answers(browser))
    assert "stopped" in browser.find_element("css selector", ".facts").text
    until(lambda: served.metric("num_requests_running") == 0)


def test_a_refused_question_comes_back(browser):
    browser.execute_script("document.getElementById('system').value = 'x'.repeat(9000)")  # longer than the session
    say(browser, "once only")
    until(lambda: "session" in browser.find_element("css selector", ".message.error").text)
    assert browser.find_element("id", "prompt").get_property("value") == "once only"
    assert browser.find_elements("css selector", ".message.user, .message.assistant") == []
    browser.execute_script("document.getElementById('system').value = ''")
    browser.find_element("id", "send").click()
    until(lambda: answers(browser))
    assert len(browser.find_elements("css selector", ".message.user")) == 1


def test_a_new_conversation_forgets_the_answer_under_way(browser, served):
    if "TESSERA_PAGE_MODEL" in os.environ:
        pytest.skip("needs a long answer")
    say(browser, "x" * 2000)
    until(lambda: len(browser.find_element("css selector", ".assistant .text").text) > 5)
    browser.find_element("id", "settings-toggle").click()
    browser.find_element("id", "new-chat").click()
    until(lambda: browser.find_element("id", "welcome").is_displayed() and served.metric("num_requests_running") == 0)
    until(lambda: browser.find_element("id", "send").is_displayed())
    assert browser.execute_script("return state.messages.length") == 0


def test_keyboard_alone(browser):
    """Tab goes through the controls, each shows where the focus is, Enter sends, Escape stops."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys
    browser.find_element("id", "prompt").send_keys("typed")
    reached = []
    for _ in range(12):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(browser.switch_to.active_element.get_attribute("id"))
    assert {"settings-toggle", "log", "files", "prompt", "send"} <= set(reached), reached
    outline = "const input = document.getElementById('files'); input.focus({focusVisible: true}); return getComputedStyle(input.nextElementSibling)"
    assert browser.execute_script(outline + ".outlineStyle") == "solid" and browser.execute_script(outline + ".width") != "1px"
    browser.find_element("id", "prompt").send_keys(Keys.ENTER)
    until(lambda: answers(browser))
    assert browser.find_element("id", "announce").get_property("textContent") == "Answer: typed"


def test_memory_is_shown_by_line(browser):
    browser.find_element("id", "settings-toggle").click()
    until(lambda: "planned" in browser.find_element("id", "memory-total").text)
    for row in browser.find_elements("css selector", "#memory tr"):
        assert row.find_element("tag name", "meter").get_attribute("aria-label") and "MiB planned" in row.text


def test_nothing_is_loaded_from_elsewhere(browser, served):
    import json
    urls = [json.loads(entry["message"])["message"].get("params", {}).get("request", {}).get("url", "") for entry in browser.get_log("performance")]
    assert not [url for url in urls if url and not url.startswith((served.url, "data:", "blob:", "chrome"))]


def test_names_and_keyboard(browser):
    """Every control has a name for screen readers, and Tab reaches the message field and the buttons."""
    unnamed = browser.execute_script("""
      return [...document.querySelectorAll('button, input, textarea, meter, label.button')].filter((e) =>
        !(e.textContent.trim() || e.getAttribute('aria-label') || (e.labels && e.labels.length))).map((e) => e.outerHTML)""")
    assert unnamed == []
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    browser.set_window_size(360, 740)
    assert browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_a_phone_in_the_dark(browser, tmp_path):
    """375 pixels: nothing is wider, the field and Send stay in sight below ten pictures, and dark is dark."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 375, "height": 667, "deviceScaleFactor": 2, "mobile": True})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    picture = tmp_path / "wide.png"
    picture.write_bytes(png_bytes(896, 448))
    for count in range(1, 11):
        browser.find_element("id", "files").send_keys(str(picture))
        until(lambda: len(browser.find_elements("css selector", "#pictures li")) == count)
    for toggled in (False, True):
        if toggled: browser.find_element("id", "settings-toggle").click()
        assert browser.execute_script("return document.documentElement.scrollWidth") == 375
        for name in ("prompt", "send", "settings-toggle"):
            box = browser.find_element("id", name).rect
            assert box["x"] >= 0 and box["x"] + box["width"] <= 375 and box["y"] >= 0 and box["y"] + box["height"] <= 667, (name, box)
    light = lambda property: sum(browser.execute_script(f"return getComputedStyle(document.body).{property}.match(/\\d+/g).slice(0, 3).map(Number)"))
    assert light("backgroundColor") < 150 < 600 < light("color")


def test_headers(served):
    headers = served.request("GET", "/")[1]
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_cuts_as_the_model_does(browser, tmp_path):
    """chooseTileGrid of the page against `tessera tile --sizes`, over many sizes."""
    import random
    from conftest import TESSERA
    chance = random.Random(7)
    rows = []
    for _ in range(3000):
        least = chance.choice((1, 1, 1, 2, 4))
        rows.append((chance.randrange(1, 5000), chance.randrange(1, 5000), chance.choice((224, 448)), least, chance.randrange(least, 41), chance.randrange(2)))
    rows += [(k * 448, 448, 448, 1, 12, 1) for k in range(1, 15)] + [(448, k * 224, 448, 1, 12, 1) for k in range(1, 15)]
    table = tmp_path / "sizes.tsv"
    table.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    printed = subprocess.run([TESSERA, "tile", "--sizes", str(table)], capture_output=True, text=True, check=True).stdout.splitlines()
    expected = [list(map(int, line.split("\t")[6:])) for line in printed]
    found = browser.execute_script("""
      return arguments[0].map(([w, h, size, low, high, thumbnail]) => {
        const grid = chooseTileGrid(w, h, size, low, high, thumbnail === 1);
        return [grid.columns, grid.rows, grid.tiles];
      })""", rows)
    assert found == expected
