"""The rank of this process, as torchrun or another launcher sets it in the environment."""

from __future__ import annotations

import os

RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What is set for each of several processes that are to find each other."""


def started_with_others() -> bool:
    """Whether this process is one of several of one job."""
    return all(name in os.environ for name in RENDEZVOUS) and os.environ["WORLD_SIZE"] != "1"


def prints() -> bool:
    """Whether this process prints what the whole job has to say: the only one, or the first of several."""
    return not started_with_others() or os.environ["RANK"] == "0"
