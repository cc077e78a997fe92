"""Hooks of mkdocs: pages from files outside docs/ and the pages of the API reference."""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

from launch.reporting.explanation_page import embedded

ROOT = pathlib.Path(__file__).parents[1]
# File of the repository -> its page.
PAGES = {
    "README.md": "index.md",
    "attention/README.md": "mechanisms.md",
    "benchmarks/README.md": "benchmarks.md",
    "RESULTS.md": "results.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "docs/ADDING_A_MECHANISM.md": "ADDING_A_MECHANISM.md",
    "docs/ADDING_A_TASK.md": "ADDING_A_TASK.md",
    "docs/CLUSTER.md": "CLUSTER.md",
    "docs/DEPLOYING.md": "DEPLOYING.md",
    "docs/PYTHON.md": "PYTHON.md",
    "docs/RELIABILITY.md": "RELIABILITY.md",
    "docs/TRACKERS.md": "TRACKERS.md",
    "docs/STYLE.md": "STYLE.md",
    **{
        f"docs/applications/{path.name}": f"applications/{path.name}"
        for path in sorted((ROOT / "docs" / "applications").glob("*.md"))
    },
    **{
        f"docs/explained/{path.name}": f"explained/{path.name}"
        for path in sorted((ROOT / "docs" / "explained").iterdir())
    },
    "docs/attention.png": "attention.png",
    "docs/served.png": "served.png",
    "benchmarks/attention.png": "benchmarks.png",
}
LINK = re.compile(r"(\]\()(?!https?:)([^)#\s]+)((?:#[^)]*)?\))")


def modules() -> list[str]:
    """Returns the names of the public modules of `attention`."""
    found = []
    for path in sorted((ROOT / "attention").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not any(part.startswith("_") for part in parts):
            found.append(".".join(parts))
    return found


def on_files(files, config):
    """Adds the pages that have no file in docs/."""
    for file in list(files):
        # In the repository these pages share one script; those of the site are whole.
        if file.src_uri.startswith("explained/") and file.src_uri.endswith(".html"):
            text = embedded(pathlib.Path(file.abs_src_path).read_text(encoding="utf-8"))
            files.remove(file)
            files.append(File.generated(config, file.src_uri, content=text))
    for source, page in PAGES.items():
        if source.startswith("docs/"):
            continue
        path = ROOT / source
        text = path.read_bytes() if page.endswith(".png") else linked(source, path)
        files.append(File.generated(config, page, content=text))
    for name in modules():
        page = f"# {name}\n\n::: {name}\n"
        files.append(File.generated(config, f"api/{name}.md", content=page))
    index = "".join(f"* [{name}]({name}.md)\n" for name in modules())
    files.append(File.generated(config, "api/index.md", content=f"# API reference\n\n{index}"))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites the links of the guides, which are relative to their file."""
    source = f"docs/{page.file.src_uri}"
    if source in PAGES:
        return relinked(markdown, posixpath.dirname(source), page.file.src_uri)
    return markdown


def linked(source: str, path: pathlib.Path) -> str:
    """Returns a file of the repository with its links rewritten to pages."""
    return relinked(path.read_text(encoding="utf-8"), posixpath.dirname(source), PAGES[source])


def relinked(text: str, folder: str, own: str) -> str:
    """Rewrites links to files of the repository: to their page, or to the module's reference.

    Links to other files become plain text. A missing file is an error.

    Args:
      text: Markdown.
      folder: folder that its links are relative to.
      own: page of the text, which the new links are relative to.
    """

    def page(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"link to {target}: there is no such file")
        name = target.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        found = PAGES.get(target) or (f"api/{name}.md" if name in modules() else "")
        there = posixpath.relpath(found, posixpath.dirname(own)) if found else "#"
        return f"{match[1]}{there}{match[3]}"

    return LINK.sub(page, text)
