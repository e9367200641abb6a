"""FSDP2: each process keeps a part of the weights, of their gradients and of the optimizer's state.

Zhao et al. 2023, "PyTorch FSDP" (https://arxiv.org/abs/2304.11277), as ``torch.distributed.fsdp.fully_shard`` does it.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from backbones.errors import HeadsetError
from backbones.freezing import transformer_layers
from headset.model import Headset

__all__ = [
    "average_whole",
    "clip_gradients",
    "gathered_ones",
    "in_any",
    "is_sharded",
    "like",
    "local",
    "reshard",
    "shard",
    "while_in",
]


def shard(headset: Headset, mesh: DeviceMesh) -> None:
    """Deal the parameters of a headset out among processes, in place.

    Each layer of the backbone is gathered when it runs, and let go of after; the rest (embeddings, a pooler, the heads)
    stays gathered from the first pass of a step to its last gradient, since heads use their weights in losses and
    predictions too. Numbers that are no vectors, such as a scale, are whole in each process.

    Args:
        headset: The headset, built, with the weights that rank 0 has.
        mesh: The processes.

    Raises:
        HeadsetError: Parameters of several types are in one part.
    """
    device = torch.device(mesh.device_type, torch.cuda.current_device()) if mesh.device_type == "cuda" else "cpu"
    for tensor in [*headset.parameters(), *headset.buffers()]:
        sent = tensor.detach().to(device).contiguous()
        distributed.broadcast(sent, 0)
        tensor.data.copy_(sent)
    scalars = {parameter for parameter in headset.parameters() if parameter.dim() == 0}
    layers = _layers(headset)
    inside = {parameter for layer in layers for parameter in layer.parameters()}
    for part in [*(layer.parameters() for layer in layers), set(headset.parameters()) - inside]:
        _check_types(parameter for parameter in part if parameter not in scalars)
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=scalars)
    root = fully_shard(headset, mesh=mesh, ignored_params=scalars)
    root.set_reduce_scatter_unused_params(True)  # what a process does not reach gets zeros there, as by `touch`
    register_fsdp_forward_method(headset, "answer")
    if len(headset.heads) > 1:
        headset.agree = partial(_check_passes, device)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was here."""
    return isinstance(module, FSDPModule)


def reshard(module: nn.Module) -> None:
    """Let go of what is gathered, so that ``parameters()`` are the parts of this process."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def gathered_ones(module: nn.Module, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """For each parameter the one that passes compute with: the gathered one for a part of it."""
    whole: dict[int, nn.Parameter] = {}
    for part in module.modules():
        if isinstance(part, FSDPModule):
            for group in part._get_fsdp_state()._fsdp_param_groups:
                for each in group.fsdp_params:
                    whole[id(each.sharded_param)] = getattr(each, "_unsharded_param", each.sharded_param)
    return [whole.get(id(parameter), parameter) for parameter in parameters]


def while_in(total: Tensor, module: nn.Module) -> Tensor:
    """A loss whose gradients are shared among processes, whatever of the module it comes from."""
    if isinstance(module, FSDPModule) and total.requires_grad:
        total.register_hook(module._get_fsdp_state()._pre_backward)
    return total


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(parameter: Tensor, part: Tensor) -> Tensor:
    """What `local` was taken of: a tensor in parts, where the parameter is one."""
    if not isinstance(parameter, DTensor):
        return part
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride())


def in_any(flag: Tensor) -> Tensor:
    """Whether a flag is set in any process."""
    flags = flag.to(torch.int32)
    distributed.all_reduce(flags)
    return flags > 0


def average_whole(parameters: Sequence[nn.Parameter]) -> None:
    """Take the mean over processes of gradients of parameters that are whole in each, which FSDP2 leaves alone."""
    gradients = [one.grad for one in parameters if one.grad is not None and not isinstance(one, DTensor)]
    for gradient in gradients:
        distributed.all_reduce(gradient)
        gradient /= distributed.get_world_size()


def clip_gradients(parameters: Iterable[nn.Parameter], most: float, by_value: bool) -> None:
    """As ``torch.nn.utils.clip_grad_norm_``, or ``clip_grad_value_``, of parameters in parts and whole ones.

    Args:
        parameters: Those of the optimizer.
        most: The norm over all gradients, or the number, that none is to exceed.
        by_value: Whether it is a number.
    """
    gradients = [one.grad for one in parameters if one.grad is not None]
    if by_value:
        for gradient in gradients:
            local(gradient).clamp_(-most, most)
    if by_value or not gradients:
        return
    squares: dict[bool, Tensor] = {}
    for gradient in gradients:
        square = local(gradient).float().pow(2).sum()
        parted = isinstance(gradient, DTensor)
        squares[parted] = squares[parted] + square if parted in squares else square
    if True in squares:
        distributed.all_reduce(squares[True])
    norm = torch.stack([*squares.values()]).sum().sqrt()
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        local(gradient).mul_(factor)


def _check_passes(device: torch.device | str, paths: Sequence[str]) -> None:
    """Check that all processes are about to run the same parts of a backbone: they would wait for each other forever.

    Raises:
        HeadsetError: They are not; in all processes.
    """
    number = zlib.crc32(json.dumps(paths).encode())
    ends = torch.tensor([number, -number], device=device)
    distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    if ends[0] != -ends[1]:
        raise HeadsetError(
            "With fsdp2 all processes have to run the backbone equally often in a step. Here heads that need a pass of "
            "their own, such as MaskedLM, learn beside others that have labels in one process alone. Use "
            "trainer.strategy: ddp, or give these heads labels in all rows."
        )


def _layers(headset: Headset) -> list[nn.Module]:
    """The layers of the backbone, if none shares a weight with anything else."""
    try:
        layers = list(transformer_layers(headset.backbone.model))
    except HeadsetError:
        return []
    uses: dict[int, int] = {}
    for module in headset.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    alone = all(uses[id(parameter)] == 1 for layer in layers for parameter in layer.parameters())
    return layers if alone and len(set(map(id, layers))) == len(layers) else []


def _check_types(parameters: Iterable[nn.Parameter]) -> None:
    kinds = {parameter.dtype for parameter in parameters if parameter.requires_grad}
    if len(kinds) > 1:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise HeadsetError(f"FSDP2 needs weights of one type where they train; here they are {names}.")
