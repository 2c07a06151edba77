"""Copies from a CUDA device that make nobody wait: neither the trainer's thread nor the training stream.

The tensor is first copied on the device, in the training stream: after that the trainer may overwrite it, and the
cost is that of reading and writing it once in device memory. A side stream then copies to pinned host memory, and an
event says when that is through; the background thread waits for the event, not the trainer.
"""

from __future__ import annotations

import threading
from typing import Any

from tailwatch_collectors.batch import BFloat16


class DeviceCopy:
    """A tensor on its way from the device."""

    __slots__ = ("_event", "_host", "_snapshot", "_torch", "nbytes", "shape")

    def __init__(self, host: Any, *, snapshot: Any, event: Any, torch: Any) -> None:
        self.shape = tuple(host.shape)
        self.nbytes = int(host.numel() * host.element_size())
        """Size of the host's copy, bytes."""
        self._host = host
        # Kept until the event: the allocator must not hand its memory to somebody else before.
        self._snapshot = snapshot
        self._event = event
        self._torch = torch

    def wait(self) -> Any:
        """The values, once they have arrived. Waits without the interpreter lock."""
        if self._snapshot is not None:
            self._event.synchronize()
            self._snapshot = None
        host = self._host
        if host.dtype == self._torch.bfloat16:
            return BFloat16(host.view(self._torch.int16).numpy().view("uint16"))
        if host.is_floating_point() and host.element_size() == 1:
            host = host.float()
        return host.numpy()


class Devices:
    """One side stream per device."""

    def __init__(self) -> None:
        self._streams: dict[Any, Any] = {}
        self._lock = threading.RLock()

    def copy(self, tensor: Any, torch: Any) -> DeviceCopy:
        """Begin copying a detached CUDA tensor to the host; returns at once."""
        cuda = torch.cuda
        side = self._stream(tensor.device, cuda)
        snapshot = tensor.clone(memory_format=torch.contiguous_format)
        host = torch.empty(snapshot.shape, dtype=snapshot.dtype, pin_memory=True)
        side.wait_stream(cuda.current_stream(tensor.device))
        with cuda.stream(side):
            host.copy_(snapshot, non_blocking=True)
            event = cuda.Event()
            event.record(side)
        snapshot.record_stream(side)
        return DeviceCopy(host, snapshot=snapshot, event=event, torch=torch)

    def _stream(self, device: Any, cuda: Any) -> Any:
        with self._lock:
            if device not in self._streams:
                self._streams[device] = cuda.Stream(device=device)
            return self._streams[device]
