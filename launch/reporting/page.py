"""Rendering of self-contained HTML pages from templates, with common styles.

Pages refer to no other file, and only pages of explanations have a script. They follow the color
scheme of the browser, and fit narrow screens; wider content scrolls in a box of its own.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

# Two values of each color, by name: for light mode, which matplotlib uses, and for dark mode.
INK, FAINT = "#24292f", "#d0d7de"
_COLORS: Mapping[str, tuple[str, str]] = {
    "ink": (INK, "#e6edf3"),
    "faint": (FAINT, "#3d444d"),
    "soft": ("#57606a", "#9da7b3"),
    "paper": ("#ffffff", "#12161c"),
    "shade": ("#f2f4f7", "#1f252d"),
    "link": ("#0550ae", "#79b8ff"),
    # Background of the token with the largest weight: text of either mode is readable on it.
    "heat": ("245 158 83", "140 70 8"),
    "line-1": ("#1f6fb5", "#6cb6ff"),
    "line-2": ("#c4520b", "#ffa657"),
    "line-3": ("#1a7f4e", "#56d4a0"),
    "line-4": ("#8250df", "#c8a6ff"),
    "line-5": ("#b3225c", "#ff8fb5"),
    "line-6": ("#7a6200", "#e3c04b"),
}
LINES = tuple(light for name, (light, _) in _COLORS.items() if name.startswith("line"))
"""Colors of lines in light mode."""


def _variables(mode: int) -> str:
    return " ".join(f"--{name}: {values[mode]};" for name, values in _COLORS.items())


# A page is printed in light mode.
_SCHEME = f":root {{ {_variables(0)} }}\n@media screen and (prefers-color-scheme: dark) {{\n"
_SCHEME += f":root {{ {_variables(1)} }} }}\n"
_DRAWN = re.compile("|".join(map(re.escape, (INK, FAINT, *LINES))))
_NAMES = {light: f"var(--{name})" for name, (light, _) in _COLORS.items()}

CSS = (
    _SCHEME
    + """:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; color: var(--ink);
  background: var(--paper); }
main { max-width: 70rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { margin: 2.2rem 0 .6rem; font-size: 1.25rem; }
h3 { margin: 1.6rem 0 .4rem; font-size: 1.05rem; }
a { color: var(--link); }
table { border-collapse: collapse; margin: .6rem 0; overflow-wrap: normal; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--faint); text-align: right;
  vertical-align: top; }
th:first-child, td:first-child, .left { text-align: left; }
td { font-variant-numeric: tabular-nums; } .whole { white-space: nowrap; }
tr.own td { font-weight: 600; }
.scroll { overflow-x: auto; max-width: 100%; } .scroll img { max-width: none; }
.note, figcaption + .note { color: var(--soft); }
code { background: var(--shade); padding: .1rem .3rem; border-radius: .2rem; }
.command { display: block; padding: .6rem .8rem; overflow-x: auto; overflow-wrap: anywhere; }
figure { margin: 1rem 0 1.6rem; } figcaption { font-weight: 600; white-space: pre-line; }
.figures { display: flex; flex-wrap: wrap; gap: 0 1.2rem; }
.figures > figure { flex: 0 0 100%; min-width: 0; } .figures > .narrow { flex: 0 1 22rem; }
.figures > .tile { flex: 0 0 10.5rem; }
.panels { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: flex-start; }
.panel { max-width: 100%; } .panel p { margin: 0; color: var(--soft); font-size: .87rem; }
img { max-width: 100%; height: auto; vertical-align: top; }
.pixels { image-rendering: pixelated; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; list-style: none; margin: .4rem 0;
  padding: 0; font-size: .87rem; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .35em;
  border-radius: .15em; vertical-align: -.1em; }
.text { line-height: 2; margin: .3rem 0; } .text span { padding: .15rem .2rem; border-radius: .2rem;
  background: rgb(var(--heat) / var(--weight, 0)); }
del, ins { text-decoration: none; border-radius: .2rem; padding: 0 .15rem; }
del { background: #d1242f33; text-decoration: line-through; } ins { background: #1a7f3740; }
dl { display: grid; grid-template-columns: fit-content(45%) minmax(0, 1fr);
  gap: .15rem .8rem; margin: .4rem 0; }
dt { color: var(--soft); } dd { margin: 0; }
summary { cursor: pointer; } details { margin: .4rem 0; }
@media (max-width: 40rem) { main { padding: .8rem; } th, td { padding: .25rem .3rem; }
  table { font-size: .8rem; }  h1 { font-size: 1.35rem; } }
@media print { figure, tr { break-inside: avoid; } }
"""
)

_HEAD = (
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
"""
    + CSS
    + """{{ styles }}</style></head><body><main>
<h1>{{ title }}</h1>
"""
)
_END = "</main></body></html>\n"


def render(body: str, title: str, styles: str = "", **values: Any) -> str:
    """Returns a complete HTML page with a title.

    Args:
      body: jinja2 template of the HTML after the title. Values are escaped, unless they are HTML
        given as `Markup`.
      title: title of the page.
      styles: further CSS.
      **values: variables of the template; an unknown variable is an error. The template may use
        the function `scrolling` as a filter.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["scrolling"] = lambda content, label: Markup(scrolling(content, label))
    return environment.from_string(_HEAD + body + _END).render(
        title=title, styles=Markup(styles), **values
    )


def scrolling(content: str, label: str) -> str:
    """Puts HTML into a box that scrolls if the HTML is wider than the screen.

    The box can be scrolled with the keyboard, too.

    Args:
      content: HTML.
      label: name of the box for screen readers.
    """
    name = html.escape(label)
    return f'<div class="scroll" role="group" tabindex="0" aria-label="{name}">{content}</div>'


def with_modes(svg: str) -> str:
    """Makes the colors `INK`, `FAINT` and `LINES` of a drawing follow the browser's color scheme.

    Args:
      svg: an SVG document of matplotlib.
    """
    head, opening, rest = svg.partition("<svg")
    attributes, end, content = rest.partition(">")
    content = _DRAWN.sub(lambda found: _NAMES[found[0]], content)
    return f"{head}{opening}{attributes}{end}<style>{_SCHEME}</style>{content}"
