"""Write the golden packs of the current version: ``PYTHONPATH=tests python tests/datasets/make_golden_packs.py``.

A golden pack is never written again: a new format version gets folders of its own beside the older ones.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from worlds import write_pictures

import softlabels
from softlabels.core.documents import document
from softlabels.datasets.packs._format import MANIFEST, PACK_FORMAT, read_manifest

GOLDEN = Path(__file__).parents[1] / "golden"

if __name__ == "__main__":
    for format in ("hdf5", "zarr"):
        place = GOLDEN / f"pack-{PACK_FORMAT}-{format}"
        if place.exists():
            sys.exit(f"{place} is there already")
        with tempfile.TemporaryDirectory() as folder:
            photos = write_pictures(Path(folder) / "photos", classes=2, each=2)
            settings = {"max_side": 6, "rows_per_shard": 3, "quality": "raw", "format": format, "quiet": True}
            softlabels.pack(data=str(photos), out=str(place), **settings)
        source = {"kind": "folder", "root": "/data/photos", "split": "train"}  # and not where this was run
        manifest = read_manifest(place).model_copy(update={"source": source, "name": "folder:/data/photos"})
        (place / MANIFEST).write_text(document(manifest, PACK_FORMAT))
        for note in place.glob(".writing-*"):
            note.unlink()
