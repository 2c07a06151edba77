"""Inference side: per-token log-probs out of engine responses, paired with the training side by request and token.

`openai.read`, `vllm.read` and `sglang.read` turn a response into `Sampled` (one per choice); `Pairing` joins them with
what the training engine computed for the same tokens and hands out keyword arguments for `Collector.record`.
No engine is imported: responses are read as dicts or by attribute.
"""

from __future__ import annotations

from tailwatch_collectors.inference import openai, sglang, vllm
from tailwatch_collectors.inference.pairing import Pairing, PairingStats
from tailwatch_collectors.inference.types import ResponseError, Sampled, Sampling

__all__ = ["Pairing", "PairingStats", "ResponseError", "Sampled", "Sampling", "openai", "sglang", "vllm"]
