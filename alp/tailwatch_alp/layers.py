"""Finding the decoder layers of any torch model, and reading which of them are meant.

No list of architectures: a stack is a `ModuleList` or `Sequential` of modules that themselves have parts, and the
decoder is the outermost stack that holds most of the parameters. That finds `model.layers` of Qwen, Llama, Mistral and
Gemma, `transformer.h` of GPT-2, `blocks` of a model written by hand, also under PEFT, DDP, FSDP2 or `torch.compile`.
Where two stacks could be meant (a vision tower beside a language model) it refuses and lists them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from tailwatch_alp.errors import LayerRangeError, LayersNotFoundError

_STACK_NAMES = frozenset({"layers", "layer", "h", "blocks", "block", "decoder_layers", "transformer_blocks"})
_HEAD_NAMES = ("lm_head", "embed_out", "output", "head", "unembed", "generator", "to_logits")
_DOMINANCE = 2.0  # the decoder's stack holds this many times the parameters of the next one, or the name decides


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A row of layers inside a model."""

    path: str
    """Where it is, as `model.get_submodule` takes it."""
    modules: tuple[nn.Module, ...]
    """The layers, first to last; one that stands there several times (shared weights) once."""
    parameters: int
    """Number of weights in all of them."""

    def describe(self) -> str:
        """One line for an error message."""
        kinds = sorted({type(module).__name__ for module in self.modules})
        return f"{self.path or '(the model itself)'}: {len(self.modules)} x {'/'.join(kinds)}"


def candidates(model: nn.Module) -> list[Stack]:
    """Every outermost stack of layers in the model, the largest first."""
    found: list[Stack] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0:
            continue
        if any(path.startswith(f"{stack.path}." if stack.path else "") for stack in found):
            continue  # the experts or the projections inside a layer
        children = _distinct(module)
        alike = len({type(child) for child in children}) == 1
        named = path.rpartition(".")[2] in _STACK_NAMES
        if all(any(True for _ in child.children()) for child in children) and (alike or named):
            weights = sum(parameter.numel() for parameter in module.parameters())
            found.append(Stack(path=path, modules=children, parameters=weights))
    return sorted(found, key=lambda stack: -stack.parameters)


def find_layers(model: nn.Module, *, blocks: str | Sequence[nn.Module] | None = None) -> Stack:
    """The decoder layers of `model`.

    Args:
        model: any module, wrapped or not.
        blocks: where they are (`"model.layers"`) or the modules themselves; None: search.

    Raises:
        LayersNotFoundError: there are none, or several stacks could be meant; the message lists them.
    """
    if isinstance(blocks, str):
        return _stack_at(model, path=blocks)
    if blocks is not None:
        return _given_stack(model, modules=tuple(blocks))
    found = candidates(model)
    if not found:
        raise LayersNotFoundError(
            f"{type(model).__name__} has no stack of layers (a ModuleList or Sequential of modules with parts). Its "
            f"parts are: {_parts(model)}. Pass blocks='path.to.layers' or blocks=[module, ...]."
        )
    if len(found) > 1 and found[0].parameters < _DOMINANCE * found[1].parameters:
        named = [stack for stack in found if stack.path.rpartition(".")[2] in _STACK_NAMES]
        if len(named) != 1:
            listed = "; ".join(stack.describe() for stack in found)
            raise LayersNotFoundError(
                f"{type(model).__name__} has several stacks that could be the decoder: {listed}. "
                f"Pass blocks='...' with the path of the one that is meant."
            )
        return named[0]
    return found[0]


def find_head(model: nn.Module, *, head: str | nn.Module | None = None) -> nn.Module:
    """The module whose output is the logits, for noise on the logits only.

    Raises:
        LayersNotFoundError: no head was found; the message lists what the model is made of.
    """
    if isinstance(head, nn.Module):
        return head
    if isinstance(head, str):
        return _at(model, path=head, argument="head")
    for module in model.modules():
        answer = getattr(module, "get_output_embeddings", None)
        output = answer() if callable(answer) else None
        if isinstance(output, nn.Module):
            return output
    named = [module for path, module in model.named_modules() if path.rpartition(".")[2] in _HEAD_NAMES]
    linear = [module for module in named if isinstance(module, nn.Linear)]
    if len(linear) == 1:
        return linear[0]
    raise LayersNotFoundError(
        f"{type(model).__name__} has no output head that could be told ({len(linear)} candidates named "
        f"{'/'.join(_HEAD_NAMES)}). Its parts are: {_parts(model)}. Pass head='path.to.head' or head=module."
    )


def select_layers(layers: str | int | Iterable[int], *, count: int) -> tuple[int, ...]:
    """Which layers are meant, as ascending numbers from 0.

    Args:
        layers: `"all"`; `"early"`, `"middle"`, `"late"` for the first, central and last fifth (6 of 28 each, the size
            of the published ablation's ranges); one number; or a range, list or set of numbers.
        count: how many layers the model has.

    Raises:
        LayerRangeError: a number outside 0 .. count - 1, or nothing at all.
        LayersNotFoundError: a word that is none of the four.
    """
    if isinstance(layers, str):
        fifth = -(-count // 5)
        middle = (count - fifth + 1) // 2
        words = {
            "all": range(count),
            "early": range(fifth),
            "middle": range(middle, middle + fifth),
            "late": range(count - fifth, count),
        }
        if layers not in words:
            raise LayersNotFoundError(f"layers={layers!r}: expected one of {', '.join(words)}, or layer numbers")
        return tuple(words[layers])
    listed = layers if isinstance(layers, Iterable) else [layers]
    numbers = [_number(layer, count=count) for layer in listed]
    if not numbers:
        raise LayerRangeError("layers is empty: name at least one, or do not enter the context")
    return tuple(sorted(set(numbers)))


def _number(layer: int, *, count: int) -> int:
    try:
        number = operator.index(layer)
    except TypeError:
        raise LayerRangeError(f"layer {layer!r} is no number: the model has layers 0 to {count - 1}") from None
    if not 0 <= number < count:
        raise LayerRangeError(f"layer {number!r}: the model has layers 0 to {count - 1}")
    return number


def _distinct(modules: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    return tuple(dict.fromkeys(modules))


def _stack_at(model: nn.Module, *, path: str) -> Stack:
    module = _at(model, path=path, argument="blocks")
    if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0:
        raise LayersNotFoundError(f"blocks={path!r} is a {type(module).__name__}, not a non-empty ModuleList")
    return Stack(path=path, modules=_distinct(module), parameters=sum(p.numel() for p in module.parameters()))


def _given_stack(model: nn.Module, *, modules: tuple[nn.Module, ...]) -> Stack:
    known = {id(module) for module in model.modules()}
    strangers = [type(module).__name__ for module in modules if id(module) not in known]
    if strangers or not modules:
        raise LayersNotFoundError(f"blocks must be modules of the model: {strangers or 'none given'} are not")
    return Stack(
        path="", modules=_distinct(modules), parameters=sum(p.numel() for m in modules for p in m.parameters())
    )


def _at(model: nn.Module, *, path: str, argument: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise LayersNotFoundError(f"{argument}={path!r}: {error}. The parts are: {_parts(model)}.") from None


def _parts(model: nn.Module) -> str:
    listed = [f"{name} ({type(child).__name__})" for name, child in model.named_children()]
    return ", ".join(listed) or "none"
