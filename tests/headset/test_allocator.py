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
import json, sys
import torch
from headset.allocator import FreedMemory, held

def gaps(count):
    blocks = [(torch.ones(2**18), torch.ones(2**8)) for _ in range(count)]
    kept.append([block[1] for block in blocks])  # stands between the gaps

callback, before, kept, seen = FreedMemory(), held(), [], []
end = getattr(callback, f"on_{sys.argv[1]}_batch_end")
for batch, count in enumerate((400, 100, 1, 400, 1)):
    gaps(count)
    end(None, None, None, None, batch)
    seen.append((held() - before) / 2**20)
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
@pytest.mark.parametrize("stage", ["train", "validation", "test", "predict"])
def test_gaps_beyond_what_a_batch_needs_go_back(stage: str) -> None:
    done = subprocess.run([sys.executable, "-c", GAPS, stage], capture_output=True, text=True, check=True)
    more, needed, fewer, again, after = json.loads(done.stdout)
    assert more < 20 and again < 20 and after < 20
    assert needed == pytest.approx(100, abs=20) and fewer == pytest.approx(100, abs=20)
