"""OpenAI-compatible responses: chat, completions, echo, streams; dicts and objects; errors name the place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

from tailwatch_collectors.inference import ResponseError, openai
from tests.collectors.inference.responses import (
    IDS,
    LOGPROBS,
    OPENAI_CHAT,
    PROMPT_IDS,
    SGLANG_CHAT,
    SGLANG_GENERATE,
    VLLM_CHAT,
    VLLM_COMPLETION,
    VLLM_GENERATE,
    changed,
    chunks,
)


class Model(BaseModel):
    """What the openai package returns: known fields and, as attributes, whatever else the server sent."""

    model_config = ConfigDict(extra="allow")


def as_object(value: Any) -> Any:
    if isinstance(value, dict):
        # Log-probs by token id stay a dict, as in the package.
        if all(name.isdigit() for name in value) and value:
            return {name: as_object(inner) for name, inner in value.items()}
        return Model(**{name: as_object(inner) for name, inner in value.items()})
    return [as_object(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("convert", [dict, as_object])
@pytest.mark.parametrize("response", [VLLM_CHAT, VLLM_COMPLETION, VLLM_GENERATE, SGLANG_CHAT])
def test_log_probs_and_ids(response: dict[str, Any], convert: Any) -> None:
    (sampled,) = openai.read(convert(response))
    assert sampled.logprobs_T.tolist() == LOGPROBS
    assert sampled.logprobs_T.dtype == np.float32
    assert sampled.token_ids_T is not None
    assert sampled.token_ids_T.tolist() == IDS
    assert sampled.key == sampled.request_id == response.get("id", response.get("request_id"))
    assert sampled.finish_reason == "stop"
    assert sampled.sampling.logprobs_mode is None


def test_the_prompt_of_vllm() -> None:
    (sampled,) = openai.read(VLLM_CHAT)
    assert sampled.prompt_token_ids_P is not None
    assert sampled.prompt_token_ids_P.tolist() == PROMPT_IDS
    np.testing.assert_array_equal(sampled.prompt_logprobs_P, np.array([np.nan, -2.0], np.float32))
    without_ids = changed(VLLM_CHAT, "prompt_token_ids", to=None)
    np.testing.assert_array_equal(openai.read(without_ids)[0].prompt_logprobs_P, np.array([np.nan, -2.0], np.float32))


def test_plain_openai_has_text_tokens_and_several_choices() -> None:
    first, second = openai.read(OPENAI_CHAT)
    assert first.token_ids_T is None
    assert second.logprobs_T.tolist() == [logprob - 1 for logprob in LOGPROBS]
    assert [first.key, second.key] == [f"{OPENAI_CHAT['id']}/0", f"{OPENAI_CHAT['id']}/1"]


def test_what_it_was_sampled_with() -> None:
    request = {"temperature": 0.7, "top_p": 0.95, "top_k": 20, "min_p": 0.01, "messages": []}
    (sampled,) = openai.read(VLLM_CHAT, request=request, logprobs_mode="processed")
    assert sampled.sampling.temperature == 0.7
    assert sampled.sampling.top_p == 0.95
    assert sampled.sampling.top_k == 20
    assert sampled.sampling.min_p == 0.01
    assert sampled.sampling.logprobs_mode == "processed"
    assert openai.read(VLLM_CHAT, request={"temperature": None})[0].sampling.temperature is None


def test_sglang_versions_over_the_response() -> None:
    (sampled,) = openai.read(SGLANG_CHAT)
    assert sampled.version == 13
    assert sampled.versions_T is not None
    assert sampled.versions_T.tolist() == [12, 13, 13]
    (unnamed,) = openai.read(changed(SGLANG_CHAT, "metadata", to={"weight_version": "default"}))
    assert unnamed.version is None


def test_sglang_meta_info_in_a_choice() -> None:
    meta = SGLANG_GENERATE["meta_info"]
    response = changed(SGLANG_CHAT, "choices", 0, "meta_info", to=meta)
    response["choices"][0] |= {"logprobs": None, "response_token_ids": None}
    (sampled,) = openai.read(response)
    assert sampled.logprobs_T.tolist() == LOGPROBS
    assert sampled.token_ids_T is not None
    assert sampled.token_ids_T.tolist() == IDS


@pytest.mark.parametrize("ids", [True, False])
def test_an_echoed_completion_loses_its_prompt(ids: bool) -> None:
    echoed = changed(
        VLLM_COMPLETION,
        "choices",
        0,
        "logprobs",
        to={
            "text_offset": [0, 5, 6, 12, 13],
            "token_logprobs": [None, -2.0, *LOGPROBS],
            "tokens": [f"token_id:{token}" for token in (*PROMPT_IDS, *IDS)],
            "top_logprobs": [None, None, None, None, None],
        },
    )
    if ids:
        echoed["choices"][0] |= {"token_ids": IDS, "prompt_token_ids": PROMPT_IDS}
        echoed["usage"] = None
    (sampled,) = openai.read(echoed, request={"echo": True})
    assert sampled.logprobs_T.tolist() == LOGPROBS
    assert sampled.token_ids_T is not None
    assert sampled.token_ids_T.tolist() == IDS
    np.testing.assert_array_equal(sampled.prompt_logprobs_P, np.array([np.nan, -2.0], np.float32))
    echoed["usage"] = None
    echoed["choices"][0]["prompt_token_ids"] = None
    with pytest.raises(ResponseError, match="where the prompt ends"):
        openai.read(echoed, request={"echo": True})


@pytest.mark.parametrize("convert", [dict, as_object])
@pytest.mark.parametrize("response", [VLLM_CHAT, VLLM_COMPLETION, OPENAI_CHAT])
def test_a_stream_says_the_same(response: dict[str, Any], convert: Any) -> None:
    whole = openai.read(response)
    streamed = openai.read_stream(convert(chunk) for chunk in chunks(response))
    assert [sampled.key for sampled in streamed] == [sampled.key for sampled in whole]
    for one, other in zip(streamed, whole, strict=True):
        np.testing.assert_array_equal(one.logprobs_T, other.logprobs_T)
        assert one.finish_reason == "stop"
        assert (one.token_ids_T is None) == (other.token_ids_T is None)
        if one.token_ids_T is not None:
            np.testing.assert_array_equal(one.token_ids_T, other.token_ids_T)


@pytest.mark.parametrize("value", [None, -9999.0, -3.4e38, float("-inf"), float("nan")])
def test_what_is_no_log_prob_is_missing(value: float | None) -> None:
    response = changed(VLLM_CHAT, "choices", 0, "logprobs", "content", 1, "logprob", to=value)
    np.testing.assert_array_equal(
        openai.read(response)[0].logprobs_T, np.array([LOGPROBS[0], np.nan, LOGPROBS[2]], np.float32)
    )


def test_an_empty_response_has_no_tokens() -> None:
    response = changed(VLLM_CHAT, "choices", 0, "logprobs", to={"content": []})
    response["choices"][0]["token_ids"] = []
    assert len(openai.read(response)[0].logprobs_T) == 0


@pytest.mark.parametrize(
    ("response", "words"),
    [
        ({}, "choices is None"),
        ({"choices": "no"}, "choices is 'no'"),
        (changed(VLLM_CHAT, "choices", 0, "logprobs", to=None), "no logprobs; ask for them"),
        (changed(VLLM_CHAT, "choices", 0, "logprobs", to={}), "token_logprobs is None"),
        (changed(VLLM_CHAT, "choices", 0, "token_ids", to=[1, 2]), "2 token_ids for 3 log-probs"),
        (changed(VLLM_CHAT, "choices", 0, "token_ids", to=[1, 2.5, 3]), r"token_ids\[1\] is 2.5"),
        (changed(VLLM_CHAT, "choices", 0, "token_ids", to=[1, -2, 3]), r"token_ids\[1\] is -2"),
        (changed(VLLM_CHAT, "choices", 0, "logprobs", "content", 0, "logprob", to="x"), "could not convert"),
        (changed(VLLM_CHAT, "prompt_logprobs", 1, to=[3]), r"prompt_logprobs\[1\] is \[3\]"),
        (changed(VLLM_CHAT, "prompt_token_ids", 1, to=77), "no log-prob of token 77, only"),
        (changed(VLLM_COMPLETION, "choices", 0, "logprobs", "tokens", 2, to="token_id:x"), r"tokens\[2\] is 'x'"),
    ],
)
def test_errors_name_the_place(response: dict[str, Any], words: str) -> None:
    with pytest.raises(ResponseError, match=words):
        openai.read(response)
