"""Whether there is a GPU here."""

import pynvml
import pytest


def has_gpu() -> bool:
    """Asked of the driver's management library: a process that has initialised CUDA can no longer fork trainers."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    try:
        return bool(pynvml.nvmlDeviceGetCount() > 0)
    finally:
        pynvml.nvmlShutdown()


needs_gpu = pytest.mark.skipif(not has_gpu(), reason="there is no GPU here")
