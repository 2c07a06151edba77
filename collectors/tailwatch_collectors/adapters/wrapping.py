"""Wrapping: look at the calls of somebody else's function without being able to change them.

The wrapped function gets its arguments untouched and its result or its error goes to its caller untouched; what
looks on runs under the collector's guard.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from tailwatch_collectors.guard import Guard

Undo = Callable[[], None]
"""Puts the original function back."""


Arguments = Mapping[str, Any]
"""Arguments of one call by the names the wrapped function gives them."""


def wrap(
    owner: Any,
    name: str,
    *,
    guard: Guard,
    before: Callable[[Arguments], Any] | None = None,
    after: Callable[[Any, Any, Arguments], None] | None = None,
) -> Undo:
    """Look at every call of `owner.name`, an attribute of an instance or a module.

    Args:
        owner: instance or module.
        name: its method or function, plain or async.
        guard: swallows what goes wrong in `before` and `after`.
        before: called with the arguments; what it returns is handed to `after`.
        after: called with the result, what `before` returned and the arguments, once the function has returned.

    Raises:
        AttributeError: `owner` has no such function: another version of the framework.
    """
    original = getattr(owner, name)
    own = vars(owner).get(name)
    signature = inspect.signature(original)

    def look(*args: Any, **kwargs: Any) -> tuple[Any, Arguments]:
        arguments: Arguments = {}
        seen = None
        with guard(f"before {name}"):
            arguments = signature.bind(*args, **kwargs).arguments
            seen = before(arguments) if before is not None else None
        return seen, arguments

    def tell(result: Any, seen: Any, arguments: Arguments) -> None:
        if after is not None:
            with guard(f"after {name}"):
                after(result, seen, arguments)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        looked = look(*args, **kwargs)
        result = original(*args, **kwargs)
        tell(result, *looked)
        return result

    @functools.wraps(original)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        looked = look(*args, **kwargs)
        result = await original(*args, **kwargs)
        tell(result, *looked)
        return result

    setattr(owner, name, call_async if inspect.iscoroutinefunction(original) else call)

    def undo() -> None:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)

    return undo
