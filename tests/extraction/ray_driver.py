"""A driver in its own process: extracts on the Ray cluster at an address, and can be killed."""

from __future__ import annotations

import sys
from pathlib import Path

from featcache.extraction.ray_engine import Cluster, extract_on_ray
from featcache.extraction.request import Request
from featcache.extraction.run import Execution

SEGMENT_ROWS = 4


def request(images: str | Path, data_dir: str | Path) -> Request:
    return Request(
        dataset=Path(images),
        backbone="resnet18",
        weights="random",
        image_size=64,
        precision="fp32",
        runner="eager",
        data_dir=Path(data_dir),
    )


if __name__ == "__main__":
    import ray

    address, images, data_dir = sys.argv[1:]
    ray.init(address=address, log_to_driver=False)
    execution = Execution(segment_rows=SEGMENT_ROWS, device="cpu")
    print(extract_on_ray(request(images, data_dir), execution, Cluster(address=address)).computed)
