#!/bin/busybox sh
# The reference host's init: loads KVM, mounts the outer machine's root, runs one command in it.
#
# Ports of the virtio serial device (see qemu.rs): 1 the command's input, 2 its output, 3 its errors, 4 control.
# On the control port the outer side writes three lines: the run's folder, the end-of-stream token, and "input" or
# "no-input". This side answers "ready", then "status CODE"; or "fail REASON" at any time.

b=/bin/busybox
$b mount -t devtmpfs dev /dev
exec </dev/null >/dev/console 2>&1
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys

while [ ! -c /dev/vport0p4 ]; do $b usleep 10000; done
exec 7<>/dev/vport0p4
# A port that the outer side has not opened yet reads as ended. Ports are opened in order, so the last one vouches for all.
until read -r run <&7; do $b usleep 10000; done
read -r token <&7
read -r input <&7
exec 4</dev/vport0p1 5>/dev/vport0p2 6>/dev/vport0p3

fail() {
    echo "fail $*" >&7
    $b sleep 1000
}

for module in $($b cat /lib/modules/order); do
    $b insmod "/lib/modules/$module" || fail "the module $module cannot be loaded"
done
[ -c /dev/kvm ] || fail "there is no /dev/kvm: see the kernel messages"

$b mount -t virtiofs root /root || fail "the outer machine's files cannot be mounted"
$b ln -sf /proc/self/fd /dev/fd
$b ln -sf /proc/self/fd/0 /dev/stdin
$b ln -sf /proc/self/fd/1 /dev/stdout
$b ln -sf /proc/self/fd/2 /dev/stderr
$b mkdir -p /dev/pts /dev/shm
$b mount -t devtmpfs dev /root/dev || fail "/dev cannot be mounted"
$b mount -t devpts -o mode=620,ptmxmode=666 devpts /root/dev/pts
$b mount -t tmpfs shm /root/dev/shm
$b mount -t proc proc /root/proc || fail "/proc cannot be mounted"
$b mount -t sysfs sys /root/sys || fail "/sys cannot be mounted"
$b mount -t debugfs debug /root/sys/kernel/debug
$b mount -t tracefs trace /root/sys/kernel/tracing
$b hostname reference
$b ip link set lo up

# The command gets plain pipes, as a child of a shell would: a port can be opened once only, a pipe through /dev/stdout
# as often as one likes. The token says that a stream is complete.
$b mkfifo /tmp/in /tmp/out /tmp/err
{ $b cat /tmp/out; echo -n "$token"; } >&5 &
out=$!
{ $b cat /tmp/err; echo -n "$token"; } >&6 &
err=$!
stdin=/dev/null
if [ "$input" = input ]; then
    stdin=/tmp/in
    $b cat <&4 >/tmp/in 2>/dev/null &
fi

echo ready >&7
# The outer machine's root becomes that of a mount namespace: a process that has merely changed its root may not make
# user namespaces, which sandboxes want.
$b unshare -m $b sh -c 'b=/bin/busybox; cd /root && $b mount --move . / && exec $b chroot . /bin/sh "$0"' "$run/command" \
    <$stdin >/tmp/out 2>/tmp/err 4<&- 5>&- 6>&- 7>&- &
wait $!
code=$?

# What the command left running would keep its streams open.
for process in /proc/[0-9]*; do
    [ "$process/root" -ef /root ] && kill -9 "${process#/proc/}"
done
wait $out $err
$b sync
echo "status $code" >&7
# The outer side ends the machine.
$b sleep 1000
