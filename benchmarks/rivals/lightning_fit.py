"""Lightning: its `Trainer` around the model of PyTorch's loop."""

import logging
import warnings

import lightning
import torch

from rivals.torch_loop import loss_of, model, optimizer, outputs

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def prepare(workload):
    """`Trainer.fit`, without all that may make it slower."""
    tensors = tuple(map(torch.as_tensor, workload.data()))
    loss, epochs, trained = loss_of(workload), workload.epochs, []
    if workload.batch_size is None:  # one epoch of full batches: what ends one takes long
        batches, epochs = torch.utils.data.DataLoader([tensors] * epochs, batch_size=None), 1
    else:
        data = torch.utils.data.TensorDataset(*tensors)
        batches = torch.utils.data.DataLoader(data, workload.batch_size, shuffle=True)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model(workload)

        def training_step(self, batch, index):
            return loss(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return optimizer(workload, self.model)

    def run():
        module = Module()
        trainer = lightning.Trainer(accelerator="cpu", max_epochs=epochs, barebones=True)
        trainer.fit(module, batches)
        trained[:] = [module.model]

    return run, lambda x: outputs(trained, x)
