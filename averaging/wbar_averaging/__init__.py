"""Weight averaging: running means, the pull toward them, cyclic rates, BatchNorm statistics. Tensors in, tensors out.

The public names stand in `__init__.pyi`, the one list of them: type checkers read it, and each name is imported from the
module that it names there when it is first used, so that what needs no torch can be used without it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
