//! Finding the ACPI RSDP (ACPI specification, 5.2.5).

use crate::physical::PhysicalMemory;

const SIGNATURE: &[u8] = b"RSD PTR ";
/// The length of the structure of ACPI 1.0, which the first checksum covers.
const LENGTH: u64 = 20;
/// Where the BIOS data area says which segment the extended BIOS data area is in.
const EBDA_SEGMENT: u64 = 0x40e;

/// The physical address of the RSDP: at `hint` or, where none is, in one of the places to search on a PC.
pub fn find(memory: &impl PhysicalMemory, hint: u64) -> Option<u64> {
    if is_rsdp(memory, hint) {
        return Some(hint);
    }
    let ebda = memory
        .read::<[u8; 2]>(EBDA_SEGMENT)
        .map_or(0, |segment| u64::from(u16::from_le_bytes(segment)) << 4);
    // Below 0x80000 no PC has an EBDA; the field is then something else, or nothing.
    let ebda = (0x8_0000..0xa_0000).contains(&ebda).then_some(ebda);
    let ebda = ebda.into_iter().flat_map(|start| start..start + 1024);
    ebda.chain(0xe_0000..0x10_0000)
        .step_by(16)
        .find(|&address| is_rsdp(memory, address))
}

/// Whether there is an RSDP at an address: signature and checksum.
fn is_rsdp(memory: &impl PhysicalMemory, address: u64) -> bool {
    memory.bytes(address, LENGTH).is_some_and(|bytes| {
        bytes.starts_with(SIGNATURE) && bytes.iter().fold(0u8, |sum, &b| sum.wrapping_add(b)) == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::Fake;

    /// The first MiB, with a sound RSDP at each of these addresses.
    fn first_mib(rsdps: &[usize]) -> Fake {
        let mut bytes = vec![0; 1 << 20];
        for &at in rsdps {
            bytes[at..at + 8].copy_from_slice(SIGNATURE);
            bytes[at + 15] = 2;
            let sum = bytes[at..at + 20]
                .iter()
                .fold(0u8, |sum, &b| sum.wrapping_add(b));
            bytes[at + 8] = 0u8.wrapping_sub(sum);
        }
        Fake { base: 0, bytes }
    }

    #[test]
    fn the_hint_is_used_where_it_is_right() {
        assert_eq!(find(&first_mib(&[0xf_5250]), 0xf_5250), Some(0xf_5250));
        assert_eq!(find(&first_mib(&[0x1234, 0xf_5250]), 0x1234), Some(0x1234));
    }

    #[test]
    fn a_wrong_hint_makes_it_search() {
        let memory = first_mib(&[0xf_5250]);
        for hint in [0, 8, 0xf_5240, 0xf_fff8, 1 << 40, u64::MAX] {
            assert_eq!(find(&memory, hint), Some(0xf_5250), "hint {hint:#x}");
        }
    }

    #[test]
    fn a_wrong_checksum_is_no_rsdp() {
        let mut memory = first_mib(&[0xf_5250]);
        memory.bytes[0xf_5250 + 16] ^= 1;
        assert_eq!(find(&memory, 0xf_5250), None);
    }

    #[test]
    fn the_extended_bios_data_area_is_searched_where_there_is_one() {
        let mut memory = first_mib(&[0x9_fc40, 0xe_0010]);
        assert_eq!(find(&memory, 0), Some(0xe_0010));
        memory.bytes[0x40e..0x410].copy_from_slice(&0x9fc0u16.to_le_bytes());
        assert_eq!(find(&memory, 0), Some(0x9_fc40));
        // A segment that is none.
        memory.bytes[0x40e..0x410].copy_from_slice(&0xffffu16.to_le_bytes());
        assert_eq!(find(&memory, 0), Some(0xe_0010));
    }

    #[test]
    fn nothing_is_found_where_there_is_nothing() {
        assert_eq!(find(&first_mib(&[]), 0), None);
        // Not even memory.
        let memory = Fake {
            base: 0x1000,
            bytes: Vec::new(),
        };
        assert_eq!(find(&memory, 0xf_5250), None);
    }
}
