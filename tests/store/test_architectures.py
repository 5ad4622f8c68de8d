"""A library's networks are announced by version, found by words, and listed by name."""

from wbar.catalog import Architecture
from wbar_store.architectures import InstalledArchitectures
from wbar_store.database import Database


def entry(name: str) -> Architecture:
    return Architecture(name, "vit", 224, 32, fixed_size=True, optimizer="adamw", peak_lr=1e-4, library="timm")


def names(found: list[Architecture]) -> list[str]:
    return [one.name for one in found]


def test_another_version_replaces_the_names_of_the_one_before(database: Database) -> None:
    kept = InstalledArchitectures(database)
    assert kept.announce("timm", "1.0", map(entry, ["vit_b", "vit_a", "swin_a"]))
    assert not kept.announce("timm", "1.0", [])
    assert kept.find("vit_a") == entry("vit_a")
    assert kept.announce("timm", "1.1", map(entry, ["vit_b", "vit_c"]))
    assert kept.find("vit_a") is None
    assert sorted(kept.names()) == ["vit_b", "vit_c"]


def test_pages_by_name_and_by_words(database: Database) -> None:
    kept = InstalledArchitectures(database)
    kept.announce("timm", "1.0", (entry(f"vit_{n:04d}_{'a' if n % 2 else 'b'}") for n in range(1200)))
    assert names(kept.page([], None, 2)) == ["vit_0000_b", "vit_0001_a"]
    assert names(kept.page([], "vit_0001_a", 1)) == ["vit_0002_b"]
    assert names(kept.page(["_a", "000"], None, 3)) == ["vit_0001_a", "vit_0003_a", "vit_0005_a"]
    assert kept.page(["%"], None, 3) == []
