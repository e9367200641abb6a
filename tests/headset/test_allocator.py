"""Memory that is freed stays with the process: seen by its page faults, in a process of its own."""

import json
import platform
import subprocess
import sys

import pytest

CODE = """
import json, resource, sys
import torch
from headset.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def pages(size):
    for _ in range(10):
        torch.zeros(size)
    before = faults()
    for _ in range(5):
        torch.zeros(size)
    return (faults() - before) * resource.getpagesize() / (5 * 4 * size)

print(json.dumps([pages(10_000_000), pages(100_000_000)]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library allocates memory")
def test_large_blocks_are_used_again_but_the_largest():
    shares = {}
    for how in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
        shares[how] = json.loads(done.stdout)
    assert shares["given back"] == pytest.approx([1, 1], abs=0.1)
    assert shares["kept"] == pytest.approx([0, 1], abs=0.1)
