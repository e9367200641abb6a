from .data import TextData as TextData
from .fsdp2 import FSDP2Strategy as FSDP2Strategy
from .model import Headset as Headset
from .module import LitHeadset as LitHeadset
from .unfreezing import GradualUnfreezing as GradualUnfreezing
