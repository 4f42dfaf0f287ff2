"""Trainings in a child process, which a test kills."""

from __future__ import annotations

import multiprocessing
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from featcache.cache.reader import FeatureCache
from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord
from featcache.runs.fit import fit_head
from featcache.runs.resuming import resume_head

# A server that has imported everything and started no thread forks the children.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["killed_training", "featcache.runs.fit", "featcache.runs.resuming"])


def _train(cache: Path | None, config: HeadConfig, runs_dir: Path, sender: Connection) -> None:
    torch.set_num_threads(1)

    def progress(epoch: EpochRecord) -> None:
        sender.send(epoch.epoch)
        time.sleep(0.02)

    if cache is None:
        resume_head(runs_dir=runs_dir, progress=progress, checkpoint_every_s=0.0)
    else:
        opened = FeatureCache.open(cache)
        fit_head(opened, config, runs_dir=runs_dir, progress=progress, checkpoint_every_s=0.0)


def killed_after(epoch: int, config: HeadConfig, runs_dir: Path, cache: Path | None = None) -> bool:
    """Train on `cache`, or resume the last training, and kill the process as soon as it reports that epoch.

    A checkpoint is written after every epoch. Returns False if the training ended before.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=_train, args=(cache, config, runs_dir, sender))
    child.start()
    sender.close()
    try:
        while receiver.recv() < epoch:
            pass
        child.kill()
    except EOFError:
        pass
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), f"the child failed with {child.exitcode}"
    return child.exitcode != 0
