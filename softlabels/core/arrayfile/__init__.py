"""Named arrays in one checksummed file, HDF5 or Zarr."""
