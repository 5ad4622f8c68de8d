"""Is a file what the operator of a service signed? `wbar verify`, without a service and without a network.

A signature is over a manifest: names and digests of the files of one result. Once it is known to be the key's, a file is
signed if the manifest has its digest, whatever it is called here; a folder must have every signed file under its name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wbar.errors import NotVerified
from wbar.transfers import sha256_of


@dataclass(frozen=True)
class Verified:
    """A file that is signed. name: what it is called in the manifest."""

    path: str
    name: str
    sha256: str


def verify(paths: list[Path], signature: Path, public_key: Path) -> list[Verified]:
    """Return the files, each with its name in the manifest. Raises NotVerified, saying what does not match.

    paths: files of the result, or folders that hold all of them.
    signature: as the service gave it, a Sigstore bundle.
    public_key: the operator's, PEM.
    """
    for path in (*paths, signature, public_key):
        if not path.exists():
            raise NotVerified(f"there is no {path}")
    signed = _manifest(signature, public_key)
    return [found for path in paths for found in (_folder(path, signed) if path.is_dir() else [_file(path, signed)])]


def _folder(folder: Path, signed: dict[str, str]) -> list[Verified]:
    missing = [name for name in signed if not (folder / name).is_file()]
    if missing:
        raise NotVerified(f"{folder} lacks {', '.join(missing)}, of the signed files {', '.join(signed)}")
    return [_same(folder / name, name, signed[name]) for name in signed]


def _file(path: Path, signed: dict[str, str]) -> Verified:
    sha256 = sha256_of(path)
    for name, digest in signed.items():
        if digest == sha256:
            return Verified(str(path), name, sha256)
    if path.name in signed:
        raise NotVerified(_differs(path, sha256, signed[path.name]))
    named = ", ".join(f"{name} (sha-256 {digest})" for name, digest in signed.items())
    raise NotVerified(f"{path} has sha-256 {sha256}, which no signed file has: signed are {named}")


def _same(path: Path, name: str, digest: str) -> Verified:
    sha256 = sha256_of(path)
    if sha256 != digest:
        raise NotVerified(_differs(path, sha256, digest))
    return Verified(str(path), name, sha256)


def _differs(path: Path, sha256: str, digest: str) -> str:
    return f"{path} was changed: it has sha-256 {sha256}, and {digest} was signed"


def _manifest(signature: Path, public_key: Path) -> dict[str, str]:
    """Return the digests that were signed with the key, sha-256 in hex, by name."""
    # The library's public call hashes a whole folder and wants all of it: one file of a result could not be verified by it.
    from cryptography.exceptions import InvalidSignature
    from model_signing._signing.sign_ec_key import Verifier
    from model_signing._signing.sign_sigstore_pb import Signature

    try:
        verifier = Verifier(public_key)
    except OSError as error:
        raise NotVerified(f"{public_key} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise NotVerified(f"{public_key} is no public key on an elliptic curve, in PEM ({_first(error)})") from None
    try:
        bundle = Signature.read(signature)
    except Exception as error:  # JSON, UTF-8, base64, protobuf: whatever a file may hold
        raise NotVerified(f"{signature} is no signature ({type(error).__name__}: {_first(error)})") from None
    try:
        manifest: Any = verifier.verify(bundle)
    except InvalidSignature:
        raise NotVerified(f"{signature} was changed: it does not sign what it says") from None
    except Exception as error:
        if "Key mismatch" in str(error):
            raise NotVerified(f"{signature} was made with another key than {public_key} belongs to") from None
        raise NotVerified(f"{signature} is no signature of files ({type(error).__name__}: {_first(error)})") from None
    descriptors = list(manifest.resource_descriptors())
    others = sorted({one.digest.algorithm for one in descriptors} - {"sha256"})
    if others:
        raise NotVerified(f"{signature} has digests by {', '.join(others)}, and here they are by sha256")
    return {one.identifier: one.digest.digest_hex for one in descriptors}


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
