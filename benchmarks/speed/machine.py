"""What was measured on: the machine, and the versions."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.speed.measuring import cores

__all__ = ["machine", "versions"]

PACKAGES = ("torch", "transformers", "lightning", "sentence-transformers", "datasets", "tokenizers", "accelerate")
INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}


def machine() -> str:
    """The processor, its cores, the threads of torch, what it multiplies with, and the accelerator, if there is one."""
    told = {"model name": platform.processor() or platform.machine(), "flags": ""}
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            told[name.strip()] = value.strip()
    flags = told["flags"].split()
    instructions = [name for flag, name in INSTRUCTIONS.items() if flag in flags]
    family = f" (family {told['cpu family']}, model {told['model']})" if "cpu family" in told else ""
    parts = [
        f"{told['model name']}{family}",
        f"{cores()} of {os.cpu_count()} cores",
        f"{cores()} threads of torch on every side",
        ", ".join(instructions) or "no vector instructions that are known",
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
    ]
    if torch.cuda.is_available():
        parts.insert(0, f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory >> 30} GiB")
    return "; ".join(parts)


def versions() -> str:
    """The versions of what takes part."""
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)
