"""Pages of explanations: their values, and their script in a headless browser."""

import json
import math
import re

import numpy as np
import pytest

from launch.reporting import explanation_page as pages
from launch.reporting import explanation_tables as tables
from launch.reporting import explanation_weights as weights
from tasks.explanation import AttentionMap, Axis, Explanation
from tests.launch.browser import launched, needs_browser
from tests.launch.conftest import ROOT
from tests.launch.reporting import explanations


def error(attention, kept=weights.Kept()):  # noqa: B008
    """Returns the largest error of decoded weights relative to the largest weight of the head."""
    encoded = weights.encode(attention, kept)
    L, N, T, S = attention.weights.shape
    found = []
    for number in range(L * N):
        head = attention.weights[divmod(number, N)]
        most = encoded["max"][number]
        decoded = weights.decode(encoded["heads"][number], (T, S), most, encoded["levels"])
        found.append(np.abs(decoded - head).max() / most)
    return max(found)


def test_weights_are_kept_within_the_stated_error():
    attention = AttentionMap("a", explanations.heads(2, 3, 40, 300), "t", "s")
    # A scale is rounded up by at most 1/65535 of the largest weight.
    assert error(attention) <= (1 + 1 / 65535) / 510 + 1e-6
    signed = AttentionMap("b", attention.weights - 0.1, "t", "s")
    assert error(signed) <= (1 + 1 / 65535) / 254 + 1e-6
    assert weights.encode(signed, weights.Kept())["signed"]


def test_sparse_weights_and_long_gaps():
    sparse = np.zeros((1, 1, 3, 1000), np.float32)
    sparse[0, 0, 0, 999] = 0.5
    sparse[0, 0, 2, [0, 255, 510, 765]] = 0.25
    assert error(AttentionMap("a", sparse, "t", "s")) == pytest.approx(0, abs=2e-5)


def test_what_is_missing_is_stated():
    logits = 2 * np.random.default_rng(0).normal(size=(1, 2, 64, 512))
    attention = AttentionMap("a", explanations.softmax(logits), "t", "s")
    size = sum(map(len, weights.encode(attention, weights.Kept())["heads"])) / 2
    kept = weights.choose([attention], int(size))
    assert kept.always == 8
    encoded = weights.encode(attention, kept)
    assert 0.5 * size < sum(map(len, encoded["heads"])) <= size
    missing = []
    for n in range(2):
        head = attention.weights[0, n]
        decoded = weights.decode(encoded["heads"][n], (64, 512), encoded["max"][n], 255)
        hidden = np.where(decoded == 0, head, 0)
        assert hidden.max() <= encoded["largest_missing"]
        missing.append(hidden.sum(-1) / head.sum(-1))
        largest = np.sort(head, axis=-1)[:, -3:]
        np.testing.assert_allclose(np.sort(decoded, axis=-1)[:, -3:], largest, atol=1 / 510)
    assert encoded["missing_most"] == pytest.approx(np.max(missing), rel=1e-5)
    assert encoded["missing_mean"] == pytest.approx(np.mean(missing), rel=1e-5)


def test_calibration_of_a_small_example_by_hand():
    rows = [
        {"confidence": c, "prediction": p, "target": "a", "score": 0}
        for c, p in [(0.95, "a"), (0.85, "a"), (0.85, "b"), (0.3, "b")]
    ]
    summary = tables.summarize(rows, bins=5)
    # Bins (0.2, 0.4] and (0.8, 1]: 1/4 · |0 - 0.3| + 3/4 · |2/3 - 0.8833|.
    assert summary.calibration_error == pytest.approx(0.25 * 0.3 + 0.75 * (2.65 / 3 - 2 / 3))
    assert [group.count for group in summary.bins] == [1, 3]
    assert summary.edges == [(0.2, 0.4), (0.8, 1.0)]
    assert not summary.classes


def test_tables_by_class_and_length():
    rows = [
        {"input": "w " * n, "prediction": p, "target": t, "score": 1.0, "confidence": None}
        for n, p, t in [(1, "a", "a"), (2, "b", "a"), (3, "b", "a"), (4, "b", "b"), (9, [], "b")]
    ]
    summary = tables.summarize(rows)
    assert [(group.name, group.count, group.confused) for group in summary.classes] == [
        ("a", 3, "b (2)"),
        ("b", 2, ""),
    ]
    assert summary.classes[0].accuracy == pytest.approx(1 / 3)
    assert summary.unit == "words"
    assert [group.name for group in summary.lengths] == ["1", "2", "3", "4", "9"]
    assert math.isnan(summary.calibration_error)
    assert "Calibration" not in tables.as_html(summary)


def test_examples_that_are_neither_right_nor_wrong_have_no_accuracy():
    """Translations have a degree: an equal text is not the only right one."""
    rows = [
        {"prediction": f"ein {n}", "target": f"der {n}", "confidence": n / 10, "score": 30.0 - n,
         "correct": None, "length": n} for n in range(10)
    ]  # fmt: skip
    summary = tables.summarize(rows)
    assert not summary.bins
    shown = tables.as_html(summary, "contribution to BLEU")
    assert "mean contribution to BLEU" in shown
    for word in ("Calibration", "accuracy", "most frequent error"):
        assert word not in shown


def test_the_list_has_rows_and_explanations_once():
    rows = [{"id": "a", "input": "x" * 500, "score": math.nan}, {"id": "plain", "target": [1, 2]}]
    found = tables.listed(rows, [explanations.single(), explanations.without_attention()])
    assert found["id"] == ["single", "a", "plain"]
    assert found["explained"] == [0, -1, 1]
    assert found["kind"] == ["wrong", "", "wrong"]
    assert found["score"] == [None, None, None]
    assert found["target"] == ["positive", "", "[1, 2]"]
    assert len(found["input"][1]) == 160


def test_json_has_exact_weights():
    given = [
        explanations.text(),
        explanations.series(),
        explanations.speech(),
        explanations.gates(),
    ]
    text, series, speech, gates = json.loads(json.dumps(pages.as_json(given), allow_nan=False))
    assert np.array_equal(np.float32(text["maps"][0]["weights"]), given[0].maps[0].weights)
    assert series["medium"]["past"][30] is None
    assert speech["medium"]["samples"].startswith("data:audio/wav;base64,")
    assert gates["medium"]["image"].startswith("data:image/png;base64,")
    assert np.array_equal(gates["medium"]["masks"][0][1], given[3].medium.masks[0][1])


def test_bertviz():
    found = pages.bertviz(explanations.translation())
    assert [each["name"] for each in found["attention"]] == ["encoder", "decoder", "cross"]
    for each in found["attention"]:
        expected = (2, 2, len(each["left_text"]), len(each["right_text"]))
        assert np.shape(each["attn"]) == expected
    assert found["include_layers"] == found["include_heads"] == [0, 1]
    with pytest.raises(ValueError, match="maps: got 0 different shapes"):
        pages.bertviz(explanations.without_attention())


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        (
            {"t": ["a", "b"]},
            (1, 1, 2, 3),
            r"weights of map 'm': got shape \(1, 1, 2, 3\), expected",
        ),
        ({"t": ["a", "b"]}, (0, 1, 2, 2), r"expected \[L, N, 2, 2\]"),
        ({"s": ["a", "b"]}, (1, 1, 2, 2), r"map 'm': got 't', expected one of \['s'\]"),
    ],
)
def test_maps_that_do_not_fit(axes, shape, message):
    named = {name: Axis("token", labels) for name, labels in axes.items()}
    given = Explanation("", "", "", None, "", named, [AttentionMap("m", np.ones(shape), "t", "t")])
    with pytest.raises(ValueError, match=message):
        pages.page([given], "page")


def test_statistics_have_a_value_for_each_head():
    statistics = {"pattern": np.array(["diagonal"])}
    weights_of = AttentionMap("m", np.ones((1, 1, 2, 2)), "t", "t", statistics)
    given = Explanation("", "", "", None, "", {"t": Axis("token", ["a", "b"])}, [weights_of])
    with pytest.raises(
        ValueError, match=r"'pattern' of map 'm': got shape \(1,\), expected \(1, 1\)"
    ):
        pages.page([given], "page")


def test_entropy_and_distance_of_heads_by_hand():
    corners = np.zeros((1, 2, 4, 4), np.float32)
    corners[0, 0, :, 0] = 1
    corners[0, 1, :, 3] = 1
    found = []
    for kind, areas in (("token", None), ("patch", explanations.grid(2, 2))):
        axes = {"t": Axis(kind, ["a", "b", "c", "d"], areas)}
        given = Explanation("", "", "", None, "", axes, [AttentionMap("m", corners, "t", "t")])
        page = pages.page([given], "page")
        (data,) = re.findall(r'id="run-0-0">(.*?)</script>', page, re.DOTALL)
        found.append(json.loads(data)["maps"][0])
    for each in found:
        assert each["statistics"]["entropy"] == [[0, 0]]
        np.testing.assert_allclose(each["similarity"][0][0], [0, math.log(2)], atol=1e-5)
    assert found[0]["statistics"]["mean distance"] == [[1.5, 1.5]]
    cells = (0 + 1 + 1 + math.sqrt(2)) / 4
    np.testing.assert_allclose(found[1]["statistics"]["mean distance"], [[cells] * 2], rtol=1e-4)


def test_the_page_refers_to_no_other_file():
    page = pages.page([explanations.strange(), explanations.image()], "</title><script>x()")
    assert "<script>x()" not in page
    assert "<script>alert" not in page
    addresses = set(re.findall(r"https?://[\w./]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", page)


def test_styles_and_script_are_embedded_or_in_files():
    page = pages.page([explanations.strange(), explanations.image()], "t")
    assert pages.embedded(page) == page
    short = pages.linked(page, "a.css", "b.js")
    assert 'href="a.css"' in short
    assert 'src="b.js"' in short
    assert "<style>" not in short
    assert len(page) - len(short) > 60_000
    assert pages.linked(short, "a.css", "b.js") == short
    assert pages.embedded(short) == page
    for text in ("", "<style>\n</style></head>", "<html></html>"):
        with pytest.raises(ValueError, match=r"create it with launch\.explain"):
            pages.embedded(text)


def test_pages_of_the_documentation_are_linked_and_share_styles_and_script():
    folder = ROOT / "docs" / "explained"
    found = {path.name for path in folder.glob("*.html")}
    for page in ("README.md", "docs/EXPLAIN.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert found == set(re.findall(r"explained/(\w+\.html)", text)), page
    assert (folder / "page.css").read_text(encoding="utf-8") == pages.style_sheet()
    script = "../../launch/reporting/explanation_page.js"
    assert (folder / script).is_file()
    for name in sorted(found):
        text = (folder / name).read_text(encoding="utf-8")
        assert pages.linked(text, "page.css", script) == text, f"{name}: run make results"


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pages of all synthetic explanations: with rows, and with a second run."""
    folder = tmp_path_factory.mktemp("pages")
    given, rows = explanations.everything(), explanations.rows(3000)
    rows[7]["id"] = given[0].id
    all_of = folder / "all.html"
    all_of.write_text(pages.page(given, "Explanations", rows=rows, metric="accuracy"), "utf-8")
    pair = folder / "pair.html"
    second = [explanations.text(seed=5), explanations.image()]
    names = ("small", "large")
    pair.write_text(pages.page(given[:3], "Two runs", against=second, names=names), "utf-8")
    return {"all": all_of, "pair": pair}


@pytest.fixture
def visit(browser, files):
    """Opens a page, and fails at the end if the console has messages or a request is made."""
    contexts, messages = [], []

    def visit(name="all", width=1280, mode="light", file=None):
        viewport = {"width": width, "height": 844}
        contexts.append(browser.new_context(viewport=viewport, color_scheme=mode))
        page = contexts[-1].new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: messages.append(request.url)
                if not request.url.startswith(("file:", "data:")) else None)  # fmt: skip
        page.goto((file or files[name]).as_uri())
        page.wait_for_selector("html[data-drawn]")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert messages == []


def show(page, index):
    page.evaluate(f"explanation.open({index})")
    settle(page)


def settle(page):
    """Waits until no panel decodes weights, which it does after a click or key."""
    page.wait_for_function("!document.querySelector('[aria-busy=true]')")


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_example_on_a_phone(visit, mode):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = visit(width=390, mode=mode)
    found = []
    for index in range(-1, len(explanations.everything())):
        if index >= 0:
            show(page, index)
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") == 390, index
        found += [
            (index, rule["id"], rule["impact"], node["html"][:200])
            for rule in axe.Axe().run(page).response["violations"]
            for node in rule["nodes"]
            if rule["impact"] in ("serious", "critical")
        ]
    assert not found


@needs_browser
@pytest.mark.slow
def test_weights_are_read_back(visit):
    page = visit()
    for index, each in enumerate(explanations.everything()):
        for number, attention in enumerate(each.maps):
            L, N = attention.weights.shape[:2]
            layer, head = L - 1, N - 1
            read = page.evaluate(f"explanation.weights({index}, {number}, {layer}, {head})")
            exact = attention.weights[layer, head]
            tolerance = 1.001 * exact.max() / 510 + 1e-9
            np.testing.assert_allclose(read, exact, rtol=0, atol=tolerance)


@needs_browser
@pytest.mark.slow
def test_heads_and_queries_by_keyboard_and_click(visit):
    page = visit()
    show(page, 0)
    heads = page.locator(".heads [role=radio]")
    assert heads.count() == 24
    heads.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    status = page.locator(".status")
    settle(page)
    assert page.locator(".heads [aria-checked=true]").get_attribute("aria-label") == (
        "layer 1, head 1"
    )
    page.locator(".attention .tokens span", has_text="film").click()
    settle(page)
    exact = explanations.text().maps[0].weights[1, 1, 6]
    labels = explanations.text().axes["token"].labels
    best = int(exact.argmax())
    text = status.inner_text().replace("\u2068", "").replace("\u2069", "")
    assert f"Query film. Largest weights: {labels[best]} {exact[best]:.3f}" in text
    assert page.locator(".query input").input_value() == "6"
    # The arrow keys of the slider and of the tokens choose queries too.
    page.locator(".query input").focus()
    page.keyboard.press("ArrowRight")
    settle(page)
    assert page.locator(".attention .tokens [aria-checked=true]").inner_text() == "that"
    page.locator(".attention .tokens [aria-checked=true]").focus()
    page.keyboard.press("ArrowRight")
    settle(page)
    assert page.locator(".query output").inner_text().strip("\u2068\u2069") == "never"
    page.get_by_role("button", name="Mean of all queries").click()
    settle(page)
    assert "Mean of all queries." in status.inner_text()


@needs_browser
@pytest.mark.slow
def test_a_patch_is_chosen_by_click(visit):
    page = visit()
    show(page, 2)
    image = page.locator(".attention .image")
    box = image.bounding_box()
    # The center of the cell in row 2, column 5 of 6 x 8.
    image.click(position={"x": box["width"] * 5.5 / 8, "y": box["height"] * 2.5 / 6})
    settle(page)
    assert "row 2, column 5" in page.locator(".query output").inner_text()
    # Its pixel on the canvas is colored by the weight of the key.
    exact = explanations.image().maps[0].weights[0, 0, 21]
    alpha = page.evaluate(
        "(() => { const canvas = document.querySelector('.attention .image canvas');"
        " return [...canvas.getContext('2d').getImageData(0, 0, 8, 6).data]"
        ".filter((_, n) => n % 4 === 3); })()"
    )
    np.testing.assert_allclose(np.array(alpha) / 255, 0.8 * exact / exact.max(), atol=0.01)


@needs_browser
@pytest.mark.slow
def test_two_runs_and_two_heads(visit):
    page = visit("pair")
    show(page, 0)
    assert page.locator(".attention article h4").all_inner_texts() == ["small", "large"]
    page.locator(".attention .tokens").first.locator("span", has_text="film").click()
    settle(page)
    values = page.locator(".query input")
    assert [values.nth(n).input_value() for n in range(2)] == ["6", "6"]
    show(page, 1)
    assert page.locator(".attention article").count() == 1
    page.get_by_role("button", name="Compare with a second head").click()
    page.locator(".attention article").nth(1).locator("[role=radio]").nth(3).click()
    settle(page)
    first, second = page.locator(".status").all_inner_texts()
    assert first.startswith("Layer 0, head 0.")
    assert second.startswith("Layer 1, head 1.")


@needs_browser
@pytest.mark.slow
def test_the_list_is_sorted_filtered_and_opened(visit):
    page = visit()
    status = page.locator("#list [role=status]")
    assert "of 3,012" in status.inner_text()
    page.get_by_role("button", name="confidence").click()
    header = page.locator("#list th", has_text="confidence")
    assert header.get_attribute("aria-sort") == "ascending"
    column = page.locator("#list thead th").all_inner_texts().index("confidence") + 1
    values = page.locator(f"#list tbody td:nth-child({column})").all_inner_texts()
    numbers = [float(value) for value in values]
    assert numbers == sorted(numbers)
    page.get_by_label("Kind").select_option("correct")
    page.get_by_label("Find").fill("GRIPPING")
    shown = page.locator("#list tbody tr").first.inner_text()
    assert "gripping" in shown
    assert "correct" in shown
    page.get_by_label("Find").fill("00a1")
    page.get_by_label("Kind").select_option("")
    page.locator("#list tbody button").first.focus()
    page.keyboard.press("Enter")
    page.locator("h2", has_text="00000000000000a1").wait_for()
    assert page.url.endswith("#00000000000000a1")
    page.go_back()
    page.locator("#list").wait_for()
    page.get_by_label("Find").fill("no such text")
    assert status.inner_text() == "No example matches."


@needs_browser
@pytest.mark.slow
def test_texts_are_escaped_and_directions_kept(visit):
    page = visit()
    show(page, 10)
    labels = page.locator(".attention .tokens > span").all_inner_texts()
    assert labels == [
        "<script>alert(1)</script>",
        "␣",
        "⏎",
        "∅",
        "</script>",
        "日本語",
        "🙂",
        "&amp;",
    ]
    show(page, 1)
    tokens = page.locator(".attention .tokens")
    assert tokens.get_attribute("dir") == "rtl"
    first, second = (tokens.locator("span").nth(n).bounding_box()["x"] for n in range(2))
    assert first > second
    assert "diagonal" in page.locator(".attention dl").inner_text()


@needs_browser
@pytest.mark.slow
def test_a_missing_value_interrupts_the_line(visit):
    page = visit()
    show(page, 8)
    path = page.locator(".chart path.line").first.get_attribute("d")
    assert path.count("M") == 2
    assert "NaN" not in page.locator("#example").inner_html()


@needs_browser
@pytest.mark.slow
def test_a_text_of_512_tokens(visit, tmp_path):
    given = explanations.large()
    page = pages.page([given], "Large")
    assert len(page) < 5_000_000
    file = tmp_path / "large.html"
    file.write_text(page, "utf-8")
    opened = visit(file=file)
    time = int(opened.evaluate("document.documentElement.dataset.drawn"))
    print(f"{len(page):,} characters, drawn after {time} ms")
    assert "To keep the page small" in opened.locator("#example").inner_text()
    read = np.array(opened.evaluate("explanation.weights(0, 0, 3, 4)"))
    exact = given.maps[0].weights[3, 4]
    shown = read > 0
    np.testing.assert_allclose(read[shown], exact[shown], rtol=0, atol=1.001 * exact.max() / 510)
    stated = opened.evaluate(
        "JSON.parse(document.getElementById('run-0-0').textContent).maps[0].largest_missing"
    )
    assert exact[~shown].max() <= stated + 1e-9
