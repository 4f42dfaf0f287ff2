"""Parts of `benchmarks/heads.py`: the time of an epoch, resident and streamed, and logreg against scikit-learn."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from features import CLASSES, write_features
from torch import Tensor
from torch.nn import functional as F

from featcache.cache import FeatureCache
from featcache.heads.architectures import HeadShape, build_head
from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord
from featcache.rows.cuts import cut_cache
from featcache.runs.fit import fit_head

VAL_ROWS = 4_000
WAYS = ("resident", "streamed", "streamed_cold")
_MIB = 1 << 20


class BareLoop:
    """The notebook's head in a plain loop on float16 tensors in memory, each batch converted to float32."""

    def __init__(self, cache: FeatureCache, config: HeadConfig) -> None:
        self.config = config
        cut = cut_cache(cache, val_fraction=config.val_fraction, val_seed=config.val_seed)
        self.train, self.val = (
            torch.from_numpy(cache[part.source].features.gather(part.rows)) for part in (cut.train, cut.val)
        )
        self.train_labels, self.val_labels = torch.from_numpy(cut.train.targets), torch.from_numpy(cut.val.targets)
        self.standard = self._standard() if config.standardize else None
        shape = HeadShape(
            in_features=self.train.shape[1],
            classes=CLASSES,
            hidden=config.architecture.hidden,
            activation=config.activation,
        )
        self.head = build_head(config.architecture, shape)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=config.lr, fused=True)

    def epoch(self) -> float:
        """Seconds of one epoch, val included."""
        began = time.perf_counter()
        total = torch.zeros(())
        for chosen in torch.split(torch.randperm(len(self.train)), self.config.head_batch_size):
            self.optimizer.zero_grad(set_to_none=True)
            labels = self.train_labels[chosen]
            loss = F.cross_entropy(self.head(self._values(self.train[chosen])), labels)
            torch.autograd.backward(loss)
            self.optimizer.step()
            total += loss.detach() * len(labels)
        with torch.inference_mode():
            logits = torch.cat([self.head(self._values(some)) for some in torch.split(self.val, 1024)])
            float(F.cross_entropy(logits, self.val_labels))
        return time.perf_counter() - began

    def _values(self, stored: Tensor) -> Tensor:
        values = stored.float()
        return values if self.standard is None else values.sub_(self.standard[0]).mul_(self.standard[1])

    def _standard(self) -> tuple[Tensor, Tensor]:
        rows = self.train[:4000].float()
        return rows.mean(dim=0), 1 / rows.std(dim=0)


def part_epochs(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Epochs of the notebook's head alternating with a bare loop's; the ratio is the median over the pairs."""
    measured: dict[str, Any] = {}
    for wide in (2_048, 25_088):
        with write_features(folder / str(wide), {"train": rows, "val": VAL_ROWS}, wide) as cache:
            for batch_size in (64, 1_024):
                for standardize in (False, True):
                    config = notebook_head(batch_size, rounds, standardize=standardize)
                    name = f"{rows} x {wide}, batch {batch_size}" + (", standardised" if standardize else "")
                    measured[name] = in_turns(cache, config, folder / "runs")
                    print(name, measured[name], flush=True)
    return measured


def notebook_head(batch_size: int, epochs: int, *, standardize: bool) -> HeadConfig:
    """The head of the two networks' recipes."""
    return HeadConfig(
        head="mlp:128,64",
        activation="leaky_relu",
        lr=1e-4,
        standardize=standardize,
        head_batch_size=batch_size,
        max_epochs=epochs,
        patience=epochs,
    )


def in_turns(cache: FeatureCache, config: HeadConfig, runs_dir: Path) -> dict[str, Any]:
    """After each featcache epoch, run one of the bare loop, with torch's number of threads and with featcache's."""
    bare = BareLoop(cache, config)
    everything = torch.get_num_threads()
    pairs: list[tuple[float, float]] = []

    def turn(record: EpochRecord) -> None:
        # The first epoch of each includes start-up costs and is not counted.
        chosen = torch.get_num_threads()
        seconds = []
        for threads in sorted({everything, chosen}):
            torch.set_num_threads(threads)
            # This function is called during validation, where gradients are disabled.
            with torch.enable_grad():
                seconds.append(bare.epoch())
        torch.set_num_threads(chosen)
        if record.epoch > 1:
            pairs.append((record.seconds, min(seconds)))

    run = fit_head(cache, config, runs_dir=runs_dir, progress=turn, resident_bytes=1 << 40)
    return {
        "ratio": round(statistics.median(featcache / bare for featcache, bare in pairs), 3),
        "ratios": [round(featcache / bare, 2) for featcache, bare in pairs],
        "featcache_s": round(statistics.median(featcache for featcache, _ in pairs), 3),
        "bare_s": round(statistics.median(bare for _, bare in pairs), 3),
        "threads": run.training.threads,
    }


# --- streaming ---------------------------------------------------------------------------------------------


def part_streaming(folder: Path, rows: int, epochs: int) -> dict[str, Any]:
    """Train with resident features, streamed, and streamed with a cold page cache, each in a new process.

    `rows`: number of rows of the widest features; narrower features get more rows, for the same number of bytes.
    """
    measured: dict[str, Any] = {}
    for wide in (25_088, 2_048):
        count = rows * 25_088 // wide
        with write_features(folder / str(wide), {"train": count, "val": VAL_ROWS}, wide) as cache:
            for batch_size in (64, 1_024):
                printed = {way: _in_a_child(cache.path, way, batch_size, epochs) for way in WAYS}
                measured[name := f"{count} x {wide}, batch {batch_size}"] = {
                    "features_mib": count * wide * 2 // _MIB,
                    **printed,
                    "speed": round(printed["resident"]["epoch_s"] / printed["streamed"]["epoch_s"], 3),
                    "speed_cold": round(printed["resident"]["epoch_s"] / printed["streamed_cold"]["epoch_s"], 3),
                }
                print(name, measured[name], flush=True)
        shutil.rmtree(folder / str(wide))
    return measured


def _in_a_child(cache: Path, way: str, batch_size: int, epochs: int) -> dict[str, Any]:
    words = [sys.executable, __file__, str(cache), way, str(batch_size), str(epochs)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def train_in_this_process(path: Path, way: str, batch_size: int, epochs: int) -> dict[str, Any]:
    """The median time of an epoch, without the first, and the memory of the process in MiB (`peak`: VmHWM)."""
    seconds: list[float] = []

    def forget(record: EpochRecord) -> None:
        seconds.append(record.seconds)
        if way == "streamed_cold":
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    config = notebook_head(batch_size, epochs, standardize=True)
    imports = _memory()
    with FeatureCache.open(path) as cache, tempfile.TemporaryDirectory() as runs, _Watch() as watch:
        budget = 1 << 40 if way == "resident" else 0
        fit_head(cache, config, runs_dir=runs, progress=forget, resident_bytes=budget)
    return {
        "epoch_s": round(statistics.median(seconds[1:]), 3),
        "epochs_s": [round(one, 2) for one in seconds],
        "peak_rss_mib": _memory()["VmHWM"],
        "peak_anon_mib": watch.most["RssAnon"],
        "peak_file_mib": watch.most["RssFile"],
        "imports_rss_mib": imports["VmRSS"],
        "imports_anon_mib": imports["RssAnon"],
    }


class _Watch:
    """Samples the memory of the process; `most`: the maximum of each kind in MiB. Mapped libraries count as RssFile."""

    def __init__(self) -> None:
        self.most = _memory()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            now = _memory()
            self.most = {name: max(most, now[name]) for name, most in self.most.items()}


def _memory() -> dict[str, int]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) // 1024 for name in ("VmHWM", "VmRSS", "RssAnon", "RssFile")}


# --- logreg ------------------------------------------------------------------------------------------------


def part_logreg(folder: Path, cache: Path | None) -> dict[str, Any]:
    """featcache's logreg on a real cache, against scikit-learn's on the same arrays, read with h5py."""
    if cache is None:
        raise typer.BadParameter("logreg needs real features: the path of a cache", param_hint="--cache")
    import h5py
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with FeatureCache.open(cache) as opened:
        run = fit_head(opened, HeadConfig(head="logreg"), runs_dir=folder)
        rows = cut_cache(opened, val_fraction=0.2, val_seed=42).train.rows
        layer = opened.layers[0]
    chosen = run.history()[run.training.best_epoch - 1].candidate
    with h5py.File(cache) as file:
        split = {
            part: (file[f"{part}/features/{layer}"][:], file[f"{part}/targets/label"][:]) for part in ("train", "test")
        }
    features, labels = split["train"]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=float(chosen.removeprefix("C=")), max_iter=2000))
    model.fit(features[rows].astype(np.float32), labels[rows])
    plain = float(model.score(split["test"][0].astype(np.float32), split["test"][1]))
    assert run.training.test is not None
    return {
        "cache": cache.name,
        "chosen": chosen,
        "test_accuracy": run.training.test.accuracy,
        "scikit_learn": plain,
        "difference_points": round(100 * abs(run.training.test.accuracy - plain), 3),
        "seconds": round(run.training.seconds, 2),
    }


if __name__ == "__main__":
    print(json.dumps(train_in_this_process(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))))
