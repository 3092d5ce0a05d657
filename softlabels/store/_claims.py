"""One writer at a time behind a URL, where no lock of a machine reaches.

A writer puts a *claim*, an object whose name says what is written, then lists the folder: of two writers at least the
later one sees the other. A claim is put again while its process lives; one that was not for `STALE` seconds, by the
server's clock, counts for nothing and is removed by whoever wants to write. This needs no more of a file system than
put, list and remove, and that a listing shows what was put before it, which S3 and the others promise.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from softlabels.core.locks import LOCK, BusyError, meet
from softlabels.core.paths import Damaged
from softlabels.core.progress import waiting
from softlabels.errors import StoreError
from softlabels.store._remote import Object, Remote

REFRESH = 30.0
"""Seconds after which a claim is put again."""

STALE = 600.0
"""Seconds without a sign of its process after which a claim counts for nothing."""

_SETTLE = 5.0
"""Seconds for which a writer waits for others that began at the same moment to leave."""

_POLL = 0.2
"""Seconds between two looks at the claims of others."""

_NAME = re.compile(r"\.writer-(documents|(\d{1,9})-of-(\d{1,9}))-([0-9a-f]{12})-([0-9a-f]{12})")


class Claim:
    """What keeps other machines from writing what this process writes."""

    def __init__(self, remote: Remote, name: str) -> None:
        self._remote, self._name, self._seen, self._over = remote, name, time.time(), threading.Event()
        self._owner = os.getpid()
        self._text = f"{platform.node()}, process {self._owner}"
        self._lost = False
        remote.put(name, self._text)
        self._thread = threading.Thread(target=self._keep, name="softlabels-claim", daemon=True)

    def check(self) -> None:
        """Raise StoreError when another process may have taken over, since this one gave no sign for too long."""
        if not self._lost:
            try:
                self._remote.written(self._name)
                self._lost = self._too_late()
            except Damaged:
                self._lost = True
        if self._lost:
            raise StoreError(
                f"{self._remote.where(self._name)} does not hold any more: this process gave no sign for minutes, and "
                f"another one may write its part now; run the same command again, which writes what is missing"
            )

    def keep(self) -> None:
        """Put the claim again from time to time, until `leave`."""
        self._thread.start()

    def leave(self) -> None:
        """Remove the claim; a forked process leaves that of its parent alone."""
        if os.getpid() != self._owner:
            return
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()  # or what it just puts would outlive us
        self._remote.discard(self._name)  # where the server is gone, the claim gets stale

    def _keep(self) -> None:
        while not self._over.wait(REFRESH) and not self._lost:
            with contextlib.suppress(Exception):  # the next time, or `check`, tells
                # Never late: who finds a stale claim removes it, and it must not come back then.
                now = time.time()
                self._lost = self._too_late() or not self._remote.replace(self._name, self._text)
                self._seen = now

    def _too_late(self) -> bool:
        return time.time() - self._seen > STALE / 2


@contextlib.contextmanager
def claimed(
    remote: Remote, folder: str, local: Path, part: tuple[int, int] | None = None
) -> Iterator[tuple[Claim, dict[str, Object]]]:
    """Be the one process that writes a part of `folder`, or without one the only one that makes documents there.

    Yields the claim and all objects in `folder`, listed when it held. Another process that makes documents is waited
    for. The caller holds a lock in the folder `local` that keeps processes out that use it, too.

    Raises:
        BusyError: another process writes some of this part.
        StoreError: the server cannot be reached.
    """
    what = "documents" if part is None else f"{part[0]}-of-{part[1]}"
    prefix = f"{folder}/" if folder else ""
    name = f"{prefix}{LOCK}{what}-{_here(local)}-{uuid.uuid4().hex[:12]}"
    with waiting(f"the process that makes {remote.where(folder)}"):
        while True:
            claim = Claim(remote, name)
            try:
                there = _alone(remote, folder, name, part)
                break
            except BusyError:
                claim.leave()
                if part is not None:
                    raise
                time.sleep(_POLL)
            except BaseException:
                claim.leave()
                raise
    claim.keep()
    try:
        yield claim, there
    finally:
        claim.leave()


def _alone(remote: Remote, folder: str, name: str, part: tuple[int, int] | None) -> dict[str, Object]:
    """All objects of the folder, when no other claim there is alive that meets this one. Raises BusyError."""
    (*_, here, own), until = _claim(name), time.monotonic() + _SETTLE
    while True:
        there = remote.listing(folder)
        rivals = {}
        for other in there:
            match = _NAME.fullmatch(other.rpartition("/")[2])
            if match is None or other == name or other.rpartition("/")[0] != folder or not _meets(match, part):
                continue
            age = _age(remote, name, other)
            # A process of this machine would hold the lock that we hold.
            if match[4] == here or age is None or age > STALE:
                remote.remove([other])
            else:
                rivals[match[5]] = other, age
        if not rivals:
            return there
        # Of those that begin at the same moment the first by name stays and the others leave.
        rival, age = max(rivals.values(), key=lambda each: each[1])
        if min(rivals) < own or age > _SETTLE or time.monotonic() > until:
            raise _busy(remote, folder, rival, there[rival].size, age)
        time.sleep(_POLL)


def _claim(name: str) -> tuple[str, ...]:
    match = _NAME.fullmatch(name.rpartition("/")[2])
    assert match is not None
    return match.groups()


def _meets(match: re.Match[str], part: tuple[int, int] | None) -> bool:
    if part is None or match[2] is None:
        return part is None and match[2] is None
    return meet(part, (int(match[2]), int(match[3])))


def _age(remote: Remote, name: str, other: str) -> float | None:
    """Seconds by which the claim `other` is older than ours; None when it is gone."""
    try:
        theirs, ours = remote.written(other), remote.written(name)
    except Damaged:
        return None
    return 0.0 if theirs is None or ours is None else ours - theirs


def _busy(remote: Remote, folder: str, rival: str, size: int, age: float) -> BusyError:
    try:
        owner = remote.read([(rival, min(size, 200))])[0].decode(errors="replace")
    except StoreError:
        owner = "that is just leaving"
    kind, index, count, *_ = _claim(rival)
    what = f"part {index}/{count} of " if kind != "documents" else ""
    return BusyError(
        f"{remote.where(rival)} says that another process ({owner}) writes {what}{remote.where(folder)} and gave a "
        f"sign of it {max(age, 0):.0f} s ago; wait for it, stop it, or give each process a `part` of its own (what a "
        f"killed one left counts for {STALE / 60:.0f} minutes)"
    )


def _here(folder: Path) -> str:
    """The same text for those processes that a lock in `folder` keeps from each other: one kernel, one folder."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        kernel = f"{platform.node()} {uuid.getnode()}"
    found = folder.stat()
    return hashlib.sha256(f"{kernel} {found.st_dev} {found.st_ino}".encode()).hexdigest()[:12]
