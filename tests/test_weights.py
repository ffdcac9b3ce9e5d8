"""The embedded model is the one that its manifest names, small enough to ship, and carries its licence."""

import hashlib
from pathlib import Path

import minisd

WEIGHTS = Path(minisd.__file__).parent / "weights"


def test_every_file_is_the_one_in_the_manifest():
    listed = dict(reversed(line.split("  ", 1)) for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines())
    found = {str(p.relative_to(WEIGHTS)) for p in WEIGHTS.rglob("*") if p.is_file() and p.suffix in (".json", ".txt", ".safetensors")}
    assert set(listed) == found
    for name, digest in listed.items():
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == digest, name


def test_it_is_small_and_carries_its_notice():
    assert sum(p.stat().st_size for p in WEIGHTS.rglob("*") if p.is_file()) < 25_000_000
    assert "Microsoft Corporation" in (WEIGHTS / "NOTICE").read_text()


def test_it_has_the_layout_of_official_folders():
    assert not list(WEIGHTS.rglob("tokenizer.json")) and not list(WEIGHTS.rglob("*.bin"))
