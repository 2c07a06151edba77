"""The way from a CUDA device, on a machine without one: a fake torch that records who does what in which order."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tailwatch_collectors.arena import Arena
from tailwatch_collectors.batch import BFloat16
from tailwatch_collectors.capture import capture
from tailwatch_collectors.device import Devices
from tailwatch_collectors.errors import BatchError
from tailwatch_collectors.types import BatchMeta


@dataclass(frozen=True)
class Place:
    """What `torch.device` is."""

    type: str
    index: int


class Device:
    """Streams and events of a device whose work is done only when somebody waits for it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.pending: list[Any] = []
        self.current = "training"

    def cuda(self) -> Any:
        device = self

        class Stream:
            def __init__(self, device: Any) -> None:
                self.name = "side"

            def wait_stream(self, other: Any) -> None:
                device.log.append(f"side waits for {other.name}")

        class Event:
            def record(self, stream: Any) -> None:
                device.log.append(f"event on {stream.name}")

            def synchronize(self) -> None:
                device.log.append("synchronize")
                for work in device.pending:
                    work()
                device.pending.clear()

        @contextmanager
        def stream(one: Any) -> Iterator[None]:
            before, device.current = device.current, one.name
            yield
            device.current = before

        return SimpleNamespace(
            Stream=Stream,
            Event=Event,
            stream=stream,
            current_stream=lambda _: SimpleNamespace(name="training"),
        )


class Host:
    """A host tensor that is filled when the device gets to it."""

    def __init__(self, device: Device, values: torch.Tensor) -> None:
        self._device = device
        self._values = torch.empty_like(values)
        self.shape, self.dtype = values.shape, values.dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self._values, name)

    def copy_(self, source: Any, *, non_blocking: bool) -> None:
        assert non_blocking
        self._device.log.append(f"copy on {self._device.current}")
        self._device.pending.append(lambda: self._values.copy_(source.values))


class Tensor:
    """A tensor that claims to live on a CUDA device."""

    def __init__(self, device: Device, values: torch.Tensor) -> None:
        self._device = device
        self.values = values
        self.device = Place("cuda", 0)
        self.shape, self.dtype = values.shape, values.dtype

    def __len__(self) -> int:
        return len(self.values)

    def detach(self) -> Tensor:
        return self

    def reshape(self, *shape: int) -> Tensor:
        return Tensor(self._device, self.values.reshape(*shape))

    def clone(self, memory_format: Any) -> Tensor:
        self._device.log.append(f"clone on {self._device.current}")
        return Tensor(self._device, self.values.clone())

    def record_stream(self, stream: Any) -> None:
        self._device.log.append(f"memory kept for {stream.name}")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A torch module in which `Tensor` is the type of tensors."""
    device = Device()
    fake = SimpleNamespace(
        Tensor=Tensor,
        cuda=device.cuda(),
        bfloat16=torch.bfloat16,
        int16=torch.int16,
        contiguous_format=torch.contiguous_format,
        empty=lambda shape, dtype, pin_memory: Host(device, torch.empty(shape, dtype=dtype)) if pin_memory else None,
        cat=lambda rows: Tensor(device, torch.cat([row.values for row in rows])),
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    return device


def _on(device: Device, values: Any) -> Any:
    return Tensor(device, torch.as_tensor(values))


def test_nobody_waits_until_the_values_are_needed(device: Device) -> None:
    values = -torch.rand(3, 4)
    tensor = _on(device, values.clone())
    mask = np.ones((3, 4), bool)
    taken = capture(
        BatchMeta(step=0),
        arena=Arena(keep=0),
        devices=Devices(),
        infer_logprobs=tensor,
        train_logprobs=tensor,
        mask=mask,
    )
    once = [
        "clone on training",
        "side waits for training",
        "copy on side",
        "event on side",
        "memory kept for side",
    ]
    assert device.log == once * 2
    assert taken.sequences == 3
    tensor.values.zero_()  # the trainer goes on
    batch = taken.batch()

    assert device.log[len(once) * 2 :] == ["synchronize", "synchronize"]
    np.testing.assert_array_equal(batch.infer_logprobs_N, values.numpy().ravel())
    assert batch.nbytes > 0


def test_bfloat16_travels_as_its_bits(device: Device) -> None:
    values = (-torch.rand(5)).bfloat16()
    copy = Devices().copy(_on(device, values), sys.modules["torch"])
    arrived = copy.wait()

    assert copy.nbytes == 10
    assert isinstance(arrived, BFloat16)
    np.testing.assert_array_equal(arrived.float32(), values.float().numpy())


def test_lists_of_tensors_are_one_copy(device: Device) -> None:
    rows = [-torch.rand(3), -torch.rand(1), -torch.rand(0)]
    tensors = [_on(device, row) for row in rows]
    taken = capture(
        BatchMeta(step=0),
        arena=Arena(keep=0),
        devices=Devices(),
        infer_logprobs=tensors,
        train_logprobs=tensors,
        reward=[1.0, 2.0, 3.0],
    )
    batch = taken.batch()

    assert device.log.count("copy on side") == 2
    assert batch.lengths_B.tolist() == [3, 1, 0]
    np.testing.assert_array_equal(batch.train_logprobs_N, torch.cat(rows).numpy())


def test_lists_of_tensors_of_unequal_lengths_are_refused(device: Device) -> None:
    rows = [_on(device, -torch.rand(3)), _on(device, -torch.rand(1))]
    others = [_on(device, -torch.rand(3)), _on(device, -torch.rand(2))]
    with pytest.raises(BatchError, match=r"row 1, train_logprobs"):
        capture(BatchMeta(step=0), arena=Arena(keep=0), devices=Devices(), infer_logprobs=rows, train_logprobs=others)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device; the fakes above stand in")
def test_on_a_real_device() -> None:
    values = -torch.rand(64, 512)
    tensor = values.cuda().bfloat16()
    expected = tensor.float().cpu().numpy()
    taken = capture(
        BatchMeta(step=0), arena=Arena(keep=0), devices=Devices(), infer_logprobs=tensor, train_logprobs=tensor
    )
    tensor.zero_()

    np.testing.assert_array_equal(taken.batch().infer_logprobs_N, expected.ravel())
