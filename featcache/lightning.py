"""featcache's heads and cached features for your own Lightning Trainer.

data = FeatureDataModule("digits-vgg16-....h5", "mlp:128,64", lr=1e-3)
module = HeadModule.of(data)
pl.Trainer(max_epochs=20, callbacks=[EarlyStopping("val_loss")]).fit(module, data)
module.plain_head()    # a torch module on plain features
"""

from __future__ import annotations

from featcache.training.lightning import FeatureDataModule, HeadModule

__all__ = ["FeatureDataModule", "HeadModule"]
