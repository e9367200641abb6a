"""Every kind of case."""

from tests.fuzz import data, models, settings

__all__ = ["KINDS"]

KINDS = [*data.KINDS, *models.KINDS, *settings.KINDS]
