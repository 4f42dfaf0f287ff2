"""Heads for Lightning's Trainer: a LightningModule of a head, and a LightningDataModule of cached features.

    data = FeatureDataModule("digits-vgg16-....h5", "mlp:128,64", lr=1e-3)
    module = HeadModule.of(data)
    pl.Trainer(max_epochs=20, callbacks=[EarlyStopping("val_loss")]).fit(module, data)
    module.plain_head()    # a torch module on plain features

    pl.Trainer().test(module, data)
    HeadModule.load_from_checkpoint("....ckpt")

They train the same head as featcache's own engine (training/engine.py), with the same batches in the same order. Use
them for callbacks, strategies and loggers of Lightning; the engine is faster. With several processes, each reads all
rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as pl
import torch
import torchmetrics
from torch import Tensor, nn

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError, InvalidOption
from featcache.heads.architectures import build_head
from featcache.heads.config import SMALLEST_NORMED_BATCH, HeadConfig
from featcache.heads.standardisation import Standardisation
from featcache.heads.target_scale import TargetScale
from featcache.rows.batches import Batch, Batches, Epochs, StreamedBatches
from featcache.rows.devices import choose_device, seed_generators
from featcache.rows.target import HeadTarget
from featcache.training.augmentation import Mixture, StepRandom
from featcache.training.finished import final_head
from featcache.training.fitting import source_of
from featcache.training.losses import balance_class_weights, losses_of
from featcache.training.preparation import open_prepared, prepare
from featcache.training.stack import is_own
from featcache.training.stacking import head_shape, initial_tensors
from featcache.training.trial import Scaling, Source, Trial, rate_at_epoch

# The key of the standardisation in a Lightning checkpoint.
_SCALING = "featcache_scaling"
_METRICS: Mapping[str, Callable[[int], torchmetrics.Metric]] = {
    "classes": lambda outputs: torchmetrics.classification.MulticlassAccuracy(outputs, average="micro"),
    "lists": lambda outputs: torchmetrics.classification.MultilabelAveragePrecision(outputs),
    "numbers": lambda outputs: torchmetrics.R2Score(),
}


class HeadModule(pl.LightningModule):
    """A LightningModule of a head, with its loss and its optimizer.

    It logs `train_loss`, `val_loss` and `val_<metric>` (`val_accuracy`, `val_map` or `val_r2`) after every epoch, and
    `test_loss` and `test_<metric>` when it is tested. Its checkpoints contain all that `load_from_checkpoint` needs:
    its options as plain values, and the standardisation of its rows.

    Args:
        config: The head's options, or the result of `HeadConfig.to_json`. `max_epochs` and `patience` are not used: set
            Trainer(max_epochs=...) and EarlyStopping.
        target: The target, or the result of `HeadTarget.to_json`.
        in_features: Number of features D.
        scaling: The standardisation of rows in training; None for none.
        class_weights: The weight of each class in the loss, C numbers; None for equal weights.
    """

    def __init__(
        self,
        config: HeadConfig | Mapping[str, Any],
        target: HeadTarget | Mapping[str, Any],
        in_features: int,
        *,
        scaling: Scaling | None = None,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        config = config if isinstance(config, HeadConfig) else HeadConfig.from_json(config)
        target = target if isinstance(target, HeadTarget) else HeadTarget.from_json(target)
        self.config, self.target, self.in_features = config, target, in_features
        weights = None if class_weights is None else [float(weight) for weight in class_weights]
        # Plain values, so that loading a checkpoint executes no code.
        self.save_hyperparameters(
            {
                "config": config.to_json(),
                "target": target.to_json(),
                "in_features": in_features,
                "class_weights": weights,
            }
        )
        self.scaling = scaling or Scaling()
        with seed_generators(config.seed, torch.device("cpu")):
            self.head = build_head(config.architecture, head_shape(config, in_features, target.outputs))
        self._losses = losses_of([config], [None if weights is None else torch.tensor(weights)], target)
        self._plain = self._losses.plain()
        self.val_metric, self.test_metric = (_METRICS[target.kind](target.outputs) for _ in range(2))

    @classmethod
    def of(cls, data: FeatureDataModule) -> Self:
        """Create the module for the options and rows of a data module.

        Args:
            data: The data module; its caches are opened.
        """
        data.setup()
        return cls.of_rows(data.config, data.source, data.target)

    @classmethod
    def of_rows(cls, config: HeadConfig, source: Source, target: HeadTarget) -> Self:
        """Create the module for the given options, train rows and target."""
        weights = (
            balance_class_weights(source.batches.targets.cpu(), target) if config.class_weights == "balanced" else None
        )
        module = cls(
            config,
            target,
            source.batches.feature_dim,
            scaling=source.scaling,
            class_weights=None if weights is None else weights.tolist(),
        )
        if config.architecture.templates:
            module.head.load_state_dict(initial_tensors(config, source, target))
        return module

    def forward(self, features: Tensor) -> Tensor:
        """Plain features float32 (B, D) -> outputs float32 (B, C): logits, or standardised numbers."""
        outputs: Tensor = self.head(self.scaling.standardise(features))
        return outputs

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """The loss of a batch, with penalties; None for a last batch that has too few rows for batch norm."""
        if batch_idx and len(batch[0]) < SMALLEST_NORMED_BATCH and self._has_batch_norm:
            return None
        random = StepRandom([self.config.seed], self.current_epoch, batch_idx, self.device)
        features, targets = self.scaling.standardise(batch[0])[None], self.scaling.scale_targets(batch[1])[None]
        features, mixture = self._augment(features, targets, random)
        outputs = self._outputs(features[0], random)[None]
        losses = self._losses.to(self.device)
        loss = losses(outputs, targets)[0]
        if mixture is not None:
            share = mixture.shares[0]
            loss = share * loss + (1 - share) * losses(outputs, mixture.partners)[0]
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch[0]))
        if self.config.l1:
            trained = (parameter for parameter in self.head.parameters() if parameter.requires_grad)
            loss = loss + self.config.l1 * sum(parameter.abs().sum() for parameter in trained)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss, without class weights and smoothing, and the metric on val."""
        self._log_scores("val", self.val_metric, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss, without class weights and smoothing, and the metric on test."""
        self._log_scores("test", self.test_metric, batch)

    def configure_optimizers(self) -> Any:
        """The optimizer of the options, and the schedule of its learning rate."""
        config = self.config
        parameters = [parameter for parameter in self.head.parameters() if parameter.requires_grad]
        lr, decay = config.lr, config.weight_decay
        optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            optimizer = torch.optim.SGD(parameters, lr=lr, weight_decay=decay, momentum=config.momentum)
        else:
            kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
            optimizer = kind(parameters, lr=lr, weight_decay=decay)
        if config.schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, patience=config.patience // 2, threshold=config.min_delta, threshold_mode="abs"
            )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
        falling = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: rate_at_epoch(config, min(epoch, config.max_epochs)) / config.lr
        )
        return {"optimizer": optimizer, "lr_scheduler": falling}

    def plain_head(self) -> nn.Module:
        """The head without Lightning: a plain torch module, with standardisation and batch norms folded into it.

        Returns:
            A copy in eval mode: plain features float32 (B, D) -> outputs float32 (B, C), which are logits, or numbers
            in the target's own units.
        """
        trial = Trial(self.config, metric=self.target.metric)
        trial.best = {name: tensor.detach().clone() for name, tensor in self.head.state_dict().items()}
        return final_head(trial, self.scaling, self.target, self.in_features)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the standardisation of rows to a checkpoint, as float64 tensors."""
        parts = {"features": self.scaling.features, "targets": self.scaling.targets}
        checkpoint[_SCALING] = {
            name: [torch.from_numpy(part.mean), torch.from_numpy(part.deviation)]
            for name, part in parts.items()
            if part is not None
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the standardisation of rows from a checkpoint."""
        arrays = {name: [part.cpu().numpy() for part in parts] for name, parts in checkpoint[_SCALING].items()}
        features, targets = arrays.get("features"), arrays.get("targets")
        self.scaling = Scaling(
            features=None if features is None else Standardisation(mean=features[0], deviation=features[1]),
            targets=None if targets is None else TargetScale(mean=targets[0], deviation=targets[1]),
        )

    @property
    def _has_batch_norm(self) -> bool:
        return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in self.head.modules())

    def _log_scores(self, part: str, metric: torchmetrics.Metric, batch: Batch) -> None:
        outputs, targets = self.forward(batch[0]), self.scaling.scale_targets(batch[1])
        loss = self._plain.to(self.device)(outputs[None], targets[None])[0]
        metric.update(outputs, targets if self.target.kind == "numbers" else targets.long())
        self.log(f"{part}_loss", loss, on_epoch=True, batch_size=len(batch[0]))
        self.log(f"{part}_{self.target.metric}", metric, on_epoch=True, batch_size=len(batch[0]))

    def _outputs(self, features: Tensor, random: StepRandom) -> Tensor:
        """The head's outputs in training, with the engine's random numbers."""
        if is_own(self.config):
            with random.global_generators():
                given: Tensor = self.head(features)
            return given
        values = features
        for layer in self.head.children():
            if isinstance(layer, nn.Dropout):
                rows, wide = values.shape
                values = values * random.dropout_factors(rows, wide, self.config.dropout)[0]
            else:
                values = layer(values)
        return values

    def _augment(self, features: Tensor, targets: Tensor, random: StepRandom) -> tuple[Tensor, Mixture | None]:
        config = self.config
        if config.noise:
            features = random.add_noise(features, config.noise)
        return random.mix(features, targets, config.mixup) if config.mixup else (features, None)


class FeatureDataModule(pl.LightningDataModule):
    """A LightningDataModule of cached features: the train, val and test rows, in the order of `train_head`.

    Args:
        cache: An open cache, or the path of one.
        config: The options of a head, whose batch size, seed, target and val options determine the rows; or the name of
            a head (`mlp:128,64`), or the factory of a custom one, with further options as keyword arguments.
        beside: Further caches of the same images, whose features are concatenated.
        device: The device of the features: `cpu`, or that of the Trainer.
        resident_bytes: The most bytes that features may take on the device; above that they are streamed. None for a
            share of the free memory.
        options: Options of HeadConfig, if `config` is not a HeadConfig.

    Raises:
        InvalidOption: Options cannot be used, or the head is not trained by steps.
    """

    def __init__(
        self,
        cache: FeatureCache | str | Path,
        config: HeadConfig | str | Callable[..., Any] = "mlp:128,64",
        *,
        beside: Sequence[FeatureCache | str | Path] = (),
        device: str = "cpu",
        resident_bytes: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(config, HeadConfig) and options:
            raise InvalidOption(f"expected options in the HeadConfig only, got {', '.join(options)} as well")
        self.config = config if isinstance(config, HeadConfig) else HeadConfig.of({"head": config, **options})
        if self.config.architecture.solved:
            raise InvalidOption(
                f"the head {self.config.head} is solved, not trained by steps", hint="linear, mlp:128,64"
            )
        self._given, self._device, self._resident_bytes = (cache, *beside), device, resident_bytes
        self._parts: dict[str, Batches] = {}

    def setup(self, stage: str | None = None) -> None:
        """Open the caches and choose the rows of each part; further calls do nothing."""
        if self._parts:
            return
        first, *others = (one if isinstance(one, FeatureCache) else FeatureCache.open(one) for one in self._given)
        self.config = self.config.for_views(first.spec.views)
        device = choose_device(self._device)
        prepared = prepare(first, self.config, beside=others, device=device)
        train, val = open_prepared(prepared, self.config, resident_bytes=self._resident_bytes)
        self._parts = {"train": train, "val": val}
        if "test" in prepared.rows:
            self._parts["test"] = StreamedBatches(
                prepared.rows["test"], batch_size=self.config.head_batch_size, seed=0, device=device
            )
        self.target = prepared.target
        self.source = source_of(train, self.config, self.target)

    def train_dataloader(self) -> NextEpoch:
        """The train batches of the Trainer's current epoch; without a Trainer, each iteration is the next epoch."""
        trainer = self.trainer
        return NextEpoch(self._parts["train"], None if trainer is None else lambda: trainer.current_epoch)

    def val_dataloader(self) -> InOrder:
        """All val rows, in the order of the cache."""
        return InOrder(self._parts["val"])

    def test_dataloader(self) -> InOrder:
        """All test rows, in the order of the cache. Raises HeadError if the cache has no labelled test images."""
        if "test" not in self._parts:
            raise HeadError("the cache has no labelled test images", hint="extract with --split test as well")
        return InOrder(self._parts["test"])


class InOrder:
    """Val or test batches for a Trainer: all rows once, in the order of the cache."""

    def __init__(self, batches: Epochs) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return self._batches.in_order()


class NextEpoch:
    """Train batches for a Trainer.

    Args:
        epochs: The batches.
        present: Returns the number of the current epoch, which is right after resuming from a checkpoint too; None if
            each iteration is the next epoch.
    """

    def __init__(self, epochs: Epochs, present: Callable[[], int] | None = None) -> None:
        self._epochs, self._present, self._number = epochs, present, 0

    def __iter__(self) -> Iterator[Batch]:
        # Evaluated when the first batch is taken: Lightning creates iterators that it does not use.
        number = self._number if self._present is None else self._present()
        self._number = number + 1
        yield from self._epochs.epoch(number)

    def __len__(self) -> int:
        # Raises TypeError if the number of batches is unknown, as Lightning expects.
        return len(self._epochs)  # type: ignore[arg-type]
