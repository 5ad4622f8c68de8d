"""Archives in object stores are copied whole, or refused by their size before anything is."""

from pathlib import Path

import pytest

from wbar.errors import ContentTooLarge
from wbar_worker.ingest import fetch_object


def test_an_archive_is_copied_up_to_the_limit_and_refused_above_it(tmp_path: Path) -> None:
    source, target = tmp_path / "source.zip", tmp_path / "target"
    source.write_bytes(bytes(range(250)) * 40)
    assert fetch_object(f"file://{source}", target, 10_000).read_bytes() == source.read_bytes()
    target.unlink()
    with pytest.raises(ContentTooLarge, match=r"source.zip has 10,000 bytes, more than the 9,999 .*WBAR_ARCHIVE_BYTES"):
        fetch_object(f"file://{source}", target, 9_999)
    assert not target.exists()
