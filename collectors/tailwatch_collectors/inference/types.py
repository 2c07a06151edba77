"""What an engine said about one sampled sequence, and how values are read out of dicts and objects alike.

Shapes: T sampled tokens, P prompt tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.errors import TailwatchError

Float32Array = NDArray[np.float32]
Int32Array = NDArray[np.int32]

LogprobsMode = Literal["raw", "processed", "scaled"]
"""`raw`: before any sampling setting; `processed`: after all; `scaled`: after temperature, before top-p and top-k."""

_FLOOR = -9_000.0
"""Servers write -9999.0 (vLLM) or the lowest float (SGLang) for -inf, which JSON cannot say: no log-prob."""


class ResponseError(TailwatchError, ValueError):
    """A response that carries no usable log-probs: names the place, the value and what to ask the engine for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Settings a sequence was sampled with; None where not said. Engines do not repeat them in a response."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    logprobs_mode: LogprobsMode | None = None
    """What the engine's log-probs are of; a setting of the server that no response shows."""

    @classmethod
    def of(cls, request: Any, *, logprobs_mode: LogprobsMode | None = None) -> Sampling:
        """From a request body, its `sampling_params`, or an engine's SamplingParams object."""
        inner = get(request, "sampling_params")
        source = request if inner is None else inner
        top_k = _number(get(source, "top_k"))
        return cls(
            temperature=_number(get(source, "temperature")),
            top_p=_number(get(source, "top_p")),
            top_k=None if top_k is None else int(top_k),
            min_p=_number(get(source, "min_p")),
            logprobs_mode=logprobs_mode,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sampled:
    """One sampled sequence as the engine reported it. Index t is the t-th generated token, end-of-sequence included."""

    request_id: str
    """The engine's id of the request; empty where it gave none."""
    index: int = 0
    """Which of the n sequences of the request."""
    choices: int = 1
    """How many sequences the response held."""
    logprobs_T: Float32Array
    """[T] log-prob of each sampled token; NaN where the engine had none."""
    token_ids_T: Int32Array | None = None
    """[T] sampled token ids; None where the engine did not return them."""
    prompt_token_ids_P: Int32Array | None = None
    """[P] the prompt as the engine tokenised it."""
    prompt_logprobs_P: Float32Array | None = None
    """[P] log-prob of each prompt token, the first NaN. Never mixed with sampled ones."""
    version: int | None = None
    """Version of the weights that sampled it, where the engine says."""
    versions_T: Int32Array | None = None
    """[T] version per token, where weights changed on the way."""
    sampling: Sampling = Sampling()
    engine: str = "openai"
    """`openai`, `vllm` or `sglang`: whose layout it was."""
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        """Refuse unequal lengths here, where the response is still at hand.

        Raises:
            ResponseError: ids or versions are not as many as log-probs.
        """
        for name in ("token_ids_T", "versions_T"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.logprobs_T):
                raise ResponseError(
                    f"{self.request_id or 'response'}, choice {self.index}: {len(value)} {name.removesuffix('_T')} for "
                    f"{len(self.logprobs_T)} log-probs"
                )

    @property
    def key(self) -> str:
        """What pairing knows it by: the request id, with `/index` where the response held several sequences."""
        return f"{self.request_id}/{self.index}" if self.choices > 1 else self.request_id


def get(source: Any, name: str, default: Any = None) -> Any:
    """A field of a dict or an attribute of an object; `default` where absent or None."""
    value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
    return default if value is None else value


def items(source: Any, name: str) -> Sequence[Any]:
    """A field that must be a list.

    Raises:
        ResponseError: it is absent or something else.
    """
    value = get(source, name)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise ResponseError(f"{name} is {value!r:.80}, expected a list")
    return value


def logprobs_of(values: Iterable[Any], where: str) -> Float32Array:
    """Log-probs as an array; None and the stand-ins for -inf become NaN.

    Raises:
        ResponseError: something is no number.
    """
    try:
        found_T = np.array([np.nan if value is None else float(value) for value in values], np.float64)
    except (TypeError, ValueError) as error:
        raise ResponseError(f"{where}: {error}") from error
    found_T[found_T <= _FLOOR] = np.nan
    return found_T.astype(np.float32)


def ids_of(values: Iterable[Any], where: str) -> Int32Array:
    """Token ids as an array.

    Raises:
        ResponseError: something is no token id.
    """
    listed = list(values)
    for place, value in enumerate(listed):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**31:
            raise ResponseError(f"{where}[{place}] is {value!r:.80}, expected a token id")
    return np.array(listed, np.int32)


def version_of(value: Any) -> int | None:
    """A weight version, where what the engine calls one is a number."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
