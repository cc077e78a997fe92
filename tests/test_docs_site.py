"""The documentation site builds without warnings, and its internal links have targets."""

import html.parser
import os
import subprocess
import sys
import urllib.parse

import pytest

from tests.attention.test_registry import ROOT


class _Links(html.parser.HTMLParser):
    """Collects the targets of the links and images of a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("href", "src") and value]


@pytest.mark.slow
def test_the_site_builds_and_its_links_have_targets(tmp_path):
    pytest.importorskip("mkdocs", reason="requirements-docs.txt is not installed")
    pytest.importorskip("mkdocstrings", reason="requirements-docs.txt is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", f"--site-dir={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    pages = [page for page in tmp_path.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 60
    for page in pages:
        links = _Links()
        links.feed(page.read_text(encoding="utf-8"))
        for link in links.found:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            target = page.parent / urllib.parse.unquote(parts.path)
            assert (target / "index.html" if target.is_dir() else target).exists(), (page, link)
