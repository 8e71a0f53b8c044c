//! The kernel's virtual address space: who gets which part.
//!
//! Parts without a fixed address get whole entries of the level 4 page table, 512 GiB each, as the
//! `bootloader` crate does it: generous, and no two parts can meet.

use core::ops::RangeInclusive;

use x86_64::VirtAddr;

use crate::error::Error;

/// What one entry of the level 4 page table spans.
pub const ENTRY_SIZE: u64 = 1 << 39;
/// Entries in one half of the address space.
const HALF: usize = 256;

/// Which entries of the level 4 page table are taken.
pub struct AddressSpace {
    used: [bool; 2 * HALF],
}

impl AddressSpace {
    /// An address space with dynamic addresses in `from..=to` only. The first entry is never given
    /// away: it has address 0, and the page that the loader shares with the kernel.
    pub fn new(from: Option<u64>, to: Option<u64>) -> Result<Self, Error> {
        let first = match from {
            Some(from) => {
                let from = canonical("the dynamic range", from)?;
                let index = usize::from(from.p4_index());
                index + usize::from(!from.is_aligned(ENTRY_SIZE))
            }
            None => 0,
        };
        let last = match to {
            Some(to) => {
                let to = canonical("the dynamic range", to)?;
                // The highest address itself: all but the last page of an entry will do.
                let end = to.as_u64() | 0xfff;
                usize::from(to.p4_index()) + usize::from(end % ENTRY_SIZE == ENTRY_SIZE - 1)
            }
            None => 2 * HALF,
        };
        let mut used = [true; 2 * HALF];
        for entry in used.iter_mut().take(last).skip(first.max(1)) {
            *entry = false;
        }
        Ok(Self { used })
    }

    /// Marks a part at a fixed address as taken.
    pub fn take(&mut self, what: &'static str, start: u64, length: u64) -> Result<(), Error> {
        for index in indices(what, start, length)? {
            if let Some(entry) = self.used.get_mut(index) {
                *entry = true;
            }
        }
        Ok(())
    }

    /// A free address for `length` bytes, at the start of an entry. The upper half comes first:
    /// it is where kernels live.
    pub fn find(&mut self, what: &'static str, length: u64) -> Result<u64, Error> {
        let count = usize::try_from(length.div_ceil(ENTRY_SIZE).max(1)).unwrap_or(usize::MAX);
        let upper = HALF..2 * HALF;
        let lower = 0..HALF;
        let full = Error::Mapping {
            what,
            address: 0,
            reason: "no room in the address space",
        };
        for half in [upper, lower] {
            let offset = half.start;
            let Some(entries) = self.used.get_mut(half) else {
                continue;
            };
            let free = entries
                .windows(count)
                .position(|window| window.iter().all(|used| !used));
            if let Some(free) = free {
                entries
                    .iter_mut()
                    .skip(free)
                    .take(count)
                    .for_each(|entry| *entry = true);
                return Ok(VirtAddr::new_truncate((offset + free) as u64 * ENTRY_SIZE).as_u64());
            }
        }
        Err(full)
    }
}

/// An address as one that the CPU accepts.
pub fn canonical(what: &'static str, address: u64) -> Result<VirtAddr, Error> {
    VirtAddr::try_new(address).map_err(|_| Error::Mapping {
        what,
        address,
        reason: "not an address of this CPU",
    })
}

/// The level 4 entries of a part, which must lie in one half of the address space.
fn indices(what: &'static str, start: u64, length: u64) -> Result<RangeInclusive<usize>, Error> {
    let first = canonical(what, start)?;
    let last = start
        .checked_add(length.saturating_sub(1))
        .and_then(|last| VirtAddr::try_new(last).ok())
        .filter(|last| (last.as_u64() ^ start) >> 63 == 0)
        .ok_or(Error::Mapping {
            what,
            address: start,
            reason: "it ends outside of the address space",
        })?;
    Ok(usize::from(first.p4_index())..=usize::from(last.p4_index()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPPER: u64 = 0xffff_8000_0000_0000;

    #[test]
    fn the_upper_half_is_first_and_nothing_is_given_twice() {
        let mut space = AddressSpace::new(None, None).unwrap();
        space.take("kernel", 0xffff_ffff_8000_0000, 0x1000).unwrap();
        space.take("stack", UPPER + ENTRY_SIZE, 0x1000).unwrap();
        assert_eq!(space.find("a", 1), Ok(UPPER));
        assert_eq!(space.find("b", ENTRY_SIZE + 1), Ok(UPPER + 2 * ENTRY_SIZE));
        assert_eq!(space.find("c", ENTRY_SIZE), Ok(UPPER + 4 * ENTRY_SIZE));
        let mut others = 0;
        while let Ok(address) = space.find("d", 1) {
            assert!(address != 0 && address < 0xffff_ff80_0000_0000);
            others += 1;
        }
        // 5 and the kernel's are taken in the upper half, the first in the lower.
        assert_eq!(others, 255 + 250);
    }

    #[test]
    fn a_run_does_not_cross_the_middle() {
        let mut space = AddressSpace::new(None, None).unwrap();
        for index in 257..512 {
            space
                .take("it", UPPER + (index - 256) * ENTRY_SIZE, 1)
                .unwrap();
        }
        for index in 1..255 {
            space.take("it", index * ENTRY_SIZE, 1).unwrap();
        }
        // 255 and 256 are free: neighbours in the table, not in the address space.
        assert!(space.find("it", 2 * ENTRY_SIZE).is_err());
        assert_eq!(space.find("it", ENTRY_SIZE), Ok(UPPER));
        assert_eq!(space.find("it", ENTRY_SIZE), Ok(255 * ENTRY_SIZE));
    }

    #[test]
    fn the_dynamic_range_is_kept() {
        let (from, to) = (UPPER + ENTRY_SIZE - 1, UPPER + 3 * ENTRY_SIZE - 0x1000);
        let mut space = AddressSpace::new(Some(from), Some(to)).unwrap();
        assert_eq!(space.find("it", 1), Ok(UPPER + ENTRY_SIZE));
        assert_eq!(space.find("it", 1), Ok(UPPER + 2 * ENTRY_SIZE));
        assert!(space.find("it", 1).is_err());

        let mut none = AddressSpace::new(Some(to), Some(from)).unwrap();
        assert!(none.find("it", 1).is_err());
        assert!(AddressSpace::new(Some(1 << 47), None).is_err());
        assert!(AddressSpace::new(None, Some(1 << 63)).is_err());
    }

    #[test]
    fn parts_outside_of_the_address_space_are_refused() {
        let mut space = AddressSpace::new(None, None).unwrap();
        for (start, length) in [
            (1 << 47, 1),
            (0x7fff_ffff_f000, 0x2000),
            (0x7fff_ffff_f000, UPPER),
            (u64::MAX - 0xfff, 0x2000),
            (0x1000, u64::MAX),
        ] {
            assert!(
                space.take("it", start, length).is_err(),
                "{start:#x} {length:#x}"
            );
        }
        assert!(space.take("it", u64::MAX - 0xfff, 0x1000).is_ok());
        assert!(space.find("it", u64::MAX).is_err());
    }
}
