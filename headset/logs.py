"""What Lightning writes of a run beside checkpoints, with errors that say what could not be written."""

import contextlib
from argparse import Namespace
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers.csv_logs import CSVLogger, ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from backbones.errors import HeadsetError
from headset.environment import environment

__all__ = ["ConfigFile", "MetricsLog"]


class MetricsLog(CSVLogger):
    """``metrics.csv`` in a folder of its own for each run: ``lightning_logs/version_0``.

    Raises:
        HeadsetError: It cannot be written.
    """

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Write the settings of the module."""
        with environment(f"writing {self.log_dir}/{ExperimentWriter.NAME_HPARAMS_FILE}"):
            super().log_hyperparams(params)

    @rank_zero_only
    def save(self) -> None:
        """Write what was logged since the last time."""
        with environment(f"writing {self.log_dir}/{ExperimentWriter.NAME_METRICS_FILE}"):
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rest; after an error, of which this is not to take the place, as far as it can be written."""
        with contextlib.suppress(HeadsetError) if status != "success" else contextlib.nullcontext():
            super().finalize(status)


class ConfigFile(SaveConfigCallback):
    """``config.yaml`` beside it.

    Raises:
        HeadsetError: It cannot be written.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it."""
        with environment(f"writing {trainer.log_dir}/{self.config_filename}"):
            super().setup(trainer, pl_module, stage)
