"""Loads a custom export as its users will: a script for a fresh process, in which headset cannot be imported.

It is given a folder, the class that loads it, a file of inputs, a file for the answer, and the names of packages that
must not be found.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class Blocker(MetaPathFinder):
    """Packages that cannot be imported.

    Args:
        names: Their top-level names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = set(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Nothing; an error for what is blocked."""
        if fullname.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


def main(folder: str, auto_class: str, inputs: str, answer: str, *blocked: str) -> None:
    """Load the model, and write its logits, or vectors, for the inputs."""
    sys.meta_path.insert(0, Blocker(blocked))
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    kind = getattr(transformers, auto_class)
    model, info = kind.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    for what, keys in info.items():
        if keys:
            raise RuntimeError(f"{what}: {sorted(map(str, keys))}")
    with torch.inference_mode():
        output = model.eval()(**load_file(inputs))
    values = output.logits if "logits" in output else output.pooler_output
    save_file({"values": values.contiguous()}, answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
