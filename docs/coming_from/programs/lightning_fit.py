import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

rng = np.random.default_rng(0)
x = rng.normal(size=(1000, 2)).astype(np.float32)
radius = np.linalg.norm(x, axis=1)
x, radius = x[abs(radius - 1.2) > 0.1], radius[abs(radius - 1.2) > 0.1]
labels = (radius > 1.2).astype(np.int32)  # inside a ring, or outside
train, held_out = (x[:700], labels[:700]), (x[700:], labels[700:])


class Rings(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2)
        )

    def forward(self, x):
        return self.mlp(x)

    def training_step(self, batch, index):
        x, labels = batch
        return torch.nn.functional.cross_entropy(self(x), labels)

    def validation_step(self, batch, index):
        x, labels = batch
        logits = self(x)
        self.log("val_loss", torch.nn.functional.cross_entropy(logits, labels))
        self.log("accuracy", (logits.argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def loader(data, shuffle=False):
    x, labels = data
    dataset = TensorDataset(torch.from_numpy(x), torch.from_numpy(labels).long())
    return DataLoader(dataset, batch_size=50, shuffle=shuffle)


lightning.seed_everything(0, verbose=False)
best = ModelCheckpoint(monitor="val_loss")
trainer = lightning.Trainer(
    max_epochs=100,
    callbacks=[EarlyStopping("val_loss", patience=10), best],
    accelerator="cpu",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Rings(), loader(train, shuffle=True), loader(held_out))

model = Rings.load_from_checkpoint(best.best_model_path)
(measured,) = trainer.validate(model, loader(held_out), verbose=False)
print(f"accuracy {measured['accuracy']:.2f}")
with torch.no_grad():
    logits = model(torch.from_numpy(held_out[0]))
torch.save(model.state_dict(), "rings.pt")
