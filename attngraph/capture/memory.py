"""How much memory this process can still have: the least of what the machine, and every group it lives in, has left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

UNLIMITED = 1 << 60
"""Version 1 groups say "no limit" with a huge number."""


def available_bytes(device: torch.device | None = None) -> int | None:
    """Bytes that can still be allocated, on the GPU if `device` is one; None where the system doesn't say."""
    if device is not None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [_machine(Path("/proc/meminfo")), *_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    return min((bytes_ for bytes_ in found if bytes_ is not None), default=None)


def resident_bytes() -> int:
    """Resident memory of this process now; 0 where the system doesn't say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _machine(meminfo: Path) -> int | None:
    """What can be had without swapping, file cache included; all of the memory where only that is known."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        names = os.sysconf_names
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in names else None


def _groups(membership: Path, mount: Path) -> Iterator[int]:
    """What is left in each control group of this process and in the groups around it, where they have limits."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage, cache = mount, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage = mount / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        # A container sees its own group at the mount's root, whatever path the host gave it.
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(root) and (left := _left(group, limit, usage, cache)) is not None:
                yield left


def _left(group: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        most = (group / limit).read_text().strip()
        if most == "max" or int(most) >= UNLIMITED:
            return None
        used = int((group / usage).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return max(0, int(most) - used + int(statistics.get(cache, 0)))
