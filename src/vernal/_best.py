"""Which values of a metric are the best: the smallest or the largest."""

import re
from typing import Literal

from vernal.metrics import AbstractMetric, Mean

Best = Literal["min", "max"]

# Words in the names of metrics that tell which values are best.
_RISING = """
    acc accuracy ap auc auprc auroc bleu correlation dice elbo f1 f2 fbeta hit iou jaccard kappa
    likelihood map matthews mcc miou mrr ndcg pearson precision psnr r2 recall return reward roc
    rouge sensitivity similarity spearman specificity ssim top topk
"""
_FALLING = """
    bce brier ce cer cost crossentropy distance divergence ece err error fid kl loss lpips mae mape
    mse nll perplexity ppl regret rmse wer
"""
# With one of these, a name tells nothing: a `loss_scale` is no loss.
_UNCLEAR = """
    change delta diff difference drop false gap neg negative norm ratio scale std var variance
    weight
"""


def best_of(name: str, metric: AbstractMetric | None = None) -> Best | None:
    """Say which values of a metric are best; `None` if it is not known.

    Args:
        name: Its name, with or without `val_`. The last word that tells decides: an
            `accuracy_loss` is a loss.
        metric: The metric. If it knows, its name does not matter.
    """
    by_metric = getattr(metric.fn if isinstance(metric, Mean) else metric, "best", None)
    if by_metric in ("min", "max"):
        return by_metric

    name = re.sub("cross.entropy", "crossentropy", name.removeprefix("val_").lower())
    words = re.findall(r"[a-z]+\d*", name)
    if not set(words).isdisjoint(_UNCLEAR.split()):
        return None
    for word in reversed(words):
        forms = {word, word.rstrip("0123456789"), word.rstrip("s")}
        if not forms.isdisjoint(_RISING.split()):
            return "max"
        if not forms.isdisjoint(_FALLING.split()):
            return "min"
    return "max" if words == ["score"] else None
