//! The bare-metal guest's image, embedded: its segments and its symbols.

use std::collections::HashMap;
use std::sync::OnceLock;

use object::{Object, ObjectSegment, ObjectSymbol};
use thiserror::Error;

/// Where things are in the guest; the guest compiles the same file.
#[path = "../../../benches/bare-metal/src/layout.rs"]
pub mod layout;

/// The ELF file that `build.rs` has made. It can be booted like a kernel, too.
pub static ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bare-metal"));

/// The same guest, entered where it checks its host by itself and prints TAP: for any VMM.
pub static CONFORMANCE_ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/conformance-guest"));

/// The embedded guest is not what this binary expects.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Not an ELF file.
    #[error("the embedded bare-metal guest cannot be read; build Paravane again")]
    Elf(#[from] object::Error),
    /// A symbol is missing.
    #[error("the embedded bare-metal guest has no symbol `{0}`; build Paravane again")]
    Symbol(String),
}

/// The guest's memory contents and where its probes begin.
#[derive(Debug)]
pub struct Image {
    /// Guest physical address and bytes of each segment.
    pub segments: Vec<(u64, &'static [u8])>,
    symbols: HashMap<&'static str, u64>,
}

impl Image {
    /// Reads the embedded ELF file, once.
    ///
    /// # Errors
    ///
    /// When it is no ELF file.
    pub fn load() -> Result<&'static Self, ImageError> {
        static IMAGE: OnceLock<Image> = OnceLock::new();
        if let Some(image) = IMAGE.get() {
            return Ok(image);
        }
        let image = Self::parse()?;
        Ok(IMAGE.get_or_init(|| image))
    }

    fn parse() -> Result<Self, ImageError> {
        let elf = object::File::parse(ELF)?;
        let segments = elf
            .segments()
            .map(|segment| Ok((segment.address(), segment.data()?)))
            .collect::<Result<_, object::Error>>()?;
        let symbols = elf
            .symbols()
            .filter_map(|symbol| Some((symbol.name().ok()?, symbol.address())))
            .collect();
        Ok(Self { segments, symbols })
    }

    /// The address of a probe or handler.
    ///
    /// # Errors
    ///
    /// When the image has no such symbol.
    pub fn symbol(&self, name: &str) -> Result<u64, ImageError> {
        self.symbols
            .get(name)
            .copied()
            .ok_or_else(|| ImageError::Symbol(name.to_owned()))
    }
}
