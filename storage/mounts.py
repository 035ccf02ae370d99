"""Which file systems SQLite should not be on: those of another machine."""

import os
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")  # Linux only
NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "lustre", "gpfs"),
        *("glusterfs", "beegfs", "orangefs", "pvfs2", "ocfs2", "gfs2", "coda", "davfs"),
        *("9p", "virtiofs", "vboxsf", "prl_fs", "vmhgfs"),
    }
)
# FUSE has a type for each program; most are for remote files, and these are not.
LOCAL_FUSE = frozenset(
    {
        *("fuse.fuse-overlayfs", "fuse.mergerfs", "fuse.bindfs", "fuse.lxcfs", "fuse.ntfs-3g"),
        *("fuse.encfs", "fuse.gocryptfs", "fuse.zfs-fuse"),
    }
)


def network_file_system(path: Path, mounts: Path = MOUNTS) -> str:
    """Return the type of the network file system that a file is on; "" if it is on no such one.

    Args:
        path: An existing file.
        mounts: In the format of proc(5).
    """
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:  # another operating system, or a hardened one
        return ""
    for line in lines:
        mount, _, file_system = line.partition(" - ")
        fields, kind = mount.split(), file_system.partition(" ")[0]
        if fields[2:3] == [number] and _is_network(kind):
            return kind
    return ""


def _is_network(kind: str) -> bool:
    return kind in NETWORK or (kind.startswith("fuse.") and kind not in LOCAL_FUSE)
