"""The address of the service and the API key: WBAR_URL and WBAR_API_KEY, or the file that `wbar up` writes."""

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Config:
    """The address of a service and a key to it; None where it is not configured.

    data: the folder of the `wbar up` that wrote the file.
    """

    url: str | None = None
    api_key: str | None = None
    data: str | None = None


def path() -> Path:
    """Return $WBAR_CONFIG, or ~/.config/wbar/config.toml."""
    return Path(os.environ.get("WBAR_CONFIG") or "~/.config/wbar/config.toml").expanduser()


def state_folder() -> Path:
    """Return the folder for what the client remembers between two runs: $XDG_STATE_HOME/wbar, or ~/.local/state/wbar."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "wbar"


def read(file: Path | None = None) -> Config:
    """Read a file alone, by default the client's own. Raises ValueError, naming it, if it is not TOML."""
    file = file or path()
    try:
        stored = tomllib.loads(file.read_text())
    except FileNotFoundError:
        return Config()
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is not a TOML file ({error}): mend or delete it") from None
    return Config(stored.get("url"), stored.get("api_key"), stored.get("data"))


def current() -> Config:
    """Return the configuration: the environment before the file, the default address where neither names one."""
    stored = read()
    url = os.environ.get("WBAR_URL")
    return Config(
        url or stored.url or DEFAULT_URL,
        os.environ.get("WBAR_API_KEY") or stored.api_key,
        None if url and url != stored.url else stored.data,
    )


def write(target: Path, url: str, api_key: str, data: Path) -> None:
    """Replace a file, readable by its owner only from its first byte on. data: the folder of the `wbar up` that writes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    # JSON strings are TOML strings for the characters that addresses and keys have.
    words = {"url": url, "api_key": api_key, "data": str(data)}
    text = "# Written by `wbar up`.\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in words.items())
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    os.replace(temporary, target)


def quiet_mlflow() -> None:
    """Keep MLflow's client, imported later, from reporting its use to its makers and from writing to standard output.

    A user who has set its variables is obeyed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
