"""Lightning saves in mid-epoch and goes on, with the sampler's state kept by a data module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ste_ops.data import WeightedBatchSampler

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages
lightning = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")


class Data(lightning.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.sampler = WeightedBatchSampler(torch.ones(40), 8, replacement=False, generator=generator)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.arange(40.0)), batch_sampler=self.sampler, num_workers=1)

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict(consumed=self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state_dict)


class Model(lightning.LightningModule):
    def __init__(self, save_at: int | None, path: Path) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.save_at, self.path = save_at, path
        self.seen: list[tuple[int, list[float]]] = []

    def training_step(self, batch: Any) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch[0].tolist()))
        return self.layer(batch[0][:, None]).mean()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step == self.save_at:
            self.trainer.save_checkpoint(self.path)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.001)


def fit(path: Path, save_at: int | None = None, **options: Any) -> list[tuple[int, list[float]]]:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    model = Model(save_at, path)
    lightning.Trainer(max_epochs=2, accelerator="cpu", **quiet).fit(model, Data(), **options)
    return model.seen


def test_a_checkpoint_in_mid_epoch(tmp_path: Path) -> None:
    path = tmp_path / "middle.ckpt"
    whole = fit(path, save_at=2)
    assert fit(path, ckpt_path=path, weights_only=True) == whole[2:]
    assert [epoch for epoch, _ in whole] == [0] * 5 + [1] * 5
