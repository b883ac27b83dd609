#!/usr/bin/env bash
# Fetches a stock Debian riscv64 kernel, busybox and redis, and makes the files that a Linux guest boots from. See README.md.
set -euo pipefail

usage="Usage: guest-programs/linux/build.sh [--locked | --update-lock] [OUTDIR]

Fetches unmodified riscv64 packages of Debian with apt, into a directory of its own, and makes
  OUTDIR/Image                   the kernel
  OUTDIR/initramfs-base.cpio     a shell on the console
  OUTDIR/initramfs-redis.cpio    the same, and redis at 10.0.2.15:6379
OUTDIR is target/linux of the workspace if it isn't given. Packages are kept in OUTDIR/fetch; what is there isn't fetched again.

  --locked        fail if Debian no longer has the very packages of linux.lock (without: take Debian's newer ones, and say so)
  --update-lock   take Debian's newest packages, and write them to linux.lock

Environment: FT_DEBIAN_MIRROR (default http://deb.debian.org/debian), FT_DEBIAN_KEYRING
(default /usr/share/keyrings/debian-archive-keyring.gpg, of the package debian-archive-keyring)."

readonly suite=trixie
readonly mirror=${FT_DEBIAN_MIRROR:-http://deb.debian.org/debian}
readonly keyring=${FT_DEBIAN_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}
# Depends on the kernel package of the day, whose name has the kernel's version in it.
readonly kernel_metapackage=linux-image-riscv64
# redis-tools has the server too, by another name; the rest are its shared libraries, which initramfs.py checks for completeness.
readonly packages=(busybox-static redis-tools libatomic1 libc6 libcap2 libgcc-s1 libjemalloc2 liblzf1 libssl3t64
    libstdc++6 libsystemd0 libzstd1 zlib1g)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here lock=$here/linux.lock

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

mode=prefer-lock
output=
for argument in "$@"; do
    case $argument in
        --locked | --update-lock) mode=${argument#--} ;;
        -h | --help)
            echo "$usage"
            exit ;;
        -*) fail "unknown option $argument; --help tells" ;;
        *) output=$argument ;;
    esac
done
output=${output:-$(cd "$here/../.." && pwd)/target/linux}
mkdir -p "$output"
output=$(cd "$output" && pwd)
readonly mode output fetch=$output/fetch
readonly debs=$fetch/debs apt_root=$fetch/apt tree=$fetch/tree

for tool in apt-get:apt dpkg-deb:dpkg python3:python3 sha256sum:coreutils; do
    command -v "${tool%:*}" >/dev/null || fail "${tool%:*} is missing (Debian package ${tool#*:})"
done

# An apt of our own: the host's sources, packages and configuration play no part and aren't touched. apt checks the archive's
# signature, and every package by what is signed. A proxy is taken from the environment (http_proxy).
prepare_apt() {
    [[ -r $keyring ]] || fail "$keyring is missing (Debian and Ubuntu package debian-archive-keyring)"
    mkdir -p "$apt_root/lists/partial" "$apt_root/cache/archives/partial" "$apt_root/empty"
    : >"$apt_root/status"
    echo "deb [arch=riscv64 signed-by=$keyring] $mirror $suite main" >"$apt_root/sources.list"
    cat >"$apt_root/apt.conf" <<CONFIG
Dir::Etc::main "$apt_root/none";
Dir::Etc::parts "$apt_root/empty";
Dir::Etc::preferences "$apt_root/none";
Dir::Etc::preferencesparts "$apt_root/empty";
Dir::Etc::sourcelist "$apt_root/sources.list";
Dir::Etc::sourceparts "$apt_root/empty";
Dir::State "$apt_root";
Dir::State::status "$apt_root/status";
Dir::State::lists "$apt_root/lists";
Dir::Cache "$apt_root/cache";
APT::Architecture "riscv64";
APT::Architectures { "riscv64"; };
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Update::Error-Mode "any";
CONFIG
    export APT_CONFIG=$apt_root/apt.conf
    apt-get -qq update || fail "the package lists of $mirror can't be fetched, or their signature is bad"
}

# What the signed package lists say of a package: "name version sha256". $1: name, or name=version.
listed() {
    apt-cache show --no-all-versions "$1" 2>/dev/null |
        awk '/^Package:/ {p=$2} /^Version:/ {v=$2} /^SHA256:/ {s=$2} END {if (p == "") exit 1; print p, v, s}'
}

# The newest packages, in the lock's form.
newest() {
    local kernel package
    kernel=$(apt-cache show --no-all-versions "$kernel_metapackage" | sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p')
    [[ -n $kernel ]] || fail "$mirror has no $kernel_metapackage in $suite"
    for package in "$kernel" "${packages[@]}"; do
        listed "$package" || fail "$mirror has no $package in $suite"
    done
}

# Whether a package of this name and checksum is here already.
is_here() {
    [[ -f $debs/$1.deb && $(sha256sum <"$debs/$1.deb") == "$2  -" ]]
}

# The locked packages that are neither here nor in the package lists any more.
gone() {
    local package version checksum
    while read -r package version checksum; do
        is_here "$package" "$checksum" || [[ $(listed "$package=$version") == "$package $version $checksum" ]] ||
            echo "  $package $version"
    done < <(locked)
}

locked() {
    grep -v '^#' "$lock"
}

all_here() {
    local package checksum
    while read -r package _ checksum; do
        is_here "$package" "$checksum" || return 1
    done < <(locked)
}

# Sets $wanted to what to build from, line by line as in the lock.
choose() {
    if [[ $mode != update-lock ]] && all_here; then
        wanted=$(locked)
        return
    fi
    prepare_apt
    if [[ $mode == update-lock ]]; then
        wanted=$(newest)
        return
    fi
    local missing
    missing=$(gone)
    if [[ -z $missing ]]; then
        wanted=$(locked)
        return
    fi
    echo "Debian no longer has these packages of linux.lock (a point release of $suite moves versions):
$missing" >&2
    [[ $mode != locked ]] || fail "stopped, as --locked says; guest-programs/linux/build.sh --update-lock moves the lock"
    echo "
==> NOTE: built from Debian's newest packages instead, whose signatures apt checks; the files differ from the lock's.
==> guest-programs/linux/build.sh --update-lock moves the lock.
" >&2
    wanted=$(newest)
}

# Fetches what is wanted and isn't here.
fetch_packages() {
    local package version checksum
    mkdir -p "$debs"
    while read -r package version checksum; do
        if is_here "$package" "$checksum"; then
            continue
        fi
        echo "fetching $package $version" >&2
        rm -rf "$fetch/new"
        mkdir "$fetch/new"
        (cd "$fetch/new" && apt-get -qq download "$package=$version") || fail "$package $version can't be fetched"
        mv "$fetch/new/"*.deb "$debs/$package.deb"
        is_here "$package" "$checksum" || fail "$package $version has another sha256 than $checksum"
    done <<<"$wanted"
    rm -rf "$fetch/new"
}

# Unpacks what is wanted into one tree, and nothing else: a tree of an earlier build may have more.
unpack() {
    local package
    rm -rf "$tree"
    mkdir -p "$tree"
    while read -r package _; do
        dpkg-deb --fsys-tarfile "$debs/$package.deb" |
            tar --extract --no-same-owner --directory "$tree" --exclude './usr/share/*'
    done <<<"$wanted"
}

choose
fetch_packages
if [[ $mode == update-lock ]]; then
    {
        echo "# Debian $suite riscv64: package, version, sha256 of the .deb. Written by build.sh --update-lock."
        echo "$wanted"
    } >"$lock"
    echo "wrote $lock" >&2
fi
unpack
python3 "$here/initramfs.py" "$tree" "$here/root" "$output"
rm -rf "$tree" "$apt_root"
