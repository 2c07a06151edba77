"""Have a function called once a module has been imported, without importing it.

For plug-ins that are loaded before the module they hook exists. The module's own loader stays; only its
`exec_module` is followed by the hook, under a guard.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from tailwatch_collectors.adapters.base import guard

Hook = Callable[[ModuleType], None]


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self.hooks: dict[str, list[Hook]] = {}
        self._busy: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.hooks or fullname in self._busy:
            return None
        self._busy.add(fullname)
        try:
            spec = next((found for found in self._ask(fullname, path, target) if found is not None), None)
        finally:
            self._busy.discard(fullname)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            loader, execute = spec.loader, spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                for hook in self.hooks.pop(fullname, []):
                    with guard(f"import of {fullname}"):
                        hook(module)

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _ask(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> Iterator[ModuleSpec | None]:
        others = [finder for finder in sys.meta_path if finder is not self]
        return (finder.find_spec(fullname, path, target) for finder in others)


_FINDER = _Finder()


def on_import(name: str, hook: Hook) -> None:
    """Call `hook` with the module `name` as soon as it is imported; at once where it already is."""
    module = sys.modules.get(name)
    # A module that is being imported is in sys.modules before its names are there.
    if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
        with guard(f"import of {name}"):
            hook(module)
        return
    _FINDER.hooks.setdefault(name, []).append(hook)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
