"""`python -m wbar_service`: the API process, configured by `WBAR_…` variables."""

from wbar_service.app import serve
from wbar_service.settings import ServiceSettings

if __name__ == "__main__":
    serve(ServiceSettings())
