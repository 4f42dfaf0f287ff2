"""What the documents show does run: their shell commands, in order, page by page.

    <!-- not run: why not -->       right before a block that is shown only
    <!-- needs: ../shared -->       right before a block that is run only where that path exists

Of a `console` block the lines that begin with `$ ` are run, a `bash` block as a whole, `text` never. Every page has an
empty folder of its own that stands, as the checkout does, beside `../shared`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import SHELL, Block, blocks
from imported_python import fast_programs
from project_tree import ROOT, pages

SHARED = Path(os.environ.get("FEATCACHE_SHARED", ROOT.parent / "shared"))


def examples(page: Path) -> list[Block]:
    """The blocks of a page that are meant to run."""
    return [block for block in blocks(page.read_text()) if block.language in SHELL]


PAGES = [page for page in pages() if examples(page)]
# All other pages run their Python in processes that have imported the libraries already: a tenth of the time.
INSTALLED_PROGRAMS = ROOT / "docs" / "views.md"
LEFT_OUT = [(page, block) for page in PAGES for block in examples(page) if block.not_run is not None]


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    """A folder with `featcache` and `python`."""
    with tempfile.TemporaryDirectory() as folder, fast_programs(Path(folder)) as found:
        yield found


@pytest.fixture
def beside_shared(tmp_path: Path) -> Path:
    """An empty folder with `cli.py` in it, beside the real images and weights where they are."""
    folder = tmp_path / "featcache"
    folder.mkdir()
    (folder / "cli.py").symlink_to(ROOT / "cli.py")
    if SHARED.is_dir():
        (tmp_path / "shared").symlink_to(SHARED)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_what_a_page_shows_runs(page: Path, beside_shared: Path, programs: Path) -> None:
    script = ["set -euo pipefail"]
    for block in examples(page):
        if block.not_run is not None or (block.needs and not (beside_shared / block.needs).exists()):
            continue
        where = f"{relative(page)}:{block.line}"
        assert block.script(), f"{where}: commands begin with `$ `, or fence it as text"
        script.append(f"echo '== {where}' >&2")
        # The page's own words, seen in the output when one of them fails.
        script.append("set -x\n" + block.script() + "{ set +x; } 2>/dev/null")
    installed = Path(sys.executable).parent
    path = (
        [str(installed), os.environ["PATH"]]
        if page == INSTALLED_PROGRAMS
        else [str(programs), str(installed), os.environ["PATH"]]
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FEATCACHE_")}
    ran = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=beside_shared,
        # Small heads on a busy machine: threads that wait for each other take a hundred times as long.
        env=environment | {"PATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"{relative(page)}\n{ran.stdout[-3000:]}\n{ran.stderr[-5000:]}"


@pytest.mark.parametrize(
    ("page", "block"), LEFT_OUT, ids=[f"{relative(page)}:{block.line}" for page, block in LEFT_OUT]
)
def test_what_is_not_run_has_a_reason(page: Path, block: Block) -> None:
    assert block.not_run, "say why: <!-- not run: reason -->"
    pytest.skip(f"{relative(page)}:{block.line} is not run: {block.not_run}")


# --- the convention itself ---------------------------------------------------------------------------------

PAGE = """
<!-- not run: it downloads -->
```bash
fetch everything
```

<!-- needs: ../shared -->

```console
$ first word \\
    continued
its output
$ second
```

```text
$ never
```
"""


def test_blocks_are_found_with_their_notes() -> None:
    fetch, two, never = blocks(PAGE)
    assert (fetch.language, fetch.line, fetch.not_run, fetch.needs) == ("bash", 3, "it downloads", None)
    assert (two.language, two.line, two.not_run, two.needs) == ("console", 9, None, "../shared")
    assert two.script() == "first word \\\n    continued\nsecond\n"
    assert fetch.script() == "fetch everything\n"
    assert never.language not in SHELL
