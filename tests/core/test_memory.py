import ctypes
import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from sedflow_core.memory import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()

def fill():
    arrays = [torch.zeros(2**21) for _ in range(8)]
    return sum(float(array[-1]) for array in arrays)

torch.set_num_threads(1)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Page faults of five times eight arrays of 8 MiB."""


def page_faults(*arguments: str) -> int:
    # By default glibc decides by the sizes it has seen and by what lies at the end of the heap.
    giving_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", FAULTS, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=giving_back)
    return int(run.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_memory_of_freed_arrays_is_used_again() -> None:
    assert 10 * page_faults("keep") < page_faults()
