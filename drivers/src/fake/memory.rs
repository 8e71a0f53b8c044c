//! [`FakeDma`] and [`Memory`]: what of the guest's memory a device can reach, and who broke the rules about it.

use std::alloc::Layout;
use std::boxed::Box;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::format;
use std::ptr::NonNull;
use std::string::String;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::device::DeviceName;
use crate::dma::{Direction, DmaContext, PAGE_LEN};
use crate::error::Cause;

/// What a device finds in a bounced buffer that it may write, and the driver in what it did not write of it.
const POISON: u8 = 0xa5;

/// The [`DmaContext`] of the host tests.
///
/// The addresses that it gives to devices are no pointers, are never used again after the memory was given back, and lie
/// apart, so that an access past the end of anything is seen.
#[derive(Clone, Debug)]
pub struct FakeDma {
    memory: Memory,
    access_platform: Option<bool>,
}

impl FakeDma {
    /// For a device that reaches `memory`.
    pub fn new(memory: Memory) -> Self {
        Self {
            memory,
            access_platform: None,
        }
    }

    /// What it was told of ACCESS_PLATFORM, if it was.
    pub fn access_platform(&self) -> Option<bool> {
        self.access_platform
    }
}

impl Default for FakeDma {
    /// For a device that reaches the memory of this thread.
    fn default() -> Self {
        Self::new(Memory::current())
    }
}

/// The [`Hal`] for drivers of `virtio-drivers`. Its memory is [`Memory::current`].
#[derive(Debug)]
pub struct FakeHal;

/// The guest's memory as its devices see it: what is allocated for DMA and what is lent, at this moment.
///
/// A device of the fake reads and writes through it. An access to what is not lent in that direction does nothing but
/// leave a note, which [`Self::assert_clean`] shows.
///
/// Each thread has one of its own, so that tests do not see each other. A test begins with [`Self::fresh`]; one with
/// several threads calls [`Self::enter`] on the others.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Bits of every address in it.
    number: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// By the address of the first byte.
    regions: BTreeMap<u64, Region>,
    next_address: u64,
    bounce: bool,
    /// How many more allocations succeed.
    allocations_left: Option<usize>,
    /// How many more loans succeed.
    loans_left: Option<usize>,
    /// The next loan that would fail panics.
    panics: bool,
    violations: Vec<String>,
}

#[derive(Debug)]
struct Region {
    len: usize,
    direction: Direction,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Allocated for DMA.
    Allocated(Pointer),
    /// Lent where it is.
    Lent(Pointer),
    /// Lent by way of a copy.
    Bounced { original: Pointer, copy: Box<[u8]> },
}

/// An address in the memory of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pointer(NonNull<u8>);

// SAFETY: only dereferenced while its region is registered, which is while the memory is valid; accesses to what several
// threads may touch (DMA allocations) are atomic.
unsafe impl Send for Pointer {}

/// All memories there are, by number.
static MEMORIES: Mutex<BTreeMap<u64, Memory>> = Mutex::new(BTreeMap::new());
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);
/// An address is the number of its memory, then its place in it. This makes addresses larger than 32 bits as well.
const NUMBER_SHIFT: u32 = 40;

std::thread_local! {
    static CURRENT: RefCell<Option<Memory>> = const { RefCell::new(None) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// The memory of this thread.
    pub fn current() -> Self {
        let current = CURRENT.with_borrow(Clone::clone);
        current.unwrap_or_else(Self::fresh)
    }

    /// A new memory, which is this thread's from now on.
    pub fn fresh() -> Self {
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        let memory = Self(Arc::new(Shared {
            number,
            state: Mutex::new(State {
                regions: BTreeMap::new(),
                next_address: (number << NUMBER_SHIFT) + PAGE_LEN as u64,
                bounce: true,
                allocations_left: None,
                loans_left: None,
                panics: false,
                violations: Vec::new(),
            }),
        }));
        lock(&MEMORIES).insert(number, memory.clone());
        memory.enter();
        memory
    }

    /// Makes this the memory of the thread that calls.
    pub fn enter(&self) {
        let before = CURRENT.replace(Some(self.clone()));
        // Nobody can name an address in a memory with no regions.
        if let Some(before) = before
            && before.0.number != self.0.number
            && before.state().regions.is_empty()
        {
            lock(&MEMORIES).remove(&before.0.number);
        }
    }

    /// The memory that an address is in; this thread's if there is none.
    fn of(address: u64) -> Self {
        let known = lock(&MEMORIES).get(&(address >> NUMBER_SHIFT)).cloned();
        known.unwrap_or_else(Self::current)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    /// Whether buffers are lent by way of a copy from now on. They are unless this says otherwise: it shows a driver that
    /// forgets to lend, or reads before it took back.
    pub fn set_bounce(&self, bounce: bool) {
        self.state().bounce = bounce;
    }

    /// Makes every allocation after the next `count` fail; `None` lets all succeed again.
    pub fn fail_allocations_after(&self, count: impl Into<Option<usize>>) {
        self.state().allocations_left = count.into();
    }

    /// Makes every loan after the next `count` fail; `None` lets all succeed again.
    pub fn fail_loans_after(&self, count: impl Into<Option<usize>>) {
        self.state().loans_left = count.into();
    }

    /// Makes the loan after the next `count` panic, as a context may that has run out of something; all succeed again then.
    pub fn panic_after_loans(&self, count: usize) {
        let mut state = self.state();
        (state.loans_left, state.panics) = (Some(count), true);
    }

    /// Notes that somebody broke a rule.
    pub fn report(&self, violation: impl Into<String>) {
        self.state().violations.push(violation.into());
    }

    /// The rules broken so far.
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// Takes the list of rules broken, for a test that broke them on purpose.
    pub fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut self.state().violations)
    }

    /// How many DMA allocations and how many loans are live.
    pub fn live(&self) -> (usize, usize) {
        let state = self.state();
        let allocated = |region: &&Region| matches!(region.kind, Kind::Allocated(_));
        let allocations = state.regions.values().filter(allocated).count();
        (allocations, state.regions.len() - allocations)
    }

    /// Panics if any rule was broken.
    #[track_caller]
    pub fn assert_no_violations(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "rules broken: {violations:#?}");
    }

    /// Panics if any rule was broken or anything is still allocated or lent.
    #[track_caller]
    pub fn assert_clean(&self) {
        self.assert_no_violations();
        let (allocations, loans) = self.live();
        assert_eq!(
            (allocations, loans),
            (0, 0),
            "DMA allocations and loans left"
        );
    }

    /// Reads what a device may read, wholly or not at all.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let mut state = self.state();
        match state.find(address, bytes.len(), Direction::ToDevice) {
            Ok((region, offset)) => {
                region.read(offset, bytes);
                true
            }
            Err(violation) => {
                state.violations.push(violation);
                false
            }
        }
    }

    /// Writes what a device may write, wholly or not at all.
    pub fn write(&self, address: u64, bytes: &[u8]) -> bool {
        let mut state = self.state();
        match state.find(address, bytes.len(), Direction::FromDevice) {
            Ok((region, offset)) => {
                region.write(offset, bytes);
                true
            }
            Err(violation) => {
                state.violations.push(violation);
                false
            }
        }
    }

    /// Reads two bytes, little-endian, in one access; 0 where the device may not.
    pub fn read_u16(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.read(address, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Writes two bytes, little-endian, in one access.
    pub fn write_u16(&self, address: u64, value: u16) {
        self.write(address, &value.to_le_bytes());
    }

    /// Whether a device may access all of a run of memory; notes a violation if not.
    pub fn check(&self, address: u64, len: usize, direction: Direction) -> bool {
        let mut state = self.state();
        let violation = state.find(address, len, direction).err();
        let fine = violation.is_none();
        state.violations.extend(violation);
        fine
    }

    /// As [`Self::check`] without the note.
    pub fn allows(&self, address: u64, len: usize, direction: Direction) -> bool {
        self.state().find(address, len, direction).is_ok()
    }

    /// Writes where it can, in any direction and without a note: what a hostile device does where no IOMMU stops it.
    pub fn poke(&self, address: u64, bytes: &[u8]) {
        if let Ok((region, offset)) = self.state().find(address, bytes.len(), Direction::Both) {
            region.write(offset, bytes);
        }
    }
}

impl State {
    /// The region that holds all of a run, if `access` (of the device; `Both` stands for any) is allowed there.
    fn find(
        &mut self,
        address: u64,
        len: usize,
        access: Direction,
    ) -> Result<(&mut Region, usize), String> {
        let wrong = |why: &str| {
            Err(format!(
                "device was told to access {len} bytes at {address:#x}: {why}"
            ))
        };
        let Some((start, region)) = self.regions.range_mut(..=address).next_back() else {
            return wrong("nothing is lent there");
        };
        let offset = (address - start) as usize;
        if offset >= region.len {
            return wrong("nothing is lent there");
        }
        if len > region.len - offset {
            return wrong("it reaches past the end of what is lent");
        }
        match (access, region.direction) {
            (Direction::ToDevice, Direction::FromDevice) => {
                wrong("lent for writing, not for reading")
            }
            (Direction::FromDevice, Direction::ToDevice) => {
                wrong("lent for reading, not for writing")
            }
            _ => Ok((region, offset)),
        }
    }

    /// A place for `len` bytes, aligned as `alignment` says, with a gap behind it.
    fn place(&mut self, len: usize, alignment: u64) -> u64 {
        let address = self.next_address.next_multiple_of(alignment);
        self.next_address = address + len as u64 + 64;
        address
    }
}

impl Region {
    /// Callers have checked that the run lies inside.
    fn read(&self, offset: usize, bytes: &mut [u8]) {
        match &self.kind {
            Kind::Allocated(start) => {
                if let ([low, high], Some(half)) = (&mut *bytes, half(start, offset)) {
                    [*low, *high] = half.load(Ordering::Relaxed).to_ne_bytes();
                    return;
                }
                for (index, byte) in bytes.iter_mut().enumerate() {
                    *byte = byte_at(start, offset + index).load(Ordering::Relaxed);
                }
            }
            Kind::Lent(start) => {
                // SAFETY: inside the loan, whose lender keeps the bytes valid and leaves them alone until `unshare`.
                unsafe {
                    let from = start.0.add(offset).as_ptr();
                    std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len());
                }
            }
            Kind::Bounced { copy, .. } => {
                bytes.copy_from_slice(&copy[offset..offset + bytes.len()]);
            }
        }
    }

    /// Callers have checked that the run lies inside.
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        match &mut self.kind {
            Kind::Allocated(start) => {
                if let ([low, high], Some(half)) = (bytes, half(start, offset)) {
                    half.store(u16::from_ne_bytes([*low, *high]), Ordering::Relaxed);
                    return;
                }
                for (index, byte) in bytes.iter().enumerate() {
                    byte_at(start, offset + index).store(*byte, Ordering::Relaxed);
                }
            }
            Kind::Lent(start) => {
                // SAFETY: as for `read`.
                unsafe {
                    let to = start.0.add(offset).as_ptr();
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
                }
            }
            Kind::Bounced { copy, .. } => {
                copy[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
        }
    }
}

/// A byte of a DMA allocation; the offset must lie inside.
fn byte_at(start: &Pointer, offset: usize) -> &AtomicU8 {
    // SAFETY: inside an allocation that is live as long as its region, and all accesses to it are atomic.
    unsafe { AtomicU8::from_ptr(start.0.add(offset).as_ptr()) }
}

/// Two bytes of a DMA allocation as one, where aligned; the offset must lie inside.
fn half(start: &Pointer, offset: usize) -> Option<&AtomicU16> {
    // SAFETY: as for `byte_at`; allocations are page-aligned, so an even offset is aligned.
    offset
        .is_multiple_of(2)
        .then(|| unsafe { AtomicU16::from_ptr(start.0.add(offset).cast().as_ptr()) })
}

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_LEN, PAGE_LEN).expect("a size that memory has")
}

// SAFETY: `allocate` gives fresh zeroed pages of the global allocator, or none; see there. There are no registers.
unsafe impl DmaContext for FakeDma {
    fn negotiated(&mut self, _: DeviceName, access_platform: bool) -> Result<(), Cause> {
        self.access_platform = Some(access_platform);
        Ok(())
    }

    fn allocate(&self, pages: usize, direction: Direction) -> Result<(u64, NonNull<u8>), Cause> {
        let mut state = self.memory.state();
        match &mut state.allocations_left {
            Some(0) => return Err(Cause::NoDmaMemory),
            Some(left) => *left -= 1,
            None => {}
        }
        if pages == 0 {
            state.violations.push("DMA allocation of no pages".into());
            return Err(Cause::NoDmaMemory);
        }
        // SAFETY: the layout is not of size 0.
        let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout(pages)) });
        let start = start.ok_or(Cause::NoDmaMemory)?;
        let len = pages * PAGE_LEN;
        let address = state.place(len, PAGE_LEN as u64);
        let kind = Kind::Allocated(Pointer(start));
        let region = Region {
            len,
            direction,
            kind,
        };
        state.regions.insert(address, region);
        Ok((address, start))
    }

    unsafe fn release(&self, address: u64, start: NonNull<u8>, pages: usize) {
        let mut state = self.memory.state();
        match state.regions.get(&address) {
            Some(Region {
                kind: Kind::Allocated(known),
                len,
                ..
            }) if known.0 == start && *len == pages * PAGE_LEN => {
                state.regions.remove(&address);
                // SAFETY: allocated by `allocate` with this layout, and no longer registered.
                unsafe { std::alloc::dealloc(start.as_ptr(), layout(pages)) };
            }
            _ => {
                state
                    .violations
                    .push(format!("DMA memory freed twice or wrongly: {address:#x}"));
            }
        }
    }

    unsafe fn map(&self, bytes: NonNull<[u8]>, direction: Direction) -> Result<u64, Cause> {
        let mut state = self.memory.state();
        match state.loans_left {
            Some(0) if state.panics => {
                (state.loans_left, state.panics) = (None, false);
                drop(state);
                panic!("a context that is no use");
            }
            Some(0) => return Err(Cause::NoDmaMemory),
            left => state.loans_left = left.map(|left| left - 1),
        }
        let original = Pointer(bytes.cast());
        let len = bytes.len();
        if len == 0 {
            state.violations.push("empty buffer lent".into());
        }
        let kind = if state.bounce {
            let mut copy = std::vec![POISON; len].into_boxed_slice();
            if direction != Direction::FromDevice {
                // SAFETY: the caller promises a valid buffer that nobody else accesses now.
                copy.copy_from_slice(unsafe { bytes.as_ref() });
            }
            Kind::Bounced { original, copy }
        } else {
            Kind::Lent(original)
        };
        let region = Region {
            len,
            direction,
            kind,
        };
        // Odd on purpose: a loan need not be aligned.
        let address = state.place(len, 16) + 3;
        state.regions.insert(address, region);
        Ok(address)
    }

    unsafe fn unmap(&self, address: u64, bytes: NonNull<[u8]>, direction: Direction) {
        let mut state = self.memory.state();
        let Some(region) = state.regions.remove(&address) else {
            state
                .violations
                .push(format!("loan ended twice, or never made: {address:#x}"));
            return;
        };
        let original = match &region.kind {
            Kind::Allocated(start) | Kind::Lent(start) => *start,
            Kind::Bounced { original, .. } => *original,
        };
        let same = original == Pointer(bytes.cast())
            && region.len == bytes.len()
            && region.direction == direction;
        if !same {
            state.violations.push(format!(
                "loan ended otherwise than it was made: {address:#x}"
            ));
        } else if let Kind::Bounced { copy, .. } = &region.kind
            && direction != Direction::ToDevice
        {
            // SAFETY: the caller promises a valid buffer that nobody else accesses now; the lengths are equal.
            unsafe {
                let to = bytes.cast::<u8>().as_ptr();
                std::ptr::copy_nonoverlapping(copy.as_ptr(), to, copy.len());
            }
        }
    }

    fn map_registers(&self, address: u64, len: usize) -> Result<NonNull<u8>, Cause> {
        // There is nothing behind an address here: a fake's registers are `Registers` of their own.
        let len = len as u64;
        Err(Cause::BadRegisters { address, len })
    }
}

impl From<BufferDirection> for Direction {
    fn from(direction: BufferDirection) -> Self {
        match direction {
            BufferDirection::DriverToDevice => Self::ToDevice,
            BufferDirection::DeviceToDriver => Self::FromDevice,
            BufferDirection::Both => Self::Both,
        }
    }
}

// SAFETY: as for `FakeDma`.
unsafe impl Hal for FakeHal {
    fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let context = FakeDma::default();
        let allocated = context.allocate(pages, direction.into());
        allocated.unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller's promise is the same.
        unsafe { FakeDma::new(Memory::of(paddr)).release(paddr, vaddr, pages) }
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _: usize) -> NonNull<u8> {
        // There is no memory-mapped register behind this platform; a valid pointer can't be made up.
        panic!("use `PciTransport::with_registers` with the fake, not MMIO at {paddr:#x}")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        // SAFETY: the caller's promise is the same.
        let mapped = unsafe { FakeDma::default().map(buffer, direction.into()) };
        mapped.unwrap_or(0)
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        // SAFETY: the caller's promise is the same.
        unsafe { FakeDma::new(Memory::of(paddr)).unmap(paddr, buffer, direction.into()) }
    }
}

#[cfg(test)]
mod tests {
    //! That what drivers do wrong with memory is seen.

    use super::*;

    #[test]
    fn a_loan_is_reached_in_its_direction_and_only_while_it_lasts() {
        for bounce in [false, true] {
            let memory = Memory::fresh();
            memory.set_bounce(bounce);
            let context = FakeDma::new(memory.clone());
            let mut bytes = [1u8, 2, 3, 4];
            let raw = NonNull::from(&mut bytes[..]);
            // SAFETY: `bytes` outlives both loans, and nothing else accesses it meanwhile.
            let address = unsafe { context.map(raw, Direction::FromDevice) };
            let address = address.expect("room");
            assert!(memory.write(address + 1, &[9, 9]));
            assert!(!memory.read(address, &mut [0; 1]), "not to be read");
            assert!(!memory.write(address + 3, &[0; 2]), "past the end");
            // SAFETY: the loan made above, and `bytes` is still valid.
            unsafe { context.unmap(address, raw, Direction::FromDevice) };
            assert!(!memory.write(address, &[0]), "it is over");
            assert_eq!(bytes[1..3], [9, 9]);
            assert_eq!(bytes[0], if bounce { POISON } else { 1 });
            assert_eq!(memory.take_violations().len(), 3);
            memory.assert_clean();
        }
    }

    #[test]
    fn loans_and_allocations_left_or_ended_twice_are_seen() {
        let memory = Memory::fresh();
        let context = FakeDma::new(memory.clone());
        let (address, start) = context.allocate(2, Direction::Both).expect("room");
        assert_eq!(memory.live(), (1, 0));
        for (pages, left, what) in [(1, 1, "another size"), (2, 0, "right"), (2, 0, "twice")] {
            // SAFETY: allocated above; what is wrong about it is looked for and frees nothing.
            unsafe { context.release(address, start, pages) };
            assert_eq!(memory.live().0, left, "{what}");
        }
        assert_eq!(memory.take_violations().len(), 2);
        memory.assert_clean();
    }

    #[test]
    fn memories_of_two_threads_do_not_mix() {
        let memory = Memory::fresh();
        let context = FakeDma::new(memory.clone());
        let (address, _) = context.allocate(1, Direction::Both).expect("room");
        std::thread::spawn(move || {
            let other = Memory::fresh();
            assert!(!other.read(address, &mut [0; 1]));
            assert_eq!(other.violations().len(), 1);
        })
        .join()
        .expect("no panic");
        assert_eq!(memory.live(), (1, 0));
        memory.assert_no_violations();
    }
}
