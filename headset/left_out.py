"""Stands in for what a trained model does without: metrics, data, training, the registry of heads."""

from typing import Any, TypeVar

__all__: list[str] = []

HeadT = TypeVar("HeadT")


def register_head(head: HeadT) -> HeadT:
    """There is no registry here; the head stays as it is."""
    return head


class LeftOut:
    """Any class or function that was left out: it can be named and inherited from, and not be called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ImportError(f"{type(self).__name__} is for training, and was left out where the model was exported.")


def __getattr__(name: str) -> type[LeftOut]:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (LeftOut,), {})
