"""Memory that is freed stays with the process, seen by its page faults, and goes back; in processes of their own."""

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

GAPS = """
import json, re
from pathlib import Path
import torch
from headset.allocator import BATCHES, FreedMemory

def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**10

callback, before = FreedMemory(), held()
blocks = [(torch.ones(2**18), torch.ones(2**8)) for _ in range(200)]
small = [block[1] for block in blocks]  # stands between the gaps
del blocks
seen = [held() - before]
stages = "train", "validation", "test", "predict"
for first, last in ((0, BATCHES - 1), (BATCHES - 1, BATCHES)):
    for batch in range(first, last):
        getattr(callback, f"on_{stages[batch % 4]}_batch_end")(None, None, None, None, batch)
    seen.append(held() - before)
print(json.dumps(seen))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library allocates memory")
def test_large_blocks_are_used_again_but_the_largest():
    shares = {}
    for how in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
        shares[how] = json.loads(done.stdout)
    assert shares["given back"] == pytest.approx([1, 1], abs=0.1)
    assert shares["kept"] == pytest.approx([0, 1], abs=0.1)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library allocates memory")
def test_gaps_between_blocks_go_back_after_some_batches():
    done = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=True)
    freed, kept, given_back = json.loads(done.stdout)
    assert freed == pytest.approx(200, abs=10) and kept == pytest.approx(200, abs=10)
    assert given_back < 20
