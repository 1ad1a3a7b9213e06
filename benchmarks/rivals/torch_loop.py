"""PyTorch: its usual loop, and Lightning around the same model."""

import itertools

import numpy as np
import torch
from torch import nn
from workloads import LENGTH


class _Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.dense = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )

    def forward(self, x, mask):
        normed = self.norms[0](x)
        x = x + self.attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        return x + self.dense(self.norms[1](x))


class _Transformer(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        vocabulary, width, heads, blocks = sizes
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList([_Block(width, heads) for _ in range(blocks)])
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, x):
        x = self.tokens(x.long()) + self.places.weight
        for block in self.blocks:
            x = block(x, self.mask)
        return self.last(x)


def _model(workload):
    torch.manual_seed(0)
    sizes = workload.sizes
    if workload.kind == "transformer":
        return _Transformer(sizes)
    layers = []
    if workload.kind == "convolutional":
        for i, o in itertools.pairwise(sizes):
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * sizes[-1], 10))
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[workload.activation]
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), activation()]
    return nn.Sequential(*layers[:-1])


def _optimizer(workload, model):
    make = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[workload.optimizer]
    return make(model.parameters(), workload.rate)


def _loss(workload):
    if not workload.classifies:
        return nn.functional.mse_loss
    cross_entropy = nn.functional.cross_entropy
    return lambda outputs, y: cross_entropy(outputs.flatten(0, -2), y.flatten().long())


def _outputs(trained, x):
    with torch.no_grad():
        parts = torch.as_tensor(x).split(1000)
        return np.concatenate([trained[0](part).numpy() for part in parts])


def prepare(workload):
    """The loop of PyTorch's tutorials, on tensors in memory."""
    x, y = map(torch.as_tensor, workload.data())
    size, loss_of, trained = workload.batch_size or workload.examples, _loss(workload), []

    def run():
        model = _model(workload)
        optimizer = _optimizer(workload, model)
        for index in range(workload.epochs):
            order = torch.as_tensor(workload.order(index))
            for start in range(0, workload.examples, size):
                rows = order[start : start + size]
                batch = (x, y) if size == len(x) else (x[rows], y[rows])
                optimizer.zero_grad()
                loss_of(model(batch[0]), batch[1]).backward()
                optimizer.step()
        trained[:] = [model]

    return run, lambda x: _outputs(trained, x)


def prepare_lightning(workload):
    """Lightning's `Trainer.fit`, without its logger, bar and checkpoints."""
    import logging
    import warnings

    import lightning

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = torch.utils.data.TensorDataset(*map(torch.as_tensor, workload.data()))
    size, loss_of, trained = workload.batch_size or workload.examples, _loss(workload), []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = _model(workload)

        def training_step(self, batch, index):
            return loss_of(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return _optimizer(workload, self.model)

    def run():
        module = Module()
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=workload.epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        batches = torch.utils.data.DataLoader(data, size, shuffle=size < len(data))
        trainer.fit(module, batches)
        trained[:] = [module.model]

    return run, lambda x: _outputs(trained, x)
