"""An interpreter that has imported featcache and its libraries; commands are forked from it instead of started.

Most of the time of a short command is the import of torch and of other libraries. The programs `featcache` and `python`
in a folder that goes first in PATH send their words, folder, environment and open files to a server, which forks; the
new process runs as any other and ends with its own exit code. So pipes, redirections and here-documents are those of
the shell.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import socket
import subprocess
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = (
    *("numpy", "h5py", "PIL.Image", "torch", "torchvision", "pytorch_lightning", "sklearn.linear_model", "timm"),
    *("altair", "onnxscript", "pydantic", "torch.onnx", "torch.export", "typer"),
)
# Modules that need an extra, or are programs.
_NOT_IMPORTED = ("ray_engine", "__main__")

# `-S` skips the site-packages, which a client does not need. Other words than these are left to Python itself.
CLIENT = """\
#!{python} -IS
import json, os, socket, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "python" and words[0] != "-" and words[0] != "-c" and not words[0].endswith(".py"):
    os.execv({python!r}, [{python!r}, *words])
request = json.dumps([name, words, os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({server!r})
    socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(request)
    answer = server.recv(16)
sys.exit(int(answer) if answer else "the interpreter that was asked is gone")
"""


@contextlib.contextmanager
def fast_programs(folder: Path) -> Iterator[Path]:
    """A folder with the programs `featcache` and `python`, which work as long as the context is open.

    Args:
        folder: An empty folder; a short path, because it holds a socket.
    """
    address = folder / "socket"
    for name in ("featcache", "python"):
        (folder / name).write_text(CLIENT.format(python=sys.executable, server=str(address)))
        (folder / name).chmod(0o755)
    # No threads: a process cannot be forked safely from several.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    command = [sys.executable, __file__, str(address)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None and server.stdout.readline(), "the libraries cannot be imported"
            yield folder
        finally:
            server.terminate()


def import_featcache() -> None:
    """Import all modules of featcache."""
    package = importlib.import_module("featcache")
    for module in pkgutil.walk_packages(package.__path__, "featcache."):
        if module.name.rpartition(".")[2] not in _NOT_IMPORTED:
            importlib.import_module(module.name)


def run_requests(address: str) -> None:
    """Serve until the process is ended; returns in each process that is to be a command, which is prepared for it."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            with client:
                if os.fork():
                    continue
                begin_command(client)
                return


def begin_command(client: socket.socket) -> None:
    """Become the process of a command; its parent waits for it and answers."""
    size, files, _, _ = socket.recv_fds(client, 4, 3)
    request = b""
    while len(request) < int.from_bytes(size, "big"):
        request += client.recv(65536)
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        client.sendall(str(code if code >= 0 else 128 - code).encode())
        os._exit(0)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, "rww"[number], closefd=False) for number in range(3))
    name, words, folder, environment = json.loads(request)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [name, *words]


def run_command() -> int:
    """Run `featcache ...`, `python -`, `python -c ...` or `python FILE ...` as `__main__`; returns the exit code."""
    name, *words = sys.argv
    try:
        if name == "featcache":
            sys.path[0] = str(Path(sys.executable).parent)
            importlib.import_module("featcache.cli.app").main()
        else:
            run_python(words)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run_python(words: list[str]) -> None:
    """Run the source in stdin, in a word, or in a file."""
    first = words[0]
    sys.argv = [first, *words[2:]] if first == "-c" else words
    sys.path[0] = "" if first in ("-", "-c") else str(Path(first).resolve().parent)
    source = sys.stdin.read() if first == "-" else words[1] if first == "-c" else Path(first).read_text()
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    exec(compile(source, first, "exec", dont_inherit=True), vars(main))


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    import_featcache()
    # Objects that are neither looked at nor freed are not copied into each process.
    gc.freeze()
    run_requests(sys.argv[1])
    code = run_command()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
