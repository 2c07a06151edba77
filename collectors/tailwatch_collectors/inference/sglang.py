"""SGLang's own responses: `POST /generate` and `Engine.generate`, one dict per sequence.

Layout as of SGLang 0.5.23: `output_ids`; `meta_info` with `id`, `output_token_logprobs` and `input_token_logprobs`
(lists of [log-prob, token id, text or None], the first input one None), `weight_version`, and `weight_versions` (spans
of output tokens, where weights changed on the way). The log-probs are of the softmax after the temperature and before
top-p and top-k (`scaled`), or before both (`raw`) under SGLANG_RETURN_ORIGINAL_LOGPROB; greedy requests are raw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tailwatch_collectors.inference.types import (
    Float32Array,
    Int32Array,
    LogprobsMode,
    ResponseError,
    Sampled,
    Sampling,
    get,
    ids_of,
    logprobs_of,
    version_of,
)


def read(output: Any, *, request: Any = None, logprobs_mode: LogprobsMode = "scaled") -> list[Sampled]:
    """The sampled sequences of one answer: a dict, or a list of them (n > 1, or several prompts).

    Args:
        output: what `/generate` answered or `Engine.generate` returned, with `return_logprob=True`.
        request: the request body or its sampling_params: temperature, top_p, top_k and min_p are recorded.
        logprobs_mode: `raw` where the server runs with SGLANG_RETURN_ORIGINAL_LOGPROB.

    Raises:
        ResponseError: no log-probs, or lengths that do not fit.
    """
    outputs = list(output) if isinstance(output, list | tuple) else [output]
    sampling = Sampling.of(request, logprobs_mode=logprobs_mode)
    return [_sequence(single, index=index, sampling=sampling) for index, single in enumerate(outputs)]


def _sequence(output: Any, *, index: int, sampling: Sampling) -> Sampled:
    meta = get(output, "meta_info")
    request_id = str(get(meta, "id", ""))
    where = f"{request_id or f'output {index}'}: meta_info"
    if get(meta, "output_token_logprobs") is None:
        raise ResponseError(f"{where} holds no output_token_logprobs; ask with return_logprob=True")
    logprobs_T, ids_T = triples(get(meta, "output_token_logprobs"), f"{where}.output_token_logprobs")
    given = get(output, "output_ids")
    if given is not None and ids_of(given, "output_ids").tolist() != ids_T.tolist():
        raise ResponseError(f"{where}: output_token_logprobs are of other tokens than output_ids")
    prompt_logprobs_P = prompt_ids_P = None
    # The default, logprob_start_len -1, leaves all of the prompt but its last token out.
    if len(get(meta, "input_token_logprobs", ())) == get(meta, "prompt_tokens", -1):
        prompt_logprobs_P, prompt_ids_P = triples(get(meta, "input_token_logprobs"), f"{where}.input_token_logprobs")
    version, versions_T = versions(meta, len(logprobs_T))
    finish = get(meta, "finish_reason")
    return Sampled(
        # Every sequence has an id of its own, so `choices` stays 1.
        request_id=request_id,
        index=index,
        logprobs_T=logprobs_T,
        token_ids_T=ids_T,
        prompt_token_ids_P=prompt_ids_P,
        prompt_logprobs_P=prompt_logprobs_P,
        version=version,
        versions_T=versions_T,
        sampling=sampling,
        engine="sglang",
        finish_reason=get(finish, "type") if isinstance(finish, Mapping) else finish,
    )


def triples(entries: Iterable[Any], where: str) -> tuple[Float32Array, Int32Array]:
    """Log-probs and ids out of [log-prob, token id, text] entries.

    Raises:
        ResponseError: an entry is something else.
    """
    listed = list(entries)
    for place, entry in enumerate(listed):
        if not isinstance(entry, list | tuple) or len(entry) < 2:
            raise ResponseError(f"{where}[{place}] is {entry!r:.80}, expected [log-prob, token id, text]")
    return logprobs_of((entry[0] for entry in listed), where), ids_of((entry[1] for entry in listed), where)


def versions(meta: Any, tokens: int) -> tuple[int | None, Int32Array | None]:
    """Version of the weights, and per token where the spans say that it changed; None where it is no number."""
    version = version_of(get(meta, "weight_version", ""))
    spans = get(meta, "weight_versions", ())
    numbers = [version_of(get(span, "version", "")) for span in spans]
    if len(spans) < 2 or any(number is None for number in numbers):
        return version, None
    versions_T = np.full(tokens, numbers[-1], np.int32)
    for span, number in reversed(list(zip(spans, numbers, strict=True))):
        versions_T[: int(get(span, "end", 0))] = number
    return version, versions_T
