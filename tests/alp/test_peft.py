"""LoRA-wrapped models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tailwatch_alp import Perturbation
from tailwatch_alp.sharpness import gradient_sharpness
from tests.alp.models import LAYERS, chosen_logprobs, hugging_face, tokens

peft: Any = pytest.importorskip("peft")
# PEFT asks transformers by a name that transformers 5 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = tokens(2, 9)


def wrapped(name: str) -> Any:
    torch.manual_seed(0)
    target = ["c_attn"] if name == "gpt2" else ["q_proj", "v_proj"]
    config = peft.LoraConfig(r=2, target_modules=target, fan_in_fan_out=name == "gpt2", init_lora_weights=False)
    return peft.get_peft_model(hugging_face(name), config)


@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2"])
def test_clean_outside_noisy_inside_and_gradients_reach_the_adapters(name: str) -> None:
    model = wrapped(name)
    clean = model(IDS, use_cache=False).logits
    before = {key: value.clone() for key, value in peft.get_peft_model_state_dict(model).items()}
    perturbation = Perturbation(model, sigma=0.1)
    assert perturbation.layer_count == LAYERS
    with perturbation.active(step=0):
        noisy = model(IDS, use_cache=False).logits
    assert not torch.equal(noisy, clean)
    noisy.square().mean().backward()
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapters)
    assert torch.equal(model(IDS, use_cache=False).logits, clean)
    assert list(peft.get_peft_model_state_dict(model)) == list(before)
    with model.disable_adapter():  # the reference policy of LoRA training
        reference = model(IDS, use_cache=False).logits
    perturbation.detach()
    with model.disable_adapter():
        assert torch.equal(model(IDS, use_cache=False).logits, reference)


def test_wrapping_after_attaching_keeps_the_noise() -> None:
    model = hugging_face("qwen2")
    perturbation = Perturbation(model, sigma=0.1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(model, config)
    clean = model(IDS, use_cache=False).logits
    with perturbation.active(step=0):
        assert not torch.equal(model(IDS, use_cache=False).logits, clean)
    merged = model.merge_and_unload()
    with perturbation.active(step=0):
        assert not torch.equal(merged(IDS, use_cache=False).logits, clean)


def test_sharpness_below_the_first_trainable_weight() -> None:
    model = wrapped("qwen2")
    perturbation = Perturbation(model, sigma=0.1)
    report = gradient_sharpness(
        perturbation,
        lambda: chosen_logprobs(model(IDS, use_cache=False).logits, IDS),
        mask_BT=torch.ones(2, 8, dtype=torch.bool),
    )
    assert all(entry.value > 0 for entry in report.layers)
