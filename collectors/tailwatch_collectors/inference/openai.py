"""OpenAI-compatible responses: chat completions and completions, plain or with what vLLM and SGLang add to them.

Layouts of vLLM's main branch of 2026 (`token_ids`, `prompt_token_ids`, `prompt_logprobs`,
`token_id:<id>` with return_tokens_as_token_ids; its tokens-in-tokens-out endpoint has the chat layout) and
SGLang 0.5.23 (`token_ids`, `response_token_ids`, `choices[].meta_info`, `metadata.weight_version`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tailwatch_collectors.inference import sglang
from tailwatch_collectors.inference.types import (
    Float32Array,
    Int32Array,
    LogprobsMode,
    ResponseError,
    Sampled,
    Sampling,
    get,
    ids_of,
    items,
    logprobs_of,
)

_ID_PREFIX = "token_id:"


def read(response: Any, *, request: Any = None, logprobs_mode: LogprobsMode | None = None) -> list[Sampled]:
    """The sampled sequences of one response, in the order of its choices.

    Args:
        response: JSON as a dict, or the object of the openai package.
        request: the request body: its temperature, top_p, top_k and min_p are recorded; `echo` is needed to tell the
            prompt's log-probs from the sampled ones.
        logprobs_mode: what the server's log-probs are of; no response says. vLLM: `raw` unless started with
            `--logprobs-mode processed_logprobs`. SGLang: `scaled`, or `raw` under SGLANG_RETURN_ORIGINAL_LOGPROB.

    Raises:
        ResponseError: no choices, no log-probs, or lengths that do not fit.
    """
    choices = items(response, "choices")
    sampling = Sampling.of(request, logprobs_mode=logprobs_mode)
    return [
        _choice(response, choice, choices=len(choices), echo=bool(get(request, "echo", False)), sampling=sampling)
        for choice in choices
    ]


def _choice(response: Any, choice: Any, *, choices: int, echo: bool, sampling: Sampling) -> Sampled:
    meta = get(choice, "meta_info")
    request_id = str(get(response, "id") or get(response, "request_id", ""))
    where = f"{request_id or 'response'}, choice {get(choice, 'index', 0)}"
    token_ids = get(choice, "token_ids") or get(choice, "response_token_ids")
    prompt_ids = get(choice, "prompt_token_ids") or get(response, "prompt_token_ids")
    prompt_ids_P = None if prompt_ids is None else ids_of(prompt_ids, f"{where}: prompt_token_ids")
    ids_T: Int32Array | None
    if meta is not None and get(meta, "output_token_logprobs") is not None:
        logprobs_T, ids_T = sglang.triples(get(meta, "output_token_logprobs"), f"{where}: output_token_logprobs")
    else:
        logprobs_T, ids_T = _logprobs(get(choice, "logprobs"), where)
    prompt_logprobs_P = _prompt_logprobs(response, choice, prompt_ids_P, where)
    if echo:
        cut = _prompt_length(response, prompt_ids_P, choices, where)
        prompt_logprobs_P = logprobs_T[:cut] if prompt_logprobs_P is None else prompt_logprobs_P
        logprobs_T, ids_T = logprobs_T[cut:], None if ids_T is None else ids_T[cut:]
    if token_ids is not None:
        ids_T = ids_of(token_ids, f"{where}: token_ids")
    version, versions_T = sglang.versions(get(response, "metadata") or meta, len(logprobs_T))
    return Sampled(
        request_id=request_id,
        index=int(get(choice, "index", 0)),
        choices=choices,
        logprobs_T=logprobs_T,
        token_ids_T=ids_T,
        prompt_token_ids_P=prompt_ids_P,
        prompt_logprobs_P=prompt_logprobs_P,
        version=version,
        versions_T=versions_T,
        sampling=sampling,
        engine="openai",
        finish_reason=get(choice, "finish_reason"),
    )


def _logprobs(logprobs: Any, where: str) -> tuple[Float32Array, Int32Array | None]:
    """Log-probs, and ids where the tokens are written as ids; chat and completions layouts."""
    if logprobs is None:
        raise ResponseError(f"{where}: no logprobs; ask for them (chat: logprobs=True, completions: logprobs=0 or 1)")
    content = get(logprobs, "content")
    if content is not None:
        values = [get(entry, "logprob") for entry in content]
        tokens = [get(entry, "token") for entry in content]
    else:
        values, tokens = list(items(logprobs, "token_logprobs")), list(get(logprobs, "tokens", ()))
    return logprobs_of(values, f"{where}: logprobs"), _ids_in(tokens, len(values), where)


def _ids_in(tokens: Sequence[Any], count: int, where: str) -> Int32Array | None:
    """Ids of tokens written `token_id:<id>`; None where they are written as text."""
    written = [isinstance(token, str) and token.startswith(_ID_PREFIX) for token in tokens]
    if not written or not all(written):
        return None
    digits = [str(token)[len(_ID_PREFIX) :] for token in tokens]
    if len(digits) != count:
        raise ResponseError(f"{where}: {len(digits)} tokens for {count} log-probs")
    return ids_of([int(text) if text.isdigit() else text for text in digits], f"{where}: tokens")


def _prompt_logprobs(response: Any, choice: Any, prompt_ids_P: Int32Array | None, where: str) -> Float32Array | None:
    """vLLM's prompt_logprobs: per position None or {id: {logprob, ..}}, the prompt's own token first."""
    positions = get(choice, "prompt_logprobs") or get(response, "prompt_logprobs")
    return None if positions is None else own_logprobs(positions, prompt_ids_P, f"{where}: prompt_logprobs")


def own_logprobs(positions: Iterable[Any], ids: Int32Array | None, where: str) -> Float32Array:
    """Log-prob of the given token out of {id: {logprob, ..}} per position; of the first entry where ids are unknown.

    Raises:
        ResponseError: a position does not hold its token.
    """
    values: list[Any] = []
    for place, position in enumerate(positions):
        if not position:
            values.append(None)
            continue
        if not isinstance(position, Mapping):
            raise ResponseError(f"{where}[{place}] is {position!r:.80}, expected log-probs by token id")
        if ids is None:
            entry = next(iter(position.values()))
        else:
            # JSON turns ids into strings.
            known = int(ids[place]) if place < len(ids) else None
            entry = position.get(known, position.get(str(known)))
            if entry is None:
                raise ResponseError(f"{where}[{place}] holds no log-prob of token {known}, only {list(position)[:5]}")
        values.append(entry if isinstance(entry, int | float) else get(entry, "logprob"))
    return logprobs_of(values, where)


def _prompt_length(response: Any, prompt_ids_P: Int32Array | None, choices: int, where: str) -> int:
    """Tokens of the prompt at the head of an echoed completion."""
    if prompt_ids_P is not None:
        return len(prompt_ids_P)
    usage = get(response, "usage")
    if choices == 1 and get(usage, "prompt_tokens") is not None:
        return int(get(usage, "prompt_tokens"))
    raise ResponseError(f"{where}: echoed, and nothing says where the prompt ends; ask for return_token_ids")


def read_stream(
    chunks: Iterable[Any], *, request: Any = None, logprobs_mode: LogprobsMode | None = None
) -> list[Sampled]:
    """The sampled sequences of a streamed response, from its chunks in order.

    Args:
        chunks: the parsed chunks (dicts or objects), without the closing `[DONE]`.
        request: as for `read`.
        logprobs_mode: as for `read`.

    Raises:
        ResponseError: as `read`.
    """
    choices: dict[int, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    for chunk in chunks:
        for name in ("id", "request_id", "usage", "prompt_token_ids", "prompt_logprobs", "metadata"):
            if get(chunk, name) is not None:
                whole[name] = get(chunk, name)
        for part in get(chunk, "choices", ()):
            _append(choices.setdefault(int(get(part, "index", 0)), {}), part)
    for index, choice in choices.items():
        choice["index"] = index
    return read(
        {**whole, "choices": [choices[index] for index in sorted(choices)]},
        request=request,
        logprobs_mode=logprobs_mode,
    )


def _append(choice: dict[str, Any], part: Any) -> None:
    """Add one chunk's part of a choice to what came before."""
    for name in ("finish_reason", "prompt_token_ids", "prompt_logprobs"):
        if get(part, name) is not None:
            choice[name] = get(part, name)
    if get(part, "token_ids") is not None:
        choice.setdefault("token_ids", []).extend(get(part, "token_ids"))
    logprobs = get(part, "logprobs")
    if logprobs is None:
        return
    joined = choice.setdefault("logprobs", {})
    for name in ("content", "token_logprobs", "tokens"):
        if get(logprobs, name) is not None:
            joined.setdefault(name, []).extend(get(logprobs, name))
