"""What each of two gloo ranks does; started by `test_distributed.py` through torchrun. Prints one JSON line per rank.

torchrun --nproc_per_node 2 tests/alp/worker.py <scenario>
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from tailwatch_alp import Perturbation
from tailwatch_alp.actuator import Actuator
from tests.alp.models import Plain, tokens


def digest(*tensors: Tensor) -> str:
    """Equal bits, equal string."""
    joined = b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(joined).hexdigest()[:16]


def plain() -> Plain:
    torch.manual_seed(0)
    return Plain()


def ddp(rank: int) -> dict[str, Any]:
    """Distinct noise by default, equal for tensor-parallel replicas, clean outside, learned sigma reduced."""
    model = nn.parallel.DistributedDataParallel(plain())
    ids = tokens(2, 9)  # the same on both ranks, so that only the noise can differ
    clean = plain()(ids)
    perturbation = Perturbation(model, sigma=0.1, learnable=True)
    answer: dict[str, Any] = {"clean": torch.equal(model(ids), clean)}
    with perturbation.active(step=3):
        out = model(ids)
    answer["noisy"] = digest(out)
    out.square().mean().backward()
    answer["weight_gradient"] = digest(*(p.grad for p in model.parameters() if p.grad is not None))
    gradient = perturbation.scale.log_sigma_L.grad
    assert gradient is not None
    answer["sigma_gradient_before"] = gradient.tolist()
    perturbation.scale.all_reduce_gradient()
    answer["sigma_gradient"] = gradient.tolist()
    answer["clean_after"] = torch.equal(model(ids), clean)
    perturbation.detach()
    replica = Perturbation(model, sigma=0.1, data_rank=0)
    with replica.active(step=3), torch.no_grad():
        answer["replica"] = digest(model(ids))
    replica.detach()
    resumed = Perturbation(model, sigma=0.9, seed=5, learnable=True)
    resumed.load_state_dict(perturbation.state_dict())
    with resumed.active(step=3), torch.no_grad():
        answer["resumed"] = digest(model(ids))
    return answer


def fsdp(rank: int) -> dict[str, Any]:
    """fully_shard per block and around: clean outside, the noise of the unsharded model inside, gradients too."""
    from torch.distributed.fsdp import fully_shard

    model = plain()
    single = copy.deepcopy(model)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    ids = tokens(2, 9)
    perturbation = Perturbation(model, sigma=0.1)
    whole = Perturbation(single, sigma=0.1)
    answer: dict[str, Any] = {"clean": torch.equal(model(ids), single(ids))}
    with perturbation.active(step=3):
        out = model(ids)
    with whole.active(step=3):
        expected = single(ids)
    answer |= {"same_as_unsharded": torch.equal(out, expected), "noisy": digest(out)}
    out.square().mean().backward()
    expected.square().mean().backward()
    errors = []
    for a, b in zip(model.parameters(), single.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        dist.all_reduce(b.grad)
        whole_gradient: Tensor = a.grad.full_tensor()  # type: ignore[attr-defined]
        errors.append((whole_gradient - b.grad / 2).abs().max().item())
    answer["gradient_error"] = max(errors)
    answer["clean_after"] = torch.equal(model(ids), single(ids))
    answer["names"] = any("sigma" in name for name in model.state_dict())
    return answer


def switching(rank: int) -> dict[str, Any]:
    """Only rank 0 hears the service, and at odd times; both switch at the same steps. Rank 1 alone loses its noise."""
    model = plain().to(torch.bfloat16)
    perturbation = Perturbation(model, sigma=0.1, bounds=(1e-9, 1.0))
    said: dict[int, Any] = {
        2: {"version": 1, "state": "on", "strength": 0.2, "apply_from_step": 4, "ttl_steps": 4},
        6: {"version": 2, "state": "nonsense"},
        14: {"version": 3, "state": "on", "strength": 0.1, "apply_from_step": 14, "ttl_steps": 90},
    }
    heard: list[Any] = [None]

    def source() -> Any:
        assert rank == 0, "only rank 0 is asked"
        return heard[0]

    actuator = Actuator(perturbation, source=source, decay_steps=3)
    history = []
    for step in range(20):
        heard[0] = said.get(step, heard[0])
        setting = actuator.step(step)
        history.append((setting.state, round(setting.strength, 4)))
        if step == 16 and rank == 1:
            perturbation.scale.set(1e-8)  # as if this rank's noise drowned in rounding
        with actuator.active(step=step), torch.no_grad():
            model(tokens(2, 9))
    return {"history": history, "refused": actuator.refused}


SCENARIOS: dict[str, Callable[[int], dict[str, Any]]] = {"ddp": ddp, "fsdp": fsdp, "switching": switching}


def main() -> None:
    """Run one scenario on this rank and write what it found to the directory given."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    answer = SCENARIOS[sys.argv[1]](rank)
    (Path(sys.argv[2]) / f"{rank}.json").write_text(json.dumps(answer))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main()
