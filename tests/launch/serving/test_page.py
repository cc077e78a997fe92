"""The page in a headless browser: no console errors, narrow screens, the keyboard, dark mode."""

import contextlib
import threading

import pytest
import uvicorn

from launch.serving import server as servers
from launch.serving.app import Application
from launch.serving.models import Model
from launch.serving.options import Options
from tests.launch.browser import launched, needs_browser
from tests.launch.serving.conftest import NAME

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.slow, needs_browser]


@contextlib.contextmanager
def serve(export):
    """Serves a model on a free port; yields its address."""
    opened = servers.listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(Application({NAME: export}, Options(max_batch=2)).asgi(), log_config=None)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{opened.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def address(export):
    with serve(export) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


@pytest.fixture(params=["light", "dark"])
def page(browser, address, request):
    """Opens the page on a narrow screen, and fails at the end if the console has errors."""
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme=request.param
    )
    context.set_default_timeout(90_000)
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text)
            if message.type in ("error", "warning") else None)  # fmt: skip
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda failed: errors.append(failed.url))
    page.goto(address)
    page.wait_for_selector("#send:not([disabled])")
    yield page
    context.close()
    # Browsers log each response that refuses an input.
    assert not [error for error in errors if "status of 422" not in error]


def test_inputs_are_sent_once_the_model_is_compiled(browser, export, monkeypatch):
    compiled, compile_programs = threading.Event(), Model._compile

    def held(model):
        compiled.wait(60)
        compile_programs(model)

    monkeypatch.setattr(Model, "_compile", held)
    with serve(export) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_text("is being compiled").wait_for()
        page.fill("#text", "fine lovely film")
        page.keyboard.press("Control+Enter")
        assert page.is_disabled("#send")
        assert page.is_hidden("#error")
        compiled.set()
        page.wait_for_selector("#send:not([disabled])", timeout=90_000)
        page.click("#send")
        page.wait_for_selector("#result:not([hidden])", timeout=90_000)
        page.close()


def width(page):
    return page.evaluate("document.documentElement.scrollWidth")


def test_a_text_is_answered_with_the_keyboard_alone(page, export):
    text = "fine lovely film"
    page.keyboard.press("Tab")
    for _ in range(6):
        if page.evaluate("document.activeElement.id") == "text":
            break
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type(text)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#result:not([hidden])")
    (answer,) = export([text])
    shown = page.inner_text("#bars")
    for label in answer["probabilities"]:
        assert label in shown
    assert width(page) <= 390


def test_attention_is_shown(page):
    page.fill("#text", "fine lovely film")
    page.check("#attend")
    page.click("#send")
    page.wait_for_selector("#attention:not([hidden])")
    words = page.query_selector_all("#drawn .tokens span")
    assert [word.inner_text() for word in words] == ["fine", "lovely", "film"]
    weights = [float(word.get_attribute("title")) for word in words]
    assert sum(weights) == pytest.approx(1, abs=1e-3)
    page.click("#drawn summary")
    (first, *_) = page.query_selector_all("#drawn li")
    assert any(word in first.inner_text() for word in ("fine", "lovely", "film"))
    assert width(page) <= 390


def test_colors_have_contrast_and_follow_the_scheme(page):
    colors = page.evaluate(
        "(() => { const s = getComputedStyle(document.body);"
        " return [s.color, s.backgroundColor]; })()"
    )

    def luminance(color):
        channels = [int(n) / 255 for n in color[color.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    text, back = map(luminance, colors)
    light, dark = max(text, back), min(text, back)
    assert (light + 0.05) / (dark + 0.05) >= 7
    scheme = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (back < text) == scheme


def test_an_error_is_shown_in_one_line(page):
    page.fill("#text", "a" * 200_000)
    page.evaluate("document.getElementById('form').requestSubmit()")
    page.wait_for_selector("#error:not([hidden])")
    assert "characters" in page.inner_text("#error")
