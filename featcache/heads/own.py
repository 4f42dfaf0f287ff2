"""Custom heads and losses, identified by the path of their factory: `module:name`.

The factory of a head is a class or a function, `f(in_features, outputs, **arguments)` -> nn.Module; the module maps
float32 (B, D) to float32 (B, C). A run stores the path, the arguments and the tensors, but no code.

A factory that was given in this process is found by its path. Any other one is imported, but only a subclass of
nn.Module: if a record could name any function, a run folder could call `os.system`. Importing a module still executes
it, so a run can name installed modules only, not code that comes with the run.
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
# Sorted names of arguments with their values as JSON text: hashable, so that a record with them can be a key.
Arguments = tuple[tuple[str, str], ...]
_PATH = re.compile(r"[\w.]+:[\w.<>]+")
_MAIN = "__main__"
# The factories and losses given in this process, by path. A notebook cell that runs again replaces its factory.
_GIVEN: dict[tuple[What, str], Callable[..., Any]] = {}


@dataclass(frozen=True, kw_only=True)
class OwnFactory:
    """The factory of a custom head, and its arguments.

    Attributes:
        path: Where it is defined, `module:name`.
        arguments: Its arguments other than in_features and outputs.
        given: The factory itself; None to find it by its path.
    """

    path: str
    arguments: Mapping[str, Any]
    given: Callable[..., Any] | None = None

    def resolve(self) -> Callable[..., Any]:
        """The factory itself. Raises HeadError if it cannot be found in this process or imported."""
        return self.given or _find(self.path)

    def build(self, in_features: int, outputs: int) -> nn.Module:
        """Build the module, in train mode, with weights drawn from torch's global generator.

        Raises HeadError or InvalidOption if it cannot be built, or does not work as a head.
        """
        from featcache.heads.own_module import require_head

        factory = self.resolve()
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
    """The path of a factory or a loss; it is registered, so that this process finds it by its path.

    Raises InvalidOption for something that has no name, such as a lambda.
    """
    module, name = getattr(given, "__module__", None), getattr(given, "__qualname__", None)
    if not callable(given) or not isinstance(module, str) or not isinstance(name, str) or "<lambda>" in name:
        instead = {
            "head": "a class of modules, or a function f(in_features, outputs, **head_arguments) -> nn.Module",
            "loss": "a function f(outputs, targets) -> a tensor of one number",
        }
        raise InvalidOption(
            f"expected as custom {what} {instead[what]}, got {_describe(given)}",
            hint="define it with a name, by class or def; put what varies into head_arguments",
        )
    path = f"{module}:{name}"
    _GIVEN[what, path] = given
    return path


def remember(what: What, path: str, given: Callable[..., Any]) -> None:
    """Register `given` under a path that a record contains."""
    _GIVEN[what, path] = given


def require_path(path: str) -> str:
    """Return `path` if it has the form `module:name`. Raises InvalidOption if not."""
    if not _PATH.fullmatch(path):
        raise InvalidOption(
            f"expected a custom head as own:module:Class, got own:{path}", hint="for example own:mypackage.heads:MyHead"
        )
    return path


def own_loss(path: str) -> Callable[..., Any]:
    """The custom loss with this path. Raises HeadError if it was not given in this process."""
    if ("loss", path) not in _GIVEN:
        raise HeadError(
            f"the loss {path} of this head is not known here: a record must not be able to call a function",
            hint=f"pass it: loss={_last(path)}",
        )
    return _GIVEN["loss", path]


def encode_arguments(arguments: object) -> Arguments:
    """Convert arguments to the form that a record holds. Raises InvalidOption for values that JSON cannot hold."""
    if isinstance(arguments, tuple):
        return arguments
    if isinstance(arguments, list) and all(isinstance(one, list) and len(one) == 2 for one in arguments):
        # A record that was written as JSON and read again.
        return tuple((str(name), str(text)) for name, text in arguments)
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise InvalidOption(f"expected head_arguments as a mapping of names to values, got {arguments!r}")
    return tuple((name, _json(name, value)) for name, value in sorted(arguments.items()))


def decode_arguments(arguments: Arguments) -> dict[str, Any]:
    """Convert the arguments of a record to those that a factory takes."""
    return {name: json.loads(text) for name, text in arguments}


def _json(name: str, value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False, sort_keys=True, default=_plain)
    except (TypeError, ValueError) as error:
        raise InvalidOption(
            f"expected head_arguments that JSON can hold, got {name}={value!r}",
            hint="numbers, text, lists and mappings of them: a run stores them together with the head",
        ) from error


def _plain(value: Any) -> Any:
    # NumPy scalars are stored as plain numbers.
    if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")


def _find(path: str) -> Callable[..., Any]:
    """The factory with this path: given in this process, or a subclass of nn.Module that can be imported."""
    if ("head", path) in _GIVEN:
        return _GIVEN["head", path]
    from torch import nn

    module, _, name = path.partition(":")
    if module == _MAIN or "<" in name:
        raise _unknown(path, "it was defined in a script, or within a function")
    try:
        factory: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except Exception as error:
        raise _unknown(path, f"it cannot be imported ({type(error).__name__}: {error})") from error
    if not inspect.isclass(factory) or not issubclass(factory, nn.Module):
        raise _unknown(path, "it is not a subclass of nn.Module, and a record must not be able to call a function")
    return cast("Callable[..., Any]", factory)


def _unknown(path: str, reason: str) -> HeadError:
    return HeadError(
        f"the head own:{path} is not known here: {reason}",
        hint=f"pass its factory: Run.head(own={_last(path)}), or head={_last(path)} to predict, export_run and "
        "resume_head",
    )


def _last(path: str) -> str:
    return path.partition(":")[2].split(".")[-1]


def _describe(given: object) -> str:
    name = getattr(given, "__qualname__", None)
    return name if isinstance(name, str) else f"a {type(given).__name__}"
