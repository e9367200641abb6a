"""A prediction from an export, made by stock transformers alone: python examples/stock.py FOLDER TEXT [TEXT ...]."""

import sys

from transformers import pipeline

folder, *texts = sys.argv[1:]
for text, answer in zip(texts, pipeline("text-classification", folder)(texts), strict=True):
    print(f"{answer['label']:>12} {answer['score']:.3f}  {text}")
assert "headset" not in sys.modules
