"""Data is made a source of batches, and checked against model and loss."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import equinox as eqx
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from vernal import _limits, errors
from vernal._data.array_source import ArraySource
from vernal._data.arrays import warn_of_split
from vernal._data.loader_source import LoaderSource
from vernal._data.sources import Source, check_no_batch_size, is_loader
from vernal._optimizers import learning_rate
from vernal._shapes.jaxprs import in_outer_trace
from vernal._training.objective import Measured
from vernal._training.preflight.trace import Preflight, Traced
from vernal._training.state import TrainState
from vernal.losses import AbstractSupervised, BinaryCrossEntropy, CrossEntropy, Supervised
from vernal.metrics import accuracy


@dataclass(frozen=True)
class CheckedData:
    """Data that fits a model and a loss.

    Attributes:
        source: The batches.
        loops: Whether many batches may be used in one compiled loop.
        measured: What is measured of a batch, as shapes; the outputs of a model alone.
        mesh: The devices that share each batch; `None` is one alone.
    """

    source: Source
    loops: bool
    measured: Measured | PyTree
    mesh: Mesh | None

    def recorded_names(self, state: TrainState, *, validates: bool = False) -> list[str]:
        """Return the names of what a run that begins with a state records of an epoch."""
        names = list(self.measured.info)
        validated = [f"val_{name}" for name in names if validates]
        shown = [] if learning_rate(state.opt_state) is None else ["learning_rate"]
        return [*names, *shown, *validated]


def checked_data(
    preflight: Preflight,
    data: PyTree | Iterable,
    *,
    batch_size: int | None,
    shuffle: bool = False,
    trains: bool = False,
) -> CheckedData:
    """Make data a source of batches, and check it against the model and the loss.

    Args:
        preflight: The model and the loss.
        data: Arrays, or a loader of ready batches.
        batch_size: Examples in a batch; `None` is all of them.
        shuffle: Whether an epoch takes the examples in an order of its own.
        trains: Whether the batches are trained on.

    Raises:
        ArgumentError: If `batch_size` cannot be used.
        DataError: If the data cannot be used.
        ShapeError: If model, loss and data do not fit.
    """
    loss, name, mesh = preflight.loss, preflight.name, preflight.mesh
    if in_outer_trace():
        given = f"{name} is given inside of jax.jit or the like, where its values are not known"
        hint = "Call the model there, as in jax.vmap(model)(x), or trainer.step."
        raise errors.ArgumentError(f"{given}.\n  {hint}")
    # NaN may mean something to any other loss, or to a model.
    is_built_in = type(loss).__module__ == AbstractSupervised.__module__
    finite = is_built_in and not isinstance(loss, Supervised)
    try:
        # A list of batches is a loader. But a list that a model is applied to is an array.
        if is_loader(data) and not (name == "x" and isinstance(data, list)):
            check_no_batch_size(batch_size)
            source = LoaderSource(data, aligned=preflight.takes_examples, name=name, mesh=mesh)
        else:
            if mesh is None:
                warn_of_split(data, name)
            source = ArraySource(
                data,
                batch_size,
                shuffle=shuffle,
                trains=trains,
                finite=finite,
                name=name,
                mesh=mesh,
            )
    except errors.ExamplesError as error:
        raise preflight.explained(error, given=data) from None
    except errors.DataError as error:
        raise errors.DataError(errors.about(name, error.args[0])) from None

    if isinstance(source, LoaderSource):
        # A list that a loss of one's own cannot take may be x and y.
        given = None if preflight.takes_examples else data
        traced = preflight.check(source.example, given=given)
        labels = _label_check(preflight, source.example)
        source.check_each_batch(shapes=preflight.check, labels=labels)
    else:
        traced = _trace_batches(preflight, source, given=data)
        _label_check(preflight, source.example)(source.arrays)
    loops = _limits.current().loops_convolutions or not traced.convolves
    return CheckedData(source, loops, traced.shapes, mesh)


def _trace_batches(preflight: Preflight, source: ArraySource, *, given: PyTree) -> Traced:
    """Trace a full batch of arrays, and the smaller last one; return the trace of the full one.

    Raises:
        ShapeError: With the shapes of all the data, for a loss of single examples.
        VernalError: As `Preflight.check` does.
    """
    traces = []
    for size in source.sizes:
        try:
            traces.append(preflight.trace(source.shapes(size)))
        except Exception:
            if size == source.examples or preflight.takes_examples:
                preflight.check(source.arrays, given=given)
            try:
                preflight.check(source.first(size), given=given)
            except errors.ShapeError as error:
                which, hint = "A batch", ""
                if size < source.batch_size:
                    which = "The last batch of an epoch"
                    hint = f" Leave them out, as in x[:{source.examples - size}]."
                about = f"{which} has {size} of the {source.examples} examples.{hint}"
                raise errors.ShapeError(f"{error.args[0]}\n  {about}") from error.__cause__
    return traces[0]


def _reads_labels(loss: object) -> bool:
    """Say whether a loss takes the labels of one of Vernal's: a subclass may have others."""
    for kind in CrossEntropy, BinaryCrossEntropy:
        if isinstance(loss, kind):
            names = "__call__", "of_example", "parts_of"
            return all(getattr(type(loss), name) is getattr(kind, name) for name in names)
    return False


def _label_check(preflight: Preflight, batch: PyTree) -> Callable[[PyTree], None]:
    """Make the check that raises `ExamplesError` for a batch with labels out of a loss's range.

    Args:
        preflight: The model and the loss; only classification losses have such a range.
        batch: A batch that fits them, or its shapes.
    """
    loss = preflight.loss
    if not _reads_labels(loss):
        return lambda batch: None
    inferring = eqx.nn.inference_mode(preflight.model)
    with errors.calling("the model in inference mode"):
        predicted = replace(preflight, objective=None, model=inferring).trace(batch[0]).shapes

    metrics = preflight.objective.metrics if preflight.objective else {}
    of_one_class = [n for n, each in metrics.items() if getattr(each, "fn", each) is accuracy]
    has_tags = isinstance(loss, BinaryCrossEntropy) and predicted.shape[1:] not in ((), (1,))

    def check(batch: PyTree) -> None:
        y = batch[1]
        try:
            loss.check_labels(y, (len(y), *predicted.shape[1:]))
            if has_tags and of_one_class and (np.sum(y, axis=-1) != 1).any():
                given = f"metrics[{of_one_class[0]!r}] takes one class an example; y has others"
                hint = "Count each label: lambda p, t: jnp.mean((p > 0) == (t > 0.5))."
                raise errors.ExamplesError(f"{given}.\n  {hint}")
        except errors.ExamplesError as error:
            raise errors.ExamplesError(errors.about(preflight.name, error.args[0])) from None

    return check
