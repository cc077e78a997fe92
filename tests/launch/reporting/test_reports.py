"""The reports of all tasks in a browser: accessibility, narrow screens, dark mode."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from launch.engine import config as configs
from launch.runs.run import run
from tasks.common.data.paths import Paths
from tests.launch.browser import launched, needs_browser
from tests.launch.own_data import CASES, SMALL
from tests.tasks.contract import GENERATED, TASKS

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


@pytest.fixture(scope="module", params=TASKS)
def report(request, tmp_path_factory):
    """Trains a task for two steps; returns the path of its report."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in GENERATED:
        file, changes, _ = GENERATED[request.param]
        changes = {**SMALL, **changes}
    else:
        case = CASES[request.param]
        (folder / "data").mkdir()
        case.write(folder / "data")
        file, changes = case.config, case.overrides(folder / "data")
    config = configs.override(configs.load_file(file), changes)
    paths = Paths(folder / "prepared", folder / "cache", None)
    run(config, folder / "run", paths, f"python -m launch.train --config={file}")
    return folder / "run" / "report.html"


@pytest.fixture
def opened(browser, report):
    """Opens the report at a width and in a mode."""
    contexts = []

    def opened(width, mode):
        viewport = {"width": width, "height": 844}
        contexts.append(browser.new_context(viewport=viewport, color_scheme=mode))
        page = contexts[-1].new_page()
        page.goto(report.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_no_rule_of_accessibility_is_violated(opened, mode):
    found = axe.Axe().run(opened(390, mode)).response
    assert len(found["passes"]) > 10
    violations = [
        (rule["id"], rule["impact"], node["html"])
        for rule in found["violations"]
        for node in rule["nodes"]
        if rule["impact"] in ("serious", "critical")
    ]
    assert not violations


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_scrolls_sideways(opened, width):
    page = opened(width, "light")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Neither is anything cut off, except in boxes that scroll.
    wide = page.evaluate("""[...document.querySelectorAll("main *")].filter(
        one => !one.closest(".scroll") && one.getBoundingClientRect().right > innerWidth + 1
    ).map(one => one.outerHTML.slice(0, 80))""")
    assert wide == []


def test_drawings_follow_the_mode(opened):
    shades = {}
    for mode in ("light", "dark"):
        # The training curves.
        image = opened(1280, mode).locator(".panel img").first.screenshot()
        pixels = np.asarray(Image.open(io.BytesIO(image)).convert("L"), float)
        shades[mode] = np.median(pixels), np.quantile(pixels, [0.002, 0.998])
    (paper, (ink, _)), (dark_paper, (_, light_ink)) = shades["light"], shades["dark"]
    assert paper > 240
    assert ink < 90
    assert dark_paper < 40
    assert light_ink > 170


def test_all_that_a_reader_asks_for_is_there(report):
    page = report.read_text(encoding="utf-8")
    assert re.search(r"<p>[\d,]+ examples?, evaluated once at the best step", page)
    assert re.search(r"Of the [\d,]+ examples of the test split: .*seed 0", page)
    assert "best step" in page or "data:image/svg" in page
    images = re.findall(r"<img[^>]*>", page)
    assert images
    assert all(re.search(r'alt="[^"]{10,}"', image) for image in images)
    # No column of a table is empty.
    for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
                for row in table.split("<tr")[2:]]  # fmt: skip
        for column in zip(*rows, strict=True):
            assert any(cell.strip() for cell in column), table
