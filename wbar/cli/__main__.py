"""`python -m wbar.cli` is `wbar`."""

from wbar.cli import main

if __name__ == "__main__":
    main()
