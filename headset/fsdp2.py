"""The strategy ``fsdp2``: Lightning's for FSDP2, with checkpoints that any number of processes goes on from."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from backbones.backbone import BackboneOptions
from backbones.errors import HeadsetError
from headset.balancing import GradNorm, LossWeights
from headset.sharded_files import open_folder, write_folder
from headset.sharding import reshard

__all__ = ["FSDP2Strategy", "check_strategy"]


class FSDP2Strategy(ModelParallelStrategy):
    """Weights, gradients and optimizer states in parts, one in each process: ``trainer.strategy: fsdp2``.

    Args:
        save_distributed_checkpoint: Write checkpoints as folders, to which each process adds the part that it has.
            By default rank 0 puts them together into one file, which needs memory for all of the weights and states.
        process_group_backend: ``nccl``, ``gloo``, ...; by default what fits the device.
        timeout: How long a process waits for the others before the run ends with an error.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    @classmethod
    def of(cls, strategy: ModelParallelStrategy) -> "FSDP2Strategy":
        """This strategy with the settings of Lightning's own.

        Raises:
            HeadsetError: It asks for tensors in parts within layers.
        """
        if strategy._tensor_parallel_size not in ("auto", 1):
            raise HeadsetError(
                "A headset has no tensor parallelism. Take trainer.strategy: fsdp2, or set tensor_parallel_size: 1."
            )
        return cls(strategy._save_distributed_checkpoint, strategy._process_group_backend, strategy._timeout)

    def setup_environment(self) -> None:
        """Deal out among all processes, of all hosts."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """As without parts: weights come before the optimizer is made, its state after."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """As without parts."""
        return True

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Make the optimizers; parts and whole weights are not updated in one kernel."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if len({isinstance(parameter, DTensor) for parameter in group["params"]}) > 1:
                    group |= {key: False for key in ("foreach", "fused") if key in group}

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights: in parts for a folder; else put together, in rank 0."""
        assert self.lightning_module is not None
        reshard(self.lightning_module)
        return self._kept(self.lightning_module.state_dict())  # type: ignore[no-any-return]

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer: in parts for a folder; else put together, in rank 0."""
        return self._kept(optimizer.state_dict())  # type: ignore[no-any-return]

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a file, from rank 0, or a folder, from all processes; it is there whole or not at all."""
        path = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            assert self.lightning_module is not None
            names = {id(parameter): name for name, parameter in self.lightning_module.named_parameters()}
            order = [
                [[names[id(one)] for one in group["params"]] for group in each.param_groups] for each in self.optimizers
            ]
            write_folder(checkpoint, path, order)
        else:
            Strategy.save_checkpoint(self, checkpoint, path, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The content of a file or of a folder; of a folder tensors are read when they are asked for."""
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return open_folder(path, check=self.is_global_zero)
        return Strategy.load_checkpoint(self, path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take the parts of this process from whole weights."""
        assert self.lightning_module is not None
        reshard(self.lightning_module)
        own, given = self.lightning_module.state_dict(), checkpoint["state_dict"]
        parts = {name: _part(given[name], own.get(name)) for name in given}
        self.lightning_module.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the parts of this process from whole states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            parts = {
                number: {key: _part(value, order[number]) for key, value in state["state"][number].items()}
                for number in state["state"]
            }
            optimizer.load_state_dict({**state, "state": parts})

    def _kept(self, value: Any) -> Any:
        return value if self._save_distributed_checkpoint else _whole(value, keep=self.is_global_zero)


def check_strategy(trainer: Trainer, options: BackboneOptions, weights: LossWeights) -> None:
    """Check that a headset trains under a strategy.

    Args:
        trainer: What has the strategy.
        options: Those of the backbone.
        weights: Those of the losses.

    Raises:
        HeadsetError: It would not, or not what was asked for.
    """
    strategy = trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        return
    if not isinstance(strategy, FSDP2Strategy):
        raise HeadsetError(
            f"A headset does not run under {type(strategy).__name__}. Give trainer.strategy: auto, ddp (weights whole "
            "in each process), or fsdp2 (in parts); in Python Trainer(strategy=headset.FSDP2Strategy())."
        )
    if options.quantization is not None:
        raise HeadsetError("fsdp2 cannot deal out quantised weights: leave backbone.quantization out, or take ddp.")
    if options.compile:
        raise HeadsetError(
            "fsdp2 gathers layers in ways that are not compiled: leave backbone.compile out, or take ddp."
        )
    if isinstance(weights, GradNorm):
        raise HeadsetError(
            "loss_weights: gradnorm needs the gradients of each head apart, which fsdp2 does not have. Take "
            "uncertainty, numbers, or ddp."
        )
    if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise HeadsetError("Weights are not averaged under fsdp2: leave the callback out, or take ddp.")


def _part(value: Any, own: Any) -> Any:
    """Of a whole tensor what this process has of it; of anything else all."""
    if not (isinstance(own, DTensor) and isinstance(value, Tensor) and value.shape == own.shape) or value.dim() == 0:
        return value
    whole = value.to(own.device)
    return distribute_tensor(whole, own.device_mesh, own.placements, src_data_rank=None)


def _whole(value: Any, keep: bool) -> Any:
    """Plain values with parts put together; only the one process that keeps them has the tensors."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
        return value.cpu() if keep else None
    if isinstance(value, Tensor):
        return value.detach().cpu() if keep else None
    if isinstance(value, dict):
        return {key: _whole(its, keep) for key, its in value.items()}
    return [_whole(its, keep) for its in value] if isinstance(value, list) else value


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FSDP2Strategy, "Weights, gradients and states in parts, by FSDP2.")
