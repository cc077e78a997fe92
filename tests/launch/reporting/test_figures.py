"""HTML of figures: text alternatives, dates, legends, transcripts, colors by mode."""

import base64
import dataclasses
import html
import io
import re

import numpy as np
import pytest
from PIL import Image

from launch.reporting import drawings, figures, page
from tasks.figures import (
    Alignment,
    AttendedImage,
    AttendedText,
    ConfusionMatrix,
    Curves,
    FigureGroup,
    Forecast,
    Recommendations,
    Transcript,
)

TIMES = np.datetime64("2024-02-28T12", "h") + np.arange(48)
FORECAST = Forecast(
    "load",
    "steps",
    np.arange(40.0),
    np.arange(8.0),
    {0.8: (np.arange(8.0) - 1, np.arange(8.0) + 1)},
    np.arange(8.0) + 2,
    TIMES,
)


def alternatives(drawn):
    return [html.unescape(text) for text in re.findall(r'alt="([^"]*)"', drawn)]


def svgs(drawn):
    found = re.findall(r'data:image/svg\+xml;base64,([^"]*)', drawn)
    return [base64.b64decode(each).decode("utf-8") for each in found]


def test_drawings_follow_the_color_scheme():
    (drawing,) = svgs(figures.draw(Curves("loss", "step", {"train": ([1, 2], [0.5, 0.25])})))
    assert "prefers-color-scheme: dark" in drawing
    style, content = drawing.split("</style>", 1)
    assert page.INK in style
    for color in (page.INK, page.FAINT, *page.LINES):
        assert color not in content
    assert "var(--ink)" in content
    assert "var(--line-1)" in content
    # The page is behind the drawing.
    assert "#ffffff" not in content


def test_equal_figures_have_equal_drawings():
    assert figures.draw(FORECAST) == figures.draw(dataclasses.replace(FORECAST))


def test_curves_say_their_values():
    drawn = figures.curves("loss", {"a": ([1, 5, 9], [3.0, 0.5, 1.0]), "b": ([2], [7.0])})
    (text,) = alternatives(drawn)
    assert "a from 3 at 1 to 1 at 9, minimum 0.5 at 5, maximum 3 at 1" in text
    assert "b from 7 at 2" in text
    marked = figures.curves("loss", {"a": ([1, 5], [3.0, 2.0])}, mark=("best step", 5))
    assert "best step" in svgs(marked)[0]


def test_confusion_matrix_says_its_errors():
    matrix = np.array([[8, 2], [1, 9]])
    (text,) = alternatives(figures.draw(ConfusionMatrix("x", matrix, ["cat", "dog"])))
    assert "cat 80%, dog 90%" in text
    assert "cat as dog 2, dog as cat 1" in text


def test_alignment_says_the_largest_weights():
    weights = np.array([[0.1, 0.9], [0.7, 0.3]])
    drawn = figures.draw(Alignment("a\nb", weights, ["un", "deux"], ["one", "two"]))
    (text,) = alternatives(drawn)
    assert "un: two 0.90; deux: one 0.70" in text
    # A long alignment scrolls in a box that the keyboard reaches.
    wide = figures.draw(Alignment("", np.full((2, 90), 1 / 90), ["a", "b"], ["word"] * 90))
    assert 'class="scroll" role="group" tabindex="0" aria-label=' in wide
    assert "scroll" not in drawn


def test_forecasts_have_dates_and_one_legend():
    group = FigureGroup("window", [FORECAST, dataclasses.replace(FORECAST, caption="heat")])
    drawn = figures.draw(group)
    first, second = svgs(drawn)
    for drawing in (first, second):
        assert (
            "Feb-29" in drawing or "Feb 29" in drawing or "29" in re.findall(r">(\d\d)<", drawing)
        )
        assert ">2024-" in drawing
    assert drawn.count('<ul class="legend">') == 1
    legend = re.findall(r"</span>([^<]*)</li>", drawn)
    assert legend == ["past", "true", "forecast", "80% interval"]
    assert "load" in drawn
    assert "heat" in drawn
    assert "from 2024-02-28T12 to 2024-03-01T11: 8 steps" in alternatives(drawn)[0]
    assert "mean absolute error 2" in alternatives(drawn)[0]
    (without,) = svgs(figures.draw(dataclasses.replace(FORECAST, times=None)))
    assert "steps" in without


def test_groups_are_one_png_file():
    group = FigureGroup("window", [FORECAST] * 5)
    with Image.open(io.BytesIO(figures.png(group))) as image:
        width, height = image.size
    assert width > 3 * 500
    assert height > 2 * 300


def test_transcripts_mark_differences():
    words = figures.draw(Transcript("t", "two tree <5>", "one two three <5>"))
    assert "<del>one</del> two <del>three</del> &lt;5&gt;" in words
    assert "two <ins>tree</ins> &lt;5&gt;" in words
    letters = figures.draw(Transcript("t", "1214", "1234", words=False))
    assert "12<del>3</del>4" in letters
    assert "12<ins>1</ins>4" in letters
    empty = figures.draw(Transcript("t", "", "one", source="uno"))
    assert "(empty)" in empty
    assert "<dt>source</dt><dd dir='auto'>uno</dd>" in empty
    image = figures.draw(Transcript("t", "x", "x", image=np.zeros((8, 30))))
    assert alternatives(image) == ["Input of the transcript: x"]


def test_words_have_their_weights_as_text():
    drawn = figures.draw(AttendedText("t", ["a", "<b>", "c"], np.array([0.25, 0.75, 0.0])))
    assert '--weight: 0.33" title="0.250">a</span>' in drawn
    assert "Largest weights: &lt;b&gt; 0.750, a 0.250<" in drawn
    comma = figures.draw(AttendedText("t", ["a", ","], np.array([0.25, 0.75])))
    assert "Largest weights: &quot;,&quot; 0.750, a 0.250<" in comma
    without = figures.draw(AttendedText("t", ["a"], np.zeros(1)))
    assert "Largest" not in without


def test_images_without_attention_are_shown_alone():
    image = np.full((8, 8), 90, np.uint8)
    (text,) = alternatives(figures.draw(AttendedImage("predicted cat", image, None)))
    assert text == "Image: predicted cat"
    both = alternatives(figures.draw(AttendedImage("x", image, np.eye(2))))
    assert "largest is in row 1, column 1" in both[1]


def test_recommendations_without_attributions_have_no_empty_column():
    drawn = figures.draw(Recommendations("u", ["a"], ["b", "c"], [[], []], "c"))
    assert "attributed" not in drawn
    assert "c (rank 2)" in drawn
    explained = figures.draw(Recommendations("u", ["a"], ["b"], [[("a", 1.0)]], "z"))
    assert "attributed to" in explained
    assert "z (not among the first 1)" in explained


def test_captions_may_have_any_characters():
    for figure in (
        Curves("\x00a<b>", "s\x01", {"\x02": ([1], [1.0])}),
        AttendedText("\x00a<b>", ["\ud800"], np.ones(1)),
    ):
        drawn = figures.draw(figure)
        assert "\\x00a&lt;b&gt;" in drawn
        drawn.encode("utf-8")


def test_unknown_figures_are_errors():
    with pytest.raises(TypeError, match="no drawing for int"):
        drawings.panels(3)
