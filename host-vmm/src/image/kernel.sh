# Says what Debian's kernel needs to find its root file system on a full guest's devices; mmdebstrap runs it before the
# package makes an initramfs, with the new root folder as its argument.
set -eu
cd "$1"
mkdir -p etc/initramfs-tools/conf.d usr/share/initramfs-tools/modules.d etc/systemd/network
printf 'MODULES=list\nROOT=/dev/sda\nreadonly=n\n' >etc/initramfs-tools/conf.d/guest
printf '%s\n' ata_piix sd_mod ext4 ne2k-pci >usr/share/initramfs-tools/modules.d/guest
# The network card is eth0, as where no udev renames it.
printf '[Match]\nOriginalName=*\n[Link]\nNamePolicy=kernel\n' >etc/systemd/network/10-kernel.link
