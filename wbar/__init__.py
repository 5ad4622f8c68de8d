"""wbar (w̄): fine-tune a trained image network with cyclic rates and download the mean of the weights it visited.

`from wbar import Client` (or `AsyncClient`) is all that a user needs; the other names are the contract both sides share.
The lazy names stand in `__init__.pyi`: a server or worker that needs only the contract does not load an HTTP client.
"""

import lazy_loader

__version__ = "0.7.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
