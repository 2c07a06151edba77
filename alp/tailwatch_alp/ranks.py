"""Which ranks hold the same tokens: they must draw the same noise, all others their own.

Data-parallel ranks (DDP, FSDP) have tokens of their own. Tensor-parallel ranks compute on copies of one hidden state:
with different noise on the copies the partial products of a layer would no longer belong together. Where the weights
are DTensors their mesh says which is which; where they are not (Megatron), the caller has to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_TENSOR_PARALLEL = frozenset({"tp", "tensor", "tensor_parallel"})


def data_rank_of(model: nn.Module) -> int:
    """A number that is equal on ranks with the same tokens and differs elsewhere: the smallest rank of the
    tensor-parallel group; 0 without process groups."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0
    for parameter in model.parameters():
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is not None and any(shared := _tensor_parallel_dimensions(mesh, model=model)):
            here = [slice(None) if alike else at for at, alike in zip(mesh.get_coordinate(), shared, strict=True)]
            return int(mesh.mesh[tuple(here)].min())
    return distributed.get_rank()


def _tensor_parallel_dimensions(mesh: Any, *, model: nn.Module) -> list[bool]:
    if mesh.mesh_dim_names is not None:
        return [name in _TENSOR_PARALLEL for name in mesh.mesh_dim_names]
    # fully_shard makes a mesh without names; where nothing was fully sharded, the weights are split among the ranks.
    sharded = any(hasattr(module, "set_requires_gradient_sync") for module in model.modules())
    return [mesh.ndim == 1 and not sharded] * mesh.ndim
