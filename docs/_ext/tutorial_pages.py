"""Makes a page of each tutorial: the script itself, with links to download it.

Sphinx reads only what lies under `docs/`. So the scripts are copied to `docs/learn/`, which git
ignores. MyST-NB runs them there, cell by cell, and shows each cell's output below the cell.
"""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import jupytext
from docutils import nodes
from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
TUTORIALS = DOCS.parent / "tutorials"
PAGES = DOCS / "learn"
DOWNLOADS = DOCS.parent / "build" / "downloads"  # notebooks without output
TITLE = re.compile(r"\A# %% \[markdown\]\n# # .*\n")
NAMES = "[0-9][0-9]_*.py"
# How a cell begins whose code is folded, while its picture is shown.
DRAWING = '# %% tags=["hide-input"] jupyter={"source_hidden": true}'
# How code names a picture: `title="..."`, `set_title("...")`, or a comment in its first line.
PICTURE_TITLE = re.compile(r'(?:title[=(]"|\A# )([^"\n]+)')
PROMPTS = {"code_prompt_show": "Show the code", "code_prompt_hide": "Hide the code"}


def write_pages(*_: object) -> None:
    """Copy each tutorial to `docs/learn/`, with a line of links below its title."""
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    for left in PAGES.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != "index.md":
            left.unlink()

    others = [path for path in TUTORIALS.iterdir() if path.is_file() and path.suffix != ".py"]
    for other in others:  # what a tutorial reads, such as a page to play with
        shutil.copy(other, PAGES / other.name)
    for script in sorted(TUTORIALS.glob(NAMES)):
        text = script.read_text(encoding="utf-8")
        title = TITLE.match(text)
        if title is None:
            raise ValueError(f"{script.name} needs a cell of Markdown with a title first")
        notebook = DOWNLOADS / f"{script.stem}.ipynb"
        jupytext.write(jupytext.reads(text, fmt="py:percent"), notebook)

        links = f"{link('as a script', script)} or {link('as a notebook', notebook)}"
        needed = [link(path.name, path) for path in others if path.name in text]
        links += f", with {' and '.join(needed)} beside it" * bool(needed)
        line = f"#\n# Download this tutorial {links}.\n"
        text = text.replace(DRAWING, f"{DRAWING} mystnb={json.dumps(PROMPTS)}")
        end = title.end()
        (PAGES / script.name).write_text(text[:end] + line + text[end:], encoding="utf-8")


def link(text: str, path: Path) -> str:
    """Write a link that downloads a file, for a page in `docs/learn/`."""
    return f"{{download}}`{text} <../../{path.relative_to(DOCS.parent).as_posix()}>`"


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Copy the one file of MathJax that draws formulas, without fonts or parts to load."""
    if error is None and app.builder.format == "html":
        package = importlib.util.find_spec("sphinx-mathjax-offline")
        if package is None or package.origin is None:
            raise ImportError("MathJax is missing: pip install sphinx-mathjax-offline")
        file = Path(package.origin).parent / "static" / "mathjax" / "tex-svg.js"
        shutil.copy(file, Path(app.outdir) / "_static" / file.name)


def describe_pictures(app: Sphinx, doctree: nodes.document) -> None:
    """Give each picture that a cell draws a description, for readers who do not see it.

    It is what the cell names the picture, or else the title of the section.
    """
    for image in doctree.findall(nodes.image):
        if "alt" not in image:
            cell, section = parent(image, nodes.container, "cell"), parent(image, nodes.section)
            code = cell.next_node(nodes.literal_block) if cell is not None else None
            titles = PICTURE_TITLE.findall(code.astext()) if code is not None else []
            heading = section.next_node(nodes.title) if section is not None else None
            if not titles and heading is not None:
                titles = [heading.astext()]
            image["alt"] = f"A picture: {'; '.join(titles)}" if titles else "A picture"


def parent(node: nodes.Node, kind: type[nodes.Element], of_class: str = "") -> nodes.Element | None:
    """Return the next node of a kind, and of a class, that a node is in."""
    above = node.parent
    while above is not None:
        if isinstance(above, kind) and (not of_class or of_class in above["classes"]):
            return above
        above = above.parent
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both steps, and the path of MathJax."""
    app.connect("config-inited", write_pages)
    app.connect("build-finished", copy_mathjax)
    app.connect("doctree-read", describe_pictures)
    app.config.mathjax_path = "tex-svg.js"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
