#!/bin/busybox sh
# The first process of a guest that runs the kernel's own tests: a line before and after each, then the end.
# What the kernel's command line has after `--`: how the machine ends, then the numbers of the tests.

export PATH=/bin UID=0
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmp /tmp
mkdir /dev/shm
mount -t tmpfs shm /dev/shm
# The tests' own messages are what is wanted.
dmesg -n 1

end=$1
shift
for number in "$@"; do
    line=$(sed -n "${number}p" /tests/list)
    set -- $line
    test=$1 limit=$2
    shift 2
    cd "/tests/${test%/*}"
    echo "SELFTEST-BEGIN $number"
    case $test in
        *.sh) timeout -s KILL "$limit" sh "./${test##*/}" "$@" ;;
        *) timeout -s KILL "$limit" "./${test##*/}" "$@" ;;
    esac
    echo "SELFTEST-END $number $?"
done
"$end" -f
