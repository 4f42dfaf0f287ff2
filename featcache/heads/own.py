"""Heads and losses of one's own, by the path of what makes them: `module:name`.

A head is made by a factory, `f(in_features, outputs, **arguments)` -> nn.Module, a class or a function; it maps float32
(B, D) to float32 (B, C). A run stores the path, the arguments and the tensors, and no code.

What was given in this process is found under its path. Anything else is imported, but only a class of modules: a
record that could name any function would let a run folder call any function, `os.system` among them. Importing a
module still runs what stands in it, so a run may name what is installed, and nothing that it brings itself.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from featcache.errors import FeatcacheError, HeadError, InvalidOption

if TYPE_CHECKING:
    from torch import nn

What = Literal["head", "loss"]
# Names of arguments with their values as JSON text, sorted: a record that holds them can be a key.
Arguments = tuple[tuple[str, str], ...]
_PATH = re.compile(r"[\w.]+:[\w.<>]+")
_MAIN = "__main__"
# What was given in this process, by path. A notebook's cell that is run again gives a newer one.
_GIVEN: dict[tuple[What, str], Callable[..., Any]] = {}


@dataclass(frozen=True, kw_only=True)
class OwnFactory:
    """What makes a head of one's own.

    Attributes:
        path: Where it is defined, `module:name`.
        arguments: Those of the head, beside its widths.
        given: The factory itself, where it need not be looked for.
    """

    path: str
    arguments: Mapping[str, Any]
    given: Callable[..., Any] | None = None

    def found(self) -> Callable[..., Any]:
        """The factory. Raises HeadError where it is not known here."""
        return self.given or _found(self.path)

    def build(self, in_features: int, outputs: int) -> nn.Module:
        """The module, in train mode, its weights drawn from torch's global generator.

        Raises HeadError or InvalidOption where it cannot be made, or is no head.
        """
        from featcache.heads.own_module import require_head

        factory = self.found()
        try:
            module = factory(in_features, outputs, **self.arguments)
        except FeatcacheError:
            raise
        except Exception as error:
            raise HeadError(
                f"the head {self.path} could not be built: {type(error).__name__}: {error}",
                hint=f"it is called as f({in_features}, {outputs}, **head_arguments)",
            ) from error
        return require_head(module, self.path, in_features, outputs)


def own_path(given: object, what: What) -> str:
    """The path of a factory or a loss, which this process then finds under it.

    Raises InvalidOption for what has no name to be found by.
    """
    module, name = getattr(given, "__module__", None), getattr(given, "__qualname__", None)
    if not callable(given) or not isinstance(module, str) or not isinstance(name, str) or "<lambda>" in name:
        instead = {
            "head": "a class of modules, or a function f(in_features, outputs, **head_arguments) -> nn.Module",
            "loss": "a function f(outputs, targets) -> a tensor of one number",
        }
        raise InvalidOption(
            f"expected as {what} of one's own {instead[what]}, got {_described(given)}",
            hint="define it with a name, by class or def; what varies belongs into head_arguments",
        )
    path = f"{module}:{name}"
    _GIVEN[what, path] = given
    return path


def remember(what: What, path: str, given: Callable[..., Any]) -> None:
    """Take `given` for what a record calls `path`."""
    _GIVEN[what, path] = given


def checked_path(path: str) -> str:
    """`path`, if it is one. Raises InvalidOption."""
    if not _PATH.fullmatch(path):
        raise InvalidOption(
            f"expected a head of one's own as own:module:Class, got own:{path}", hint="for example own:mine.heads:Gated"
        )
    return path


def own_loss(path: str) -> Callable[..., Any]:
    """The loss of this path. Raises HeadError where it was not given in this process."""
    if ("loss", path) not in _GIVEN:
        raise HeadError(
            f"the loss {path} of this head is not known here: a record must not be able to call a function",
            hint=f"give it: loss={_last(path)}",
        )
    return _GIVEN["loss", path]


def stored_arguments(arguments: object) -> Arguments:
    """Arguments as a record holds them. Raises InvalidOption for what is no JSON."""
    if isinstance(arguments, tuple):
        return arguments
    if isinstance(arguments, list) and all(isinstance(one, list) and len(one) == 2 for one in arguments):
        # From JSON, as a record has been written.
        return tuple((str(name), str(text)) for name, text in arguments)
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise InvalidOption(f"expected head_arguments as a mapping of names to values, got {arguments!r}")
    return tuple((name, _json(name, value)) for name, value in sorted(arguments.items()))


def read_arguments(arguments: Arguments) -> dict[str, Any]:
    """Arguments as a factory takes them."""
    return {name: json.loads(text) for name, text in arguments}


def _json(name: str, value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False, sort_keys=True, default=_plain)
    except (TypeError, ValueError) as error:
        raise InvalidOption(
            f"expected head_arguments that JSON can hold, got {name}={value!r}",
            hint="numbers, text, lists and mappings of them: a run stores them beside the head",
        ) from error


def _plain(value: Any) -> Any:
    # A NumPy number is a number.
    if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")


def _found(path: str) -> Callable[..., Any]:
    """The factory of this path: given in this process, or a class of modules that can be imported."""
    if ("head", path) in _GIVEN:
        return _GIVEN["head", path]
    from torch import nn

    module, _, name = path.partition(":")
    if module == _MAIN or "<" in name:
        raise _unknown(path, "it was defined in a script, or within a function")
    try:
        found: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except Exception as error:
        raise _unknown(path, f"it cannot be imported ({type(error).__name__}: {error})") from error
    if not inspect.isclass(found) or not issubclass(found, nn.Module):
        raise _unknown(path, "it is no class of modules, and a record must not be able to call a function")
    return cast("Callable[..., Any]", found)


def _unknown(path: str, reason: str) -> HeadError:
    return HeadError(
        f"the head own:{path} is not known here: {reason}",
        hint=f"give what makes it: Run.head(own={_last(path)}), or head={_last(path)} to predict, export_run and "
        "resume_head",
    )


def _last(path: str) -> str:
    return path.partition(":")[2].split(".")[-1]


def _described(given: object) -> str:
    name = getattr(given, "__qualname__", None)
    return name if isinstance(name, str) else f"a {type(given).__name__}"
