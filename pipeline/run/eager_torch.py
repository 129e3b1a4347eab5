"""PyTorch without its compiler: `torch._dynamo` is imported when something is compiled, and not before.

Its import takes more than a second of CPU time and 0.1 GB, nearly as much as PyTorch itself. It is asked for where
nothing is compiled, too: by torchvision's `ops`, by process groups, by each optimizer and by DDP, to hear that there is
nothing to do. Here stand-ins say so, and become the real modules when they are asked for anything else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType, SimpleNamespace
from typing import Any

COMPILER = "torch._dynamo"
UTILITIES = "torch._dynamo.utils"


def defer_compiler() -> None:
    """Have this process, which means to compile nothing, import PyTorch's compiler only if it is used all the same.

    To be called before torchvision is imported. What was excluded from being compiled (`torch.compiler.disable`) until
    the compiler is imported is not excluded then. Where it is imported already, nothing happens.
    """
    if COMPILER in sys.modules:
        return
    for name, kind in ((COMPILER, _Compiler), (UTILITIES, _Utilities)):
        spec = find_spec(name)
        assert spec is not None
        module = module_from_spec(spec)
        module.__class__ = kind
        sys.modules[name] = module
        parent, _, attribute = name.rpartition(".")
        setattr(sys.modules[parent], attribute, module)
    sys.meta_path.insert(0, _Parts())


class _Deferred(ModuleType):
    """A module whose code runs when an attribute is asked for that the stand-in doesn't have."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # as `inspect` asks every module
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        _import(self)
        return getattr(self, name)


class _Compiler(_Deferred):
    """What PyTorch asks of `torch._dynamo` in code that isn't compiled."""

    trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)
    """Asked by a new process group to forget what has been compiled."""

    def disable(self, fn: Callable[..., Any], recursive: bool = True, **how: Any) -> Callable[..., Any]:
        """Return a function that is never compiled: nothing is."""
        return fn

    def graph_break(self, msg: str = "") -> None:
        """End the graph that is being made: there is none."""


class _Utilities(_Deferred):
    """What torchvision's `ops`, as they are imported, and DDP ask of `torch._dynamo.utils`."""

    def is_compile_supported(self, device_type: Any) -> Any:
        """Say whether code for a device can be compiled: nobody asks unless something is to be."""
        _import(self)
        return vars(self)["is_compile_supported"](device_type)

    def get_optimize_ddp_mode(self) -> str:
        """Return how DDP splits what is compiled: the default."""
        return "ddp_optimizer"


class _Parts(MetaPathFinder):
    """Has the real package imported before any part of it: the import system asks a package for no attribute."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> None:
        """Find nothing: what lies in the package is found by those that come next."""
        if fullname.startswith(f"{COMPILER}."):
            _import(sys.modules[COMPILER])


def _import(module: ModuleType) -> None:
    """Have a stand-in become the real module, and before it the package that it is in."""
    if not isinstance(module, _Deferred):
        return
    if module.__name__ != COMPILER:
        _import(sys.modules[COMPILER])  # it imports its parts itself
    if isinstance(module, _Deferred):
        assert module.__spec__ is not None
        assert module.__spec__.loader is not None
        module.__class__ = ModuleType  # type: ignore[assignment]
        module.__spec__.loader.exec_module(module)
