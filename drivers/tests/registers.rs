//! `Mmio`: registers that are mapped into memory, here memory of the test's.

use std::ptr::NonNull;

use vringlet::authoring::registers::{Mmio, Registers};
use vringlet::{Cause, Direction, DmaContext};

/// Eight bytes that lie on a multiple of eight, and more behind them that nobody may touch.
#[repr(align(8))]
struct Bank([u8; 16]);

const FRESH: [u8; 16] = [
    0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xf0,
];

/// Has `f` use the first eight bytes as registers; gives all bytes as they are then.
fn with(f: impl FnOnce(Mmio)) -> [u8; 16] {
    let mut bank = Bank(FRESH);
    // SAFETY: the bytes are valid until the end of this function, which `f` ends before with its `Mmio`, and nobody else
    // touches them meanwhile.
    f(unsafe { Mmio::new(NonNull::from(&mut bank.0).cast(), 8) });
    bank.0
}

#[test]
fn registers_are_little_endian_in_every_width() {
    let after = with(|registers| {
        assert_eq!((registers.len(), registers.is_empty()), (8, false));
        assert_eq!(registers.read_u8(7), 0x77);
        assert_eq!(registers.read_u16(6), 0x7766);
        assert_eq!(registers.read_u32(4), 0x7766_5544);
        registers.write_u8(0, 1);
        registers.write_u16(2, 0x0302);
        registers.write_u32(4, 0x0706_0504);
    });
    assert_eq!(after[..8], [1, 0x11, 2, 3, 4, 5, 6, 7]);
    assert_eq!(after[8..], FRESH[8..]);
    let after = with(|registers| registers.write_u64(0, 0x0807_0605_0403_0201));
    assert_eq!(after[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn what_is_not_wholly_inside_or_not_aligned_is_not_touched() {
    let after = with(|registers| {
        for offset in [8, 9, usize::MAX] {
            assert_eq!(registers.read_u8(offset), u8::MAX);
            registers.write_u8(offset, 0);
        }
        for offset in [1, 3, 5, 7, 8, 10, usize::MAX, usize::MAX - 1] {
            assert_eq!(registers.read_u16(offset), u16::MAX);
            registers.write_u16(offset, 0);
        }
        for offset in [1, 2, 3, 5, 6, 8, 12, usize::MAX - 3] {
            assert_eq!(registers.read_u32(offset), u32::MAX);
            registers.write_u32(offset, 0);
        }
    });
    assert_eq!(after, FRESH);
    // Half of it would be outside.
    let after = with(|registers| registers.write_u64(4, 0));
    assert_eq!(after[..4], FRESH[..4]);
    assert_eq!(after[8..], FRESH[8..]);
}

#[test]
fn a_part_of_the_registers_ends_where_it_is_said_to() {
    let after = with(|registers| {
        let part = registers.slice(4, 2).expect("inside");
        assert_eq!(part.len(), 2);
        assert_eq!(part.read_u16(0), 0x5544);
        assert_eq!(part.read_u16(2), u16::MAX, "there is more, but not of this");
        part.write_u8(1, 9);
        part.write_u8(2, 9);
        assert!(registers.slice(8, 0).expect("the end").is_empty());
        for (offset, len) in [(0, 9), (8, 1), (9, 0), (usize::MAX, 2), (2, usize::MAX)] {
            assert!(registers.slice(offset, len).is_none(), "{offset} {len}");
        }
    });
    let mut expected = FRESH;
    expected[5] = 9;
    assert_eq!(after, expected);
}

/// Knows one place with registers.
#[derive(Clone, Debug)]
struct OneBank(NonNull<u8>);

// SAFETY: the pointer is only used by the thread of the test.
unsafe impl Send for OneBank {}
// SAFETY: as above.
unsafe impl Sync for OneBank {}

const ADDRESS: u64 = 0xfeb0_0000;

// SAFETY: it gives out nothing but the registers at one address, which the test keeps until it has used them.
unsafe impl DmaContext for OneBank {
    fn allocate(&self, _: usize, _: Direction) -> Result<(u64, NonNull<u8>), Cause> {
        Err(Cause::NoDmaMemory)
    }
    unsafe fn release(&self, _: u64, _: NonNull<u8>, _: usize) {}
    unsafe fn map(&self, _: NonNull<[u8]>, _: Direction) -> Result<u64, Cause> {
        Err(Cause::NoDmaMemory)
    }
    unsafe fn unmap(&self, _: u64, _: NonNull<[u8]>, _: Direction) {}
    fn map_registers(&self, address: u64, len: usize) -> Result<NonNull<u8>, Cause> {
        match (address, len) {
            (ADDRESS, ..=16) => Ok(self.0),
            _ => Err(Cause::BadRegisters {
                address,
                len: len as u64,
            }),
        }
    }
}

#[test]
fn registers_are_mapped_by_the_context_or_not_at_all() {
    let mut bank = Bank(FRESH);
    let context = OneBank(NonNull::from(&mut bank.0).cast());
    let registers = Mmio::map(&context, ADDRESS, 16).expect("what is there");
    assert_eq!(registers.len(), 16);
    assert_eq!(registers.read_u32(12), 0xf0ee_ddcc);
    for (address, len) in [(ADDRESS + 1, 16), (ADDRESS, 17)] {
        let refused = Mmio::map(&context, address, len).map(drop);
        assert_eq!(refused, Err(Cause::BadRegisters { address, len }));
    }
}
