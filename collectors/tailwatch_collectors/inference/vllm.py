"""vLLM's own objects: the RequestOutput of `LLM.generate` and of the async engine, or dicts of the same shape.

Layout of vLLM's main branch of 2026: `outputs[].token_ids`, `outputs[].logprobs` (per token a dict of
token id to an object with `logprob`; FlatLogprobs behaves as a list of such), `prompt_token_ids`, `prompt_logprobs`.
The log-probs are `raw` (temperature 1, full support) unless the engine was made with
`logprobs_mode="processed_logprobs"`. Responses of its server are read by `openai.read`.
"""

from __future__ import annotations

from typing import Any

from tailwatch_collectors.inference.openai import own_logprobs
from tailwatch_collectors.inference.types import (
    LogprobsMode,
    ResponseError,
    Sampled,
    Sampling,
    get,
    ids_of,
    items,
)


def read(
    output: Any, *, sampling_params: Any = None, logprobs_mode: LogprobsMode = "raw", version: int | None = None
) -> list[Sampled]:
    """The sampled sequences of one RequestOutput.

    Args:
        output: the RequestOutput, asked for with `SamplingParams(logprobs=0)` or more.
        sampling_params: the SamplingParams: temperature, top_p, top_k and min_p are recorded.
        logprobs_mode: `processed` where the engine was made with processed_logprobs.
        version: version of the weights in the engine; vLLM does not say.

    Raises:
        ResponseError: no log-probs, or lengths that do not fit.
    """
    request_id = str(get(output, "request_id", ""))
    outputs = items(output, "outputs")
    prompt_ids = get(output, "prompt_token_ids")
    prompt_ids_P = None if prompt_ids is None else ids_of(prompt_ids, f"{request_id}: prompt_token_ids")
    positions = get(output, "prompt_logprobs")
    found = []
    for choice in outputs:
        where = f"{request_id or 'output'}, output {get(choice, 'index', 0)}"
        if get(choice, "logprobs") is None:
            raise ResponseError(f"{where}: no logprobs; sample with SamplingParams(logprobs=0)")
        token_ids_T = ids_of(get(choice, "token_ids", ()), f"{where}: token_ids")
        found.append(
            Sampled(
                request_id=request_id,
                index=int(get(choice, "index", 0)),
                choices=len(outputs),
                logprobs_T=own_logprobs(get(choice, "logprobs"), token_ids_T, f"{where}: logprobs"),
                token_ids_T=token_ids_T,
                prompt_token_ids_P=prompt_ids_P,
                prompt_logprobs_P=None
                if positions is None
                else own_logprobs(positions, prompt_ids_P, "prompt_logprobs"),
                version=version,
                sampling=Sampling.of(sampling_params, logprobs_mode=logprobs_mode),
                engine="vllm",
                finish_reason=get(choice, "finish_reason"),
            )
        )
    return found
