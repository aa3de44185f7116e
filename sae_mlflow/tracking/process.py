"""Which process keeps a run up, in the run's tags, and whether it is still there.

A pid alone says little: it is given out again, and containers count their own. So a run has

| tag | |
|---|---|
| `sae.host` | the machine's name, for people |
| `sae.host_id` | where its pid means something: one kernel since it booted, one container |
| `sae.pid` | the process |
| `sae.process_started` | in seconds since its machine booted: no clock that is set changes it |
| `sae.heartbeat` | when it last said that it is there, in UTC |
"""

import functools
import os
import platform
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import psutil

HOST_TAG = "sae.host"
HOST_ID_TAG = "sae.host_id"
PID_TAG = "sae.pid"
STARTED_TAG = "sae.process_started"
HEARTBEAT_TAG = "sae.heartbeat"

IDENTITY_TAGS = (HOST_ID_TAG, PID_TAG, STARTED_TAG)
"""No two processes have the same of all of them."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_SAME_START_SECONDS = 1.0  # the boot's time, which is taken off, is known to the second
_PID_DIGITS = 20
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def process_tags() -> dict[str, str]:
    """Of a run that this process keeps up from now on."""
    process = psutil.Process()
    return {
        HOST_TAG: platform.node(),
        HOST_ID_TAG: host_id(),
        PID_TAG: str(process.pid),
        STARTED_TAG: f"{_started(process):.2f}",
        **heartbeat_tags(),
    }


def heartbeat_tags() -> dict[str, str]:
    return {HEARTBEAT_TAG: datetime.now(UTC).strftime(_TIME)}


@functools.cache
def host_id() -> str:
    """Equal where a pid means the same process: not after a boot, and not in another container.

    Where the system doesn't tell its boots apart (macOS, Windows), its network card names it.
    """
    try:
        place = f"{_BOOT_ID.read_text().strip()} {_PID_NAMESPACE.readlink()}"
    except OSError:
        place = f"{uuid.getnode():x} {platform.node()}"
    return sha256(place.encode()).hexdigest()[:16]


def last_heartbeat(tags: Mapping[str, str]) -> datetime | None:
    """When the process last said that it is there; None where it didn't, or not legibly."""
    try:
        return datetime.strptime(tags.get(HEARTBEAT_TAG, ""), _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None


def why_dead(tags: Mapping[str, str], stale_seconds: float) -> str | None:
    """Why nobody keeps up a run that says RUNNING; None where somebody may.

    Args:
        tags: the run's.
        stale_seconds: a process where we can't look counts as gone after so long without a sign.
    """
    who = f"process {tags.get(PID_TAG)} on {tags.get(HOST_TAG)}"
    if tags.get(HOST_ID_TAG) == host_id():
        pid, started = tags.get(PID_TAG, ""), _number(tags.get(STARTED_TAG))
        if pid.isdecimal() and len(pid) < _PID_DIGITS and started is not None:
            return None if _is_there(int(pid), started) else f"{who} is gone"
    beat = last_heartbeat(tags)
    if beat is None or (datetime.now(UTC) - beat).total_seconds() < stale_seconds:
        return None
    return f"no sign of life from {who} since {beat:%Y-%m-%d %H:%M} UTC"


def is_recorded(tags: Mapping[str, str]) -> bool:
    """Whether a run says which process keeps it up; those of version 0.1.0 don't."""
    return last_heartbeat(tags) is not None


def _is_there(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return False  # it ended; only whoever started it hasn't asked how
        return abs(_started(process) - started) < _SAME_START_SECONDS
    except psutil.ZombieProcess:
        return False
    except psutil.NoSuchProcess:
        return _is_hidden(pid)
    except (ValueError, OverflowError):
        return False
    except psutil.AccessDenied:
        return True  # somebody's; better a run too many than a living one ended


def _is_hidden(pid: int) -> bool:
    """Whether it is another user's, where `/proc` shows one's own alone (`hidepid=2`)."""
    if not psutil.POSIX:  # elsewhere signal 0 isn't merely asked for
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        pass
    return False


def _started(process: psutil.Process) -> float:
    """Seconds from the boot to a process's start."""
    return process.create_time() - psutil.boot_time()


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
