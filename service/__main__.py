"""`python -m service`: the API process, configured by `WBAR_…` variables."""

from service.app import serve
from service.settings import ServiceSettings

if __name__ == "__main__":
    serve(ServiceSettings())
