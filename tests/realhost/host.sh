#!/bin/bash
# host.sh NAME DIRECTORY UUID [listen]: runs a private libvirtd in the foreground, in a network namespace NAME made by the caller.
# With "listen" it also listens on TCP in its own namespace, for migration peer to peer, and runs in cgroups of its own below the
# caller's: two libvirtds with a common root would give a guest that migrates the same group on both sides.
# Private besides: mount namespace (its /etc/libvirt, /var/lib/libvirt, ... are DIRECTORY/...), cgroup namespace (so that the guests stay
# inside the caller's memory cgroup) and hostname. `ip netns exec` would lose the cgroup mounts, hence nsenter and mounting by hand.
set -eu
name=$1 directory=$2 uuid=$3 listen=${4:-}
mkdir -p "$directory"/{etc,lib,cache,log,run}
cat > "$directory/etc/libvirtd.conf" <<C
auth_unix_rw = "none"
host_uuid = "$uuid"
log_level = 3
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
C
if [ -n "$listen" ]; then
  printf 'listen_tls = 0\nlisten_tcp = 1\nauth_tcp = "none"\nlisten_addr = "0.0.0.0"\n' >> "$directory/etc/libvirtd.conf"
  cgroups=$(cat /proc/self/cgroup) # whole, before anything of it changes
  while IFS=: read -r _ controllers path; do
    case $controllers in
      "") mount=unified ;;
      name=systemd) mount=systemd ;;
      *) mount=$controllers ;;
    esac
    parent=/sys/fs/cgroup/$mount$path
    [ -d "$parent" ] || continue
    mkdir -p "$parent/$name"
    if [ "$controllers" = cpuset ]; then
      for file in cpuset.cpus cpuset.mems; do cat "$parent/$file" > "$parent/$name/$file"; done
    fi
    echo $$ > "$parent/$name/cgroup.procs"
  done <<< "$cgroups"
fi
cat > "$directory/etc/qemu.conf" <<C
user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
stdio_handler = "file"
C
# shellcheck disable=SC2016 # the inner shell expands it
exec nsenter "--net=/run/netns/$name" unshare --mount --cgroup --uts --propagation private bash -euc '
  directory=$0
  hostname "$1"
  mkdir -p /etc/libvirt /var/{lib,cache,log}/libvirt /run/libvirt
  mount --bind "$directory/etc" /etc/libvirt
  for part in lib cache log; do mount --bind "$directory/$part" "/var/$part/libvirt"; done
  mount --bind "$directory/run" /run/libvirt
  version_1=$(grep -o " - cgroup cgroup .*" /proc/self/mountinfo | grep -oE "(rw|ro),[a-z_,]+$" | cut -d, -f2- || true)
  hybrid=$(grep -q "/sys/fs/cgroup/unified " /proc/self/mountinfo && echo yes || true)
  umount -R /sys/fs/cgroup
  mount -t sysfs sysfs /sys
  if [ -z "$version_1" ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
  else
    mount -t tmpfs tmpfs /sys/fs/cgroup
    for controllers in $version_1; do
      mkdir "/sys/fs/cgroup/$controllers"
      mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/$controllers"
    done
    if [ -n "$hybrid" ]; then mkdir /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified; fi
  fi
  exec /usr/sbin/libvirtd -p /run/libvirt/libvirtd.pid $2
' "$directory" "$name" "${listen:+--listen}"
