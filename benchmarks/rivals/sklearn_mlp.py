"""scikit-learn's `MLPRegressor`, for networks of dense layers with hidden ones."""

import warnings

from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from workloads import Unfit


def prepare(workload):
    """As many epochs as the workload has: no early end."""
    hidden = workload.sizes[1:-1]
    if workload.kind != "dense" or not hidden:
        raise Unfit("MLPRegressor has hidden dense layers")
    warnings.simplefilter("ignore", ConvergenceWarning)
    (x, y), trained = workload.data(), []

    def run():
        model = MLPRegressor(
            hidden_layer_sizes=hidden,
            activation=workload.activation,
            solver=workload.optimizer,
            alpha=0,
            batch_size=workload.batch_size or workload.examples,
            learning_rate_init=workload.rate,
            max_iter=workload.epochs,
            momentum=0,
            n_iter_no_change=workload.epochs,
            random_state=0,
        )
        trained[:] = [model.fit(x, y if y.shape[1] > 1 else y[:, 0])]

    return run, lambda x: trained[0].predict(x)
