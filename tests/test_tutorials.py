"""The tutorials run, and show the figures they promise: printed digits, not impressions."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest

import vernal
from vernal import losses, nn

TUTORIALS = sorted((Path(__file__).parent.parent / "tutorials").glob("[0-9][0-9]_*.py"))
FIRST_ANSWERS = [-10.59475724, 17.04473623, -6.31740492, -7.89437163, 25.45635331]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a tutorial once: what it printed, its variables, and the folder it ran in."""
    done = {}

    def run(number: str):
        if number not in done:
            (path,) = (path for path in TUTORIALS if path.name.startswith(number))
            # The second tutorial broadcasts by mistake, to show what then happens.
            ranks = jax.numpy_rank_promotion("allow" if number == "02" else "raise")
            folder, printed = tmp_path_factory.mktemp(number), io.StringIO()
            with contextlib.chdir(folder), contextlib.redirect_stdout(printed), ranks:
                variables = runpy.run_path(str(path))
            plt.close("all")
            done[number] = printed.getvalue(), variables, folder
        return done[number]

    return run


@pytest.mark.parametrize("number", [path.name[:2] for path in TUTORIALS])
def test_runs_and_leaves_pictures_only_where_it_says(run, number):
    printed, _, folder = run(number)
    assert printed.splitlines()[-1] == f"Pictures are in {Path('build/tutorials')}"
    pictures = [path for path in folder.rglob("*") if path.is_file()]
    assert len(pictures) >= 1
    for path in pictures:
        assert path.parent == folder / "build/tutorials"
        assert re.fullmatch(rf"{number}_\w+\.png", path.name)
        assert np.ptp(plt.imread(path)) > 0.5  # it is not blank


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_opens_as_a_notebook(path):
    before, *cells = re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert before == ""
    assert cells[0].startswith(f" [markdown]\n# # {int(path.name[:2])}. ")
    for cell in cells:
        kind, _, body = cell.partition("\n")
        assert kind in ("", " [markdown]")
        if kind:
            assert all(line.startswith("#") for line in body.split("\n") if line)
        else:
            compile(body, path.name, "exec")


def linear_data():
    rng = np.random.default_rng(12345)
    x = rng.uniform(-10, 10, (200, 2))
    y = x @ [[1.1], [2.1]] + 3.1
    return x, y, y + rng.normal(0, 0.5, y.shape)


def test_01_prints_the_published_figures(run):
    printed, _, _ = run("01")
    (answers,) = re.findall(r"first five answers: \[(.*)\]", printed)
    assert answers.split() == [f"{answer:.8f}" for answer in FIRST_ANSWERS]
    # By hand, and with Vernal: the same digits.
    exact = "weights 1.0531881 2.0895174 bias 0.5365327"
    assert f"After 100 steps by hand:\n  {exact}\n" in printed
    assert f"After 100 steps with Vernal:\n  {exact}\n" in printed
    (products,) = re.findall(r"with einsum:\n(.*)\n", printed)
    assert products.split() == 3 * [f"{FIRST_ANSWERS[0] - 3.1:.8f}"]
    assert "All 200 agree: True True" in printed
    assert "squared error, by hand 112.2489 and from Optax 112.2489" in printed
    assert re.search(r"^Linear +Linear +f32\[2\] +f32\[1\] +3 +12 B +5$", printed, re.MULTILINE)
    assert "\nParameters: 3, 12 B." in printed


def test_01_recovers_the_parameters_from_noisy_answers(run):
    printed, variables, _ = run("01")
    x, _, y = linear_data()
    best = np.linalg.lstsq(np.column_stack([x, np.ones(200)]), y)[0][:, 0]
    model = variables["state"].model
    found = np.array([*model.weight[0], *model.bias])
    np.testing.assert_allclose(found, best, atol=1e-4)
    np.testing.assert_allclose(found, [1.1, 2.1, 3.1], atol=0.01)
    # The published 1.10, 2.09, 3.14 are of other noise: 0.035 is the bias's standard error.
    np.testing.assert_allclose(found, [1.10, 2.09, 3.14], atol=0.05)
    assert f"weights {best[0]:.4f} {best[1]:.4f} bias {best[2]:.4f}" in printed


def test_the_trainer_gives_the_published_weights_after_100_steps():
    x, y, _ = linear_data()
    np.testing.assert_allclose(y[:5, 0], FIRST_ANSWERS, rtol=0, atol=5e-9)
    model = nn.Linear(2, 1, weight_init=jax.nn.initializers.zeros, key=jax.random.key(0))
    trainer = vernal.Trainer(optax.sgd(0.001), losses.MeanSquaredError())
    state, history = trainer.fit(model, (x, y), epochs=100)
    assert [str(number) for number in state.model.weight[0]] == ["1.0531881", "2.0895174"]
    assert state.model.bias is not None
    assert str(state.model.bias[0]) == "0.5365327"

    # The losses on the way, from the gradient as it is worked out on paper.
    weights, bias, expected = np.zeros((2, 1)), 0.0, []
    for _ in range(100):
        error = x @ weights + bias - y
        expected.append(np.mean(error**2))
        weights -= 0.001 * 2 * x.T @ error / 200
        bias -= 0.001 * 2 * error.mean()
    np.testing.assert_allclose(history.steps["loss"], expected, rtol=1e-5)


def test_02_shows_both_mistakes_and_what_mends_them(run):
    printed, variables, _ = run("02")
    assert "weight has shape (1, 100) instead of (1, 1)" in printed
    assert "(100, 1) minus (100,) has shape (100, 100)" in printed
    flat, right, column = printed.split("ShapeError: ")[1:]
    assert "each of its 100 examples is a single number, but Linear needs (100,)" in flat
    assert "Try x[:, None] and y[:, None]" in right
    assert "Try y[:, None], which has shape (100, 1)" in column
    assert "rises by 0.0000." in printed  # what broadcasting makes of a line that rises by 3
    assert "rises by 3.0000\n" in printed
    assert variables["EXAMPLES"] == 100


def test_02_lists_the_operations_that_make_a_table_and_what_they_cost(run):
    printed, variables, _ = run("02")
    (listed,) = re.findall(r"make a table:\n((?:  .*\n)+)", printed)
    lines = listed.splitlines()
    assert len(lines) == len(variables["tables"]) >= 3
    assert all(re.match(r"  \w+:f32\[100,100\] = \w", line) for line in lines)
    assert " = sub " in lines[0]
    # Of 100 numbers and not of 100 times 100 in the loss that is right.
    data = variables["x_column"], variables["line"][:, None]
    trainer = vernal.Trainer(optax.adam(0.001), losses.MeanSquaredError())
    assert "[100,100]" not in str(vernal.update_jaxpr(trainer, variables["model"], data))
    broken, right = re.findall(r": 1 step on a batch of 100: ([\d.,]+ k?)FLOP", printed)
    flops = lambda text: float(text.replace(",", "").replace(" k", "e3"))
    assert flops(broken) > 20 * flops(right)


def test_02_prints_the_published_terrible_fit(run):
    printed, variables, _ = run("02")
    assert "bias 9.870098\n" in printed
    assert "predictions from 9.87010 to 9.87010" in printed
    model = variables["state"].model
    assert str(model.bias[0]) == "9.870098"
    assert abs(model.weight[0, 0]) < 1e-6


def test_the_trainer_gives_the_published_terrible_fit():
    x = np.linspace(-10, 10, 100)[:, None]
    y = 2 * x**2

    def half_squared_error(model, batch, key):
        x, y = batch
        return 0.5 * jnp.sum((jax.vmap(model)(x) - y) ** 2)

    start = jax.nn.initializers.constant(-0.92962414)
    model = nn.Linear(1, 1, weight_init=start, key=jax.random.key(0))
    trainer = vernal.Trainer(optax.adam(0.001), half_squared_error)
    state, history = trainer.fit(model, (x, y), epochs=10_000)
    assert state.model.bias is not None
    assert str(state.model.bias[0]) == "9.870098"
    assert abs(state.model.weight[0, 0]) < 1e-6
    predictions = np.asarray(trainer.predict(state, x))
    np.testing.assert_allclose(predictions, 9.870098, rtol=0, atol=2e-6)
    assert history.steps["loss"].shape == (10_000,)
    first = 0.5 * np.sum((-0.92962414 * x - y) ** 2)
    last = 0.5 * np.sum((9.870098 - y) ** 2)
    np.testing.assert_allclose(history.steps["loss"][[0, -1]], [first, last], rtol=1e-4)


def test_03_width_makes_the_error_smaller(run):
    printed, variables, _ = run("03")
    trainer, data = variables["trainer"], (variables["x"], variables["y"])
    assert variables["STEPS"] == 3_000
    by_model = {
        name: trainer.evaluate(state, data)["loss"] for name, state in variables["states"].items()
    }
    line, small, wide = by_model.values()
    spread = variables["y"].var()  # what always predicting the average would get
    assert line > spread
    assert spread / 2 > small > 2 * wide  # better, not great; then clearly better
    for name, loss in by_model.items():
        assert re.search(rf"^{name} +{loss:.1f} +{loss**0.5:.1f}$", printed, re.MULTILINE)
    rows = re.findall(r"^ +(\d+) +(\d+) +([\d.]+) +[\d.]+$", printed, re.MULTILINE)
    assert [int(width) for width, _, _ in rows] == [1, 4, 16, 64, 128]
    assert [int(parameters) for _, parameters, _ in rows] == [4, 13, 49, 193, 385]
    by_width = [float(loss) for _, _, loss in rows]
    assert by_width == sorted(by_width, reverse=True)
    assert by_width[-1] < by_width[0] / 20


POLYNOMIAL_LOSSES = {
    False: "2.650 0.100 0.079 0.070 0.062 0.057 0.052 0.047 0.044 0.040",
    True: "1.608 0.102 0.071 0.062 0.055 0.050 0.045 0.042 0.039 0.036",
}


@pytest.mark.parametrize("partitionable", [pytest.param(False, marks=pytest.mark.long), True])
def test_the_trainer_gives_the_published_losses_on_a_polynomial(partitionable):
    # JAX has two ways to derive random numbers from a key; the losses of both are published.
    with jax.threefry_partitionable(partitionable):
        key, noise_key = jax.random.split(jax.random.key(21))
        x = jnp.linspace(-10, 10, 1000)
        y = jnp.polyval(jnp.array([1.0, -2.0, 1.0, -2.0]), x)
        y += jax.random.normal(noise_key, x.shape)
        standardised = lambda a: ((a - a.mean()) / a.std())[:, None]

        weights = [
            jax.random.normal(layer_key, (n_out, n_in)) * (5 / 3) / n_in**0.5
            for layer_key, n_in, n_out in zip(
                jax.random.split(key), (1, 128), (128, 1), strict=True
            )
        ]
        model = nn.MLP(1, 1, 128, 1, activation=jnp.tanh, key=key)
        model = eqx.tree_at(lambda m: [layer.weight for layer in m.layers], model, weights)
        trainer = vernal.Trainer(optax.sgd(0.01), losses.MeanSquaredError())
        _, history = trainer.fit(model, (standardised(x), standardised(y)), epochs=1_000)
    printed = " ".join(f"{loss:.3f}" for loss in history.steps["loss"][::100])
    assert printed == POLYNOMIAL_LOSSES[partitionable]
