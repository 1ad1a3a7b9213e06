"""PyTorch: the loop of its tutorials."""

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


def model(workload):
    """The model of a workload."""
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


def optimizer(workload, model):
    """What changes its parameters."""
    make = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[workload.optimizer]
    return make(model.parameters(), workload.rate)


def loss_of(workload):
    """The mean loss of some outputs and targets."""
    if not workload.classifies:
        return nn.functional.mse_loss
    cross_entropy = nn.functional.cross_entropy
    return lambda outputs, y: cross_entropy(outputs.flatten(0, -2), y.flatten().long())


def outputs(trained, x):
    """What the trained model makes of some examples."""
    with torch.no_grad():
        parts = torch.as_tensor(x).split(1000)
        return np.concatenate([trained[0](part).numpy() for part in parts])


def prepare(workload):
    """The loop of PyTorch's tutorials, on tensors in memory."""
    x, y = map(torch.as_tensor, workload.data())
    size, loss, trained = workload.batch_size or workload.examples, loss_of(workload), []

    def run():
        made = model(workload)
        changes = optimizer(workload, made)
        for index in range(workload.epochs):
            order = torch.as_tensor(workload.order(index))
            for start in range(0, workload.examples, size):
                rows = order[start : start + size]
                batch = (x, y) if size == len(x) else (x[rows], y[rows])
                changes.zero_grad()
                loss(made(batch[0]), batch[1]).backward()
                changes.step()
        trained[:] = [made]

    return run, lambda x: outputs(trained, x)
