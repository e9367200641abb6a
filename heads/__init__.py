"""Heads: what attaches to a backbone and turns hidden states into a task's answer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
