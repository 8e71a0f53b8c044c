//! The split ring (spec 2.7): descriptor table, available ring, used ring, in one run of shared memory.
//!
//! What the driver must be able to trust (which descriptors are free, how long each chain is, how far each index got) it
//! keeps in memory of its own; the shared memory is written for the device and read only where the device writes.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Descriptor, Used};
use crate::barrier;
use crate::dma::{Direction, Dma, DmaContext, Le16, Le32, Lent, Part};
use crate::error::Cause;
use crate::queue::record::{Entry, Places, Record, Shape};
use crate::transport::QueueAddresses;

const DESCRIPTOR_LEN: usize = 16;
const USED_ELEMENT_LEN: usize = 8;

const DESC_F_NEXT: u64 = 1;
const DESC_F_WRITE: u64 = 2;
const DESC_F_INDIRECT: u64 = 4;

const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// The driver's own account of one descriptor.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// The next descriptor of the chain that this one is in, or the next free one.
    next: u16,
    /// For the head of a chain in flight: how many descriptors it has.
    chain_len: u16,
    /// For the head of a chain in flight: the request's id.
    id: u16,
}

/// `struct virtq_avail` (spec 2.7.6), written by the driver.
#[cfg_attr(test, derive(Clone))]
struct Available<D: DmaContext> {
    flags: Part<Le16, D>,
    idx: Part<Le16, D>,
    ring: Part<[Le16], D>,
    used_event: Part<Le16, D>,
}

/// `struct virtq_used` (spec 2.7.8), written by the device.
#[cfg_attr(test, derive(Clone))]
struct UsedRing<D: DmaContext> {
    flags: Part<Le16, D>,
    idx: Part<Le16, D>,
    /// Ids and lengths.
    ring: Part<[[Le32; 2]], D>,
    avail_event: Part<Le16, D>,
}

pub(in crate::authoring::queue) struct SplitRing<D: DmaContext> {
    /// One less than the number of descriptors, a power of two.
    mask: u16,
    descriptors: Part<[Entry], D>,
    available: Available<D>,
    used: UsedRing<D>,
    records: Part<[Entry], D>,
    event_idx: bool,
    layout: Layout,
    /// The available index including what is not published yet, and as the device knows it.
    avail_idx: u16,
    published_idx: u16,
    /// The used index up to which completions were taken.
    last_used_idx: u16,
}

/// Which descriptors a request takes.
enum Layout {
    /// Without indirect descriptors: a chain of free ones (spec 2.7.5).
    Direct {
        accounts: Vec<Account>,
        free_head: u16,
        free_count: u16,
        /// The head of each request's chain, by id.
        heads: Vec<u16>,
    },
    /// The one whose index is the request's id, which points at a table in its record (spec 2.7.5.3).
    Indirect,
}

/// A table with an entry for each descriptor.
fn table<T>(entries: usize, entry: impl FnMut() -> T) -> Result<Vec<T>, Cause> {
    let mut table = Vec::new();
    table
        .try_reserve_exact(entries)
        .map_err(|_| Cause::NoMemory)?;
    table.resize_with(entries, entry);
    Ok(table)
}

impl Layout {
    fn new(size: u16, indirect: bool) -> Result<Self, Cause> {
        if indirect {
            return Ok(Self::Indirect);
        }
        let entries = usize::from(size);
        let mut accounts = table(entries, Account::default)?;
        for (account, next) in accounts.iter_mut().zip(1..) {
            account.next = next;
        }
        Ok(Self::Direct {
            accounts,
            free_head: 0,
            free_count: size,
            heads: table(entries, u16::default)?,
        })
    }
}

impl<D: DmaContext> SplitRing<D> {
    /// The largest power of two (spec 2.7) that is neither more than `wanted` nor than `max`.
    pub(super) fn fit(wanted: u16, max: u16) -> Option<u16> {
        let size = wanted.min(max).min(super::super::MAX_SIZE);
        Some(1 << size.checked_ilog2()?)
    }

    /// Allocates a ring of `size` descriptors, a power of two, and as many records of `record_len` entries.
    pub(super) fn new(
        dma: &D,
        size: u16,
        indirect: bool,
        event_idx: bool,
        record_len: usize,
    ) -> Result<Self, Cause> {
        let entries = usize::from(size);
        let avail = entries * DESCRIPTOR_LEN;
        let avail_len = 2 + 2 + 2 * entries + 2;
        // Aligned to 4 (spec 2.7) and to a cache line, so that the two sides do not write to the same one.
        let used = (avail + avail_len).next_multiple_of(64);
        let used_len = 2 + 2 + USED_ELEMENT_LEN * entries + 2;
        // Here, too, the device writes, and the driver behind it.
        let records = (used + used_len).next_multiple_of(64);
        let record_entries = entries * record_len;
        let len = records + record_entries * size_of::<Entry>();
        let memory = Arc::new(Dma::new(dma, len, Direction::Both)?);
        Ok(Self {
            mask: size - 1,
            descriptors: memory.array(0, entries)?,
            available: Available {
                flags: memory.cell(avail)?,
                idx: memory.cell(avail + 2)?,
                ring: memory.array(avail + 4, entries)?,
                used_event: memory.cell(avail + 4 + 2 * entries)?,
            },
            used: UsedRing {
                flags: memory.cell(used)?,
                idx: memory.cell(used + 2)?,
                ring: memory.array(used + 4, entries)?,
                avail_event: memory.cell(used + 4 + USED_ELEMENT_LEN * entries)?,
            },
            records: memory.array(records, record_entries)?,
            event_idx,
            layout: Layout::new(size, indirect)?,
            avail_idx: 0,
            published_idx: 0,
            last_used_idx: 0,
        })
    }

    #[inline]
    pub(super) fn size(&self) -> u16 {
        self.mask + 1
    }

    pub(super) fn addresses(&self) -> QueueAddresses {
        QueueAddresses {
            size: self.size(),
            descriptors: self.descriptors.address(),
            driver: self.available.flags.address(),
            device: self.used.flags.address(),
        }
    }

    pub(super) fn records(&self) -> &Part<[Entry], D> {
        &self.records
    }

    #[inline(always)]
    pub(super) fn has_room(&self, segments: impl FnOnce() -> usize) -> bool {
        match &self.layout {
            Layout::Direct { free_count, .. } => segments() <= usize::from(*free_count),
            Layout::Indirect => true,
        }
    }

    /// Writes what all requests of a shape have in common, if they have tables: header and footer in them, and the
    /// descriptor that points there.
    #[cold]
    pub(super) fn prepare(
        &mut self,
        dma: &D,
        id: u16,
        record: &mut Record<D>,
        places: &Places,
        shape: Shape,
    ) -> Result<(), Cause> {
        if let Layout::Indirect = self.layout {
            let segments = shape.segments(places);
            record.lengthen(dma, places, segments)?;
            let table = record.entries.get(places.table..).unwrap_or_default();
            let header = record.header_segment(shape);
            let position = usize::from(header.is_some());
            let last = segments - 1;
            if let Some(header) = header {
                store_in_line(table, 0, last, header);
            }
            if let Some(footer) = record.footer_segment(places) {
                store_in_line(table, last, last, footer);
            }
            if let Some([address, rest]) = self.descriptors.get(usize::from(id)) {
                address.store(record.address(places.table));
                let len = (segments * size_of::<Entry>()) as u64;
                rest.store(len | DESC_F_INDIRECT << 32);
            }
            record.first = places.table + position;
            record.link = link(position, last);
        }
        record.shape = shape;
        Ok(())
    }

    #[inline(always)]
    pub(super) fn add(&mut self, id: u16, record: &Record<D>, places: &Places, loans: &[Lent]) {
        let head = match self.layout {
            Layout::Indirect => {
                match loans {
                    [only] => {
                        store_descriptor(&record.entries, record.first, only.into(), record.link);
                    }
                    several => store_several(record, places, several),
                }
                id
            }
            Layout::Direct { .. } => self.add_direct(id, record, places, loans),
        };
        let index = self.avail_idx;
        self.avail_idx = index.wrapping_add(1);
        if let Some(entry) = self.available.ring.get(usize::from(index & self.mask)) {
            entry.store(head);
        }
    }

    /// A chain in the descriptor table itself (spec 2.7.5), which has enough that are free. Gives its head.
    #[cold]
    fn add_direct(&mut self, id: u16, record: &Record<D>, places: &Places, loans: &[Lent]) -> u16 {
        let Layout::Direct {
            accounts,
            free_head,
            free_count,
            heads,
        } = &mut self.layout
        else {
            return id;
        };
        let mut left = record.shape.segments(places) as u16;
        *free_count = free_count.saturating_sub(left);
        let head = *free_head;
        if let Some(account) = accounts.get_mut(usize::from(head)) {
            account.chain_len = left;
            account.id = id;
        }
        if let Some(place) = heads.get_mut(usize::from(id)) {
            *place = head;
        }
        let header = record.header_segment(record.shape);
        let loans = loans.iter().map(Descriptor::from);
        let footer = record.footer_segment(places);
        for descriptor in header.into_iter().chain(loans).chain(footer) {
            left = left.saturating_sub(1);
            let index = *free_head;
            // The links are our own and stay below `size`, but for the last free one's, which is never followed.
            let next = accounts.get(usize::from(index)).map_or(0, |it| it.next);
            let link = match left {
                0 => 0,
                _ => link_to(next),
            };
            store_descriptor(&self.descriptors, index.into(), descriptor, link);
            *free_head = next;
        }
        head
    }

    #[inline]
    pub(super) fn free(&mut self, id: u16) {
        let Layout::Direct {
            accounts,
            free_head,
            free_count,
            heads,
        } = &mut self.layout
        else {
            return;
        };
        let head = heads.get(usize::from(id)).map_or(0, |head| *head);
        let account = |accounts: &[Account], index: u16| {
            let account = accounts.get(usize::from(index)).copied();
            account.unwrap_or_default()
        };
        let len = account(accounts, head).chain_len;
        let mut last = head;
        for _ in 1..len {
            last = account(accounts, last).next;
        }
        if let Some(account) = accounts.get_mut(usize::from(last)) {
            account.next = *free_head;
        }
        if let Some(account) = accounts.get_mut(usize::from(head)) {
            // No request begins here any more.
            account.chain_len = 0;
        }
        *free_head = head;
        *free_count += len;
    }

    /// Makes what was added visible (spec 2.7.13). Says whether the device wants to be notified of it; `None` if nothing
    /// was added.
    #[inline]
    pub(super) fn publish(&mut self) -> Option<bool> {
        let (old, new) = (self.published_idx, self.avail_idx);
        if old == new {
            return None;
        }
        // The device must see descriptors and ring entries before the index that covers them.
        barrier::release();
        self.available.idx.store(new);
        self.published_idx = new;
        // And the index must be visible before the device's wish is read: x86 lets the load overtake the store, and both
        // sides would sleep (spec 2.7.13.4.1). Only a full fence orders them.
        barrier::full();
        Some(if self.event_idx {
            need_event(self.used.avail_event.load(), new, old)
        } else {
            self.used.flags.load() & USED_F_NO_NOTIFY == 0
        })
    }

    #[inline]
    pub(super) fn has_used(&self) -> bool {
        self.used.idx.load() != self.last_used_idx
    }

    #[inline]
    pub(super) fn all_used(&self, in_flight: u16) -> bool {
        let index = self.used.idx.load();
        index == self.last_used_idx.wrapping_add(in_flight)
    }

    /// Takes the next entry of the used ring. Of what the device wrote, only the index is checked here.
    #[inline]
    pub(super) fn next_used(&mut self, in_flight: u16) -> Result<Option<Used>, Cause> {
        let (last, index) = (self.last_used_idx, self.used.idx.load());
        let new = index.wrapping_sub(last);
        if new == 0 {
            return Ok(None);
        }
        if new > in_flight {
            return Err(Cause::BadUsedIndex { index, in_flight });
        }
        // The entry, and what the device wrote to the buffers, must not be read before the index.
        barrier::acquire();
        self.last_used_idx = last.wrapping_add(1);
        // Always there: the ring has as many as the index is masked for.
        let Some([id, len]) = self.used.ring.get(usize::from(last & self.mask)) else {
            return Ok(None);
        };
        let (id, len) = (id.load(), len.load());
        let id = match &self.layout {
            Layout::Indirect => id,
            Layout::Direct { accounts, .. } => match accounts.get(id as usize) {
                Some(head) if head.chain_len > 0 => head.id.into(),
                _ => return Err(Cause::BadUsedId { id }),
            },
        };
        Ok(Some(Used { id, len }))
    }

    /// Asks for an interrupt once `after` more entries than one are used. The caller checks [`Self::has_used`] then.
    #[inline]
    pub(super) fn enable_interrupts(&mut self, after: u16) {
        if self.event_idx {
            let used_event = self.last_used_idx.wrapping_add(after);
            self.available.used_event.store(used_event);
        } else {
            self.available.flags.store(0);
        }
        // The wish must be visible before the used index is read again.
        barrier::full();
    }

    #[inline]
    pub(super) fn disable_interrupts(&mut self) {
        if self.event_idx {
            // As far away as can be. The flag must stay 0 (spec 2.7.7.1).
            let used_event = self.last_used_idx.wrapping_sub(1);
            self.available.used_event.store(used_event);
        } else {
            self.available.flags.store(AVAIL_F_NO_INTERRUPT);
        }
    }

    /// Gives the shared memory up without freeing it.
    pub(super) fn leak(&self) {
        self.descriptors.leak();
    }
}

/// Writes the descriptors of loans in a table that is prepared for them.
#[cold]
fn store_several<D: DmaContext>(record: &Record<D>, places: &Places, loans: &[Lent]) {
    let table = record.entries.get(places.table..).unwrap_or_default();
    let last = record.shape.segments(places) - 1;
    for (position, loan) in (record.first - places.table..).zip(loans) {
        store_in_line(table, position, last, loan.into());
    }
}

/// Writes entry `index` of a descriptor table.
#[inline(always)]
fn store_descriptor(table: &[Entry], index: usize, descriptor: Descriptor, link: u64) {
    let flags = match descriptor.is_writable {
        false => 0,
        true => DESC_F_WRITE,
    };
    // The caller's index is that of an entry.
    if let Some([address, rest]) = table.get(index) {
        address.store(descriptor.address);
        rest.store(u64::from(descriptor.len) | flags << 32 | link);
    }
}

/// Writes the entry at `position` of a table in which each entry leads to the next, up to `last`.
fn store_in_line(table: &[Entry], position: usize, last: usize, descriptor: Descriptor) {
    store_descriptor(table, position, descriptor, link(position, last));
}

/// What the entry at `position` says of the next, if there is one.
fn link(position: usize, last: usize) -> u64 {
    match position < last {
        true => link_to(position as u16 + 1),
        false => 0,
    }
}

/// What an entry says that leads to entry `next`.
fn link_to(next: u16) -> u64 {
    DESC_F_NEXT << 32 | u64::from(next) << 48
}

/// Whether moving an index from `old` to `new` passes `event` (spec 2.7.10.1, `vring_need_event`).
#[inline]
fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use alloc::rc::Rc;
    use core::cell::Cell;
    use core::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::barrier::watch::{self, Barrier};
    use crate::fake::{FakeDma, Memory};
    use crate::queue::QueueOptions;

    /// The same rule, told slowly: one of the steps from `old` to `new` leaves index `event` behind.
    fn passes(event: u16, new: u16, old: u16) -> bool {
        let mut index = old;
        while index != new {
            if index == event {
                return true;
            }
            index = index.wrapping_add(1);
        }
        false
    }

    #[test]
    fn need_event_is_exact_around_the_wrap() {
        for old in [0u16, 1, 7, 32767, 65530, 65534, 65535] {
            for step in 0..40u16 {
                let new = old.wrapping_add(step);
                for delta in 0..80u16 {
                    let event = old.wrapping_sub(40).wrapping_add(delta);
                    assert_eq!(
                        need_event(event, new, old),
                        passes(event, new, old),
                        "event {event} new {new} old {old}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_batch_over_the_wrap_is_notified() {
        // virtio-drivers' test `avail >= event + 1` misses this one.
        assert!(need_event(65534, 2, 65533));
        assert!(need_event(65535, 0, 65535));
        assert!(!need_event(65534, 65534, 65530));
    }

    const SIZE: u16 = 4;
    /// All indices, and around the wrap again.
    const STEPS: u32 = 65536 + 8;

    /// The device's side of a ring, on a machine that does no more for the order of accesses than the barriers demand.
    #[derive(Clone)]
    struct Device {
        memory: Memory,
        at: QueueAddresses,
        event_idx: bool,
    }

    impl Device {
        fn available(&self) -> u16 {
            self.memory.read_u16(self.at.driver + 2)
        }

        /// The entry of the available ring at `index`.
        fn entry(&self, index: u16) -> u16 {
            let entry = u64::from(index % SIZE);
            self.memory.read_u16(self.at.driver + 4 + 2 * entry)
        }

        /// Where descriptor `index` points.
        fn descriptor(&self, index: u16) -> u64 {
            let mut address = [0; 8];
            let at = self.at.descriptors + 16 * u64::from(index);
            assert!(self.memory.read(at, &mut address));
            u64::from_le_bytes(address)
        }

        /// Asks for a notification of what comes at `index`, or for none.
        fn ask(&self, index: u16, wanted: bool) {
            if self.event_idx {
                let event = index.wrapping_sub(u16::from(!wanted));
                let at = self.at.device + 4 + 8 * u64::from(SIZE);
                self.memory.write_u16(at, event);
            } else {
                self.memory.write_u16(self.at.device, (!wanted).into());
            }
        }

        fn write_used(&self, index: u16, id: u32, len: u32) {
            let at = self.at.device + 4 + 8 * u64::from(index % SIZE);
            let bytes = [id.to_le_bytes(), len.to_le_bytes()].concat();
            assert!(self.memory.write(at, &bytes));
        }

        fn set_used_index(&self, index: u16) {
            self.memory.write_u16(self.at.device + 2, index);
        }

        /// Whether the driver wants an interrupt for what is used at `index`.
        fn interrupt_wanted(&self, index: u16) -> bool {
            if self.event_idx {
                let ring = 2 * u64::from(SIZE);
                self.memory.read_u16(self.at.driver + 4 + ring) == index
            } else {
                self.memory.read_u16(self.at.driver) == 0
            }
        }
    }

    /// The record of requests that have nothing but one loan.
    fn bare(ring: &SplitRing<FakeDma>) -> (Record<FakeDma>, Places) {
        let mut record = Record::new(ring.records().clone());
        record.shape = Shape::new(0, 1);
        let places = Places::new(QueueOptions::default(), false).expect("no header");
        (record, places)
    }

    /// Adds a request that is a byte at `address`.
    fn add(
        ring: &mut SplitRing<FakeDma>,
        id: u16,
        address: u32,
        (record, places): &(Record<FakeDma>, Places),
    ) {
        ring.add(id, record, places, &[Lent::at(address.into(), 1)]);
    }

    /// Gives a ring one request after the other, and has `step` do with each what it tests, at index `index`.
    fn at_every_index(step: impl Fn(&mut SplitRing<FakeDma>, &Device, u16)) {
        for event_idx in [false, true] {
            let memory = Memory::fresh();
            let dma = FakeDma::new(memory.clone());
            let mut ring = SplitRing::new(&dma, SIZE, false, event_idx, 0).expect("memory");
            let device = Device {
                memory: memory.clone(),
                at: ring.addresses(),
                event_idx,
            };
            let bare = bare(&ring);
            for number in 0..STEPS {
                let id = (number % u32::from(SIZE)) as u16;
                add(&mut ring, id, number, &bare);
                step(&mut ring, &device, number as u16);
                ring.free(id);
            }
            drop((ring, bare));
            memory.assert_clean();
        }
    }

    /// The device sees the index as soon as it is stored, but all else as it was at the barrier.
    #[test]
    fn what_the_available_index_covers_is_visible_before_it() {
        at_every_index(|ring, device, index| {
            let seen = Rc::new(Cell::new(None));
            let (view, sees) = (seen.clone(), device.clone());
            let watcher = move |barrier| {
                if barrier == Barrier::Release {
                    assert_eq!(sees.available(), index, "the index is not there yet");
                    view.set(Some(sees.descriptor(sees.entry(index))));
                }
            };
            watch::during(watcher, || ring.publish());
            assert_eq!(device.available(), index.wrapping_add(1));
            let published = device.descriptor(device.entry(index));
            assert_eq!(seen.get(), Some(published), "at {index}");
            give_back(ring, device, index);
        });
    }

    /// The driver's store of the index reaches the device at the barrier, and the device falls asleep just before.
    #[test]
    fn a_device_that_falls_asleep_while_the_index_is_on_its_way_is_notified() {
        at_every_index(|ring, device, index| {
            device.ask(index, false);
            let sleeper = device.clone();
            let watcher = move |barrier| {
                if barrier == Barrier::Full {
                    let stored = sleeper.available();
                    assert_eq!(stored, index.wrapping_add(1), "on its way");
                    sleeper.ask(index, true);
                }
            };
            let notify = watch::during(watcher, || ring.publish());
            assert_eq!(notify, Some(true), "at {index}");
            give_back(ring, device, index);
        });
    }

    /// The driver may read an entry of the used ring as early as the barrier allows.
    #[test]
    fn what_the_used_index_covers_is_read_after_it() {
        at_every_index(|ring, device, index| {
            ring.publish();
            let head = device.entry(index).into();
            // What is there before the device writes its entry.
            device.write_used(index, u32::from(SIZE) - 1 - head, 77);
            device.set_used_index(index.wrapping_add(1));
            let writer = device.clone();
            let watcher = move |barrier| {
                if barrier == Barrier::Acquire {
                    writer.write_used(index, head, 5);
                }
            };
            let used = watch::during(watcher, || ring.next_used(1));
            let used = used.expect("an honest device").expect("one");
            let id = u32::from(index % SIZE);
            assert_eq!((used.id, used.len), (id, 5), "at {index}");
        });
    }

    /// The driver's wish reaches the device at the barrier. A device that used something just before did not see it, so the
    /// driver must see what was used; one that does it later must interrupt.
    #[test]
    fn who_asks_for_an_interrupt_misses_nothing() {
        at_every_index(|ring, device, index| {
            ring.publish();
            ring.disable_interrupts();
            let wanted = Rc::new(Cell::new(None));
            let (wish, late) = (wanted.clone(), device.clone());
            let watcher = move |barrier| {
                if barrier == Barrier::Full {
                    wish.set(Some(late.interrupt_wanted(index)));
                    late.write_used(index, late.entry(index).into(), 0);
                    late.set_used_index(index.wrapping_add(1));
                }
            };
            let has_used = watch::during(watcher, || {
                ring.enable_interrupts(0);
                ring.has_used()
            });
            assert!(has_used, "used just before the wish was seen, at {index}");
            assert_eq!(wanted.get(), Some(true), "at {index}");
            ring.next_used(1).expect("an honest device").expect("one");
        });
    }

    // What the tests above let happen at the barriers, between two processors that happen to do it: real ones, so without a
    // barrier these tests fail often and not always.

    /// The device's side again, as quick as can be: what it does takes no longer than what it is to get in between of. There
    /// is one request at a time, of descriptor 0, and an entry of the used ring that is all zeros says that it was used.
    struct QuickDevice {
        available: Available<FakeDma>,
        used: UsedRing<FakeDma>,
        event_idx: bool,
        over: AtomicBool,
        /// [`AWAKE`], [`ASLEEP`] or [`RUNG`].
        bell: AtomicU32,
        interrupts: AtomicU32,
        /// How many requests it is done with, the question of an interrupt included.
        handled: AtomicU32,
    }

    const AWAKE: u32 = 0;
    /// Only the bell wakes it.
    const ASLEEP: u32 = 1;
    const RUNG: u32 = 2;

    impl QuickDevice {
        fn is_over(&self) -> bool {
            self.over.load(Ordering::Relaxed)
        }

        fn has_available(&self, index: u16) -> bool {
            self.available.idx.load() != index
        }

        fn push_used(&self, index: u16) {
            fence(Ordering::Release);
            self.used.idx.store(index.wrapping_add(1));
            fence(Ordering::SeqCst);
            let wanted = match self.event_idx {
                true => self.available.used_event.load() == index,
                false => self.available.flags.load() == 0,
            };
            if wanted {
                self.interrupts.fetch_add(1, Ordering::SeqCst);
            }
            self.handled.fetch_add(1, Ordering::SeqCst);
        }

        /// Sleeps until the bell is rung, if it was not since the last time.
        fn sleep(&self) {
            let order = Ordering::SeqCst;
            if self
                .bell
                .compare_exchange(AWAKE, ASLEEP, order, order)
                .is_ok()
            {
                while self.bell.load(order) == ASLEEP && !self.is_over() {
                    core::hint::spin_loop();
                }
            }
            self.bell.store(AWAKE, order);
        }

        fn ask_for_notifications(&self, index: u16, wanted: bool) {
            let event = index.wrapping_sub(u16::from(!wanted));
            match self.event_idx {
                true => self.used.avail_event.store(event),
                false => self.used.flags.store((!wanted).into()),
            }
            fence(Ordering::SeqCst);
        }
    }

    /// Runs `device` on a thread of its own while `driver` gives it requests; it says how many of them when it found
    /// something amiss.
    fn two_processors(
        device: impl Fn(&QuickDevice) + Sync,
        driver: impl Fn(&mut SplitRing<FakeDma>, &QuickDevice) -> Result<(), u32>,
    ) {
        for event_idx in [false, true] {
            let memory = Memory::fresh();
            let dma = FakeDma::new(memory.clone());
            let mut ring = SplitRing::new(&dma, SIZE, false, event_idx, 0).expect("memory");
            let quick = QuickDevice {
                available: ring.available.clone(),
                used: ring.used.clone(),
                event_idx,
                over: AtomicBool::new(false),
                bell: AtomicU32::new(AWAKE),
                interrupts: AtomicU32::new(0),
                handled: AtomicU32::new(0),
            };
            let result = std::thread::scope(|scope| {
                scope.spawn(|| device(&quick));
                let result = driver(&mut ring, &quick);
                quick.over.store(true, Ordering::Relaxed);
                result
            });
            assert_eq!(result, Ok(()), "event_idx={event_idx}");
            drop((quick, ring));
            memory.assert_clean();
        }
    }

    /// As many as show a missing barrier, or what can be had in some seconds: with one processor to run on, or two that are
    /// wanted by others, each round may take a slice of the scheduler's time.
    fn rounds() -> impl Iterator<Item = u32> {
        let began = Instant::now();
        let goes_on = move || began.elapsed() < Duration::from_secs(3);
        (0..100_000).take_while(move |round| round % 64 != 0 || goes_on())
    }

    #[test]
    fn no_interrupt_is_lost_between_two_processors() {
        let device = |device: &QuickDevice| {
            let mut index = 0;
            while !device.is_over() {
                if device.has_available(index) {
                    device.push_used(index);
                    index = index.wrapping_add(1);
                }
            }
        };
        two_processors(device, |ring, device| {
            let bare = bare(ring);
            for round in rounds() {
                add(ring, 0, 0, &bare);
                ring.publish();
                // It asks and withdraws so quickly that the device is done while it asks, more often than not.
                loop {
                    let before = device.interrupts.load(Ordering::SeqCst);
                    ring.enable_interrupts(0);
                    if ring.has_used() {
                        break;
                    }
                    // A moment's sleep.
                    if (0..4).any(|_| ring.has_used()) {
                        // However busy the machine is: when the device has decided, the interrupt came, or never comes.
                        while device.handled.load(Ordering::SeqCst) <= round {
                            core::hint::spin_loop();
                        }
                        if device.interrupts.load(Ordering::SeqCst) == before {
                            return Err(round);
                        }
                        break;
                    }
                    ring.disable_interrupts();
                }
                ring.disable_interrupts();
                ring.next_used(1).expect("an honest device").expect("one");
                ring.free(0);
            }
            Ok(())
        });
    }

    #[test]
    fn no_kick_is_lost_between_two_processors() {
        let device = |device: &QuickDevice| {
            let mut index = 0;
            while !device.is_over() {
                if device.has_available(index) {
                    device.push_used(index);
                    index = index.wrapping_add(1);
                }
                device.ask_for_notifications(index, true);
                // If nothing came meanwhile it sleeps.
                if !device.has_available(index) {
                    device.sleep();
                }
                device.ask_for_notifications(index, false);
            }
        };
        two_processors(device, |ring, device| {
            let bare = bare(ring);
            for round in rounds() {
                add(ring, 0, 0, &bare);
                let rung = ring.publish() == Some(true);
                if rung {
                    device.bell.store(RUNG, Ordering::SeqCst);
                }
                while !ring.has_used() {
                    // It did not see the request before it fell asleep, and nothing wakes it any more.
                    let asleep = !rung && device.bell.load(Ordering::SeqCst) == ASLEEP;
                    if asleep && !ring.has_used() {
                        return Err(round);
                    }
                    core::hint::spin_loop();
                }
                ring.next_used(1).expect("an honest device").expect("one");
                ring.free(0);
            }
            Ok(())
        });
    }

    fn give_back(ring: &mut SplitRing<FakeDma>, device: &Device, index: u16) {
        device.write_used(index, device.entry(index).into(), 0);
        device.set_used_index(index.wrapping_add(1));
        ring.next_used(1).expect("an honest device").expect("one");
    }
}
