"""Runs a measurement and writes its result: `python benchmarks/measure.py NAME [../shared] [options]`.

    python benchmarks/measure.py --list                     all measurements, and about how long each takes
    python benchmarks/measure.py startup ../shared          all parts of one, into results/startup.json
    python benchmarks/measure.py startup:zip --rounds 3     one part of it
    python benchmarks/measure.py startup --quick            tiny, to try it; written only where --out is given
    python benchmarks/measure.py page                       writes the tables of README.md and docs/ from the results

A measurement is a function whose keyword arguments are its options. It gets a `Bench` and returns numbers; command,
machine, commit and date are added here. Compare ratios: ways run in turns, on the same machine.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, TypeVar, get_args

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
RESULTS = BENCHMARKS / "results"
# The checkout may not be installed.
sys.path.insert(0, str(ROOT))
# What tests check with a sample is repeated with their own functions.
sys.path += [str(ROOT / "tests" / package) for package in ("cache", "images", "backbones", "inference", "benchmark")]

# The module of each measurement: one needs only the packages that its own module imports.
MODULES = {
    **dict.fromkeys(("main_job", "end_to_end_cifar10-vgg16", "end_to_end_cifar10-inception"), "commands"),
    **dict.fromkeys(("reproduce_mlp", "startup"), "commands"),
    **dict.fromkeys(("storage", "reading"), "storage"),
    **dict.fromkeys(("mutations", "faults", "kills", "zoo", "exported", "memory_limit"), "checks"),
    **{name: name for name in ("extraction", "heads", "scale", "audit", "gpu")},
}
WEIGHTS = {"vgg16": "vgg16_imagenet_features.safetensors", "inception_v3": "inception_v3_features.safetensors"}
_PACKAGES = ("featcache", "torch", "torchvision", "timm", "numpy", "h5py", "pytorch-lightning", "pillow")


class Measurement(NamedTuple):
    """A measurement: its duration at full size as text, what it is, its function, and its arguments for `--quick`."""

    name: str
    takes: str
    what: str
    work: Callable[..., dict[str, Any]]
    quick: Mapping[str, Any]


_KNOWN: dict[str, Measurement] = {}
Work = TypeVar("Work", bound=Callable[..., dict[str, Any]])


def measurement(name: str, takes: str, what: str = "", **quick: Any) -> Callable[[Work], Work]:
    """Make a function a measurement; `what` is its docstring if not given."""

    def add(work: Work) -> Work:
        _KNOWN[name] = Measurement(name, takes, what or str(work.__doc__), work, quick)
        return work

    return add


class Taken(NamedTuple):
    """The seconds of some work, by the clock and of processors (child processes included), and its result."""

    clock: float
    processor: float
    result: Any


class Bench(NamedTuple):
    """The folder of real images and weights, an empty temporary folder, and what was chosen for all measurements."""

    shared: Path
    scratch: Path
    rounds: int
    quick: bool
    against: Path | None
    out: Path | None

    @property
    def archive(self) -> Path:
        """CIFAR-10 as a zip of JPEGs."""
        return self.shared / "data" / "cifar10-images.zip"

    def weights(self, network: str) -> str:
        """The file of real weights, for networks that have one; others get random weights."""
        return str(self.shared / "weights" / WEIGHTS[network]) if network in WEIGHTS else "random:0"

    def featcache(self, *words: object, checkout: Path = ROOT) -> dict[str, Any]:
        """Run `featcache WORDS --json` with the code of a checkout; its JSON, and its seconds as `wall_seconds`."""
        print("$ featcache", *words, file=sys.stderr, flush=True)
        line = [sys.executable, "-m", "featcache", *map(str, words), "--json", "--quiet"]
        taken = time_of(lambda: self.run(line, checkout=checkout))
        found: dict[str, Any] = json.loads(taken.result)
        return found | {"wall_seconds": round(taken.clock, 2)}

    def run(self, line: Sequence[str], *, checkout: Path = ROOT) -> str:
        """Run a process in the temporary folder; returns what it prints."""
        there = os.environ | {"PYTHONPATH": str(checkout)}
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True, cwd=self.scratch, env=there)
        if done.returncode:
            raise RuntimeError(f"{' '.join(line)} ended with {done.returncode}: {done.stdout}")
        return done.stdout

    def unpack(self, split: str, count: int) -> list[Path]:
        """Write the first images of each class of a split, `count` in all, as files `images/CLASS/NUMBER.jpg`."""
        with zipfile.ZipFile(self.archive) as archive:
            names = sorted(name for name in archive.namelist() if f"/{split}/" in name and name.endswith(".jpg"))
            for name in [one for one in names if int(Path(one).stem) < count // 10]:
                path = self.scratch / "images" / Path(*Path(name).parts[2:])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
        return sorted((self.scratch / "images").rglob("*.jpg"))

    def checkouts(self) -> dict[str, Path]:
        """The other checkout and this one, as `before` and `here`."""
        if self.against is None:
            raise ValueError("this measurement compares two checkouts: add --against FOLDER, a checkout of a commit")
        return {"before": self.against.resolve(), "here": ROOT}


def time_of(work: Callable[[], Any]) -> Taken:
    """Do the work once, and measure it."""
    before, began = _processor_s(), time.perf_counter()
    result = work()
    return Taken(time.perf_counter() - began, _processor_s() - before, result)


def _processor_s() -> float:
    used = [resource.getrusage(kind) for kind in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def in_turns(
    ways: Mapping[str, Callable[[], Any]], rounds: int, *, before: Callable[[], object] = int, warm: bool = True
) -> dict[str, list[Taken]]:
    """Measure several ways in turns, each round in the other order; returns what each round of each way took.

    `before` is called before each turn. With `warm` there is one round more, the first, that does not count.
    """
    taken: dict[str, list[Taken]] = {name: [] for name in ways}
    for number in range(rounds + warm):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            before()
            taken[name].append(time_of(ways[name]))
    return {name: some[warm:] for name, some in taken.items()}


def compare(taken: Mapping[str, Sequence[Taken]], way: str, other: str) -> dict[str, float]:
    """The median seconds of both ways, and the median of the ratios of the pairs (way / other)."""
    pairs = [(one.clock, two.clock) for one, two in zip(taken[way], taken[other], strict=True)]
    return {
        f"{way}_s": round(statistics.median(one for one, _ in pairs), 4),
        f"{other}_s": round(statistics.median(two for _, two in pairs), 4),
        "ratio": round(statistics.median(one / two for one, two in pairs), 3),
    }


def memory(which: str = "VmHWM") -> int:
    """Memory of this process in bytes: now (VmRSS), its peak (VmHWM), or what RLIMIT_DATA counts (VmData)."""
    (kilobytes,) = re.findall(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


def drop_from_memory(paths: Iterable[Path]) -> None:
    """Drop files from the page cache, which needs no special rights: the next reading of them is cold."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_new_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function of a module of this folder in a new process; arguments and result are passed as JSON."""
    module, name = function.__module__, function.__name__
    code = f"import json, sys, {module}; print(json.dumps({module}.{name}(*json.loads(sys.argv[1]))))"
    there = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(ROOT)])}
    line = [sys.executable, "-c", code, json.dumps(arguments)]
    return json.loads(subprocess.check_output(line, text=True, env=there))


def machine() -> dict[str, Any]:
    """Processor, cores, GPU, versions, commit, date."""
    torch = sys.modules.get("torch")
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {}
    for package in _PACKAGES:
        # The checkout may not be installed, and some packages are optional.
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        **({"gpu": torch.cuda.get_device_name()} if torch is not None and torch.cuda.is_available() else {}),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _commit() -> str | None:
    """The checkout's commit, followed by a plus if files differ from it; None without git."""
    try:
        line = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.check_output(line, cwd=ROOT, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def command(words: Sequence[str]) -> str:
    """The command that was typed, with relative paths, because a result is read on other machines."""
    relative = [os.path.relpath(word) if Path(word).is_absolute() else word for word in words]
    return " ".join(["python", "benchmarks/measure.py", *relative])


def write(name: str, result: dict[str, Any], folder: Path) -> Path:
    """Write a result to `<name>.json`, or one part (`name:part`) beside the other parts; returns the path."""
    file, _, part = name.partition(":")
    path = folder / f"{file}.json"
    known = json.loads(path.read_text()) if part and path.exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known | {part: result} if part else result, indent=2) + "\n")
    return path


def measurements(name: str | None = None) -> list[Measurement]:
    """All measurements, or one with all its parts, or one part."""
    wanted = (name or "").partition(":")[0]
    for module in dict.fromkeys(MODULES.values()) if not name else [MODULES[wanted]] if wanted in MODULES else []:
        importlib.import_module(module)
    found = [one for one in _KNOWN.values() if not name or name in (one.name, one.name.partition(":")[0])]
    if not found:
        raise SystemExit(f"there is no measurement {name}; `python benchmarks/measure.py --list` shows all")
    return found


def options_of(one: Measurement) -> dict[str, inspect.Parameter]:
    """The options of a measurement: the keyword arguments of its function."""
    parameters = inspect.signature(one.work, eval_str=True).parameters
    return {name: each for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}


def parser_for(chosen: Sequence[Measurement]) -> argparse.ArgumentParser:
    """Reads what follows the name."""
    parser = argparse.ArgumentParser(prog="measure.py NAME", description="\n".join(one.what for one in chosen))
    parser.add_argument("shared", nargs="?", type=Path, default=Path("../shared"), help="real images and weights")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, where ways run in turns [3]")
    parser.add_argument("--against", type=Path, help="another checkout, such as the commit before, to compare with")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to try it, not to measure")
    parser.add_argument("--out", type=Path, help="the folder for the result [benchmarks/results; none with --quick]")
    for name, one in {name: each for some in chosen for name, each in options_of(some).items()}.items():
        kind = next(kind for kind in (*get_args(one.annotation), one.annotation) if kind is not NoneType)
        action = "append" if isinstance(one.default, tuple) else "store"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, action=action, help=f"[{one.default}]")
    return parser


def measure(one: Measurement, chosen: argparse.Namespace, typed: str) -> bool:
    """Run a measurement, print its result and write it; returns False if it failed."""
    print(f"{one.name}: {one.what} (full size: {one.takes})", file=sys.stderr, flush=True)
    given = {name: getattr(chosen, name) for name in options_of(one) if getattr(chosen, name) is not None}
    load, rounds = os.getloadavg(), 1 if chosen.quick else chosen.rounds
    out = chosen.out or (None if chosen.quick else RESULTS)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(chosen.shared.resolve(), Path(scratch), rounds, chosen.quick, chosen.against, out)
        try:
            taken = time_of(lambda: one.work(bench, **{**(one.quick if chosen.quick else {}), **given}))
        except Exception:
            # The other parts are measured all the same; nothing is written for this one.
            print(f"{one.name} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            return False
    about = {"command": typed, "machine": machine(), "load_before": load, "took_s": round(taken.clock, 1)}
    result = about | ({"quick": True} if chosen.quick else {}) | taken.result
    print(json.dumps({one.name: result}, indent=2), flush=True)
    if out is not None:
        print(f"written to {write(one.name, result, out)}", file=sys.stderr)
    return True


def main(words: Sequence[str] | None = None) -> int:
    """Measure what the words name; returns the exit code, 1 if a measurement failed."""
    words = sys.argv[1:] if words is None else words
    if not words or words[0].startswith("-"):
        print(__doc__, *(f"{one.name:22} {one.takes:>8}  {one.what}" for one in measurements()), sep="\n")
        return 0
    if words[0] == "page":
        importlib.import_module("pages").write()
        return 0
    chosen = measurements(words[0])
    options = parser_for(chosen).parse_args(words[1:])
    ended = [measure(one, options, command(words)) for one in chosen]
    return int(not all(ended))


if __name__ == "__main__":
    # The modules import this one by its name, and register there.
    sys.exit(importlib.import_module("measure").main())
