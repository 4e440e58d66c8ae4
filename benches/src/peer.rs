//! Peers: other VMMs, each a data file in `benches/peers`, that boot the same kernel and initramfs on the same host.
//!
//! A peer has no mark port, so what is known of it is the guest's own clock, and how long its whole process took.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::Deserialize;

/// A VMM that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// How it is called in prose.
    pub title: String,
    /// The program, looked up in `PATH`.
    pub program: String,
    /// Which kernel it boots: `full` or `para`.
    pub kernel: String,
    /// What the guest must say that it has found; without it, that it found none.
    #[serde(default)]
    pub hypervisor: Option<String>,
    /// The most launches that are worth their time.
    #[serde(default)]
    pub launches: Option<u32>,
    /// How the guest restarts itself, which ends the program: the kernel's `reboot=`. `k` is the keyboard controller.
    #[serde(default = "keyboard")]
    pub reboot: String,
    /// Classes of host where it would say nothing, and why.
    #[serde(default)]
    pub absent_on: BTreeMap<String, String>,
    /// How many seconds a launch may take, where that is more than ours may.
    #[serde(default)]
    pub seconds: u64,
    /// The command line, with `{memory}`, `{cpus}`, `{kernel}`, `{initrd}`, `{cmdline}`, `{console}` and `{config}`.
    pub arguments: Vec<String>,
    /// Where the guest's console goes.
    #[serde(default)]
    pub console: ConsoleTo,
    /// A file that the program wants, `{config}` in its arguments.
    #[serde(default)]
    pub config: Option<String>,
}

fn keyboard() -> String {
    "k".to_owned()
}

/// Where a peer's guest's console goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleTo {
    /// To the file `{console}`.
    #[default]
    File,
    /// To the program's output.
    Stdout,
}

const FILES: &[(&str, &str)] = &[
    ("qemu-microvm", include_str!("../peers/qemu-microvm.toml")),
    ("qemu-q35", include_str!("../peers/qemu-q35.toml")),
    ("qemu-tcg", include_str!("../peers/qemu-tcg.toml")),
    ("firecracker", include_str!("../peers/firecracker.toml")),
];

static PEERS: LazyLock<BTreeMap<&str, Peer>> = LazyLock::new(|| {
    // A file that does not read is found by a test; its peer is then unknown.
    let read = |(name, text): &(&'static str, &str)| Some((*name, toml::from_str(text).ok()?));
    FILES.iter().filter_map(read).collect()
});

/// The names of all peers.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name)
}

/// The peer of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Peer> {
    PEERS.get(name)
}

impl Peer {
    /// Where its program is; `None` if it is not installed.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        let paths = env::var_os("PATH")?;
        env::split_paths(&paths)
            .map(|folder| folder.join(&self.program))
            .find(|path| path.is_file())
    }

    /// A text of the data file with its words filled in.
    #[must_use]
    pub fn fill(text: &str, words: &[(&str, &str)]) -> String {
        words.iter().fold(text.to_owned(), |text, (word, value)| {
            text.replace(&format!("{{{word}}}"), value)
        })
    }

    /// The kernel that it boots.
    #[must_use]
    pub fn kernel<'a>(&self, full: &'a Path, para: &'a Path) -> &'a Path {
        if self.kernel == "para" { para } else { full }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_data_file_is_a_peer() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .map(|name| name.strip_suffix(".toml").unwrap().to_owned())
            .collect();
        found.sort_unstable();
        assert_eq!(PEERS.keys().copied().collect::<Vec<_>>(), found);
        for peer in PEERS.values() {
            assert!(["full", "para"].contains(&peer.kernel.as_str()));
        }
    }

    #[test]
    fn words_are_filled_in() {
        let filled = Peer::fill("-m {memory}M {x}", &[("memory", "128")]);
        assert_eq!(filled, "-m 128M {x}");
    }
}
