#!/bin/sh
# build_guest.sh DIRECTORY [ga]: makes the tiny guest there, DIRECTORY/vmlinuz and DIRECTORY/initrd.img; with `ga` DIRECTORY/initrd-ga.img,
# the same with QEMU's guest agent. Kernel and modules come from Debian's cloud kernel, the guest agent from its package (downloaded, not
# installed; its libraries are those of this machine), the rest of user space is busybox-static and our load agent.
# A finished directory is left as it is; a half-made one never looks finished, because the parts are moved in last.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$1
image=initrd${2:+-$2}.img
case ${2:-} in "" | ga) ;; *) echo "build_guest.sh: unknown option $2" >&2; exit 2 ;; esac
stamp=${2:-}$(cat "$0" "$here/guest_init.sh" "$here/load_agent.c" | sha256sum | cut -c1-16)
[ -e "$out/stamp.$stamp" ] && exit 0
mkdir -p "$out"
work=$(mktemp -d "$out/build.XXXXXX") # on the same file system, so that the moves at the end replace a file in use in one instant
trap 'rm -rf "$work"' EXIT
cd "$work"

package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
[ -n "$package" ] || { echo "apt knows no linux-image-cloud-amd64 (apt-get update?)" >&2; exit 1; }
if [ ! -e "$out/kernel.deb" ]; then
  apt-get download "$package" >/dev/null 2>&1 || { echo "apt-get download $package failed" >&2; exit 1; }
  mv ./*.deb "$out/kernel.deb"
fi
dpkg-deb -x "$out/kernel.deb" kernel
version=$(ls kernel/lib/modules)
modules=kernel/lib/modules/$version/kernel

mkdir -p root/bin root/proc root/sys root/dev root/tmp root/modules
cp /bin/busybox root/bin/busybox
for applet in sh mount mkdir insmod ip sleep cat echo ln ls nproc grep sed free dd yes touch rm killall poweroff; do ln -s busybox "root/bin/$applet"; done
gcc -O2 -static -pthread -o root/bin/load_agent "$here/load_agent.c"
cp "$here/guest_init.sh" root/init && chmod 755 root/init
number=10
for module in drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_legacy_dev drivers/virtio/virtio_pci_modern_dev \
  drivers/virtio/virtio_pci drivers/virtio/virtio_balloon drivers/char/virtio_console net/core/failover drivers/net/net_failover \
  drivers/net/virtio_net drivers/block/virtio_blk drivers/virtio/virtio_mem; do
  cp "$modules/$module.ko" "root/modules/$number.ko"
  number=$((number + 1))
done
if [ "${2:-}" = ga ]; then
  if [ ! -e "$out/guest-agent.deb" ]; then
    apt-get download qemu-guest-agent >/dev/null 2>&1 || { echo "apt-get download qemu-guest-agent failed (apt-get update?)" >&2; exit 1; }
    mv ./*.deb "$out/guest-agent.deb"
  fi
  dpkg-deb -x "$out/guest-agent.deb" agent
  mkdir -p root/run root/var/log
  cp agent/usr/sbin/qemu-ga root/bin/qemu-ga
  ldd root/bin/qemu-ga > libraries
  if grep "not found" libraries >&2; then exit 1; fi
  grep -o '/[^ ]*' libraries | while read -r library; do
    mkdir -p "root/${library%/*}" && cp -L "$library" "root/$library"
  done
fi
(cd root && find . | cpio -o -H newc --quiet | gzip -1) > "$image"
mv "kernel/boot/vmlinuz-$version" "$out/vmlinuz"
mv "$image" "$out/$image"
: > "$out/stamp.$stamp"
