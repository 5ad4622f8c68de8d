"""A result's files are signed by the worker's part and verified by the client's: with the library's own words for both."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from model_signing import verifying
from typer.testing import CliRunner

from wbar.cli.signatures import app
from wbar.errors import NotVerified
from wbar.verifying import verify
from wbar_worker.signing import CannotSign, check, sign

CONTENTS = {"averaged.safetensors": b"weights", "averaged.pth": b"the same weights", "README.md": b"# card"}


def write_key(path: Path) -> Path:
    """A private key at `path`, its public key beside it; returns the latter."""
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = path.with_suffix(".pub")
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public


@dataclass(frozen=True)
class Signed:
    """A folder of signed files, their signature and the public key."""

    folder: Path
    signature: Path
    public: Path

    def refused(self, *paths: Path, signature: Path | None = None, public: Path | None = None) -> str:
        with pytest.raises(NotVerified) as raised:
            verify([*paths], signature or self.signature, public or self.public)
        return str(raised.value)


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    folder = tmp_path / "result"
    folder.mkdir()
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    public, signature = write_key(tmp_path / "key.pem"), tmp_path / "signature.json"
    files = zip(("safetensors", "pytorch", "card"), (folder / name for name in CONTENTS), strict=True)
    sign(dict(files), tmp_path / "key.pem", signature)
    return Signed(folder, signature, public)


def test_a_file_of_any_name_and_the_whole_folder(signed: Signed) -> None:
    renamed = signed.folder.parent / "mine.safetensors"
    renamed.write_bytes(b"weights")
    (one,) = verify([renamed], signed.signature, signed.public)
    assert (one.path, one.name) == (str(renamed), "averaged.safetensors")
    assert {one.name for one in verify([signed.folder], signed.signature, signed.public)} == CONTENTS.keys()


def test_the_librarys_own_verifier_agrees(signed: Signed) -> None:
    config = verifying.Config().use_elliptic_key_verifier(public_key=signed.public)
    config.verify(signed.folder, signed.signature)
    (signed.folder / "README.md").write_bytes(b"# care")
    with pytest.raises(ValueError, match=r"Hash mismatch for 'README\.md'"):
        config.verify(signed.folder, signed.signature)


def test_a_changed_byte_is_named(signed: Signed) -> None:
    weights = signed.folder / "averaged.safetensors"
    weights.write_bytes(b"weighty")
    for path in (weights, signed.folder):
        assert f"{weights} was changed: it has sha-256 " in signed.refused(path)
    other = signed.folder / "other"
    other.write_bytes(b"weighty")
    assert "which no signed file has: signed are README.md (sha-256 " in signed.refused(other)


def test_what_is_missing_is_named(signed: Signed) -> None:
    (signed.folder / "averaged.pth").unlink()
    assert "lacks averaged.pth, of the signed files README.md, " in signed.refused(signed.folder)
    assert "there is no" in signed.refused(signed.folder / "averaged.pth")


def test_another_key_and_no_key(signed: Signed) -> None:
    other = write_key(signed.folder.parent / "other.pem")
    assert "was made with another key than" in signed.refused(signed.folder, public=other)
    other.write_bytes(b"nothing")
    assert "is no public key on an elliptic curve" in signed.refused(signed.folder, public=other)
    assert "cannot be read: Is a directory" in signed.refused(signed.folder, public=signed.folder)


def test_a_signature_that_was_changed(signed: Signed) -> None:
    bundle = json.loads(signed.signature.read_text())
    (entry,) = bundle["dsseEnvelope"]["signatures"]
    forged = signed.folder.parent / "forged.json"
    bundle["dsseEnvelope"]["payload"] = bundle["dsseEnvelope"]["payload"][:-8] + "AAAAAAAA"
    forged.write_text(json.dumps(bundle))
    assert "it does not sign what it says" in signed.refused(signed.folder, signature=forged)
    entry["sig"] = "AAAA"
    forged.write_text(json.dumps(bundle))
    assert "it does not sign what it says" in signed.refused(signed.folder, signature=forged)
    for text in ("", "[]", "{}", "\x00"):
        forged.write_text(text)
        assert "is no signature" in signed.refused(signed.folder, signature=forged)


def test_a_key_that_cannot_sign_is_refused_before_there_is_a_job(tmp_path: Path) -> None:
    write_key(tmp_path / "key.pem")
    check(tmp_path / "key.pem")
    other = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "rsa.pem").write_bytes(other)
    (tmp_path / "text.pem").write_text("no key")
    for name in ("rsa.pem", "text.pem", "absent.pem"):
        with pytest.raises(CannotSign, match="that is no private key on an elliptic curve in PEM"):
            check(tmp_path / name)


def test_the_command_says_what_it_verified_and_ends_with_one_where_it_could_not(signed: Signed) -> None:
    options = ["--signature", str(signed.signature), "--public-key", str(signed.public)]
    file = signed.folder / "averaged.safetensors"
    done = CliRunner().invoke(app, ["verify", str(file), *options])
    assert (done.exit_code, done.stdout) == (0, f"{file}: signed as averaged.safetensors\n")
    done = CliRunner().invoke(app, ["verify", str(file), *options, "--json"])
    assert json.loads(done.stdout)["verified"][0]["name"] == "averaged.safetensors"
    file.write_bytes(b"changed")
    done = CliRunner().invoke(app, ["verify", str(file), *options])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "was changed: it has sha-256" in done.stderr
