//! A kernel image: an ELF file or a bzImage, as the loader reads it, and as reports read its symbols.

use std::os::unix::fs::FileExt;

use paravane::boot;
use paravane::boot::image::Image;
use paravane::config::{Config, Entry, Profile};
use paravane::crash::Symbols;
use paravane::memory::Memory;
use vmm_sys_util::tempfile::TempFile;

thread_local! {
    static MEMORY: Memory = Memory::new(32).expect("some megabytes can be had");
    static FILE: TempFile = TempFile::new().expect("a file can be had");
}

/// Entry.
pub fn run(data: &[u8]) {
    let memory = MEMORY.with(Memory::clone);
    FILE.with(|file| {
        let (file, path) = (file.as_file(), file.as_path());
        file.set_len(0).expect("the file can be emptied");
        file.write_all_at(data, 0).expect("the file takes bytes");
        for (profile, entry) in [(Profile::Full, Entry::Linux64), (Profile::Para, Entry::Pvh)] {
            let mut config = Config::of(profile, path.to_owned());
            config.entry = entry;
            config.memory_mib = 32;
            // Each answer is as good as another.
            let _ = boot::load(&config, &memory);
        }
        let image = Image::of(file);
        let _ = (
            image.start(),
            image.physical(u64::MAX),
            image.switcher_layout(),
        );
        let _ = Symbols::read(path).caller(0xffff_ffff_8100_0000);
    });
}
