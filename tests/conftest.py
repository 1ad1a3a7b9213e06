"""What all tests share: no silent broadcasts, no windows, no clocks."""

import hypothesis
import jax
import matplotlib
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
matplotlib.use("Agg")
# The same examples each time; how long one takes says nothing, for the first of a shape compiles.
hypothesis.settings.register_profile("vernal", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("vernal")

_compilations = []


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compilations.append(event)


jax.monitoring.register_event_duration_secs_listener(_listen)


@pytest.fixture
def compiled():
    """Every compilation in this process from here on."""
    _compilations.clear()
    return _compilations
