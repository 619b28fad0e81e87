#!/bin/sh
# PID 1 of the tiny guest: load drivers, take the address from the kernel command line (guest_ip=A.B.C.D/N), online what is
# hot-added, once, as udev does it in a real guest (what the guest agent takes offline later stays so), start QEMU's guest agent where the
# image has it, run the load agent on the control channel. Memory comes online as movable: only that can be taken away again.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo online_movable > /sys/devices/system/memory/auto_online_blocks
for module in /modules/*.ko; do insmod "$module" || echo "insmod $module failed"; done
ip link set lo up
read -r command_line < /proc/cmdline
for word in $command_line; do
  case $word in guest_ip=*) ip addr add "${word#guest_ip=}" dev eth0 && ip link set eth0 up ;; esac
done
(while sleep 0.2; do
  for cpu in /sys/devices/system/cpu/cpu[0-9]*/online; do
    directory=${cpu%/online}
    seen=/tmp/seen.${directory##*/}
    [ -e "$seen" ] && continue
    read -r online < "$cpu" && { [ "$online" = 1 ] || echo 1 > "$cpu"; } && : > "$seen"
  done
done) 2>/dev/null &
device_of() { # waits for the port of that name: the host announces ports one by one after the driver is loaded
  while :; do
    for port in /sys/class/virtio-ports/*; do
      read -r name < "$port/name" && [ "$name" = "$1" ] && echo "/dev/${port##*/}" && return
    done 2>/dev/null
    sleep 0.1
  done
}
if [ -x /bin/qemu-ga ]; then qemu-ga -d -m virtio-serial -p "$(device_of org.qemu.guest_agent.0)" -f /run/qga.pid -l /var/log/qga.log -t /run; fi
control=$(device_of tidegate.control)
echo TIDEGATE-GUEST-UP
/bin/load_agent "$control"
echo "load agent ended"
while :; do sleep 3600; done
