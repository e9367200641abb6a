from .data import TextData as TextData
from .model import Headset as Headset
from .module import LitHeadset as LitHeadset
from .unfreezing import GradualUnfreezing as GradualUnfreezing
