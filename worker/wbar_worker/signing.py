"""A result's files are signed with the operator's key, as OpenSSF's model signing has it: one manifest, one signature.

The worker signs, since it has the files from the process that made them before they are in any store: what was changed
there afterwards does not verify. The API, which strangers reach, has no key.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

# What the files are called in the manifest: as `wbar download` and `wbar card` name them by themselves.
SIGNED_NAMES = {
    "safetensors": "averaged.safetensors",
    "pytorch": "averaged.pth",
    "onnx": "averaged.onnx",
    "huggingface": "averaged.zip",
    "pt2": "averaged.pt2",
    "card": "README.md",
}


class CannotSign(Exception):
    """Raised where the key cannot be used, or the library is missing; the message says what to do."""


def check(key: Path) -> None:
    """Raise CannotSign unless files can be signed with the key: seen when a worker starts, not when a job ends."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe"
        probe.write_bytes(b"")
        sign({"card": probe}, key, Path(folder) / "signature")


def sign(files: Mapping[str, Path], key: Path, out: Path) -> None:
    """Write the signature of the files, a Sigstore bundle, to `out`.

    files: by what they are, the names of `SIGNED_NAMES`.
    key: a private key on an elliptic curve (P-256, P-384, P-521), PEM, without a password.

    Raises CannotSign.
    """
    try:
        from model_signing import signing
    except ImportError as error:
        raise CannotSign(f"files cannot be signed ({error}): pip install 'wbar[signing]'") from None
    try:
        config = signing.Config()  # type: ignore[no-untyped-call]
        signer = config.use_elliptic_key_signer(private_key=key)
    except (OSError, ValueError, TypeError, AttributeError) as error:  # the library asks any key for its curve
        raise CannotSign(
            f"WBAR_SIGNING_KEY is {key}, and that is no private key on an elliptic curve in PEM, without a password "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]})"
        ) from None
    # The library signs whole folders: one with these files only, as links.
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        for kind, path in files.items():
            os.link(path, Path(folder) / SIGNED_NAMES[kind])
        signer.sign(folder, out)
