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


def sharded_precision(rank: int) -> dict[str, Any]:
    """fully_shard in bfloat16 around blocks whose residual stream is float32: a block's input is cast anew for its
    checkpoint's recompute. With and without checkpointing the gradients must be the same."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.utils.checkpoint import checkpoint

    class Wide(Plain):
        checkpointed = False

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.token(tokens).float()
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
                x = x.float()
            return self.head(x.to(self.head.weight.dtype))  # type: ignore[no-any-return]

    gradients, outputs = [], []
    for checkpointed in (True, False):
        torch.manual_seed(0)
        model = Wide()
        model.checkpointed = checkpointed
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in model.blocks:
            fully_shard(block, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
        perturbation = Perturbation(model, sigma=0.3)
        with perturbation.active(step=3):
            out = model(tokens(2, 9, seed=rank))
        out.float().square().mean().backward()  # after the context: what was given must be remembered
        outputs.append(out.detach())
        gradients.append([p.grad.full_tensor() for p in model.parameters()])  # type: ignore[union-attr]
    same = all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    return {"same_output": torch.equal(*outputs), "same_gradients": same}


def tensor_parallel(rank: int) -> dict[str, Any]:
    """The MLPs split over both ranks: one noise on both copies of the hidden state, and the whole model's result."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    ids, answer = tokens(2, 9), {}
    single = plain()
    whole = Perturbation(single, sigma=0.2, data_rank=0)
    clean = single(ids)
    with whole.active(step=3):
        expected = single(ids)
    expected.square().mean().backward()
    for named in (True, False):
        model = plain()
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",) if named else None)
        for block in model.blocks:
            parallelize_module(block.get_submodule("mlp"), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        perturbation = Perturbation(model, sigma=0.2)
        torch.testing.assert_close(model(ids), clean, rtol=1e-5, atol=1e-6)
        with perturbation.active(step=3):
            out = model(ids)
        out.square().mean().backward()
        errors = []
        for a, b in zip(model.parameters(), single.parameters(), strict=True):
            assert a.grad is not None
            assert b.grad is not None
            full: Tensor = a.grad.full_tensor() if hasattr(a.grad, "full_tensor") else a.grad
            errors.append((full - b.grad).abs().max().item())
        answer["named" if named else "unnamed"] = {
            "data_rank": perturbation.data_rank,
            "noisy": digest(out),
            "error": (out - expected).abs().max().item(),
            "gradient_error": max(errors),
            "moved": (expected - clean).abs().max().item(),
        }
    return answer


def late(rank: int) -> dict[str, Any]:
    """The Perturbation is made before the process group: the ranks must have noise of their own all the same."""
    model = plain()
    perturbation = Perturbation(model, sigma=0.1)
    alone = perturbation.data_rank
    dist.init_process_group("gloo")
    with perturbation.active(step=3), torch.no_grad():
        return {"alone": alone, "together": perturbation.data_rank, "noisy": digest(model(tokens(2, 9)))}


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


SCENARIOS: dict[str, Callable[[int], dict[str, Any]]] = {
    scenario.__name__: scenario for scenario in (ddp, fsdp, sharded_precision, tensor_parallel, late, switching)
}


def main() -> None:
    """Run one scenario on this rank and write what it found to the directory given."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    if sys.argv[1] != "late":
        dist.init_process_group("gloo")
    answer = SCENARIOS[sys.argv[1]](rank)
    (Path(sys.argv[2]) / f"{rank}.json").write_text(json.dumps(answer))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main()
