"""The engines' own objects: vLLM's RequestOutput and SGLang's answers, read field by field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tailwatch_collectors.inference import ResponseError, sglang, vllm
from tests.collectors.inference.responses import IDS, LOGPROBS, PROMPT_IDS, SGLANG_GENERATE, changed


@dataclass
class Logprob:
    """vllm.logprobs.Logprob."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class FlatLogprobs(Sequence[Any]):
    """vllm.logprobs.FlatLogprobs: columns that behave as a list of dicts."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, index: Any) -> Any:
        return {self.token_ids[index]: Logprob(self.logprobs[index])}

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def request_output(*, logprobs: Any = None, n: int = 1, **more: Any) -> Any:
    listed = [
        {token: Logprob(logprob, 2, "x"), 7: Logprob(-0.01, 1, "y")}
        for token, logprob in zip(IDS, LOGPROBS, strict=True)
    ]
    outputs = [
        SimpleNamespace(
            index=index,
            text=" world!",
            token_ids=tuple(IDS),
            cumulative_logprob=sum(LOGPROBS),
            logprobs=listed if logprobs is None else logprobs,
            finish_reason="stop",
            stop_reason=None,
        )
        for index in range(n)
    ]
    fields: dict[str, Any] = {
        "request_id": "17",
        "prompt": "Hello,",
        "prompt_token_ids": PROMPT_IDS,
        "prompt_logprobs": [None, {11: Logprob(-2.0, 3, ",")}],
        "outputs": outputs,
        "finished": True,
    }
    return SimpleNamespace(**(fields | more))


@pytest.mark.parametrize("flat", [False, True])
def test_a_request_output_of_vllm(flat: bool) -> None:
    params = SimpleNamespace(temperature=0.7, top_p=1.0, top_k=0, min_p=0.0, logprobs=0)
    output = request_output(logprobs=FlatLogprobs(IDS, LOGPROBS) if flat else None)
    (sampled,) = vllm.read(output, sampling_params=params, version=4)
    assert sampled.logprobs_T.tolist() == LOGPROBS
    assert sampled.token_ids_T is not None
    assert sampled.token_ids_T.tolist() == IDS
    np.testing.assert_array_equal(sampled.prompt_logprobs_P, np.array([np.nan, -2.0], np.float32))
    assert (sampled.key, sampled.version, sampled.engine, sampled.finish_reason) == ("17", 4, "vllm", "stop")
    assert (sampled.sampling.temperature, sampled.sampling.top_k, sampled.sampling.logprobs_mode) == (0.7, 0, "raw")


def test_several_outputs_of_one_request() -> None:
    found = vllm.read(request_output(n=3), logprobs_mode="processed")
    assert [sampled.key for sampled in found] == ["17/0", "17/1", "17/2"]
    assert found[0].sampling.logprobs_mode == "processed"


def test_vllm_without_log_probs() -> None:
    output = request_output()
    output.outputs[0].logprobs = None
    with pytest.raises(ResponseError, match=r"17, output 0: no logprobs; sample with SamplingParams\(logprobs=0\)"):
        vllm.read(output)
    with pytest.raises(ResponseError, match="outputs is None"):
        vllm.read(request_output(outputs=None))


def test_vllm_with_other_tokens() -> None:
    with pytest.raises(ResponseError, match=r"logprobs\[0\] holds no log-prob of token 1917"):
        vllm.read(request_output(logprobs=[{1: Logprob(-1.0)}] * 3))
    with pytest.raises(ResponseError, match="3 token_ids for 2 log-probs"):
        vllm.read(request_output(logprobs=FlatLogprobs(IDS[:2], LOGPROBS[:2])))


@pytest.mark.parametrize("several", [False, True])
def test_an_answer_of_sglang(several: bool) -> None:
    body = {"input_ids": PROMPT_IDS, "sampling_params": {"temperature": 0.7, "top_p": 0.9}, "return_logprob": True}
    found = sglang.read([SGLANG_GENERATE] * 2 if several else SGLANG_GENERATE, request=body)
    assert len(found) == 1 + several
    for sampled in found:
        assert sampled.logprobs_T.tolist() == LOGPROBS
        assert sampled.token_ids_T is not None
        assert sampled.token_ids_T.tolist() == IDS
        assert sampled.prompt_token_ids_P is not None
        assert sampled.prompt_token_ids_P.tolist() == PROMPT_IDS
        np.testing.assert_array_equal(sampled.prompt_logprobs_P, np.array([np.nan, -2.0], np.float32))
        assert (sampled.key, sampled.version, sampled.versions_T) == ("0d7f6c5b4a39482716", 12, None)
        assert (sampled.engine, sampled.finish_reason) == ("sglang", "stop")
        assert (sampled.sampling.temperature, sampled.sampling.logprobs_mode) == (0.7, "scaled")


def test_part_of_the_prompt_is_not_the_prompt() -> None:
    output = changed(SGLANG_GENERATE, "meta_info", "input_token_logprobs", to=[[None, 11, None]])
    (sampled,) = sglang.read(output)
    assert sampled.prompt_token_ids_P is None
    assert sampled.prompt_logprobs_P is None


def test_weights_that_changed_on_the_way() -> None:
    spans = [
        {"version": "7", "start": 0, "end": 1},
        {"version": "8", "start": 1, "end": 2},
        {"version": "9", "start": 2, "end": 3},
    ]
    (sampled,) = sglang.read(changed(SGLANG_GENERATE, "meta_info", "weight_versions", to=spans))
    assert sampled.versions_T is not None
    assert sampled.versions_T.tolist() == [7, 8, 9]
    named = [{**span, "version": f"step-{span['version']}"} for span in spans]
    assert sglang.read(changed(SGLANG_GENERATE, "meta_info", "weight_versions", to=named))[0].versions_T is None


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("meta_info", "output_token_logprobs"), None, "holds no output_token_logprobs; ask with return_logprob=True"),
        (("meta_info", "output_token_logprobs", 1), -0.5, r"output_token_logprobs\[1\] is -0.5, expected"),
        (("meta_info", "output_token_logprobs", 1), [-0.5], r"output_token_logprobs\[1\] is \[-0.5\], expected"),
        (("meta_info", "output_token_logprobs", 1), [-0.5, "x", None], r"\[1\] is 'x', expected a token id"),
        (("output_ids",), [1, 2, 3], "of other tokens than output_ids"),
    ],
)
def test_sglang_errors_name_the_place(path: tuple[str | int, ...], value: Any, words: str) -> None:
    with pytest.raises(ResponseError, match=words):
        sglang.read(changed(SGLANG_GENERATE, *path, to=value))
