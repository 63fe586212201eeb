"""GPU memory through the CUDA driver alone, so that an engine runs without another package. Read in CUDA's documentation; not run here."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfqat.engines import tensorrt
from tfqat.errors import EngineError


class Device:
    """The first GPU: its memory, and one stream. Every call needs `active`, which makes the device's context the one of the thread.

    Raises:
        EngineError: any call that the driver refuses.
    """

    def __init__(self, driver: Any = None) -> None:
        found = driver if driver is not None else tensorrt.cuda_driver()
        if found is None:
            raise EngineError("no NVIDIA GPU is visible: the CUDA driver is missing or finds none")
        self._driver: Any = found
        self._device, self._context, self._stream = ctypes.c_int(0), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(0))
        # The primary context is the one that TensorRT, through the CUDA runtime, uses too.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        with self.active():
            self._call("cuStreamCreate", ctypes.byref(self._stream), ctypes.c_uint(0))

    @property
    def stream(self) -> int:
        """The handle that `execute_async_v3` takes."""
        return self._stream.value or 0

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The block runs with the GPU's context; afterwards the thread has the one that it had before."""
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the GPU."""
        address = ctypes.c_uint64(0)
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """A contiguous array to the GPU, after what the stream has still to do with it."""
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), _pointer(array), ctypes.c_size_t(array.nbytes), self._stream)

    def download(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """The GPU's bytes into a contiguous array, which has them after `synchronize`."""
        self._call("cuMemcpyDtoHAsync_v2", _pointer(array), ctypes.c_uint64(address), ctypes.c_size_t(array.nbytes), self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give the stream and the context back."""
        with self.active():
            self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            why = "there is not enough memory on the GPU" if code == _OUT_OF_MEMORY else f"CUDA error {code}"
            raise EngineError(f"the CUDA driver refused {name}: {why}")


_OUT_OF_MEMORY = 2


def _pointer(array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
