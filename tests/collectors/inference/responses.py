"""Responses as the engines write them, field by field, with the values of one small completion.

vLLM: chat_completion/protocol.py, completion/protocol.py and completion/serving.py of its main branch (2026).
SGLang 0.5.23: entrypoints/openai/protocol.py, managers/tokenizer_manager.py and
utils/weight_versions.py.
The prompt is tokens 9906, 11; the response 1917, 0, 151645 (end of sequence).
"""

from __future__ import annotations

import copy
from typing import Any

PROMPT_IDS = [9906, 11]
IDS = [1917, 0, 151645]
TEXTS = [" world", "!", "<|im_end|>"]
LOGPROBS = [-0.25, -1.5, -0.0078125]

VLLM_CHAT: dict[str, Any] = {
    "id": "chatcmpl-3f6c0a1e5d0b4f6e9a1f",
    "object": "chat.completion",
    "created": 1790000000,
    "model": "Qwen/Qwen3-0.6B",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": " world!", "refusal": None, "reasoning": None},
            "logprobs": {
                "content": [
                    {
                        "token": token,
                        "logprob": logprob,
                        "bytes": list(token.encode()),
                        "top_logprobs": [{"token": token, "logprob": logprob, "bytes": list(token.encode())}],
                    }
                    for token, logprob in zip(TEXTS, LOGPROBS, strict=True)
                ]
            },
            "finish_reason": "stop",
            "stop_reason": None,
            "token_ids": IDS,
            "routed_experts": None,
        }
    ],
    "service_tier": None,
    "system_fingerprint": None,
    "usage": {"prompt_tokens": 2, "total_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": None},
    "prompt_logprobs": [
        None,
        {
            "11": {"logprob": -2.0, "rank": 3, "decoded_token": ","},
            "0": {"logprob": -0.5, "rank": 1, "decoded_token": "!"},
        },
    ],
    "prompt_token_ids": PROMPT_IDS,
    "kv_transfer_params": None,
}

VLLM_COMPLETION: dict[str, Any] = {
    "id": "cmpl-5b1d6f2c",
    "object": "text_completion",
    "created": 1790000000,
    "model": "Qwen/Qwen3-0.6B",
    "choices": [
        {
            "index": 0,
            "text": " world!",
            "logprobs": {
                "text_offset": [0, 6, 7],
                "token_logprobs": LOGPROBS,
                "tokens": [f"token_id:{token}" for token in IDS],
                "top_logprobs": [{f"token_id:{token}": logprob} for token, logprob in zip(IDS, LOGPROBS, strict=True)],
            },
            "finish_reason": "stop",
            "stop_reason": None,
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
        }
    ],
    "service_tier": None,
    "system_fingerprint": None,
    "usage": {"prompt_tokens": 2, "total_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": None},
    "kv_transfer_params": None,
}

VLLM_GENERATE: dict[str, Any] = {
    "request_id": "gen-7",
    "choices": [
        {
            "index": 0,
            "logprobs": {
                "content": [
                    {"token": f"token_id:{token}", "logprob": logprob, "bytes": None, "top_logprobs": []}
                    for token, logprob in zip(IDS, LOGPROBS, strict=True)
                ]
            },
            "finish_reason": "stop",
            "token_ids": IDS,
        }
    ],
    "prompt_logprobs": None,
    "kv_transfer_params": None,
}

SGLANG_GENERATE: dict[str, Any] = {
    "text": " world!",
    "output_ids": IDS,
    "meta_info": {
        "id": "0d7f6c5b4a39482716",
        "finish_reason": {"type": "stop", "matched": 151645},
        "prompt_tokens": 2,
        "weight_version": "12",
        "num_retractions": 0,
        "input_token_logprobs": [[None, 9906, None], [-2.0, 11, None]],
        "output_token_logprobs": [[logprob, token, None] for logprob, token in zip(LOGPROBS, IDS, strict=True)],
        "output_token_logprobs_length": 3,
        "reasoning_tokens": 0,
        "completion_tokens": 3,
        "cached_tokens": 0,
        "e2e_latency": 0.12,
    },
}

SGLANG_CHAT: dict[str, Any] = {
    "id": "0d7f6c5b4a39482716",
    "object": "chat.completion",
    "created": 1790000000,
    "model": "Qwen/Qwen3-0.6B",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": " world!", "reasoning_content": None, "tool_calls": None},
            "logprobs": {
                "content": [
                    {"token": token, "bytes": list(token.encode()), "logprob": logprob, "top_logprobs": []}
                    for token, logprob in zip(TEXTS, LOGPROBS, strict=True)
                ]
            },
            "finish_reason": "stop",
            "matched_stop": 151645,
            "prompt_token_ids": PROMPT_IDS,
            "response_token_ids": IDS,
        }
    ],
    "usage": {"prompt_tokens": 2, "total_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": None},
    "metadata": {
        "weight_version": "13",
        "weight_versions": [{"version": "12", "start": 0, "end": 1}, {"version": "13", "start": 1, "end": 3}],
    },
}

OPENAI_CHAT: dict[str, Any] = {
    "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
    "object": "chat.completion",
    "created": 1741569952,
    "model": "gpt-4.1-2025-04-14",
    "choices": [
        {
            "index": index,
            "message": {"role": "assistant", "content": " world!", "refusal": None, "annotations": []},
            "logprobs": {
                "content": [
                    {"token": token, "logprob": logprob - index, "bytes": list(token.encode()), "top_logprobs": []}
                    for token, logprob in zip(TEXTS, LOGPROBS, strict=True)
                ],
                "refusal": None,
            },
            "finish_reason": "stop",
        }
        for index in (0, 1)
    ],
    "usage": {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8},
    "service_tier": "default",
}


def changed(response: dict[str, Any], *path: str | int, to: Any) -> dict[str, Any]:
    """A copy with one value replaced."""
    result = copy.deepcopy(response)
    node: Any = result
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = to
    return result


def chunks(response: dict[str, Any]) -> list[dict[str, Any]]:
    """The same response as vLLM streams it: the role first, then one chunk per token, the usage last."""
    head = {name: response[name] for name in ("id", "object", "created", "model")}
    found: list[dict[str, Any]] = [
        {
            **head,
            "choices": [
                {"index": choice["index"], "delta": {"role": "assistant", "content": ""}, "logprobs": None}
                for choice in response["choices"]
            ],
            "prompt_token_ids": response.get("prompt_token_ids"),
        }
    ]
    for token in range(3):
        for choice in response["choices"]:
            logprobs = choice["logprobs"]
            part = {
                name: values[token : token + 1] if isinstance(values, list) else values
                for name, values in logprobs.items()
            }
            last = token == 2
            found.append(
                {
                    **head,
                    "choices": [
                        {
                            "index": choice["index"],
                            "delta": {"content": TEXTS[token]},
                            "logprobs": part,
                            "finish_reason": "stop" if last else None,
                            "token_ids": choice["token_ids"][token : token + 1] if choice.get("token_ids") else None,
                        }
                    ],
                }
            )
    found.append({**head, "choices": [], "usage": response["usage"]})
    return found
