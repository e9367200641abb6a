from .base import Head as Head
from .base import HeadContext as HeadContext
from .base import HeadOutput as HeadOutput
from .pooling import Pooling as Pooling
from .registry import list_heads as list_heads
from .registry import register_head as register_head
from .sequence_classification import SequenceClassification as SequenceClassification
from .token_classification import TokenClassification as TokenClassification
