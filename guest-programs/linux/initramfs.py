"""Makes the kernel image and the initramfs files from a tree of unpacked Debian packages.

Usage: initramfs.py TREE ROOT OUTDIR

TREE has the packages' files, ROOT our own few. The output is a function of these alone: entries are sorted, and owners, times
and inode numbers are not those of the host's files. Needs Python's standard library only.
"""

import hashlib
import lzma
import pathlib
import shutil
import struct
import sys

# In the order in which /init loads them.
MODULES = ["virtio_mmio", "failover", "net_failover", "virtio_net", "virtio_blk", "virtio-rng"]

# Where the C library's loader looks for shared libraries.
LIBRARIES = "usr/lib/riscv64-linux-gnu"

FILE, DIRECTORY, LINK, CHARACTER_DEVICE = 0o100000, 0o040000, 0o120000, 0o020000


class Archive:
    """A cpio archive in the format "newc", as Documentation/driver-api/early-userspace/buffer-format.rst of Linux has it."""

    def __init__(self):
        self.entries = {}

    def _add(self, path, kind, permissions, data=b"", device=(0, 0)):
        assert path not in self.entries, path
        parent = str(pathlib.PurePosixPath(path).parent)
        if parent not in (".", *self.entries):
            self.directory(parent)
        self.entries[path] = (kind | permissions, data, device)

    def directory(self, path):
        self._add(path, DIRECTORY, 0o755)

    def link(self, path, target):
        self._add(path, LINK, 0o777, target.encode())

    def character_device(self, path, major, minor):
        self._add(path, CHARACTER_DEVICE, 0o600, device=(major, minor))

    def file(self, path, data, executable=False):
        self._add(path, FILE, 0o755 if executable else 0o644, data)

    def to_bytes(self):
        # A directory sorts before what is in it, and so the kernel finds it made.
        entries = [(path, *self.entries[path]) for path in sorted(self.entries)]
        entries.append(("TRAILER!!!", 0, b"", (0, 0)))
        archive = b"".join(newc_entry(inode, *entry) for inode, entry in enumerate(entries, 1))
        return archive + bytes(-len(archive) % 512)


def newc_entry(inode, path, mode, data, device):
    """One entry: header, name and data, each of the latter two filled up to four bytes."""
    name = path.encode() + b"\0"
    links = 2 if mode & 0o170000 == DIRECTORY else 1
    # inode, mode, uid, gid, links, mtime, size, device of the file (2), device that it stands for (2), name's length, checksum
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def needed(elf):
    """What an ELF file's dynamic section says it needs: names of shared libraries."""
    assert elf[:6] == b"\x7fELF\x02\x01", "a 64-bit little-endian ELF file"
    (offset,), (size, count) = struct.unpack_from("<Q", elf, 32), struct.unpack_from("<HH", elf, 54)
    # type, flags, offset, virtual address, physical address, size in the file, size in memory, alignment
    segments = [struct.unpack_from("<IIQQQQQQ", elf, offset + index * size) for index in range(count)]
    loaded = [(address, start, length) for kind, _, start, address, _, length, _, _ in segments if kind == 1]
    dynamic = [elf[start : start + length] for kind, _, start, _, _, length, _, _ in segments if kind == 2]
    tags = [pair for section in dynamic for pair in struct.iter_unpack("<qQ", section)]
    names = [value for tag, value in tags if tag == 1]
    if not names:
        return []
    strings = next(value for tag, value in tags if tag == 5)
    strings = next(strings - address + start for address, start, length in loaded if address <= strings < address + length)
    text = [elf[strings + name : elf.index(b"\0", strings + name)] for name in names]
    return [name.decode() for name in text]


def libraries_of(tree, programs):
    """The shared libraries that the programs need, and those that these need, by name."""
    found, wanted = {}, [name for program in programs for name in needed(program)]
    while wanted:
        name = wanted.pop()
        if name not in found:
            file = tree / LIBRARIES / name
            if not file.exists():
                # The loader itself.
                file = tree / "usr/lib" / name
            if not file.exists():
                sys.exit(f"initramfs.py: no package in build.sh has the shared library {name}")
            found[name] = file.read_bytes()
            wanted += needed(found[name])
    return found


def module(tree, name):
    """A kernel module, unpacked: the guest would take longer for it than the host."""
    files = list(tree.glob(f"usr/lib/modules/*/kernel/**/{name}.ko.xz"))
    if len(files) != 1:
        sys.exit(f"initramfs.py: {len(files)} kernel modules called {name} in the kernel's package")
    return lzma.decompress(files[0].read_bytes())


def base(tree, root):
    """Busybox, the drivers, and our scripts."""
    archive = Archive()
    for name in ["bin", "lib"]:
        archive.link(name, f"usr/{name}")
    for name in ["dev", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib"]:
        archive.directory(name)
    # The kernel opens it for /init, before that mounts /dev.
    archive.character_device("dev/console", 5, 1)
    archive.file("usr/bin/busybox", (tree / "usr/bin/busybox").read_bytes(), executable=True)
    for name in MODULES:
        archive.file(f"usr/lib/modules/{name}.ko", module(tree, name))
    archive.file("init", (root / "init").read_bytes(), executable=True)
    for name in ["inittab", "passwd"]:
        archive.file(f"etc/{name}", (root / "etc" / name).read_bytes())
    return archive


def redis(tree, root):
    """The base, and redis with its shared libraries."""
    archive = base(tree, root)
    # In trixie the server is one of redis-tools' programs under another name: it asks its name what to be.
    server, client = ((tree / "usr/bin" / name).read_bytes() for name in ["redis-check-rdb", "redis-cli"])
    archive.file("usr/bin/redis-server", server, executable=True)
    archive.file("usr/bin/redis-cli", client, executable=True)
    for name, data in sorted(libraries_of(tree, [server, client]).items()):
        directory = "usr/lib" if name.startswith("ld-") else LIBRARIES
        archive.file(f"{directory}/{name}", data, executable=True)
    archive.file("etc/redis", (root / "etc/redis").read_bytes(), executable=True)
    return archive


def main():
    tree, root, output = (pathlib.Path(argument) for argument in sys.argv[1:4])
    kernels = list(tree.glob("boot/vmlinu[xz]-*"))
    if len(kernels) != 1:
        sys.exit(f"initramfs.py: {len(kernels)} kernels in the kernel's package")
    made = [output / "Image", output / "initramfs-base.cpio", output / "initramfs-redis.cpio"]
    shutil.copyfile(kernels[0], made[0])
    made[1].write_bytes(base(tree, root).to_bytes())
    made[2].write_bytes(redis(tree, root).to_bytes())
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in made]
    (output / "SHA256SUMS").write_text("".join(sums))
    for file in made:
        print(file)


main()
