"""Whether there is a GPU here."""

import ctypes

import pytest


def has_gpu() -> bool:
    """By the driver alone: the training libraries take long to load."""
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)
    except OSError:
        return False


needs_gpu = pytest.mark.skipif(not has_gpu(), reason="there is no GPU here")
