/// What the C compiler driver is told when it links the bare-metal guest. The linker script comes
/// on top, as its path differs. Shared, by `include!`, between this crate's build script and
/// `host-vmm`'s, which embeds the guest.
const LINK_ARGS: [&str; 5] = [
    "-nostartfiles",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none,-z,max-page-size=4096",
];
