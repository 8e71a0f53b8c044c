//! The device's side of a split virtqueue, after the specification (2.7) and strict about what it asks of drivers.
//!
//! Every rule for drivers that a device can see broken leaves a note in [`Memory::violations`].

use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::vec::Vec;

use crate::dma::Direction;

use super::memory::Memory;
use super::random::Random;
use crate::features::RingFeatures;
use crate::transport::QueueAddresses;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

/// A run of guest memory that a request consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where the device finds it.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
    /// Whether it is for the device to write (otherwise to read).
    pub writable: bool,
}

/// A buffer that the driver made available, taken from the ring and not yet returned.
#[derive(Debug)]
pub struct Request {
    head: u16,
    segments: Vec<Segment>,
    memory: Memory,
    /// As the queue's: the driver may have been told that the request is done.
    lied: Arc<AtomicBool>,
}

impl Request {
    /// The descriptor that its chain begins with.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Its segments in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> usize {
        self.total(false)
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> usize {
        self.total(true)
    }

    fn total(&self, writable: bool) -> usize {
        let segments = self.segments.iter();
        let of_kind = segments.filter(|segment| segment.writable == writable);
        of_kind.map(|segment| segment.len as usize).sum()
    }

    /// The parts of the run of `len` bytes at `offset` of the readable or the writable bytes.
    fn parts(&self, writable: bool, offset: usize, len: usize) -> Vec<(u64, usize)> {
        let (mut skip, mut left) = (offset, len);
        let mut parts = Vec::new();
        for segment in &self.segments {
            let segment_len = segment.len as usize;
            if segment.writable != writable {
                continue;
            }
            if skip >= segment_len {
                skip -= segment_len;
                continue;
            }
            let part = left.min(segment_len - skip);
            if part > 0 {
                parts.push((segment.address + skip as u64, part));
            }
            left -= part;
            skip = 0;
        }
        parts
    }

    /// The device lied about its queue before, so whatever is wrong with the request may be its own fault.
    pub(super) fn is_dubious(&self) -> bool {
        self.lied.load(Ordering::Relaxed)
    }

    /// Whether to try an access: always, unless it is the device's own fault that there is nothing lent there.
    fn may(&self, address: u64, len: usize, access: Direction) -> bool {
        !self.lied.load(Ordering::Relaxed) || self.memory.allows(address, len, access)
    }

    /// Reads from `offset` of the readable bytes, as far as they go; returns how many.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for (address, len) in self.parts(false, offset, bytes.len()) {
            if self.may(address, len, Direction::ToDevice) {
                self.memory.read(address, &mut bytes[done..done + len]);
            }
            done += len;
        }
        done
    }

    /// All readable bytes.
    pub fn read_all(&self) -> Vec<u8> {
        let mut bytes = std::vec![0; self.readable_len()];
        self.read(0, &mut bytes);
        bytes
    }

    /// Writes to `offset` of the writable bytes, as far as they go; returns how many.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> usize {
        let mut done = 0;
        for (address, len) in self.parts(true, offset, bytes.len()) {
            if self.may(address, len, Direction::FromDevice) {
                self.memory.write(address, &bytes[done..done + len]);
            }
            done += len;
        }
        done
    }
}

/// A descriptor as it stands in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A split virtqueue as its device uses it.
#[derive(Debug)]
pub struct DeviceQueue {
    memory: Memory,
    name: String,
    addresses: QueueAddresses,
    event_idx: bool,
    indirect: bool,
    /// The available index up to which requests were taken.
    taken: u16,
    /// The available index as last seen.
    seen: u16,
    used: u16,
    /// The used index when the driver was last considered for an interrupt.
    signalled: u16,
    /// What the driver may not touch now: entries of the descriptor table by index, with the head of their chain.
    owned: BTreeMap<u16, (u16, Descriptor)>,
    /// The same by head: the entries of each chain.
    chains: BTreeMap<u16, Vec<u16>>,
    /// Heads of requests taken and not returned.
    requests: usize,
    /// The driver was told of completions that there were not, so its account and this one differ, and that is not its
    /// fault.
    lied: Arc<AtomicBool>,
}

impl DeviceQueue {
    /// The queue at `addresses`, called `name` in violations, under the features that were negotiated.
    pub fn new(memory: Memory, name: String, addresses: QueueAddresses, features: u64) -> Self {
        let has = |feature: RingFeatures| features & feature.bits() != 0;
        let queue = Self {
            memory,
            name,
            addresses,
            event_idx: has(RingFeatures::EVENT_IDX),
            indirect: has(RingFeatures::INDIRECT_DESC),
            taken: 0,
            seen: 0,
            used: 0,
            signalled: 0,
            owned: BTreeMap::new(),
            chains: BTreeMap::new(),
            requests: 0,
            lied: Arc::new(AtomicBool::new(false)),
        };
        queue.check_layout();
        queue
    }

    /// Spec 2.7: alignment and extent of the three parts, and how they start out.
    fn check_layout(&self) {
        let QueueAddresses {
            size,
            descriptors,
            driver,
            device,
        } = self.addresses;
        if !size.is_power_of_two() || size > 32768 {
            self.violation(format!("size {size} is not a power of two up to 32768"));
        }
        for (part, address, alignment) in [
            ("descriptor table", descriptors, 16),
            ("available ring", driver, 2),
            ("used ring", device, 4),
        ] {
            if !address.is_multiple_of(alignment) {
                self.violation(format!("{part} at {address:#x} is not {alignment}-aligned"));
            }
        }
        let entries = usize::from(size);
        let reads = Direction::ToDevice;
        self.memory.check(descriptors, 16 * entries, reads);
        self.memory.check(driver, 6 + 2 * entries, reads);
        let writes = Direction::FromDevice;
        self.memory.check(device, 6 + 8 * entries, writes);
        if self.memory.read_u16(driver + 2) != 0 {
            self.violation("available index does not start at 0");
        }
    }

    fn violation(&self, what: impl AsRef<str>) {
        self.memory
            .report(format!("{}: {}", self.name, what.as_ref()));
    }

    /// A violation, if both sides could know what is in flight.
    fn unless_lied(&self, what: String) {
        if !self.lied.load(Ordering::Relaxed) {
            self.violation(what);
        }
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.addresses.size
    }

    /// Where the parts are.
    pub fn addresses(&self) -> QueueAddresses {
        self.addresses
    }

    /// Requests taken and not returned.
    pub fn requests(&self) -> usize {
        self.requests
    }

    /// The available index up to which requests were taken.
    pub fn taken(&self) -> u16 {
        self.taken
    }

    /// The used index.
    pub fn used_index(&self) -> u16 {
        self.used
    }

    /// Whether descriptor `index` is part of a request that was taken and not returned.
    pub fn owns(&self, index: u16) -> bool {
        self.owned.contains_key(&index)
    }

    /// How many requests there are to take.
    pub fn available(&mut self) -> u16 {
        self.read_available_index().wrapping_sub(self.taken)
    }

    /// Spec 2.7.6: the index never goes back, and never counts more than there are descriptors.
    fn read_available_index(&mut self) -> u16 {
        let index = self.memory.read_u16(self.addresses.driver + 2);
        let waiting = usize::from(index.wrapping_sub(self.taken));
        let added = index.wrapping_sub(self.seen);
        if waiting + self.requests > usize::from(self.size()) || added > self.size() {
            self.unless_lied(format!(
                "available index went from {} to {index} with {} requests out of {}",
                self.seen,
                self.requests,
                self.size()
            ));
            // Nothing that it says can be followed.
            return self.taken;
        }
        self.seen = index;
        // The entries must not be read before the index.
        fence(Ordering::Acquire);
        index
    }

    /// Takes the next request.
    pub fn pop(&mut self) -> Option<Request> {
        if self.read_available_index() == self.taken {
            return None;
        }
        self.check_flags();
        let entry = u64::from(self.taken & (self.size() - 1));
        let head = self.memory.read_u16(self.addresses.driver + 4 + 2 * entry);
        self.taken = self.taken.wrapping_add(1);
        self.requests += 1;
        let segments = self.chain(head);
        Some(Request {
            head,
            segments,
            memory: self.memory.clone(),
            lied: self.lied.clone(),
        })
    }

    /// Spec 2.7.7.1: the flags of the available ring are 0 or 1, and 0 with EVENT_IDX.
    fn check_flags(&self) {
        let flags = self.memory.read_u16(self.addresses.driver);
        let allowed = if self.event_idx { 0 } else { 1 };
        if flags > allowed {
            self.violation(format!("flags of the available ring are {flags}"));
        }
    }

    fn descriptor(&self, table: u64, index: u16) -> Option<Descriptor> {
        let mut bytes = [0; 16];
        if !self.memory.read(table + 16 * u64::from(index), &mut bytes) {
            return None;
        }
        let raw = u128::from_le_bytes(bytes);
        Some(Descriptor {
            address: raw as u64,
            len: (raw >> 64) as u32,
            flags: (raw >> 96) as u16,
            next: (raw >> 112) as u16,
        })
    }

    /// Follows the chain that begins at `head` (spec 2.7.5). At the first rule broken it ends there.
    fn chain(&mut self, head: u16) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut table = self.addresses.descriptors;
        let mut entries = self.size();
        let mut inside_indirect = false;
        let mut index = head;
        let mut total = 0u64;
        loop {
            if index >= entries {
                self.violation(format!("descriptor {index} of a table of {entries}"));
                break;
            }
            let Some(descriptor) = self.descriptor(table, index) else {
                break;
            };
            if !inside_indirect {
                // A loop comes back to a descriptor of its own; another chain's is as wrong.
                if let Some((other, _)) = self.owned.get(&index) {
                    let other = *other;
                    self.unless_lied(format!(
                        "descriptor {index} of the chain at {head} is still in the chain at {other}"
                    ));
                    break;
                }
                self.owned.insert(index, (head, descriptor));
                self.chains.entry(head).or_default().push(index);
            }
            let flags = descriptor.flags;
            if flags & !(F_NEXT | F_WRITE | F_INDIRECT) != 0 {
                self.violation(format!("descriptor {index} has the flags {flags:#x}"));
            }
            if flags & F_INDIRECT != 0 {
                if !self.indirect {
                    self.violation("indirect descriptor without INDIRECT_DESC");
                } else if inside_indirect {
                    self.violation("indirect descriptor inside an indirect table");
                } else if flags & F_NEXT != 0 {
                    self.violation("indirect descriptor with NEXT");
                } else if descriptor.len == 0 || !descriptor.len.is_multiple_of(16) {
                    self.violation(format!("indirect table of {} bytes", descriptor.len));
                } else {
                    inside_indirect = true;
                    table = descriptor.address;
                    entries = u16::try_from(descriptor.len / 16).unwrap_or(u16::MAX);
                    index = 0;
                    continue;
                }
                break;
            }

            let writable = flags & F_WRITE != 0;
            let last_writable = segments.last().is_some_and(|last: &Segment| last.writable);
            if last_writable && !writable {
                self.violation("device-readable descriptor behind a device-writable one");
            }
            if descriptor.len == 0 {
                self.violation(format!("descriptor {index} describes no bytes"));
            }
            total += u64::from(descriptor.len);
            if total > 1 << 32 {
                self.violation("chain of more than 2^32 bytes");
                break;
            }
            let access = if writable {
                Direction::FromDevice
            } else {
                Direction::ToDevice
            };
            let len = descriptor.len as usize;
            if !self.memory.allows(descriptor.address, len, access) {
                self.unless_lied(format!(
                    "descriptor {index} of the chain at {head}: {len} bytes at {:#x} are not lent so",
                    descriptor.address
                ));
                break;
            }
            segments.push(Segment {
                address: descriptor.address,
                len: descriptor.len,
                writable,
            });
            if segments.len() > usize::from(self.size()) {
                self.violation("chain longer than the queue");
                break;
            }
            if flags & F_NEXT == 0 {
                break;
            }
            index = descriptor.next;
        }
        segments
    }

    /// Returns a request of whose writable bytes the first `written` were written.
    pub fn push(&mut self, request: Request, written: u32) {
        self.requests = self.requests.saturating_sub(1);
        let table = self.addresses.descriptors;
        for index in self.chains.remove(&request.head).unwrap_or_default() {
            let taken = self.owned.remove(&index).map(|(_, taken)| taken);
            if self.descriptor(table, index) != taken {
                self.unless_lied(format!(
                    "descriptor {index} was changed while the device had it"
                ));
            }
        }
        self.push_raw(u32::from(request.head), written);
    }

    /// Writes an entry of the used ring and moves the index past it, whatever the entry says.
    pub fn push_raw(&mut self, id: u32, len: u32) {
        let entry = u64::from(self.used & (self.size() - 1));
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&id.to_le_bytes());
        bytes[4..].copy_from_slice(&len.to_le_bytes());
        let at = self.addresses.device + 4 + 8 * entry;
        self.memory.write(at, &bytes);
        self.set_used_index(self.used.wrapping_add(1));
    }

    /// To be called before something is said that is not so: what the driver does to requests that the device holds is no
    /// fault of the driver's then.
    pub fn lie(&mut self) {
        self.lied.store(true, Ordering::Relaxed);
    }

    /// Fills the used ring with noise, its index and the device's wishes included; half of it noise that is almost right.
    pub fn make_noise(&mut self, random: &mut Random) {
        self.lie();
        let mut bytes = std::vec![0; 6 + 8 * usize::from(self.size())];
        random.fill(&mut bytes);
        for entry in bytes[4..].chunks_exact_mut(8) {
            if random.below(2) == 0 {
                let id = random.below(self.size().into()) as u32;
                entry[..4].copy_from_slice(&id.to_le_bytes());
            }
        }
        self.memory.poke(self.addresses.device, &bytes);
        if random.below(2) == 0 {
            let near = self.used.wrapping_add(random.below(4) as u16);
            self.set_used_index(near);
        }
    }

    /// Moves the used index, whatever is behind it.
    pub fn set_used_index(&mut self, index: u16) {
        // What the index covers must be visible before it.
        fence(Ordering::Release);
        self.used = index;
        self.memory.write_u16(self.addresses.device + 2, index);
    }

    /// Whether the driver wants an interrupt for what was returned since the last call (spec 2.7.7).
    pub fn interrupt_wanted(&mut self) -> bool {
        let (old, new) = (self.signalled, self.used);
        self.signalled = new;
        if old == new {
            return false;
        }
        // The entries must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let at = self.addresses.driver + 4 + 2 * u64::from(self.size());
            let used_event = self.memory.read_u16(at);
            // Some entry was written at index `used_event`.
            used_event.wrapping_sub(old) < new.wrapping_sub(old)
        } else {
            self.memory.read_u16(self.addresses.driver) & 1 == 0
        }
    }

    /// Says whether the driver need notify of what it makes available next (spec 2.7.10). The caller looks at
    /// [`Self::available`] afterwards.
    pub fn set_notifications(&mut self, wanted: bool) {
        let device = self.addresses.device;
        if self.event_idx {
            let avail_event = if wanted {
                self.taken
            } else {
                self.taken.wrapping_sub(1)
            };
            let at = device + 4 + 8 * u64::from(self.size());
            self.memory.write_u16(at, avail_event);
        } else {
            self.memory.write_u16(device, u16::from(!wanted));
        }
        // The wish must be visible before the index is read again.
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    //! That the rules are watched: a driver written down byte by byte breaks each of them.

    use super::*;
    use crate::dma::DmaContext;
    use crate::fake::FakeDma;

    const SIZE: u16 = 4;

    struct Ring {
        memory: Memory,
        queue: DeviceQueue,
        table: u64,
        avail: u64,
        /// A page that the device may only read, one that it may only write.
        readable: u64,
        writable: u64,
    }

    fn page(direction: Direction) -> u64 {
        let context = FakeDma::new(Memory::current());
        context.allocate(1, direction).expect("room").0
    }

    fn ring(features: RingFeatures) -> Ring {
        let memory = Memory::fresh();
        let table = page(Direction::Both);
        let avail = table + 1024;
        let addresses = QueueAddresses {
            size: SIZE,
            descriptors: table,
            driver: avail,
            device: table + 2048,
        };
        let name = String::from("test");
        Ring {
            queue: DeviceQueue::new(memory.clone(), name, addresses, features.bits()),
            memory,
            table,
            avail,
            readable: page(Direction::ToDevice),
            writable: page(Direction::FromDevice),
        }
    }

    impl Ring {
        fn describe(&self, table: u64, index: u64, address: u64, len: u32, flags: u16, next: u16) {
            let raw = u128::from(address)
                | u128::from(len) << 64
                | u128::from(flags) << 96
                | u128::from(next) << 112;
            self.memory.poke(table + 16 * index, &raw.to_le_bytes());
        }

        fn offer(&mut self, entry: u64, head: u16, index: u16) -> Option<Request> {
            let at = self.avail + 4 + 2 * entry;
            self.memory.poke(at, &head.to_le_bytes());
            self.memory.poke(self.avail + 2, &index.to_le_bytes());
            self.queue.pop()
        }

        /// The one rule broken so far.
        #[track_caller]
        fn assert_broken(&self, rule: &str) {
            let violations = self.memory.violations();
            assert!(
                violations.len() == 1 && violations[0].contains(rule),
                "{rule}: {violations:#?}"
            );
        }
    }

    #[test]
    fn an_honest_chain_breaks_no_rule() {
        let mut ring = ring(RingFeatures::INDIRECT_DESC);
        ring.describe(ring.table, 2, ring.readable, 16, F_NEXT, 1);
        ring.describe(ring.table, 1, ring.writable, 8, F_WRITE, 0);
        let request = ring.offer(0, 2, 1).expect("one");
        assert_eq!((request.head(), request.segments().len()), (2, 2));
        assert_eq!((request.readable_len(), request.writable_len()), (16, 8));
        assert_eq!(
            request.write(0, &[1; 20]),
            8,
            "no further than there is room"
        );
        ring.queue.push(request, 8);
        assert!(ring.queue.interrupt_wanted());
        ring.memory.assert_no_violations();
    }

    #[test]
    fn broken_rules_of_descriptors_are_noted() {
        type Break = fn(&Ring);
        let cases: [(&str, Break); 10] = [
            ("describes no bytes", |ring| {
                ring.describe(ring.table, 0, ring.readable, 0, 0, 0)
            }),
            ("has the flags", |ring| {
                ring.describe(ring.table, 0, ring.readable, 4, 8, 0)
            }),
            ("are not lent so", |ring| {
                ring.describe(ring.table, 0, ring.readable, 4, F_WRITE, 0)
            }),
            ("are not lent so", |ring| {
                ring.describe(ring.table, 0, ring.writable, 4, 0, 0)
            }),
            ("are not lent so", |ring| {
                ring.describe(ring.table, 0, ring.readable, 4097, 0, 0)
            }),
            ("descriptor 4 of a table of 4", |ring| {
                ring.describe(ring.table, 0, ring.readable, 4, F_NEXT, 4);
            }),
            ("still in the chain", |ring| {
                ring.describe(ring.table, 0, ring.readable, 4, F_NEXT, 1);
                ring.describe(ring.table, 1, ring.readable, 4, F_NEXT, 0);
            }),
            ("behind a device-writable one", |ring| {
                ring.describe(ring.table, 0, ring.writable, 4, F_WRITE | F_NEXT, 1);
                ring.describe(ring.table, 1, ring.readable, 4, 0, 0);
            }),
            ("with NEXT", |ring| {
                ring.describe(ring.table, 0, ring.readable, 16, F_INDIRECT | F_NEXT, 1);
            }),
            ("indirect table of 24 bytes", |ring| {
                ring.describe(ring.table, 0, ring.readable, 24, F_INDIRECT, 0);
            }),
        ];
        for (rule, breaks) in cases {
            let mut ring = ring(RingFeatures::INDIRECT_DESC);
            breaks(&ring);
            ring.offer(0, 0, 1);
            ring.assert_broken(rule);
        }
    }

    #[test]
    fn broken_rules_of_indirect_tables_are_noted() {
        let mut without = ring(RingFeatures::empty());
        without.describe(without.table, 0, without.readable, 16, F_INDIRECT, 0);
        without.offer(0, 0, 1);
        without.assert_broken("without INDIRECT_DESC");

        let mut nested = ring(RingFeatures::INDIRECT_DESC);
        nested.describe(nested.table, 0, nested.readable, 16, F_INDIRECT, 0);
        nested.describe(nested.readable, 0, nested.readable, 16, F_INDIRECT, 0);
        nested.offer(0, 0, 1);
        nested.assert_broken("inside an indirect table");

        let mut long = ring(RingFeatures::INDIRECT_DESC);
        long.describe(long.table, 0, long.readable, 80, F_INDIRECT, 0);
        for index in 0..5 {
            let flags = if index < 4 { F_NEXT } else { 0 };
            let next = index as u16 + 1;
            long.describe(long.readable, index, long.readable, 4, flags, next);
        }
        long.offer(0, 0, 1);
        long.assert_broken("chain longer than the queue");
    }

    #[test]
    fn broken_rules_of_the_available_ring_are_noted() {
        let mut jump = ring(RingFeatures::empty());
        assert!(jump.offer(0, 0, SIZE + 1).is_none());
        jump.assert_broken("available index went from 0 to 5");

        let mut back = ring(RingFeatures::empty());
        back.describe(back.table, 0, back.readable, 4, 0, 0);
        let request = back.offer(0, 0, 1).expect("one");
        back.queue.push(request, 0);
        assert!(back.offer(0, 0, 0).is_none());
        back.assert_broken("available index went from 1 to 0");

        let mut twice = ring(RingFeatures::empty());
        twice.describe(twice.table, 0, twice.readable, 4, 0, 0);
        twice.offer(0, 0, 1).expect("one");
        twice.offer(1, 0, 2);
        twice.assert_broken("still in the chain");

        let mut flags = ring(RingFeatures::EVENT_IDX);
        flags.describe(flags.table, 0, flags.readable, 4, 0, 0);
        flags.memory.poke(flags.avail, &[1, 0]);
        flags.offer(0, 0, 1);
        flags.assert_broken("flags of the available ring are 1");
    }

    #[test]
    fn a_descriptor_changed_too_early_is_noted() {
        let mut ring = ring(RingFeatures::empty());
        ring.describe(ring.table, 0, ring.readable, 4, 0, 0);
        let request = ring.offer(0, 0, 1).expect("one");
        ring.describe(ring.table, 0, ring.readable, 5, 0, 0);
        ring.queue.push(request, 0);
        ring.assert_broken("was changed while the device had it");
    }

    #[test]
    fn misplaced_parts_are_noted() {
        let memory = Memory::fresh();
        let page = page(Direction::Both);
        let addresses = QueueAddresses {
            size: SIZE,
            descriptors: page + 8,
            driver: page + 1025,
            device: page + 2050,
        };
        DeviceQueue::new(memory.clone(), String::from("test"), addresses, 0);
        assert_eq!(memory.violations().len(), 3, "{:?}", memory.violations());
    }
}
