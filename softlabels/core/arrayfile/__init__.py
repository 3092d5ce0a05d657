"""Named arrays in one checksummed file, HDF5 or Zarr."""

from softlabels.core.arrayfile.arrays import ArrayFormat
from softlabels.core.arrayfile.hdf5 import Hdf5
from softlabels.core.arrayfile.zarr import Zarr

FORMATS: dict[str, ArrayFormat] = {"hdf5": Hdf5(), "zarr": Zarr()}
"""The formats by name."""
