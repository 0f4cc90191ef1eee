"""The pages of the console, one module for each subject.

A module has an attribute ``routes``, see :class:`Routes`; :data:`MODULES` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

MODULES = (
    "session",
    "home",
    "adapters",
    "versions",
    "promotion",
    "compare",
    "datasets",
    "runs",
    "requests",
    "train",
    "playground",
    "serving",
    "audit",
    "keys",
    "plugins",
)

Method = Literal["GET", "POST"]


@dataclass(frozen=True, slots=True)
class Spec:
    """A page or an action.

    Attributes:
        path: below ``/console``, in Starlette's form.
        function: takes a ``View``; of a public page, a ``Console`` and a ``View``.
        role: that the key needs.
        everything: whether the key must cover every adapter.
        public: whether it needs no key.
        upload_bytes: how large a file its form may have; 0: it has none.
    """

    method: Method
    path: str
    function: Callable[..., Any]
    role: str = "viewer"
    everything: bool = False
    public: bool = False
    upload_bytes: int = 0


@dataclass(frozen=True, slots=True)
class AsyncSpec(Spec):
    """A stream of events, or what awaits the engine: an async function of ``Console``, ``View``."""


class Routes:
    """The pages of a module, in the order in which paths are compared."""

    def __init__(self) -> None:
        self.specs: list[Spec] = []

    def get(self, path: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorate the function of a page, which has no effects."""
        return self._add(Spec, "GET", path, options)

    def post(self, path: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorate the function of an action; the form's token has been checked."""
        return self._add(Spec, "POST", path, options)

    def stream(
        self, path: str, method: Method = "GET", **options: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorate the async function of a stream of events."""
        return self._add(AsyncSpec, method, path, options)

    def _add(
        self, kind: type[Spec], method: Method, path: str, options: dict[str, Any]
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            self.specs.append(kind(method, path, function, **options))
            return function

        return decorate


def collect() -> Iterator[Spec]:
    """The pages of all modules."""
    for name in MODULES:
        module = import_module(f"{__name__}.{name}")
        yield from module.routes.specs
