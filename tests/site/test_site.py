"""The site that `nox -s docs` built works in a browser, from the file system alone."""

import functools
import json
import re
import time
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from browser import browser

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site"
# Under `_static/` lie pieces of pages, for the theme alone; under `_downloads/`, files to keep.
PAGES = [path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html")]
PAGES = sorted(page for page in PAGES if not page.startswith("_"))
TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.py"))
WIDTHS = [1280, 390]
# What a page loads, by the tags that load it. A link that one clicks may lead elsewhere.
LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


class Parsed(HTMLParser):
    """A page's links, what it loads, its anchors and its text."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.images = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        values = defaultdict(str, {name: value or "" for name, value in attrs})
        self.anchors |= {values["id"], values["name"]}
        if tag == "a":
            self.links.append(values["href"])
        if tag == "img":
            self.images.append(values)
        if tag in LOADS and values[LOADS[tag]] and values["rel"] not in ("canonical",):
            self.loads.append(values[LOADS[tag]])


@functools.cache
def parsed(path):
    return Parsed(path)


@pytest.fixture(scope="module")
def window():
    with browser() as opened:
        yield opened


def wait_for(what, seconds=10.0):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)
    return found


def test_the_site_is_there():
    assert "index.html" in PAGES, "build the site first: nox -s docs"
    assert {f"learn/{path.stem}.html" for path in TUTORIALS} == {
        page for page in PAGES if re.match(r"learn/\d", page)
    }
    assert len(TUTORIALS) >= 3


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    here = SITE / page
    for url in parsed(here).links + parsed(here).loads:
        parts = urlsplit(url)
        if parts.scheme in ("https", "mailto", "data"):
            continue
        assert parts.scheme == "", url
        target, anchor = urldefrag(url)
        path = (here.parent / unquote(urlsplit(target).path)).resolve() if target else here
        assert path.is_file(), url
        if anchor and path.suffix == ".html" and anchor != "":
            assert unquote(anchor) in parsed(path).anchors, url


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_loaded_from_a_network(page):
    for url in parsed(SITE / page).loads:
        assert urlsplit(url).scheme in ("", "data"), url


def test_no_style_loads_from_a_network():
    styles = list(SITE.rglob("*.css"))
    assert styles
    for path in styles:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text), path


@pytest.mark.parametrize("page", PAGES)
def test_pictures_are_described(page):
    for image in parsed(SITE / page).images:
        assert image["alt"].strip(), image["src"]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_without_an_error_and_fits_its_window(window, page):
    before = len(window.errors), len(window.requests)
    window.open(SITE / page, width=WIDTHS[0])
    wait_for(lambda: window.run("return document.readyState == 'complete'"))
    for width in WIDTHS:
        window.resize(width)
        assert window.overflow == 0, width
    broken = "[...document.images].filter(image => image.complete && !image.naturalWidth)"
    assert window.run(f"return {broken}.map(image => image.src)") == []
    assert window.errors[before[0] :] == []
    requests = window.requests[before[1] :]
    assert requests
    assert {urlsplit(url).scheme for url in requests} <= {"file", "data", "blob", "about"}


def found_by_search(window):
    # A result is complete when the number of results is told.
    done = "const told = document.querySelector('.search-summary, #search-results > p');"
    wait_for(lambda: window.run(done + "return told && /\\d/.test(told.textContent)"))
    links = "return [...document.querySelectorAll('#search-results li a')].map(a => a.href)"
    return [urldefrag(url)[0].partition("?")[0] for url in window.run(links)]


@pytest.mark.parametrize(
    "word, page", [("Trainer", "trainer"), ("EarlyStopping", "callbacks"), ("BatchNorm", None)]
)
@pytest.mark.parametrize("width", WIDTHS)
def test_search_finds(window, word, page, width):
    window.open((SITE / "search.html").as_uri() + f"?q={word}", width=width)
    found = found_by_search(window)
    assert found
    if page is not None:
        assert (SITE / "reference" / f"{page}.html").as_uri() in found
    for url in found:
        assert Path(unquote(urlsplit(url).path)).is_file()
    assert window.overflow == 0


def test_the_search_field_searches(window):
    window.open(SITE / "index.html")
    window.run("document.querySelector('.search-button-field').click()")
    field = "document.querySelector('dialog[open] input[type=search], .show input[type=search]')"
    wait_for(lambda: window.run(f"return {field} != null"))
    window.run(f"const field = {field}; field.value = 'early stopping'; field.form.submit()")
    wait_for(lambda: "search.html" in window.driver.current_url)
    assert (SITE / "stop_early.html").as_uri() in found_by_search(window)


def copied(window, place):
    """Press a copy button, paste what it copied, and return it."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    block = window.driver.find_elements("css selector", "div.highlight:has(button.copybtn)")[place]
    window.run("arguments[0].scrollIntoView({block: 'center'})", block)
    button = block.find_element("css selector", "button.copybtn")
    ActionChains(window.driver).move_to_element(block).click(button).perform()
    window.run(
        "const area = document.createElement('textarea'); area.id = 'pasted';"
        "document.body.append(area); area.focus()"
    )
    area = window.driver.find_element("id", "pasted")
    area.send_keys(Keys.CONTROL, "v")
    return wait_for(lambda: window.run("return arguments[0].value", area))


def test_code_is_copied(window):
    window.open(SITE / "index.html")
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/index.md").read_text(), re.DOTALL)
    assert code is not None
    assert copied(window, 0).strip() == code[1].strip()


def test_an_example_is_copied_without_its_prompts(window):
    window.open(SITE / "reference" / "trainer.html")
    text = copied(window, 0)
    assert text.startswith("trainer = vernal.Trainer(") and ">>>" not in text
    assert text.count("\n") == 2  # three lines, without what they print


def test_formulas_are_drawn(window):
    pages = [page for page in PAGES if 'class="math' in parsed(SITE / page).text]
    assert pages
    for page in pages:
        window.open(SITE / page)
        written = window.run("return document.querySelectorAll('.math').length")
        drawn = "return document.querySelectorAll('.math mjx-container svg').length"
        wait_for(lambda drawn=drawn, written=written: window.run(drawn) >= written > 0)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_a_tutorial_can_be_downloaded(path):
    page = SITE / "learn" / f"{path.stem}.html"
    files = {Path(unquote(link)).name: link for link in parsed(page).links if "_downloads" in link}
    script = page.parent / unquote(files[path.name])
    assert script.read_bytes() == path.read_bytes()
    notebook = json.loads((page.parent / unquote(files[f"{path.stem}.ipynb"])).read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] for cell in code)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_a_tutorial_shows_what_it_prints_and_draws(path):
    page = parsed(SITE / "learn" / f"{path.stem}.html")
    assert "Pictures are in" in page.text
    assert sum("_images" in image["src"] for image in page.images) >= 1
    assert "examples/s" not in page.text  # a progress bar


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_answers_are_folded(window, path):
    answers = path.read_text(encoding="utf-8").count('tags=["hide-cell"]')
    window.open(SITE / "learn" / f"{path.stem}.html")

    def folded():
        found = window.driver.find_elements("css selector", "details.hide")
        return [element for element in found if "answer" in element.text]

    wait_for(lambda: len(folded()) == answers)  # a long page is laid out bit by bit
    for element in folded():
        assert element.get_attribute("open") is None
        summary = element.find_element("css selector", "summary")
        assert summary.text.strip() == "Show the answer"
        window.run("arguments[0].click()", summary)
        assert element.get_attribute("open") is not None
        code = element.find_element("css selector", "pre")
        wait_for(code.is_displayed)


def test_every_mistake_in_the_gallery_shows_its_message():
    listed = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    names = re.findall(r"autoexception:: vernal\.(\w+)", listed)
    source = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    mistakes = source.count(":tags: [raises-exception]")
    cells = parsed(SITE / "errors.html").text.split("tag_raises-exception")[1:]
    assert len(cells) == mistakes > 15
    for cell in cells:
        message = re.search(r"output traceback.*?<pre>(?:<span></span>)?(\w+): ", cell, re.DOTALL)
        assert message is not None, cell
        assert message[1] in names, message[1]
