# Makes a guest of a fresh Debian; mmdebstrap runs it, with the new root folder as its argument.
set -eu
cd "$1"
echo paravane >etc/hostname
printf '127.0.0.1\tlocalhost\n127.0.1.1\tparavane\n' >etc/hosts

# The kernel mounts the root file system (root=), for writing.
echo '/dev/root / auto defaults 0 0' >etc/fstab

# Whatever card there is asks for an address; without one, nobody waits.
cat >etc/network/interfaces <<'END'
auto lo /eth*
iface lo inet loopback
iface eth0 inet dhcp
END

# A boot of a few lines: Debian's own scripts check and mount what a guest does not have, and on a slow host that takes a
# minute.
cat >etc/inittab <<'END'
id:2:initdefault:
si::sysinit:/usr/local/sbin/guest-start
co:2:respawn:/usr/local/sbin/console-login
l0:0:wait:/usr/local/sbin/guest-end poweroff
l6:6:wait:/usr/local/sbin/guest-end reboot
ca:12345:ctrlaltdel:/sbin/shutdown -r now
END
cat >usr/local/sbin/guest-start <<'END'
#!/bin/sh
mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev shm /dev/shm
hostname -F /etc/hostname
rm -rf /run/network /tmp/*
mkdir -p /run/network
ifup --all >/run/network/log 2>&1 &
END
cat >usr/local/sbin/guest-end <<'END'
#!/bin/sh
killall5 -15
sleep 1
killall5 -9
mount -o remount,ro /
# A PC without ACPI cannot switch itself off; a VMM ends it when it restarts.
dmesg | grep -q 'Hypervisor detected: Paravane' || set -- reboot
exec "$1" -d -f
END

# A console is a UART or a ring, and the kernel knows which.
cat >usr/local/sbin/console-login <<'END'
#!/bin/sh
read -r all </sys/class/tty/console/active
exec /sbin/agetty --noclear --local-line "${all##* }" 115200 vt102
END
chmod 755 usr/local/sbin/*

passwd --root "$PWD" --delete root >/dev/null
cat >etc/issue <<'END'
Debian GNU/Linux 12 on Paravane, \r, \l
Log in as root; there is no password. Set one (passwd) before anybody else can reach this machine.

END
