"""Docstrings and signatures as they are at run time (an extension of Griffe, which reads the sources).

The options of `featcache.extract`, `train_head` and others are written once, as fields of records, and put into
docstrings and signatures when a module is imported.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import griffe


class RuntimeDocstrings(griffe.Extension):
    """Completes functions that take the options of a record."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Called with each function that was read."""
        if func.docstring is None or "{options}" not in func.docstring.value:
            return
        module = importlib.import_module(func.module.path)
        made = inspect.getattr_static(module, func.name)
        func.docstring.value = inspect.getdoc(made) or ""
        known = {parameter.name for parameter in func.parameters}
        for parameter in inspect.signature(made).parameters.values():
            if parameter.name not in known:
                func.parameters.add(
                    griffe.Parameter(
                        parameter.name,
                        kind=griffe.ParameterKind.keyword_only,
                        default=repr(parameter.default),
                        docstring=None,
                    )
                )
        if "options" in known:
            del func.parameters["options"]
