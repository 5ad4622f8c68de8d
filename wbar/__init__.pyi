from .client import AsyncClient as AsyncClient
from .client import Client as Client

__version__: str
