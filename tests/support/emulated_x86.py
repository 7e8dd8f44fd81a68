"""Tests of kernels on x86 processors that are not here, with AVX-512, VNNI, BF16 and AMX: `make test-avx512`.

    python tests/support/emulated_x86.py [--bochs CLONE OR FOLDER] [arguments of pytest]

Bochs emulates three processors in turn: one with AVX-512 alone, one with its dot products too (VNNI, BF16), and one
with AMX. Linux runs on them, with this interpreter, its libraries and the extension as it is compiled here. Without
arguments the tests are those of packed products and of the choice of instructions, and on the last processor those of
all kernels. What it downloads and builds stays in build/x86.

Bochs is built from a stated commit: from the network, from a clone, or from a folder with the files of that commit. It
is changed in three points (bochs.patch). Linux turns AMX on only where the first use of its registers can be made to
fault (XFD), which Bochs does not offer. It saved these registers only where all were zero. And it took the signed bytes
of TDPBSSD for unsigned ones.

Needs of Debian: busybox-static e2fsprogs isolinux syslinux-common xorriso.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from emulated_arm import KERNELS, PRODUCTS, summary  # the same tests

PROJECT = Path(__file__).parents[2]
BUILT = PROJECT / "build" / "x86"
BOCHS, KERNEL, ROOT, START = (BUILT / name for name in ("bochs", "kernel", "root", "start"))
ISO, DISK, CONSOLE = BUILT / "start.iso", BUILT / "disk.img", BUILT / "console.txt"

BUSYBOX, MKE2FS, XORRISO = Path("/bin/busybox"), Path("/usr/sbin/mke2fs"), Path("/usr/bin/xorriso")
ISOLINUX, LDLINUX = Path("/usr/lib/ISOLINUX/isolinux.bin"), Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")
NEEDED = {
    BUSYBOX: "busybox-static",
    MKE2FS: "e2fsprogs",
    ISOLINUX: "isolinux",
    LDLINUX: "syslinux-common",
    XORRISO: "xorriso",
}
COMMIT = "783b58fd6d9bae598a07c59719122322fa0edce6"
PATCH = Path(__file__).parent / "bochs.patch"
# What a Sapphire Rapids is to be without, from the least to the most instructions.
PROCESSORS = {
    "AVX-512": "avx512vnni avx512bf16 amx amx_int8 amx_bf16",
    "VNNI and BF16": "amx amx_int8 amx_bf16",
    "AMX": "",
}
FULL = list(PROCESSORS)[-1]
PACKAGES = ("layercoop-fast", "pytest", "hypothesis")
# What Linux needs for a disk with a file system, in the order in which it is loaded.
MODULES = (
    *("scsi_common", "scsi_mod", "libata", "ata_piix", "sd_mod"),
    *("crc32c_generic", "crc16", "mbcache", "jbd2", "ext4"),
)
SPARE = 512  # MiB on the disk for what tests write
MEMORY = 2048  # MiB

# Bochs counts a hundred million instructions as a second.
SETTINGS = f"""
cpu: model=sapphire_rapids, count=1, ips=100000000, exclude_features="{{without}}"
megs: {MEMORY}
romimage: file={BOCHS}/bios/BIOS-bochs-latest
vgaromimage: file={BOCHS}/bios/VGABIOS-lgpl/VGABIOS-lgpl-latest.bin
display_library: nogui
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata0-master: type=disk, path={DISK}, mode=flat
ata1-master: type=cdrom, path={ISO}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={CONSOLE}
clock: sync=none
log: {BUILT}/bochs.log
"""
# Linux' own way to idle would release AMX's registers, and fault.
LOADER = """
default linux
label linux
 kernel /vmlinuz
 append initrd=/initrd.gz console=ttyS0 loglevel=3 nokaslr mitigations=off idle=halt random.trust_cpu=on panic=-1
"""
# The first process; the last line that it writes says how the tests ended.
INIT = """#!/bin/busybox sh
/bin/busybox --install /bin
mount -t proc none /proc
mount -t devtmpfs none /dev
for module in /modules/*; do insmod "$module"; done
mount -t ext4 /dev/sda /root
for name in proc dev sys tmp; do mkdir -p /root/$name; done
mount -t proc none /root/proc
mount -t sysfs none /root/sys
mount -t devtmpfs none /root/dev
mkdir -p /root/dev/shm
mount -t tmpfs none /root/dev/shm
cp /job /root/tmp
chroot /root /bin/sh /tmp/job
echo "exit status $?"
poweroff -f
"""


def run(*command: str | Path, cwd: Path = BUILT) -> str:
    """Run a command and return what it wrote; raises CalledProcessError where it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def make_bochs(source: str) -> None:
    """Build the emulator from a clone, an address of one, or a folder of its files."""
    if (BOCHS / "bochs").exists():
        return
    shutil.rmtree(BOCHS, ignore_errors=True)
    folder = Path(source)
    if (folder / "configure").exists() and not (folder / ".git").exists():
        shutil.copytree(folder, BOCHS)
    else:
        clone = BUILT / "bochs-clone"
        shutil.rmtree(clone, ignore_errors=True)
        run("git", "init", "--quiet", clone)
        run("git", "-C", clone, "fetch", "--quiet", "--depth", "1", source, COMMIT)
        run("git", "-C", clone, "checkout", "--quiet", "FETCH_HEAD", "--", "bochs", ":!bochs/bios/OVMF")
        (clone / "bochs").rename(BOCHS)
        shutil.rmtree(clone)
    run("git", "apply", "-p1", "--whitespace=nowarn", PATCH, cwd=BOCHS)
    options = ["x86-64", "avx", "evex", "amx", "monitor-mwait", "all-optimizations"]
    flags = ["--disable-logging", "--disable-docbook", "--disable-show-ips", "--with-nogui"]
    run("./configure", *(f"--enable-{name}" for name in options), *flags, "CXXFLAGS=-O2 -march=native", cwd=BOCHS)
    run("make", f"-j{os.cpu_count()}", cwd=BOCHS)


def make_kernel() -> None:
    """Unpack Debian's Linux."""
    if (KERNEL / "complete").exists():
        return
    shutil.rmtree(KERNEL, ignore_errors=True)
    KERNEL.mkdir()
    name = re.search(r"Depends: (linux-image-\S+)", run("apt-cache", "depends", "linux-image-amd64"))
    assert name is not None, "Debian's linux-image-amd64 names no kernel"
    run("apt-get", "download", "--quiet", name[1], cwd=KERNEL)
    run("dpkg-deb", "--extract", next(KERNEL.glob("*.deb")), KERNEL)
    (KERNEL / "complete").touch()


def make_iso(arguments: Sequence[str]) -> None:
    """Write the CD that a processor starts from: Linux, a first process, and the tests that it runs."""
    shutil.rmtree(START, ignore_errors=True)
    memory, disc = START / "memory", START / "disc"
    for folder in (*(memory / name for name in ("bin", "dev", "proc", "root", "modules")), disc):
        folder.mkdir(parents=True)
    shutil.copy(BUSYBOX, memory / "bin")
    for place, name in enumerate(MODULES):
        packed = next(KERNEL.rglob(f"{name}.ko.xz"))
        (memory / "modules" / f"{place:02}-{name}.ko").write_bytes(lzma.decompress(packed.read_bytes()))
    tests = [os.path.realpath(sys.executable), "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", *arguments]
    settings = "HOME=/tmp PYTHONPATH=/site:/tree OMP_NUM_THREADS=1 PATH=/bin"
    (memory / "job").write_text(f"cd /tree\nexport {settings}\nexec {shlex.join(tests)}\n")
    (memory / "init").write_text(INIT)
    (memory / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(memory)) for path in sorted(memory.rglob("*")))
    packed_files = subprocess.run(
        [BUSYBOX, "cpio", "-o", "-H", "newc"], input=names.encode(), cwd=memory, capture_output=True, check=True
    )
    (disc / "initrd.gz").write_bytes(gzip.compress(packed_files.stdout, 1))
    shutil.copy(next(KERNEL.glob("boot/vmlinuz-*")), disc / "vmlinuz")
    shutil.copy(ISOLINUX, disc)
    shutil.copy(LDLINUX, disc)
    (disc / "isolinux.cfg").write_text(LOADER)
    boot = "-b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table"
    run(XORRISO, "-as", "mkisofs", "-quiet", *boot.split(), "-o", ISO, disc)


def files_of(packages: Iterable[str]) -> Iterator[tuple[Path, Path]]:
    """Each file of some installed packages and of what they require: where it is, and its path below site-packages."""
    waiting, seen = list(packages), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # required elsewhere, on other systems say
        for line in found.requires or ():
            if "extra ==" not in line:
                waiting.append(re.split(r"[^\w.-]", line, maxsplit=1)[0].lower())
        for path in found.files or ():
            if ".." not in path.parts and not path.parts[0].startswith("__editable__"):
                yield Path(str(path.locate())), Path(str(path))


def shared_libraries(files: Iterable[Path]) -> set[Path]:
    """The system's libraries that some programs and libraries load."""
    found = run("ldd", *files)
    return {Path(path) for path in re.findall(r"(?:=> |^\t)(/\S+) \(0x", found, re.MULTILINE)}


def make_disk() -> None:
    """Write the disk: this interpreter with the packages that tests use, and the project."""
    shutil.rmtree(ROOT, ignore_errors=True)
    python = Path(sys.base_prefix)
    program = Path(os.path.realpath(sys.executable))
    library = python / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    keep = shutil.ignore_patterns("site-packages", "test", "idlelib", "*.a")
    shutil.copytree(library, ROOT / library.relative_to("/"), ignore=keep, symlinks=True)
    copied = [program, *library.glob("lib-dynload/*.so")]
    for source, place in files_of(PACKAGES):
        if not source.exists() or "include" in place.parts:
            continue
        (ROOT / "site" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, ROOT / "site" / place)
        if ".so" in source.suffixes:
            copied.append(source)
    for name in ("layercoop_fast", "tests"):
        shutil.copytree(PROJECT / name, ROOT / "tree" / name)
    shutil.copy(PROJECT / "pyproject.toml", ROOT / "tree")
    copied += (PROJECT / "layercoop_fast").glob("*.so")
    for path in {program, *shared_libraries(copied)}:
        (ROOT / path.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, ROOT / path.relative_to("/"))
    for name in ("bin", "tmp", "dev", "proc", "sys"):
        (ROOT / name).mkdir(exist_ok=True)
    shutil.copy(BUSYBOX, ROOT / "bin" / "sh")
    DISK.unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) >> 20
    run(MKE2FS, "-q", "-t", "ext4", "-d", ROOT, DISK, f"{size * 5 // 4 + SPARE}M")
    shutil.rmtree(ROOT)


def tested(without: str) -> bool:
    """Whether what is on the disk ends well on a processor. What it writes is shown as it comes."""
    (BUILT / "settings").write_text(SETTINGS.format(without=without))
    CONSOLE.unlink(missing_ok=True)
    CONSOLE.touch()
    command = [BOCHS / "bochs", "-q", "-unlock", "-f", BUILT / "settings"]
    with CONSOLE.open(encoding="utf-8", errors="replace") as console:
        with (BUILT / "emulator.txt").open("wb") as said:
            process = subprocess.Popen(command, cwd=BUILT, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            while process.poll() is None:
                time.sleep(1)
                print(console.read(), end="", flush=True)
            print(console.read(), end="", flush=True)
        finally:
            process.kill()
    ended = re.search(r"^exit status (\d+)", CONSOLE.read_text(errors="replace"), re.MULTILINE)
    if ended is None:
        print((BUILT / "emulator.txt").read_text(errors="replace")[-2000:])
    return ended is not None and ended[1] == "0"


def main() -> int:
    """Set up what is missing and run the tests; 1 where any fail, 2 where a tool is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--bochs", default="https://github.com/bochs-emu/Bochs", metavar="CLONE OR FOLDER")
    options, arguments = parser.parse_known_args()
    missing = [package for tool, package in NEEDED.items() if not tool.exists()]
    if missing:
        print(f"not installed: {' '.join(missing)} (packages of Debian)", file=sys.stderr)
        return 2
    BUILT.mkdir(parents=True, exist_ok=True)
    make_bochs(options.bochs)
    make_kernel()
    make_disk()
    failed = []
    for processor, without in PROCESSORS.items():
        print(f"\n== {processor}", flush=True)
        make_iso(arguments or (KERNELS if processor == FULL else PRODUCTS))
        if not tested(without):
            failed.append(processor)
    return summary(PROCESSORS, failed)


if __name__ == "__main__":
    raise SystemExit(main())
