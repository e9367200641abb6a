from .backbone import Backbone as Backbone
from .backbone import BackboneOptions as BackboneOptions
from .backbone import BackboneSpec as BackboneSpec
from .errors import HeadsetError as HeadsetError
