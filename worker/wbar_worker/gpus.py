"""How full the GPUs of this host are, as NVIDIA's driver says it: the worker imports no torch, and others use them too."""

import logging

from wbar_store.workers import GpuMemory

log = logging.getLogger("wbar.worker")


class Gpus:
    """The GPUs that the driver knows; none where there is no driver."""

    def __init__(self) -> None:
        import pynvml

        self._nvml = pynvml
        self._there = True
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            self._there = False

    def memory(self) -> tuple[GpuMemory, ...]:
        """Return the memory of each GPU. After an error of the driver's, which is logged, none, for good."""
        if not self._there:
            return ()
        nvml = self._nvml
        try:
            return tuple(self._of(index) for index in range(nvml.nvmlDeviceGetCount()))
        except nvml.NVMLError as error:
            log.warning("the memory of the GPUs cannot be read any more (%s)", error)
            self._there = False
            return ()

    def _of(self, index: int) -> GpuMemory:
        device = self._nvml.nvmlDeviceGetHandleByIndex(index)
        memory = self._nvml.nvmlDeviceGetMemoryInfo(device)
        return GpuMemory(str(self._nvml.nvmlDeviceGetUUID(device)), int(memory.used), int(memory.total))
