"""wbar (w̄): fine-tune a trained image network with cyclic rates and download the mean of the weights it visited.

`from wbar import Client` is all that a user needs; the other names are the contract both sides share.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

if TYPE_CHECKING:
    from wbar.client import Client

__all__ = ["Client", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy, so that a server or worker that needs only the contract does not load an HTTP client.
    if name == "Client":
        from wbar.client import Client

        return Client
    raise AttributeError(f"module 'wbar' has no attribute {name!r}")
