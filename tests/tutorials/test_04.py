"""The figures of the fourth tutorial, and its pages in a browser."""

import json
import re
import runpy
import shutil
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from browser import browser
from tutorial import TUTORIALS, assert_pictures, tutorial

import vernal
from vernal import losses

START = {"line": (-5.0, 3.0), "logistic": (-3.0, 3.0)}
RANGES = {"line": ((-10, 10), (-10, 30)), "logistic": ((-5, 5), (-5, 5))}
NAMES = {"line": "MSE", "logistic": "Cross-entropy"}


def data(kind):
    rng = np.random.default_rng(4)
    x = np.linspace(-5, 5, 100)
    if kind == "line":
        return x, 2 * x + 20 + rng.standard_normal(100)
    z = 2 * x + 1 + rng.uniform(0, 1, 100)
    return x, np.round(1 / (1 + np.exp(-z)))


def error(kind, w, b):
    """The error, from its definition, in 64 bits."""
    x, y = data(kind)
    if kind == "line":
        return np.mean((w * x + b - y) ** 2)
    p = 1 / (1 + np.exp(-(w * x + b)))
    return -np.mean(np.where(y == 1, np.log(p), np.log(1 - p)))


def descent(kind, rate, steps=3_000):
    """Gradient descent with the gradient as it is worked out on paper, in 64 bits."""
    x, y = data(kind)
    w, b = START[kind]
    for _ in range(steps):
        z = w * x + b
        residual = 2 * (z - y) if kind == "line" else 1 / (1 + np.exp(-z)) - y
        w, b = w - rate * np.mean(residual * x), b - rate * np.mean(residual)
    return w, b


def test_leaves_pictures_and_pages_only_where_it_says():
    done = tutorial("04")
    assert_pictures("04", done, others=r"build/tutorials/04_(line|logistic)\.html")
    pages = sorted(path.name for path in done.folder.rglob("*.html"))
    assert pages == ["04_line.html", "04_logistic.html"]


def test_says_that_the_template_is_missing(tmp_path, monkeypatch):
    (script,) = (path for path in TUTORIALS if path.name.startswith("04"))
    monkeypatch.chdir(tmp_path)
    shutil.copy(script, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"by_hand\.html\. Download it, and put it beside"):
        runpy.run_path(str(tmp_path / script.name))
    plt.close("all")


def test_says_where_the_pages_lie():
    printed, _, _ = tutorial("04")
    for kind in START:
        page = Path(f"build/tutorials/04_{kind}.html")
        assert f"Open {page} in a browser.\n" in printed


def test_the_guess_is_very_bad():
    printed, variables, _ = tutorial("04")
    expected = error("line", -5, 3)
    assert f"The mean squared error of the guess is {expected:.5f}" in printed
    assert f"Its root is {expected**0.5:.1f}:" in printed
    assert f"The MSE fell from {expected:.2f} to " in printed
    assert variables["mean_squared_error"](1.5, 7.0) == pytest.approx(error("line", 1.5, 7.0))


def test_descends_a_parabola():
    printed, variables, _ = tutorial("04")
    assert variables["f"](10.0) == 125
    assert [variables["slope"](w) for w in (10.0, 0.0, -1.5)] == [23, 3, 0]
    assert "The slope at 10, by a small difference: 23.001\n" in printed
    assert "The slope at 10, on paper 23.0 and from JAX 23.0\n" in printed
    assert "After 1,000 steps with the slope on paper: w = -1.5000\n" in printed
    assert "After 1,000 steps with the slope from JAX: w = -1.5000\n" in printed
    assert variables["path_on_paper"][-1] == pytest.approx(-1.5 + 11.5 * 0.98**1000)
    # The second exercise: each step multiplies the distance from -1.5 by 1 - 2 * rate.
    assert variables["one_step"] == [10.0, -1.5]
    assert variables["back_and_forth"] == [10.0, -13.0] * 500 + [10.0]


def test_recovers_the_line_by_hand_and_with_vernal():
    printed, variables, _ = tutorial("04")
    w, b = descent("line", 0.001)
    assert (w, b) == pytest.approx((2, 20), abs=0.15)
    for way in ("by hand", "with Vernal"):
        (found,) = re.findall(rf"After 3,000 steps {way}: w = (.*), b = (.*)\n", printed)
        assert [float(number) for number in found] == pytest.approx([w, b], abs=2e-4)
    first, last = re.findall(r"The MSE fell from (.*) to (.*)\n", printed)[0]
    assert float(first) == pytest.approx(error("line", -5, 3), abs=0.005)
    assert float(last) == pytest.approx(error("line", w, b), abs=0.01) == pytest.approx(1, abs=0.1)
    # At the guess, the slope for w is more than three times as steep.
    slopes = re.findall(r"the slopes are (.*) for w and (.*) for b", printed)[0]
    assert float(slopes[0]) / float(slopes[1]) > 3

    # The third exercise: b is low because of both, the noise and too few steps.
    best = np.polyfit(*data("line"), 1)
    longer = variables["longer"].model
    assert variables["fitted"].b < longer.b < best[1] < 20
    assert (longer.w, longer.b) == pytest.approx(tuple(best), abs=1e-3)


@pytest.mark.parametrize(
    "kind, name, rate", [("line", "path", 0.001), ("logistic", "logistic_path", 0.1)]
)
def test_records_the_path_of_fit(kind, name, rate):
    printed, variables, _ = tutorial("04")
    path = variables[name]
    assert [step for step, _, _ in path] == list(range(3_001))
    assert path[0][1:] == START[kind]
    assert path[-1][1:] == pytest.approx(descent(kind, rate), abs=1e-3)

    loss = losses.MeanSquaredError() if kind == "line" else losses.BinaryCrossEntropy()
    trainer = vernal.Trainer(optax.sgd(rate), loss)
    model = variables["Line"](*map(jnp.array, START[kind]))
    state, _ = trainer.fit(model, data(kind), epochs=3_000, progress=False)
    assert path[-1][1:] == (float(state.model.w), float(state.model.b))
    assert "The recorded path ends at exactly the numbers of fit: True" in printed

    thinned = variables["thinned"](path)
    assert thinned[0] == path[0] and thinned[-1] == path[-1] and set(thinned) < set(path)
    assert 100 < len(thinned) <= 150
    assert thinned == sorted(set(thinned))


def test_the_curve_is_still_on_its_way():
    (w, b), (_, later_b) = descent("logistic", 0.1), descent("logistic", 0.1, steps=10_000)
    assert w < 5 and b < 5 < later_b


@pytest.fixture(scope="module")
def window():
    with browser() as opened:
        yield opened


@pytest.fixture(params=["line", "logistic"])
def kind(request):
    return request.param


def page_of(kind):
    return tutorial("04").folder / f"build/tutorials/04_{kind}.html"


def place(window):
    return [float(window.driver.find_element("id", name).get_property("value")) for name in "wb"]


def trail(window):
    points = "document.querySelector('#map polyline.you').getAttribute('points')"
    return window.run(f"return {points}.split(' ').length")


def assert_title_is_right(window, kind):
    title = window.driver.find_element("css selector", "h1").text
    name, shown = title.split(": ")
    assert name == NAMES[kind]
    assert float(shown) == pytest.approx(error(kind, *place(window)), rel=1e-6)
    assert window.driver.title == title


def drag(window, name, pixels):
    """Drag a slider's handle with the pointer."""
    from selenium.webdriver import ActionChains

    slider = window.driver.find_element("id", name)
    least, most, value = (float(slider.get_property(key)) for key in ("min", "max", "value"))
    handle = 16  # its width: the handle's middle never gets closer to an end than half of that
    across = slider.size["width"] - handle
    middle = (value - least) / (most - least) * across - across / 2
    actions = ActionChains(window.driver).move_to_element_with_offset(slider, round(middle), 0)
    actions.click_and_hold().move_by_offset(pixels, 0).release().perform()


@pytest.mark.browser
def test_starts_at_the_guess(window, kind):
    window.open(page_of(kind))
    assert window.driver.current_url.startswith("file:///")
    assert tuple(place(window)) == START[kind]
    assert_title_is_right(window, kind)
    assert trail(window) == 1
    assert window.errors == []
    # It asks for nothing but itself.
    assert {url for url in window.requests if "embedded" not in url} <= {
        page_of(each).as_uri() for each in START
    }


@pytest.mark.browser
def test_follows_the_pointer(window, kind):
    window.open(page_of(kind))
    seen = [1]
    for name, pixels in (("w", 120), ("b", -60), ("w", -40), ("b", 90)):
        before = place(window)
        drag(window, name, pixels)
        after = place(window)
        moved, other = ("wb".index(name), 1 - "wb".index(name))
        assert np.sign(after[moved] - before[moved]) == np.sign(pixels)
        assert after[other] == before[other]
        assert_title_is_right(window, kind)
        seen.append(trail(window))
    assert seen == sorted(set(seen))  # it grows each time
    assert window.errors == []


@pytest.mark.browser
def test_follows_the_keyboard(window, kind):
    from selenium.webdriver.common.keys import Keys

    window.open(page_of(kind))
    for name, (least, most) in zip("wb", RANGES[kind], strict=True):
        slider = window.driver.find_element("id", name)
        assert slider.accessible_name == name
        before, points = place(window)["wb".index(name)], trail(window)
        slider.send_keys(Keys.ARROW_RIGHT)
        assert place(window)["wb".index(name)] == pytest.approx(before + (most - least) / 200)
        assert trail(window) == points + 1
        for key, end in ((Keys.HOME, least), (Keys.END, most)):
            slider.send_keys(key)
            assert place(window)["wb".index(name)] == end
            assert_title_is_right(window, kind)
            shown = window.driver.find_element("id", f"shown-{name}").text
            assert float(shown) == end
    assert window.errors == []


def replayed(window):
    """Let the optimizer try, and return the text at its end."""
    from selenium.webdriver.support.ui import WebDriverWait

    window.driver.find_element("id", "replay").click()
    text = window.driver.find_element("id", "optimizer")
    WebDriverWait(window.driver, 30).until(lambda _: "Step 3,000 of" in text.text)
    return text.text


@pytest.mark.browser
def test_replays_the_optimizer_to_its_end(window, kind):
    window.open(page_of(kind), width=1000)
    drag(window, "w", 50)
    before, points = place(window), trail(window)
    text = replayed(window)

    _, variables, _ = tutorial("04")
    _, w, b = variables["path" if kind == "line" else "logistic_path"][-1]
    numbers = [float(number) for number in re.findall(r"[=:]\s*(-?[\d.]+\d)", text)]
    assert numbers[:2] == pytest.approx([w, b], abs=5e-5)
    assert numbers[2] == pytest.approx(error(kind, w, b), rel=1e-6)
    task = json.loads(window.run("return document.getElementById('task').textContent"))
    assert task["path"][-1] == [3_000, w, b]
    assert tuple(task["start"]) == START[kind]

    # The mark is on the map where these numbers belong.
    box = window.run("""
        const mark = document.querySelector("#map rect.mark").getBoundingClientRect();
        const frame = document.querySelector("#map .frame").getBoundingClientRect();
        const [x, y] = [(mark.left + mark.right) / 2, (mark.top + mark.bottom) / 2];
        return [x - frame.left, frame.bottom - y, frame.width, frame.height];
    """)
    for value, pixels, size, (least, most) in zip(
        (w, b), box[:2], box[2:], RANGES[kind], strict=True
    ):
        assert pixels == pytest.approx((value - least) / (most - least) * size, abs=1.5)

    assert place(window) == before and trail(window) == points  # the reader's stay
    assert_title_is_right(window, kind)
    window.driver.find_element("id", "reset").click()
    assert tuple(place(window)) == START[kind] and trail(window) == 1
    assert window.driver.find_element("id", "optimizer").text == ""
    assert window.errors == []


@pytest.mark.browser
def test_each_ring_has_one_error_and_half_that_of_the_next(window, kind):
    window.open(page_of(kind))
    rings = window.run("return rings")
    ws, bs = np.array(RANGES[kind], float)
    assert len(rings) >= 8
    levels = []
    for ring in np.array(rings):
        on_map = ring[np.all((ring > [ws[0], bs[0]]) & (ring < [ws[1], bs[1]]), axis=1)]
        errors = np.array([error(kind, w, b) for w, b in on_map])
        np.testing.assert_allclose(errors, np.median(errors), rtol=0.02)
        levels.append(np.median(errors))
    np.testing.assert_allclose(np.divide(levels[:-1], levels[1:]), 2, rtol=0.02)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_narrow_and_wide_windows_in_light_and_dark(window, kind, scheme):
    window.prefer(scheme)
    for width in (390, 700, 1280):
        window.open(page_of(kind), width=width)
        assert window.overflow == 0
        if width == 390:
            replayed(window)
            assert window.overflow == 0
        boxes = window.run("""
            return ["data", "map"].map((id) => {
                const { left, right, top } = document.getElementById(id).getBoundingClientRect();
                return [left, right, top];
            });
        """)
        assert all(left >= 0 and right <= width for left, right, _ in boxes)
        assert (boxes[0][2] == boxes[1][2]) == (width > 390)  # side by side, if there is room
    # What is not of SVG has a black fill, and a color.
    colors = window.run("""
        return ["body", "h1", "p", "figcaption", ".key-you", ".key-optimizer", "label", "text.name"]
            .map((name) => getComputedStyle(document.querySelector(name)))
            .map((style) => style.fill === "rgb(0, 0, 0)" ? style.color : style.fill);
    """)
    page = window.run("return getComputedStyle(document.body).backgroundColor")
    assert min(contrast(color, page) for color in colors) >= 4.5  # WCAG 2.2's, for text
    assert (luminance(page) < 0.1) == (scheme == "dark")
    window.prefer("light")
    assert window.errors == []


def luminance(color):
    values = np.array([int(value) for value in re.findall(r"\d+", color)[:3]]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(first, second):
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.browser
def test_is_still_for_a_reader_who_asks_for_that(window, kind):
    window.open(page_of(kind))
    features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    window.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    window.driver.find_element("id", "replay").click()
    # At once: no frame between.
    assert "Step 3,000 of" in window.driver.find_element("id", "optimizer").text
    window.prefer("light")
    assert window.errors == []


@pytest.mark.browser
def test_shows_in_a_notebook(window, kind):
    _, variables, folder = tutorial("04")
    page = variables[f"{kind}_page"]
    assert page._repr_html_().startswith("<div><iframe")
    assert str(page) == f"Open build/tutorials/04_{kind}.html in a browser."
    notebook = folder / f"embedded_{kind}.html"
    around = f"<!doctype html><meta charset='utf-8'>{page._repr_html_()}"
    notebook.write_text(around, encoding="utf-8")
    try:
        for width in (390, 800):
            window.open(notebook, width=width)
            frame = window.driver.find_element("css selector", "iframe")
            assert window.overflow == 0
            window.driver.switch_to.frame(frame)
            assert tuple(place(window)) == START[kind]
            heading = window.driver.find_element("css selector", "h1").text
            assert heading.startswith(f"{NAMES[kind]}: ")
            high = window.run("return document.documentElement.scrollHeight - innerHeight")
            assert high <= 0 and window.overflow == 0  # the frame does not scroll
            window.driver.switch_to.default_content()
    finally:
        notebook.unlink()
    assert window.errors == []
