#!/bin/sh
# install_packages.sh: what the real-host tests need on Debian 12 or a later relative, as root. Changes nothing when all is there.
# prometheus is there for its promtool.
# libvirt-daemon-system is left out on purpose (it upgrades systemd); the one thing needed from it is the user libvirt-qemu.
set -eu
packages="libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients libvirt-dev qemu-system-x86 qemu-utils pkg-config gcc libc6-dev
  busybox-static cpio kmod iproute2 prometheus"
missing=
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing="$missing $package"
done
if [ -n "$missing" ]; then
  apt-get update -q
  # shellcheck disable=SC2086 # a list of words is meant
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
fi
getent passwd libvirt-qemu >/dev/null && exit 0
groupadd -r -f kvm
groupadd -r -f libvirt-qemu
useradd -r -g kvm -d /var/lib/libvirt -s /usr/sbin/nologin libvirt-qemu
