"""The formats of shards by name."""

from __future__ import annotations

from softlabels.store._hdf5 import Hdf5
from softlabels.store._shard import ShardFormat
from softlabels.store._zarr import Zarr

FORMATS: dict[str, ShardFormat] = {"hdf5": Hdf5(), "zarr": Zarr()}
