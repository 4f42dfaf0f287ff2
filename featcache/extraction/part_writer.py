"""From rows as they are computed to parts on disk, one published behind the back of the next batch."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.cache.parts import write_part
from featcache.cache.spec import Json, Spec
from featcache.extraction.pipeline import Rows
from featcache.extraction.stages import Stages


class PartWriter:
    """Collects rows into parts of `part_rows` and publishes each in the background, one at a time."""

    def __init__(
        self,
        folder: Path,
        spec: Spec,
        *,
        rows: npt.NDArray[np.int64],
        digests: npt.NDArray[np.uint8],
        part_rows: int,
        provenance: Mapping[str, Json],
        stages: Stages,
    ) -> None:
        """`rows` (n,) are the plan's rows that will come, `digests` (n, 32) those of their images."""
        self._folder, self._spec, self._part_rows = folder, spec, part_rows
        self._rows, self._digests = rows, digests
        self._provenance, self._stages = provenance, stages
        self._blocks: list[Rows] = []
        self._held = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: Future[Path] | None = None

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._stages.measured("write"):
                if kind is None and self._held:
                    self._publish(self._held)
                self._wait()
        finally:
            self._pool.shutdown(wait=True)

    def add(self, block: Rows) -> None:
        """Takes the next rows; publishes whenever a part is full."""
        if not len(block.index):
            return
        self._blocks.append(block)
        self._held += len(block.index)
        with self._stages.measured("write"):
            while self._held >= self._part_rows:
                self._publish(self._part_rows)

    def _publish(self, count: int) -> None:
        index = np.concatenate([block.index for block in self._blocks])
        features = {
            layer: np.concatenate([block.features[layer] for block in self._blocks]) for layer in self._spec.layer_names
        }
        self._blocks = []
        self._held = len(index) - count
        if self._held:
            rest = {layer: values[count:] for layer, values in features.items()}
            self._blocks = [Rows(index=index[count:], features=rest)]
        self._wait()
        self._writing = self._pool.submit(
            write_part,
            self._folder,
            fingerprint=self._spec.fingerprint,
            first_row=int(self._rows[index[0]]),
            digests=self._digests[index[:count]],
            features={layer: values[:count] for layer, values in features.items()},
            provenance=self._provenance,
        )

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
