//! What starting a VMM has touched and running one does not need: pages of the program's and its libraries' files, and free memory of the heap, given back
//! once the guest has booted.
//!
//! The kernel maps sixteen pages around each one that is touched, and building a machine touches most of the program once. What the run loop needs comes back by a
//! few minor faults, from the page cache.

/// The part of `dl_phdr_info` that a segment is found by.
fn segment(base: u64, header: &libc::Elf64_Phdr) -> Option<(usize, usize)> {
    const PAGE: u64 = 4096;
    let is_file = header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    let start = base.wrapping_add(header.p_vaddr) & !(PAGE - 1);
    let end = base
        .wrapping_add(header.p_vaddr)
        .wrapping_add(header.p_filesz);
    let length = usize::try_from(end.checked_sub(start)?).ok()?;
    is_file.then_some((usize::try_from(start).ok()?, length))
}

/// Gives back the pages of all segments that cannot be written to, which are those of files, as relocations are made elsewhere; and the heap's free ones.
pub fn give_back() {
    // SAFETY: the C library gives back pages of its own that nobody has allocated.
    unsafe { libc::malloc_trim(0) };
    // SAFETY: the callback is called with structures that live as long as it runs, and keeps nothing of them.
    unsafe { libc::dl_iterate_phdr(Some(give_back_one), std::ptr::null_mut()) };
}

unsafe extern "C" fn give_back_one(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: dl_iterate_phdr gives a structure that lives.
    let info = unsafe { &*info };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: and a table of so many headers, which lives as the loaded file does.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    for (start, length) in headers.iter().filter_map(|h| segment(info.dlpi_addr, h)) {
        // SAFETY: the range is a private mapping of a file that nobody has written to: what is read there next is what has
        // been there. Where it cannot be given back (the vDSO), it stays.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
    0
}

#[cfg(test)]
mod tests {
    use std::fs;

    #[test]
    fn what_is_given_back_comes_again() {
        let shared = || {
            let text = fs::read_to_string("/proc/self/statm").unwrap();
            text.split(' ').nth(2).unwrap().parse::<u64>().unwrap()
        };
        let before = shared();
        super::give_back();
        // Other tests run beside this one, and touch theirs; all of it they do not.
        assert!(shared() < before, "{before} pages of files");
    }
}
