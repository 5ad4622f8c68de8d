"""`wbar doctor FILE`: what an upload of this checkpoint would be found to be, here and offline.

    python -m wbar_training.uploads.look FILE [--json]

Exits 0 for a checkpoint that can be fine-tuned, 1 for one that would be rejected, with the reason.
"""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wbar.checkpoints import NetworkArchitecture
from wbar.errors import Rejected
from wbar_training.networks.timm_table import TABLES
from wbar_training.uploads.checkpoint_files import check


def look(path: Path) -> dict[str, Any]:
    """Return what is found as JSON: `verdict`, and the facts or the fault. Raises OSError where the file cannot be read."""
    with tempfile.TemporaryDirectory(prefix="wbar-look-") as folder:
        try:
            valid = check(path, None, None, Path(folder) / "unpacked", tables=TABLES).facts
        except Rejected as error:
            return {"verdict": "fault", "code": error.code, "message": error.detail, "details": error.details}
    return {"verdict": "ok", **asdict(valid)}


def in_words(found: dict[str, Any]) -> str:
    """Return the same in lines, as `wbar doctor` prints them."""
    if found["verdict"] == "fault":
        return f"{'fault':8} {found['code']}: {found['message']}"
    network, pretrained = found["network"], found["pretrained"]
    lines = [
        f"{'ok':8} network: {network['name']}, {network['num_classes']} classes, {network['channels']} channels, "
        f"{found['parameters']:,} parameters, {found['format']}"
    ]
    warning = NetworkArchitecture(
        name=network["name"],
        num_classes=network["num_classes"],
        source="detected",
        ambiguous_with=found["ambiguous_with"],
    ).warning
    if warning:
        lines.append(f"{'warning':8} network: {warning}")
    if pretrained:
        classes = pretrained.pop("classes")
        said = ", ".join(f"{name} {value}" for name, value in pretrained.items() if value is not None)
        lines += [f"{'ok':8} images: {said}"] if said else []
        lines += [f"{'ok':8} classes: {', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"] if classes else []
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Look at the file that is named first, and print what is found."""
    try:
        found = look(Path(arguments[0]))
    except OSError as error:
        found = {
            "verdict": "fault",
            "code": "unreadable",
            "message": f"{error.filename or arguments[0]}: {error.strerror}",
        }
    sys.stdout.write((json.dumps(found) if "--json" in arguments[1:] else in_words(found)) + "\n")
    return 0 if found["verdict"] == "ok" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
