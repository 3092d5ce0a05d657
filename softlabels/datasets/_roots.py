"""Where a data set that people download once lies on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from softlabels.datasets._images import absolute
from softlabels.errors import DataError


def data_root(data_dir: str | None, kind: str, variable: str, holding: str) -> Path:
    """`data_dir`, or the folder that the environment `variable` names.

    Raises:
        DataError: neither is given, or the folder is missing; the message says what it should hold.
    """
    given = data_dir or os.environ.get(variable)
    if not given:
        raise DataError(f"{kind} needs `data_dir=DIR` or ${variable}: a folder that holds {holding}")
    root = Path(absolute(given))
    if not root.is_dir():
        source = "" if data_dir else f" (from ${variable})"
        raise DataError(f"no such directory: {root}{source}; {kind} needs a folder that holds {holding}")
    return root
