//! XSAVE, XRSTOR and XGETBV: the FPU's state between a vCPU and guest memory, in the standard form, which is KVM's, too.

use std::arch::x86_64::__cpuid_count;
use std::ops::Range;

use iced_x86::Instruction;
use kvm_bindings::kvm_xsave;

use super::Stopped;
use super::operand::Fault;

/// Bytes of KVM's image.
const IMAGE: usize = 4096;
const MXCSR: Range<usize> = 24..32;
/// Which components the image has.
const HEADER: Range<usize> = 512..520;
const HEADER_END: usize = 576;
/// Components with a place of their own.
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;

type Image = [u8; IMAGE];

/// Where component `number` lies in an image.
fn place(number: u32) -> Range<usize> {
    match number {
        0 => 0..160,
        1 => 160..416,
        _ => {
            let leaf = __cpuid_count(0xd, number);
            let start = leaf.ebx as usize;
            start..start + leaf.eax as usize
        }
    }
}

fn components(mask: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    let numbers = (0..63_u32).filter(move |number| mask >> number & 1 != 0);
    numbers
        .map(|number| (1 << number, place(number)))
        .filter(|(_, place)| place.end <= IMAGE)
}

/// The first byte after the last of these components.
fn end(mask: u64) -> usize {
    let ends = components(mask).map(|(_, place)| place.end);
    ends.max().unwrap_or(0).max(HEADER_END)
}

fn header(image: &Image) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&image[HEADER]);
    u64::from_le_bytes(bytes)
}

/// Makes components of `to` what they are in `from`. Those that `from` does not have are initial.
fn transfer(to: &mut Image, from: &Image, mask: u64) {
    let present = header(from);
    for (bit, place) in components(mask) {
        if present & bit != 0 {
            to[place.clone()].copy_from_slice(&from[place]);
        }
    }
    if mask & (SSE | AVX) != 0 {
        to[MXCSR].copy_from_slice(&from[MXCSR]);
    }
    let header = header(to) & !mask | present & mask;
    to[HEADER].copy_from_slice(&header.to_le_bytes());
}

impl Stopped<'_> {
    /// XGETBV.
    pub(super) fn read_xcr(&mut self) -> Result<(), Fault> {
        if self.regs.rcx & u64::from(u32::MAX) != 0 {
            return Err(Fault::Unknown);
        }
        let enabled = self.enabled()?;
        self.regs.rax = enabled & u64::from(u32::MAX);
        self.regs.rdx = enabled >> 32;
        Ok(())
    }

    /// XRSTOR.
    pub(super) fn restore(&self, instruction: &Instruction) -> Result<(), Fault> {
        let mask = self.mask()?;
        let address = self.address(instruction, 0)?;
        let mut from = [0; IMAGE];
        self.read(address, &mut from[..end(mask)])?;
        let mut state = self.state()?;
        transfer(&mut state, &from, mask);
        let mut image = kvm_xsave::default();
        for (word, bytes) in image.region.iter_mut().zip(state.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        // SAFETY: no component beyond the image is enabled: XCR0 is what CPUID told the guest.
        unsafe { self.fd.set_xsave(&image) }?;
        Ok(())
    }

    /// XSAVE; XSAVEOPT may leave out what it likes, and leaves out nothing.
    pub(super) fn save(&self, instruction: &Instruction) -> Result<(), Fault> {
        let mask = self.mask()?;
        let address = self.address(instruction, 0)?;
        let length = end(mask);
        let mut to = [0; IMAGE];
        self.read(address, &mut to[..length])?;
        transfer(&mut to, &self.state()?, mask);
        self.write(address, &to[..length])
    }

    /// The components that an instruction is about.
    fn mask(&self) -> Result<u64, Fault> {
        let asked = self.regs.rdx << 32 | self.regs.rax & u64::from(u32::MAX);
        Ok(asked & self.enabled()?)
    }

    /// XCR0.
    fn enabled(&self) -> Result<u64, Fault> {
        let all = self.fd.get_xcrs()?;
        let first = all.xcrs.iter().find(|register| register.xcr == 0);
        Ok(first.map_or(X87, |register| register.value))
    }

    fn state(&self) -> Result<Image, Fault> {
        let image = self.fd.get_xsave()?;
        let mut state = [0; IMAGE];
        for (bytes, word) in state.as_chunks_mut().0.iter_mut().zip(image.region) {
            *bytes = word.to_le_bytes();
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use std::arch::asm;

    use proptest::prelude::*;

    use super::*;

    /// As the instructions want it.
    #[repr(align(64))]
    struct Aligned(Image);

    /// What a component has: its bytes, or zeroes where it is initial.
    fn content(image: &Image, bit: u64, place: Range<usize>) -> Vec<u8> {
        if header(image) & bit == 0 {
            vec![0; place.len()]
        } else {
            image[place].to_vec()
        }
    }

    fn image(present: u64, bytes: &[u8]) -> Aligned {
        let mut image = [0; IMAGE];
        for (_, place) in components(present) {
            let part = &mut image[place];
            let length = part.len();
            part.copy_from_slice(&bytes[..length]);
        }
        image[MXCSR].copy_from_slice(&0xffff_0000_1f80_u64.to_le_bytes());
        image[HEADER].copy_from_slice(&present.to_le_bytes());
        Aligned(image)
    }

    proptest! {
        #[test]
        fn xrstor_and_xsave_do_as_the_processor_does(
            (first, second, mask) in (0_u64..4, 0_u64..4, 0_u64..4).prop_map(|(a, b, c)| (a << 1, b << 1, c << 1)),
            one in proptest::collection::vec(any::<u8>(), 512),
            two in proptest::collection::vec(any::<u8>(), 512),
        ) {
            if !std::arch::is_x86_feature_detected!("avx") {
                return Ok(());
            }
            let (one, two) = (image(first, &one), image(second, &two));
            let mut theirs = Aligned([0; IMAGE]);
            // SAFETY: the images are aligned, of good form, and have SSE and AVX state alone; all of that is given up here.
            unsafe {
                asm!(
                    "xrstor [{one}]",
                    "mov eax, {mask:e}",
                    "xrstor [{two}]",
                    "mov eax, 6",
                    "xsave [{theirs}]",
                    one = in(reg) &one,
                    two = in(reg) &two,
                    theirs = in(reg) &raw mut theirs,
                    mask = in(reg) mask,
                    inout("eax") 6 => _,
                    in("edx") 0,
                    clobber_abi("C"),
                );
            }
            let mut ours = [0; IMAGE];
            transfer(&mut ours, &one.0, SSE | AVX);
            transfer(&mut ours, &two.0, mask);
            for (bit, place) in components(SSE | AVX) {
                prop_assert_eq!(content(&ours, bit, place.clone()), content(&theirs.0, bit, place));
            }
        }
    }
}
