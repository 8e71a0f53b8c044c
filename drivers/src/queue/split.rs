//! The split ring (spec 2.7): descriptor table, available ring, used ring, in one run of shared memory.
//!
//! What the driver must be able to trust (which descriptors are free, how long each chain is, how far each index got) it
//! keeps in memory of its own; the shared memory is written for the device and read only where the device writes.

use alloc::vec::Vec;

use virtio_drivers::{BufferDirection, Hal};

use super::chain::Descriptor;
use crate::barrier;
use crate::dma::{Access, Dma};
use crate::error::Cause;
use crate::transport::QueueAddresses;

const DESCRIPTOR_LEN: usize = 16;
const USED_ELEMENT_LEN: usize = 8;

const DESC_F_NEXT: u64 = 1;
const DESC_F_WRITE: u64 = 2;
const DESC_F_INDIRECT: u64 = 4;

const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// Entries of the table that every request has for its indirect descriptors; a longer request gets one of its own.
const SHORT_TABLE: usize = 4;

/// An entry of the used ring, as the device wrote it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub(super) id: u32,
    pub(super) len: u32,
}

/// The driver's own account of one descriptor.
#[derive(Clone, Copy, Debug)]
struct Account {
    /// The next descriptor of the chain that this one is in, or the next free one.
    next: u16,
    /// For the head of a chain in flight: how many descriptors it has.
    chain_len: u16,
}

pub(super) struct SplitRing<H: Hal> {
    size: u16,
    memory: Dma<H>,
    /// Offsets in `memory`.
    avail: usize,
    used: usize,

    event_idx: bool,
    /// [`SHORT_TABLE`] entries per request, if indirect descriptors were agreed on.
    short_tables: Option<Dma<H>>,
    /// Longer tables, by request, made when first needed.
    long_tables: Vec<Option<Dma<H>>>,

    accounts: Vec<Account>,
    free_head: u16,
    free_count: u16,
    /// The available index including what is not published yet, and as the device knows it.
    avail_idx: u16,
    published_idx: u16,
    /// The used index up to which completions were taken.
    last_used_idx: u16,
}

impl<H: Hal> SplitRing<H> {
    /// Allocates a ring of `size` descriptors, a power of two.
    pub(super) fn new(size: u16, indirect: bool, event_idx: bool) -> Result<Self, Cause> {
        let entries = usize::from(size);
        let avail = entries * DESCRIPTOR_LEN;
        let avail_len = 2 + 2 + 2 * entries + 2;
        // Aligned to 4 (spec 2.7) and to a cache line, so that the two sides do not write to the same one.
        let used = (avail + avail_len).next_multiple_of(64);
        let used_len = 2 + 2 + USED_ELEMENT_LEN * entries + 2;
        let memory = Dma::new(used + used_len, BufferDirection::Both)?;

        let mut short_tables = None;
        let mut long_tables = Vec::new();
        if indirect {
            let len = entries * SHORT_TABLE * DESCRIPTOR_LEN;
            short_tables = Some(Dma::new(len, BufferDirection::DriverToDevice)?);
            long_tables
                .try_reserve_exact(entries)
                .map_err(|_| Cause::NoMemory)?;
            long_tables.resize_with(entries, || None);
        }
        let mut accounts = Vec::new();
        accounts
            .try_reserve_exact(entries)
            .map_err(|_| Cause::NoMemory)?;
        accounts.extend((0..size).map(|index| Account {
            next: index.wrapping_add(1),
            chain_len: 0,
        }));
        Ok(Self {
            size,
            memory,
            avail,
            used,
            event_idx,
            short_tables,
            long_tables,
            accounts,
            free_head: 0,
            free_count: size,
            avail_idx: 0,
            published_idx: 0,
            last_used_idx: 0,
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn addresses(&self) -> QueueAddresses {
        QueueAddresses {
            size: self.size,
            descriptors: self.memory.address(0),
            driver: self.memory.address(self.avail),
            device: self.memory.address(self.used),
        }
    }

    /// The id that the next request will get: the descriptor that its chain begins at.
    #[inline]
    pub(super) fn next_id(&self) -> Option<u16> {
        (self.free_count > 0).then_some(self.free_head)
    }

    pub(super) fn has_room(&self, segments: usize) -> bool {
        let need = match &self.short_tables {
            Some(_) if segments > 1 => 1,
            _ => segments,
        };
        need <= self.free_count.into()
    }

    /// Adds a request that [`super::chain::writable_len`] found in order; its id is what [`Self::next_id`] said. The
    /// device does not see it before [`Self::publish`].
    #[inline]
    pub(super) fn add(&mut self, chain: &[Descriptor]) -> Result<(), Cause> {
        let head = self.next_id().ok_or(Cause::QueueFull)?;
        if self.short_tables.is_some() && chain.len() > 1 {
            self.add_indirect(head, chain)?;
        } else {
            self.add_direct(head, chain)?;
        }
        let entry = usize::from(self.avail_idx & (self.size - 1));
        self.memory.store_u16(self.avail + 4 + 2 * entry, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        Ok(())
    }

    /// A chain in the descriptor table itself (spec 2.7.5).
    fn add_direct(&mut self, head: u16, chain: &[Descriptor]) -> Result<(), Cause> {
        let Some(after) = u16::try_from(chain.len())
            .ok()
            .and_then(|len| self.free_count.checked_sub(len))
        else {
            return Err(Cause::QueueFull);
        };
        let mut index = head;
        let mut left = chain.len();
        for descriptor in chain {
            left -= 1;
            let next = self.account(index).next;
            let link = (left > 0).then_some(next);
            store_descriptor(&self.memory, index.into(), descriptor, link);
            index = next;
        }
        self.take_from_free(head, index, self.free_count - after);
        Ok(())
    }

    /// One descriptor that points at a table with the chain (spec 2.7.5.3).
    fn add_indirect(&mut self, head: u16, chain: &[Descriptor]) -> Result<(), Cause> {
        let (table, first) = match (&self.short_tables, chain.len()) {
            (Some(tables), ..=SHORT_TABLE) => (tables, usize::from(head) * SHORT_TABLE),
            (_, len) => {
                let need = len * DESCRIPTOR_LEN;
                let table = self
                    .long_tables
                    .get_mut(usize::from(head))
                    .ok_or(Cause::NoMemory)?;
                if table.as_ref().is_none_or(|table| table.len() < need) {
                    *table = Some(Dma::new(need, BufferDirection::DriverToDevice)?);
                }
                (table.as_ref().ok_or(Cause::NoMemory)?, 0)
            }
        };
        for (position, descriptor) in chain.iter().enumerate() {
            let link = (position + 1 < chain.len()).then_some(position as u16 + 1);
            store_descriptor(table, first + position, descriptor, link);
        }
        let address = table.address(first * DESCRIPTOR_LEN);
        let len = (chain.len() * DESCRIPTOR_LEN) as u64;
        let at = usize::from(head) * DESCRIPTOR_LEN;
        self.memory.store_u64(at, address);
        self.memory.store_u64(at + 8, len | DESC_F_INDIRECT << 32);
        let next = self.account(head).next;
        self.take_from_free(head, next, 1);
        Ok(())
    }

    #[inline]
    fn account(&self, index: u16) -> Account {
        // The links are our own and stay below `size`, but for the last free one's, which is never followed.
        self.accounts
            .get(usize::from(index))
            .copied()
            .unwrap_or(Account {
                next: 0,
                chain_len: 0,
            })
    }

    #[inline]
    fn take_from_free(&mut self, head: u16, new_free_head: u16, len: u16) {
        if let Some(account) = self.accounts.get_mut(usize::from(head)) {
            account.chain_len = len;
        }
        self.free_head = new_free_head;
        self.free_count -= len;
    }

    /// Gives back the descriptors of request `id`, which [`Self::next_used`] returned and the queue found in flight.
    #[inline]
    pub(super) fn free(&mut self, id: u16) {
        let len = self.account(id).chain_len;
        let mut last = id;
        for _ in 1..len {
            last = self.account(last).next;
        }
        if let Some(account) = self.accounts.get_mut(usize::from(last)) {
            account.next = self.free_head;
        }
        self.free_head = id;
        self.free_count += len;
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
        self.memory.store_u16(self.avail + 2, new);
        self.published_idx = new;
        // And the index must be visible before the device's wish is read: x86 lets the load overtake the store, and both
        // sides would sleep (spec 2.7.13.4.1). Only a full fence orders them.
        barrier::full();
        Some(if self.event_idx {
            let entries = USED_ELEMENT_LEN * usize::from(self.size);
            let avail_event = self.memory.load_u16(self.used + 4 + entries);
            need_event(avail_event, new, old)
        } else {
            self.memory.load_u16(self.used) & USED_F_NO_NOTIFY == 0
        })
    }

    #[inline]
    pub(super) fn has_used(&self) -> bool {
        self.memory.load_u16(self.used + 2) != self.last_used_idx
    }

    #[inline]
    pub(super) fn all_used(&self, in_flight: u16) -> bool {
        let index = self.memory.load_u16(self.used + 2);
        index == self.last_used_idx.wrapping_add(in_flight)
    }

    /// Takes the next entry of the used ring. Of what the device wrote, only the index is checked here.
    #[inline]
    pub(super) fn next_used(&mut self, in_flight: u16) -> Result<Option<Used>, Cause> {
        let index = self.memory.load_u16(self.used + 2);
        let new = index.wrapping_sub(self.last_used_idx);
        if new == 0 {
            return Ok(None);
        }
        if new > in_flight {
            return Err(Cause::BadUsedIndex { index, in_flight });
        }
        // The entry, and what the device wrote to the buffers, must not be read before the index.
        barrier::acquire();
        let entry = usize::from(self.last_used_idx & (self.size - 1));
        let at = self.used + 4 + USED_ELEMENT_LEN * entry;
        self.last_used_idx = self.last_used_idx.wrapping_add(1);
        Ok(Some(Used {
            id: self.memory.load_u32(at),
            len: self.memory.load_u32(at + 4),
        }))
    }

    /// Asks for an interrupt once `after` more entries than one are used. The caller checks [`Self::has_used`] then.
    pub(super) fn enable_interrupts(&mut self, after: u16) {
        if self.event_idx {
            let used_event = self.last_used_idx.wrapping_add(after);
            self.store_used_event(used_event);
        } else {
            self.memory.store_u16(self.avail, 0);
        }
        // The wish must be visible before the used index is read again.
        barrier::full();
    }

    pub(super) fn disable_interrupts(&mut self) {
        if self.event_idx {
            // As far away as can be. The flag must stay 0 (spec 2.7.7.1).
            self.store_used_event(self.last_used_idx.wrapping_sub(1));
        } else {
            self.memory.store_u16(self.avail, AVAIL_F_NO_INTERRUPT);
        }
    }

    fn store_used_event(&self, value: u16) {
        let ring = 2 * usize::from(self.size);
        self.memory.store_u16(self.avail + 4 + ring, value);
    }

    /// Gives all shared memory up without freeing it.
    pub(super) fn leak(&mut self) {
        self.memory.leak();
        if let Some(tables) = &mut self.short_tables {
            tables.leak();
        }
        for table in self.long_tables.iter_mut().flatten() {
            table.leak();
        }
    }
}

/// Writes entry `index` of a descriptor table (spec 2.7.5): le64 addr, le32 len, le16 flags, le16 next.
#[inline]
fn store_descriptor<H: Hal>(
    table: &Dma<H>,
    index: usize,
    descriptor: &Descriptor,
    next: Option<u16>,
) {
    let mut flags = match descriptor.access {
        Access::Readable => 0,
        Access::Writable => DESC_F_WRITE,
    };
    if next.is_some() {
        flags |= DESC_F_NEXT;
    }
    let next = u64::from(next.unwrap_or(0));
    let at = index * DESCRIPTOR_LEN;
    table.store_u64(at, descriptor.address);
    table.store_u64(at + 8, u64::from(descriptor.len) | flags << 32 | next << 48);
}

/// Whether moving an index from `old` to `new` passes `event` (spec 2.7.10.1, `vring_need_event`).
#[inline]
fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::need_event;

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
}
