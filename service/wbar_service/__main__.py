"""`python -m wbar_service`: the API process, configured by `WBAR_…` variables."""

import gc


def main() -> None:
    """Serve until a signal ends it."""
    gc.disable()  # all that is loaded now stays: to look through it again and again takes a tenth of a second
    from wbar_service.app import serve
    from wbar_service.settings import ServiceSettings

    serve(ServiceSettings())


if __name__ == "__main__":
    main()
