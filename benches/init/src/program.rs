//! Programs of a distribution: a shell command in the root file system that is on the first disk.
//!
//! The root is mounted for reading, so that every arm may have the same image; the second disk, new and empty, becomes
//! `/srv`, and what is in memory is `/tmp`. All of that comes before the first mark.

use core::ffi::CStr;
use core::fmt::Write as _;

use crate::jobs::Watch;
use crate::sys::{self, EBUSY, ECHILD, EINVAL, ENOENT, Errno};
use crate::text::Text;

const ROOT: &CStr = c"/mnt";

/// Where the root may be, and what makes `/srv` of the other disk: virtio's first, then IDE's, which Linux names in the
/// order in which their probing, on several threads, comes to an end.
const DISKS: [(&CStr, &CStr); 3] = [
    (c"/dev/vda", c"mke2fs -qF /dev/vdb && mount /dev/vdb /srv"),
    (c"/dev/sda", c"mke2fs -qF /dev/sdb && mount /dev/sdb /srv"),
    (c"/dev/sdb", c"mke2fs -qF /dev/sda && mount /dev/sda /srv"),
];

/// Runs `command`, which finds the number of its rounds in `$ROUNDS`.
pub(crate) fn run(watch: &mut Watch<'_>, command: &CStr, rounds: usize) -> Result<(), Errno> {
    prepare()?;
    let mut variable = Text::<32>::new();
    let _ = write!(variable, "ROUNDS={rounds}\0");
    let variable = CStr::from_bytes_with_nul(variable.as_bytes()).unwrap_or(c"ROUNDS=1");
    watch.time(|| shell(command, variable))
}

/// Mounts the root and what belongs into it; a second job finds it there.
fn prepare() -> Result<(), Errno> {
    let mut scratch = Err(ENOENT);
    for (disk, of_the_other) in DISKS {
        scratch = sys::mount_disk(disk, c"ext4", ROOT).map(|()| of_the_other);
        // No such disk, or no file system on it: it is not the root.
        if !matches!(scratch, Err(ENOENT | EINVAL)) {
            break;
        }
    }
    let scratch = match scratch {
        Err(EBUSY) => return Ok(()),
        result => result?,
    };
    sys::mount(c"devtmpfs", c"/mnt/dev")?;
    sys::mount(c"proc", c"/mnt/proc")?;
    sys::mount(c"tmpfs", c"/mnt/tmp")?;
    sys::mount(c"tmpfs", c"/mnt/run")?;
    shell(scratch, c"ROUNDS=1")
}

/// Runs a shell command in the root, and waits for its end.
fn shell(command: &CStr, rounds: &CStr) -> Result<(), Errno> {
    let shell = sys::fork()?;
    if shell == 0 {
        let path = c"PATH=/usr/sbin:/usr/bin:/sbin:/bin";
        let errno = match sys::change_root(ROOT) {
            Ok(()) => sys::execute(c"/bin/sh", [c"sh", c"-ec", command], [path, rounds]),
            Err(errno) => errno,
        };
        crate::complain("a program's shell cannot be started", errno);
        sys::exit(1);
    }
    // What the command has left running may end before it, and comes to this process.
    loop {
        let (child, status) = sys::wait_status()?;
        if child == shell {
            return if status == 0 { Ok(()) } else { Err(ECHILD) };
        }
    }
}
