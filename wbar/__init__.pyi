from .client import Client as Client

__version__: str
