#!/bin/sh
# An arm64 Debian in a folder, to test on a board without a board:   sudo sh build_root.sh ROOT [SUITE]
#
# Needs root and: apt install debootstrap qemu-user-static. Makes ROOT, a system with python3 and sshd, whose Python has
# numpy, Pillow and onnxruntime, and ROOT-wheels, the arm64 wheels of these. About 500 MB and two minutes, since the
# packages are only unpacked: setting them up under emulation would take many times as long, and nothing here needs it.
# A finished ROOT is kept as it is.
set -eu

root=${1:?usage: build_root.sh ROOT [SUITE]}
suite=${2:-bookworm}
mirror=${MIRROR:-http://deb.debian.org/debian}
python=${PYTHON:-python3}
packages=python3,python3-venv,openssh-server,openssh-sftp-server,openssh-client
platforms="--platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux_2_27_aarch64"
platforms="$platforms --platform manylinux_2_28_aarch64 --platform manylinux_2_34_aarch64"

for tool in debootstrap qemu-aarch64-static dpkg-deb; do
    command -v $tool >/dev/null || { echo "$tool is missing: apt install debootstrap qemu-user-static" >&2; exit 3; }
done

# The kernel hands arm64 programs to qemu; F: it keeps qemu open, so that a chroot needs no copy of it.
folder=/proc/sys/fs/binfmt_misc
[ -e $folder/register ] || mount -t binfmt_misc binfmt_misc $folder
if [ ! -e $folder/qemu-aarch64 ]; then
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":qemu-aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):F" >$folder/register
fi

if [ ! -e "$root/.finished" ]; then
    [ ! -e "$root/usr" ] || { echo "$root holds something unfinished: remove it" >&2; exit 2; }
    mkdir -p "$root"
    # --foreign stops after unpacking what Debian cannot do without; the rest lies in apt's cache.
    debootstrap --arch=arm64 --variant=minbase --foreign --include=$packages "$suite" "$root" "$mirror"
    for package in "$root"/var/cache/apt/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root"
    done
    rm -r "$root/debootstrap" "$root"/var/cache/apt/archives/*.deb
    # What the packages' own set-up would have done, as far as it is needed.
    ln -sf dash "$root/usr/bin/sh"
    [ -e "$root/usr/bin/awk" ] || ln -s mawk "$root/usr/bin/awk"
    printf '%s\n' root:x:0:0:root:/root:/bin/bash sshd:x:101:65534::/run/sshd:/usr/sbin/nologin >"$root/etc/passwd"
    printf '%s\n' root:x:0: nogroup:x:65534: >"$root/etc/group"
    printf '%s\n' 'root:*:19000:0:99999:7:::' >"$root/etc/shadow"
    [ ! -L "$root/proc" ] || rm "$root/proc"  # debootstrap links it to itself inside containers
    mkdir -p "$root/proc" "$root/sys" "$root/run/sshd" "$root/root"
    for device in null zero random urandom; do
        [ -e "$root/dev/$device" ] || cp -a /dev/$device "$root/dev/"
    done
    touch "$root/.finished"
fi
version=$(cd "$root/usr/lib" && echo python3.* | cut -d' ' -f1 | sed s/python//)
# shellcheck disable=SC2086
"$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: --python-version "$version" \
    $platforms --dest "$root-wheels" numpy Pillow onnxruntime
packages="$root/usr/local/lib/python$version/dist-packages"
mkdir -p "$packages"
for wheel in "$root"-wheels/*.whl; do
    "$python" -m zipfile -e "$wheel" "$packages"
done
# Byte code is the same on every processor; made here, it need not be made under emulation at every start.
"python$version" -m compileall -q "$root/usr/lib/python3" "$root/usr/lib/python$version" "$packages" 2>/dev/null || true
echo "$root: Debian $suite arm64, Python $version; wheels in $root-wheels"
