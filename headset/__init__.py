"""headset: any head on any backbone, trained by Lightning, exported to stock transformers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
