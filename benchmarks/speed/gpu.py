"""The same on a GPU: tokens a second in bfloat16, and the share of what the card can do, against Trainer."""

__all__ = ["NOT_MEASURED"]

NOT_MEASURED = """\
## On a GPU

Not measured yet: no GPU was at hand. `python -m benchmarks.speed --gpu` measures a base-size and a large encoder and a
decoder of half a billion weights in bfloat16, with random weights, against Trainer with its best settings.
"""
