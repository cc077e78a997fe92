"""Self-contained HTML pages: the head with the styles of all pages, and their templates."""

from __future__ import annotations

from typing import Any

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; margin: .3rem; }
.text { line-height: 2; } .text span { padding: .15rem .2rem; border-radius: .2rem; }
code { background: #f4f4f4; padding: .1rem .3rem; overflow-wrap: anywhere; }
</style></head><body>
<h1>{{ title }}</h1>
"""
_END = "</body></html>\n"


def render(body: str, title: str, **values: Any) -> str:
    """Returns a page with a title.

    Args:
      body: jinja2 template of the HTML after the title. Texts are escaped; HTML is `Markup`.
      title: title of the page.
      **values: variables of the template; an unknown variable is an error.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_HEAD + body + _END).render(title=title, **values)
