"""Tests on eight devices: `nox -s tests` simulates them on a CPU."""

import jax
import pytest
from helpers import few_optimizations
from jax.sharding import AxisType

DEVICES = 8


def pytest_configure():
    """Ask for the devices by name: JAX has as many as it had at its first operation."""
    if jax.device_count() < DEVICES:
        raise pytest.UsageError(f"set JAX_NUM_CPU_DEVICES={DEVICES} in the environment")


@pytest.fixture(scope="session")
def mesh():
    """Eight devices in a row."""
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))


@pytest.fixture
def fast():
    """Few optimizations, where numbers are compared up to rounding."""
    with few_optimizations():
        yield
