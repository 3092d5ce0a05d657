"""The label store: everything that teachers said of a data set's views, on disk. It knows no torch.

::

    labels/
      manifest.json       format version, data set, recipe, seed, classes, versions, checksums of the tables of images
      images.parquet      key, label (-1: none), content checksum of each row; images-1.parquet: of rows added later
      <teacher>/
        teacher.json      spec, hash of the weights, licence, preprocessing, codec, layout of the arrays, versions
        00017-v0-8.h5     (or .zarr) a shard: run 17 of `rows_per_shard` rows, views 0 to 7

A shard holds arrays (views, rows, ...) under the codec's names, one chunk per view, and a JSON header that says where
each chunk lies, with a CRC-32 of every chunk and a SHA-256 of every file. Reading needs the header and plain bytes,
never an HDF5 or Zarr library, so that links, external files, virtual data sets and objects in a stranger's files are
never followed; both libraries open the files as they are.

Shards get their names when they are whole and synced. What is there and whole is done; all else is `missing`.
"""

from softlabels.core.arrayfile import FORMATS
from softlabels.core.arrayfile.arrays import ArrayLayout
from softlabels.core.config import is_url
from softlabels.core.documents import FORMAT, differences, joined
from softlabels.core.locks import BusyError, exclusive
from softlabels.store._cache import Cache
from softlabels.store._copying import copy_images
from softlabels.store._labels import ShardContent, TeacherLabels
from softlabels.store._layout import TeacherCard, check_chunks
from softlabels.store._manifest import ImageFile, Manifest
from softlabels.store._shard import MOST_VIEWS, Runs, Shard
from softlabels.store._store import (
    Location,
    Store,
    check_new,
    check_same,
    create,
    find_store,
    folder_name,
    locate,
    open_store,
    output_name,
)

__all__ = [
    "FORMAT",
    "FORMATS",
    "MOST_VIEWS",
    "ArrayLayout",
    "BusyError",
    "Cache",
    "ImageFile",
    "Location",
    "Manifest",
    "Runs",
    "Shard",
    "ShardContent",
    "Store",
    "TeacherCard",
    "TeacherLabels",
    "check_chunks",
    "check_new",
    "check_same",
    "copy_images",
    "create",
    "differences",
    "exclusive",
    "find_store",
    "folder_name",
    "is_url",
    "joined",
    "locate",
    "open_store",
    "output_name",
]
