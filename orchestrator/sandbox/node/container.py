"""Become a container and run its program: a file system of its own, a user, capabilities, no new privileges.

Run as a script by the node (`python -I -S container.py JSON`), once per container, and then replaced by the container's
program: so nothing but the standard library is imported, and little of it. The program sees what a container of our
image would see: an operating system that it can't change, itself, its volumes at their mount paths, and nothing else
of this machine. What must never happen here: a mount that the machine sees (everything is done in a mount namespace
of its own), or a program started with more rights than its security context allows.
"""

# pathlib would take longer to import than all the rest takes to run, in each container; /tmp is the container's own.
# ruff: noqa: PTH101, PTH103, PTH110, PTH112, PTH114, PTH115, PTH120, PTH208, PTH211, S108
from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

_NEW_MOUNTS = 0x00020000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
_SET_NO_NEW_PRIVILEGES, _DROP_BOUND, _CLEAR_AMBIENT = 38, 24, (47, 4)
_CAPABILITY_VERSION = 0x20080522
_LAST_CAPABILITY = 63
FAILED = 128

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc")
"""The image's operating system, which here is this machine's: seen, never written."""
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
CAPABILITIES = {
    "CHOWN": 0, "DAC_OVERRIDE": 1, "DAC_READ_SEARCH": 2, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6,
    "SETUID": 7, "SETPCAP": 8, "NET_BIND_SERVICE": 10, "NET_ADMIN": 12, "NET_RAW": 13, "SYS_CHROOT": 18,
    "SYS_PTRACE": 19, "SYS_ADMIN": 21, "SYS_RESOURCE": 24, "SYS_TIME": 25, "MKNOD": 27, "AUDIT_WRITE": 29,
    "SETFCAP": 31,
}  # fmt: skip
DEFAULT_CAPABILITIES = (
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW",
    "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
)  # fmt: skip
"""What container runtimes give to a root container that says nothing."""

_libc: Any = None


def _check(result: int, *what: object) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: {' '.join(map(str, what))}")


def _mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    words = [part.encode() if part else None for part in (source, target, kind)]
    _check(_libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None), "mount", source, target)


def _bind(source: str, target: str, *, read_only: bool) -> None:
    """Show a file or folder of the machine at `target`, which is made."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.lexists(target):
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT, 0o644))
    _mount(source, target, flags=_BIND)
    if read_only:
        _mount("none", target, flags=_BIND | _REMOUNT | _READ_ONLY)


def _show(source: str, root: str, holes: list[str]) -> None:
    """Show a part of the machine read-only; folders that a mount path lies in are made anew around it."""
    target = root + source
    if os.path.islink(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(source), target)
    elif not any(hole.startswith(source.rstrip("/") + "/") for hole in holes):
        _bind(source, target, read_only=True)
    else:
        os.makedirs(target, exist_ok=True)
        for entry in os.listdir(source):
            if f"{source}/{entry}" not in holes:
                _show(f"{source}/{entry}", root, holes)


def _make_root(given: dict[str, Any], root: str) -> None:
    """Build the container's file system at `root`, in this mount namespace only."""
    _mount("tidemark-container", root, "tmpfs", 0, "mode=0755")
    inside = [mount["inside"] for mount in given["mounts"]]
    # A checkout below a mountPath (/tmp, say) would be hidden by that volume: it is shown in it, as the last thing.
    hidden = [folder for folder in given["image"] if any(folder.startswith(f"{path}/") for path in inside)]
    for folder in (*SYSTEM, *given["image"]):
        if os.path.lexists(folder) and not os.path.lexists(root + folder) and folder not in [*inside, *hidden]:
            _show(folder, root, inside)
    for folder, mode in (
        ("/tmp", 0o1777),
        ("/run", 0o755),
        ("/var/tmp", 0o1777),
        ("/root", 0o755),  # an interpreter may lie below it
        ("/dev/shm", 0o1777),
    ):
        os.makedirs(root + folder, exist_ok=True)
        os.chmod(root + folder, mode)
    for kind, target in (("proc", "/proc"), ("sys", "/sys")):
        os.makedirs(root + target, exist_ok=True)
        _mount(f"/{kind}", root + target, flags=_BIND | _RECURSIVE)
    for device in DEVICES:
        if os.path.exists(f"/dev/{device}"):
            _bind(f"/dev/{device}", f"{root}/dev/{device}", read_only=False)
    for link, real in (("fd", "/proc/self/fd"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")):
        os.symlink(real, f"{root}/dev/{link}")
    for mount in sorted(given["mounts"], key=lambda mount: str(mount["inside"]).count("/")):
        _bind(mount["real"], root + mount["inside"], read_only=mount["read_only"])
        if mount.get("mode"):
            os.chmod(root + mount["inside"], mount["mode"])
    for folder in hidden:
        _show(folder, root, [])
    if given["read_only_root"]:
        _mount("none", root, flags=_BIND | _REMOUNT | _READ_ONLY)


def _give_up_rights(given: dict[str, Any]) -> None:
    """Keep the capabilities that are allowed, and become the user that is asked for."""
    kept = {CAPABILITIES[name] for name in given["capabilities"]}
    _libc.prctl(*_CLEAR_AMBIENT, 0, 0, 0)
    for number in range(_LAST_CAPABILITY + 1):
        if number not in kept:
            _libc.prctl(_DROP_BOUND, number, 0, 0, 0)  # a number that this kernel doesn't know can't be had either
    os.setgroups([group for group in given["groups"] if group])
    os.setresgid(given["group"], given["group"], given["group"])
    os.setresuid(given["user"], given["user"], given["user"])
    if given["user"] == 0:
        low, high = sum(1 << n for n in kept if n < 32), sum(1 << (n - 32) for n in kept if n >= 32)
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
        _check(_libc.capset(header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)), "capset")
    if given["no_new_privileges"]:
        _check(_libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no new privileges")


def main() -> None:
    """Read what is wanted from the first argument, become it, run its program."""
    global _libc
    _libc = ctypes.CDLL(None, use_errno=True)
    given = json.loads(sys.argv[1])
    os.umask(0o022)
    try:
        _check(_libc.unshare(_NEW_MOUNTS), "a mount namespace")
        # Without this, what is mounted below would show up on the whole machine.
        _mount("none", "/", flags=_RECURSIVE | _PRIVATE)
        _make_root(given, given["root"])
        os.chroot(given["root"])
        os.chdir(given["folder"])
        _give_up_rights(given)
        os.execvpe(given["command"][0], given["command"], os.environ)  # noqa: S606 - a container's program, no shell
    except OSError as err:
        print(f"the container could not be started: {err}", file=sys.stderr)  # noqa: T201 - the container's own log
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
