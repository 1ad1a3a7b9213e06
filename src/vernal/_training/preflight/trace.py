"""Model, loss and batch are checked together: a trace on shapes alone.

Only if the trace fails is anything explained, by `vernal._explain`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from vernal._shapes.jaxprs import holds
from vernal._shapes.modules import shapes_of
from vernal._training.objective import Objective, measure
from vernal.errors import ShapeError, VernalError
from vernal.losses import AbstractSupervised, predictions


class Traced(NamedTuple):
    """What a trace says.

    Attributes:
        shapes: What the traced function returns, as shapes.
        convolves: Whether it has convolutions.
    """

    shapes: Any
    convolves: bool


@dataclass(frozen=True)
class Preflight:
    """A model, and what is measured of it, to be checked against data.

    Attributes:
        objective: What is measured; `None` to apply the model to each example.
        model: The model.
        model_state: The model's state, or `None`.
        name: The argument that the data is, for messages.
        mesh: The devices that share each batch; `None` is one alone.
    """

    objective: Objective | None
    model: PyTree
    model_state: PyTree
    name: str = "data"
    mesh: Mesh | None = None

    @property
    def loss(self) -> Any:
        """The loss; or `None`."""
        return None if self.objective is None else self.objective.loss

    @property
    def takes_examples(self) -> bool:
        """Whether the loss, or the model alone, takes the examples of a batch one by one.

        Every part of a batch then needs as many. A loss of a user's own takes the batch as it is.
        """
        loss = self.loss
        return loss is None or type(loss).__call__ is AbstractSupervised.__call__

    def trace(self, batch: PyTree) -> Traced:
        """Measure a batch, or apply the model to it, as shapes; what is raised is not explained."""
        args = shapes_of((self.objective, self.model, self.model_state, batch))
        jaxpr, shapes, _ = eqx.filter_make_jaxpr(_kept_measured)(*args)
        return Traced(shapes, convolves=holds(jaxpr.jaxpr, "conv_general_dilated"))

    def check(self, batch: PyTree, *, given: PyTree = None) -> Traced:
        """Trace as `trace` does, and explain a failure.

        Args:
            batch: Its values are read only if there is something to explain.
            given: What the user passed, where the batch was made from it: lists, say.

        Raises:
            ShapeError: With a fix for the data, if one was found to work.
            VernalError: Any other of Vernal's errors, as it is.
        """
        try:
            return self.trace(batch)
        except Exception as error:
            if isinstance(error, VernalError) and not isinstance(error, ShapeError):
                raise
            explained = self.explained(error, batch, given=given)
            raise explained from explained.__cause__

    def explained(self, error: Exception, batch: PyTree = None, *, given: PyTree) -> VernalError:
        """Explain why model, loss and data do not fit, with a fix if one was found to work.

        Args:
            error: What was raised: in a trace, or, an `ExamplesError`, while the data was read.
            batch: What the trace failed on; an `ExamplesError` has its own arrays.
            given: What the user passed.

        Returns:
            The error to raise, from its `__cause__`.
        """
        # Only a program that has failed pays for this import.
        from vernal._explain.messages import Attempt, explanation

        def measured(loss: Callable | None, model: PyTree, batch: PyTree) -> PyTree:
            # Not in another dtype: the layers of a cast model would be others than those watched.
            objective = self.objective and self.objective._replace(loss=loss, compute_dtype=None)
            return _measured(objective, model, self.model_state, batch)

        attempt = Attempt(self.loss, self.model, self.model_state, measured)
        return explanation(attempt, batch, error, name=self.name, given=given)


def _measured(
    objective: Objective | None, model: PyTree, model_state: PyTree, batch: PyTree
) -> PyTree:
    """Measure a batch as in training; or apply the model, if nothing is measured."""
    if objective is None:
        return predictions(model, batch, model_state=model_state)
    measured = measure(objective, model, model_state, batch, jax.random.key(0))
    return measured._replace(model_state=None)  # an `eqx.nn.State` is not only arrays


# Never compiled: JAX keeps a trace that went well, and does not make it again for the same program.
_kept_measured = eqx.filter_jit(_measured)
