"""What arrays are called in signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
"""Arrays by name."""

Rows = NDArray[np.int64]
"""Numbers of rows, views or samples: (n,)."""
