//! Resources read straight out of the DSDT's byte code.
//!
//! Resource descriptors describe themselves (type, length, then fields that must agree), so they can be found in the
//! byte stream without interpreting the program around them. It is enough for QEMU's machines, whose DSDTs state their
//! resources as constants.

use alloc::vec::Vec;
use core::ops::Range;

/// A virtio-mmio transport as the DSDT names it.
#[derive(Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// The physical address of its registers.
    pub address: u64,
    /// How many bytes of registers.
    pub bytes: u32,
    /// Its global interrupt number.
    pub interrupt: u32,
}

/// `\_S5`: the sleep type of "switched off", the first element of its package.
pub fn soft_off(code: &[u8]) -> Option<u8> {
    const NAME_OP: u8 = 0x08;
    const PACKAGE_OP: u8 = 0x12;
    const BYTE_PREFIX: u8 = 0x0a;
    positions(code, b"_S5_").find_map(|at| {
        let before = code.get(at.checked_sub(2)?..at)?;
        let named = before[1] == NAME_OP || before == [NAME_OP, b'\\'];
        let package = code.get(at + 4..)?;
        if !named || *package.first()? != PACKAGE_OP {
            return None;
        }
        // The package length takes 1 byte and as many more as its two top bits say; then the element count.
        let length_bytes = 1 + usize::from(package.get(1)? >> 6);
        let element = package.get(1 + length_bytes + 1..)?;
        match *element.first()? {
            BYTE_PREFIX => element.get(1).copied(),
            // ZeroOp and OneOp.
            value @ (0 | 1) => Some(value),
            _ => None,
        }
        .filter(|value| *value < 8)
    })
}

/// The virtio-mmio transports: devices of id `LNRO0005`, each with one memory range and one interrupt.
pub fn virtio_mmio(code: &[u8]) -> Vec<VirtioMmio> {
    // 32-bit fixed memory: length 9, writable, base, length. Extended interrupt: length 6, flags, one number.
    let descriptors = |after: &[u8]| {
        let memory = positions(after, &[0x86, 0x09, 0x00]).next()?;
        let address = u32_at(after, memory + 4)?;
        let bytes = u32_at(after, memory + 8)?;
        let interrupt = after.get(memory + 12..)?;
        let is_interrupt =
            interrupt.starts_with(&[0x89, 0x06, 0x00]) && interrupt.get(4) == Some(&1);
        let interrupt = u32_at(interrupt, 5).filter(|_| is_interrupt)?;
        Some(VirtioMmio {
            address: u64::from(address),
            bytes,
            interrupt,
        })
    };
    positions(code, b"LNRO0005")
        .filter_map(|at| descriptors(code.get(at..at + 128).or(code.get(at..))?))
        .collect()
}

/// The global interrupt number that a pin (0 is INTA) of a device on the root bus is wired to: the entry of a constant
/// `_PRT` package that names the device and the pin, and the interrupt of the link device that the entry names.
pub fn pci_interrupt(code: &[u8], device: u8, pin: u8) -> Option<u32> {
    const PACKAGE_OF_FOUR: u8 = 4;
    let entries = positions(code, &[0x12]).filter_map(|at| {
        let (length, rest) = code.get(at + 1..)?.split_first()?;
        // Such an entry is short: its length takes one byte.
        let rest = rest
            .get(..usize::from(*length))?
            .strip_prefix(&[PACKAGE_OF_FOUR])?;
        let (address, rest) = integer(rest)?;
        let (entry_pin, link) = integer(rest)?;
        let matches = address == u64::from(device) << 16 | 0xffff && entry_pin == u64::from(pin);
        link.first_chunk::<4>().filter(|_| matches)
    });
    entries.filter_map(|link| link_interrupt(code, link)).next()
}

/// The interrupt of an interrupt link device (`PNP0C0F`) with constant resources.
fn link_interrupt(code: &[u8], name: &[u8; 4]) -> Option<u32> {
    const DEVICE: [u8; 2] = [0x5b, 0x82];
    positions(code, name).find_map(|at| {
        // Before the name: the operator and the length, of one or two bytes.
        let is_device = |length: usize| {
            at.checked_sub(length + 2)
                .is_some_and(|at| code[at..].starts_with(&DEVICE))
        };
        if !is_device(1) && !is_device(2) {
            return None;
        }
        let body = code.get(at..at + 80).or(code.get(at..))?;
        positions(body, b"PNP0C0F").next()?;
        let resources = positions(body, b"_CRS").next()?;
        let resources = body.get(resources..)?;
        let interrupt = positions(resources, &[0x89, 0x06, 0x00]).next()?;
        u32_at(resources, interrupt + 5)
    })
}

/// A constant integer, and what follows it.
fn integer(code: &[u8]) -> Option<(u64, &[u8])> {
    let (prefix, rest) = code.split_first()?;
    let bytes = match prefix {
        // ZeroOp, OneOp.
        0 | 1 => return Some((u64::from(*prefix), rest)),
        0x0a => 1,
        0x0b => 2,
        0x0c => 4,
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(bytes)?;
    let value = value
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte));
    Some((value, rest))
}

/// The root buses that host bridges name as theirs: `_BBN`, where it is a constant. The bridge of bus 0 need not say so.
pub fn root_buses(code: &[u8]) -> Vec<u8> {
    const NAME_OP: u8 = 0x08;
    let buses = positions(code, b"_BBN").filter_map(|at| {
        let named = code.get(..at)?.last() == Some(&NAME_OP);
        let (bus, _) = integer(code.get(at + 4..)?).filter(|_| named)?;
        u8::try_from(bus).ok()
    });
    buses.collect()
}

/// PCI configuration space in memory: what the host bridge's `_CBA` returns, up to the end of the range reserved for it.
pub fn ecam(code: &[u8]) -> Option<Range<u64>> {
    const RETURN_OP: u8 = 0xa4;
    let base = positions(code, b"_CBA").find_map(|at| {
        // After the name: the method's flags, then `Return` and the address.
        let body = code.get(at + 5..)?.strip_prefix(&[RETURN_OP])?;
        integer(body).map(|(base, _)| base)
    })?;
    let reserved = pci_windows(code)
        .into_iter()
        .find(|window| window.contains(&base))?;
    Some(base..reserved.end)
}

/// The address ranges that are handed to PCI: 32-bit and 64-bit memory windows of the host bridge.
pub fn pci_windows(code: &[u8]) -> Vec<Range<u64>> {
    const MEMORY: u8 = 0;
    let dwords = positions(code, &[0x87, 0x17, 0x00, MEMORY]).filter_map(|at| {
        let field = |index: usize| u32_at(code, at + 6 + index * 4).map(u64::from);
        window(field(1)?, field(2)?, field(4)?)
    });
    let qwords = positions(code, &[0x8a, 0x2b, 0x00, MEMORY]).filter_map(|at| {
        let field = |index: usize| u64_at(code, at + 6 + index * 8);
        window(field(1)?, field(2)?, field(4)?)
    });
    dwords.chain(qwords).collect()
}

/// A window is believed if its minimum, maximum and length agree.
fn window(first: u64, last: u64, length: u64) -> Option<Range<u64>> {
    let end = last.checked_add(1)?;
    (first < end && end - first == length).then_some(first..end)
}

fn positions<'a>(code: &'a [u8], pattern: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let begins = move |first: &u8| memchr::memchr_iter(*first, code);
    let starts = pattern.first().into_iter().flat_map(begins);
    starts.filter(move |at| {
        code.get(*at..)
            .is_some_and(|rest| rest.starts_with(pattern))
    })
}

fn u32_at(code: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*code.get(at..)?.first_chunk()?))
}

fn u64_at(code: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*code.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_off_is_read_from_either_way_of_writing_the_name() {
        // Name (_S5, Package (0x04) { 5, 0, 0, 0 }), as iasl writes it.
        let code = [
            0, 0x08, b'_', b'S', b'5', b'_', 0x12, 0x07, 0x04, 0x0a, 5, 0, 0, 0,
        ];
        assert_eq!(soft_off(&code), Some(5));
        let rooted = [
            8, b'\\', b'_', b'S', b'5', b'_', 0x12, 0x06, 0x04, 0, 0, 0, 0,
        ];
        assert_eq!(soft_off(&rooted), Some(0));
    }

    #[test]
    fn soft_off_that_is_cut_short_or_absurd_is_not_believed() {
        let code = [0, 0x08, b'_', b'S', b'5', b'_', 0x12, 0x07, 0x04, 0x0a, 5];
        for length in 0..code.len() {
            assert_eq!(soft_off(&code[..length]), None);
        }
        assert_eq!(
            soft_off(&[0, 8, b'_', b'S', b'5', b'_', 0x12, 0x07, 4, 0x0a, 77]),
            None
        );
        assert_eq!(soft_off(b"_S5_"), None);
    }

    #[test]
    fn a_virtio_mmio_device_needs_its_interrupt() {
        let mut code = [0; 64];
        code[3..11].copy_from_slice(b"LNRO0005");
        code[20..24].copy_from_slice(&[0x86, 9, 0, 1]);
        code[24..28].copy_from_slice(&0xfeb0_0e00_u32.to_le_bytes());
        code[28..32].copy_from_slice(&512_u32.to_le_bytes());
        assert_eq!(virtio_mmio(&code), []);
        code[32..37].copy_from_slice(&[0x89, 6, 0, 1, 1]);
        code[37..41].copy_from_slice(&23_u32.to_le_bytes());
        let device = VirtioMmio {
            address: 0xfeb0_0e00,
            bytes: 512,
            interrupt: 23,
        };
        assert_eq!(virtio_mmio(&code), [device]);
    }

    #[test]
    fn a_pci_pin_is_followed_to_its_link_device() {
        let mut code = b"\x08_PRT\x12\x1c\x02\x12\x0b\x04\x0b\xff\xff\x00L000\x00\x12\x0d\x04\x0c\xff\xff\x01\x00\x0a\x02L001\x00".to_vec();
        assert_eq!(pci_interrupt(&code, 0, 0), None);
        for (name, number) in [(b"L000", 16), (b"L001", 17)] {
            code.extend_from_slice(b"[\x82I\x04");
            code.extend_from_slice(name);
            code.extend_from_slice(
                b"\x08_HID\rPNP0C0F\x00\x08_CRS\x11\x0e\n\x0b\x89\x06\x00\x01\x01",
            );
            code.extend_from_slice(&[number, 0, 0, 0]);
        }
        assert_eq!(pci_interrupt(&code, 0, 0), Some(16));
        assert_eq!(pci_interrupt(&code, 1, 2), Some(17));
        assert_eq!(pci_interrupt(&code, 1, 0), None);
        assert_eq!(pci_interrupt(&code, 2, 0), None);
        for length in 0..code.len() {
            pci_interrupt(&code[..length], 1, 2);
        }
    }

    #[test]
    fn root_buses_are_what_host_bridges_name() {
        // Device (PC80) { Name (_HID, "PNP0A08") Name (_BBN, 0x80) }, and others; not one that is computed or too large.
        let code = b"[\x82PC80\x08_HID\rPNP0A08\0\x08_BBN\x0a\x80\x08_BBN\x01\x08_BBN\x0b\x20\0\
            \x14\x0e_BBN\0\xa4\0\x08_BBN\x0b\0\x01\x08_BBNXX\x08_BBN";
        assert_eq!(root_buses(code), [0x80, 1, 0x20]);
        for length in 0..code.len() {
            root_buses(&code[..length]);
        }
    }

    #[test]
    fn configuration_space_is_what_the_host_bridge_returns() {
        let mut code = b"\x14\x0c_CBA\x00\xa4\x0c\x00\x00\x00\xe0\x08_CRS".to_vec();
        assert_eq!(ecam(&code), None);
        code.extend_from_slice(&[0x8a, 0x2b, 0, 0, 0x0c, 1]);
        for field in [0, 0xe000_0000, 0xefff_ffff, 0, 0x1000_0000_u64] {
            code.extend_from_slice(&field.to_le_bytes());
        }
        assert_eq!(ecam(&code), Some(0xe000_0000..0xf000_0000));
    }

    #[test]
    fn windows_must_agree_with_their_length() {
        let mut code = [0; 80];
        code[0..6].copy_from_slice(&[0x87, 0x17, 0, 0, 0x0c, 1]);
        code[10..14].copy_from_slice(&0xc000_0000_u32.to_le_bytes());
        code[14..18].copy_from_slice(&0xdfff_ffff_u32.to_le_bytes());
        code[22..26].copy_from_slice(&0x2000_0000_u32.to_le_bytes());
        assert_eq!(
            pci_windows(&code).first(),
            Some(&(0xc000_0000..0xe000_0000))
        );
        code[22] = 1;
        assert_eq!(pci_windows(&code), []);
    }
}
