//! [`FakePci`]: a PCI function with a [`FakeDevice`] behind it (spec 4.1), laid out as QEMU does.

use std::boxed::Box;
use std::fmt;
use std::format;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use super::device::{DeviceModel, FakeDevice, Interrupt};
use super::fault::Fault;
use crate::error::Cause;
use crate::registers::Registers;
use crate::transport::QueueAddresses;
use crate::transport::pci::Message;

/// The machine's memory ends here, and registers begin no lower.
const MEMORY_END: u64 = 1 << 30;

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
const BAR0: usize = 0x10;
const FIRST_CAPABILITY: u8 = 0x40;

const NO_VECTOR: u16 = 0xffff;

/// The kinds of structure, by their `cfg_type`.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;
const SHARED_MEMORY: u8 = 8;
/// The MSI-X table is not a virtio structure; it goes by this number here.
const MSIX_TABLE: u8 = 0xff;

/// Where the structures are.
const MSIX_BAR: usize = 1;
const PIO_NOTIFY_BAR: usize = 2;
const MEMORY_BAR: usize = 4;

/// How a function presents itself.
#[derive(Clone, Copy, Debug)]
pub struct PciLayout {
    /// With the ids of a transitional device.
    pub transitional: bool,
    /// Without any virtio capability: a device of virtio 0.9.
    pub legacy_only: bool,
    /// Where the firmware put the BAR with the virtio structures; 0 if it put it nowhere. It is 64 bits wide.
    pub address: u64,
    /// `notify_off_multiplier`.
    pub notify_multiplier: u32,
    /// MSI-X vectors; 0 for a device without.
    pub vectors: u16,
    /// Whether a notification structure in an I/O BAR comes before the one in memory.
    pub io_notify_first: bool,
    /// A shared-memory region: id, and length in bytes.
    pub shared_memory: Option<(u8, u64)>,
}

impl Default for PciLayout {
    fn default() -> Self {
        Self {
            transitional: false,
            legacy_only: false,
            address: 0xfe00_0000,
            notify_multiplier: 4,
            vectors: 4,
            io_notify_first: false,
            shared_memory: None,
        }
    }
}

/// What can be wrong with a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapabilityFault {
    /// It is its own successor.
    Loop,
    /// It is not in the list.
    Missing,
    /// It names this BAR.
    Bar(u8),
    /// Its structure begins here.
    Offset(u32),
    /// Its structure is so long.
    Length(u32),
    /// It says that itself is so long.
    CapabilityLength(u8),
}

/// A PCI function, alone on its bus. Clones are the same function.
pub struct FakePci<M> {
    device: FakeDevice<M>,
    function: DeviceFunction,
    state: Arc<Mutex<State>>,
}

/// A BAR of a [`FakePci`], or a part of it.
pub struct FakeRegisters<M> {
    pci: FakePci<M>,
    bar: usize,
    offset: usize,
    len: usize,
}

struct State {
    layout: PciLayout,
    config: Box<[u8; 256]>,
    /// The BARs' lengths; that of a 64-bit one is at its lower half.
    bars: [u64; 6],
    structures: Vec<Structure>,
    capabilities: Vec<(u8, u8)>,
    msix_table: Vec<u8>,
    common: CommonRegisters,
}

/// A structure: its kind, and where it truly is.
#[derive(Clone, Copy)]
struct Structure {
    kind: u8,
    bar: usize,
    offset: usize,
    len: usize,
}

/// What the driver wrote to the common configuration and a reset forgets.
#[derive(Clone, Default)]
struct CommonRegisters {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: Option<u16>,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

#[derive(Clone, Copy, Default)]
struct QueueRegisters {
    size: Option<u16>,
    vector: Option<u16>,
    /// `queue_desc`, `queue_driver`, `queue_device`.
    addresses: [u64; 3],
}

impl<M> Clone for FakePci<M> {
    fn clone(&self) -> Self {
        Self {
            device: self.device.clone(),
            function: self.function,
            state: self.state.clone(),
        }
    }
}

impl<M> fmt::Debug for FakePci<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FakePci({})", self.function)
    }
}

impl<M> fmt::Debug for FakeRegisters<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FakeRegisters({} bytes)", self.len)
    }
}

impl State {
    fn new(id: u16, queues: u16, config_len: usize, layout: PciLayout) -> Self {
        let mut state = Self {
            layout,
            config: Box::new([0; 256]),
            bars: [0; 6],
            structures: Vec::new(),
            capabilities: Vec::new(),
            msix_table: std::vec![0; 16 * usize::from(layout.vectors)],
            common: CommonRegisters::default(),
        };
        let device = match (layout.transitional || layout.legacy_only, id) {
            (false, id) => 0x1040 + id,
            (true, 1) => 0x1000,
            (true, 2) => 0x1001,
            (true, id) => 0x1002 + id,
        };
        state.put(0x00, &0x1af4u16.to_le_bytes());
        state.put(0x02, &device.to_le_bytes());
        // The firmware left memory decoding on.
        state.put(COMMAND, &[COMMAND_MEMORY]);
        state.put(0x2c, &0x1af4u16.to_le_bytes());
        state.put(0x2e, &id.to_le_bytes());

        if layout.transitional || layout.legacy_only {
            state.add_bar(0, 0x100, 0xc000 | 1);
        }
        if layout.legacy_only {
            return state;
        }
        let mut free = FIRST_CAPABILITY;
        if layout.vectors > 0 {
            state.add_bar(MSIX_BAR, 0x1000, 0xfd00_0000);
            let len = state.msix_table.len();
            state.structure(MSIX_TABLE, MSIX_BAR, 0, len);
            // Message control; offset and BAR of the table; of the pending bits, which nobody reads here.
            let mut bytes = std::vec![0x11, 0];
            bytes.extend((layout.vectors - 1).to_le_bytes());
            bytes.extend((MSIX_BAR as u32).to_le_bytes());
            bytes.extend((MSIX_BAR as u32 | 0x800).to_le_bytes());
            state.capability(&mut free, MSIX_TABLE, &bytes);
        }
        let notify_len = (usize::from(queues) * layout.notify_multiplier as usize).max(0x1000);
        if layout.io_notify_first {
            state.add_bar(PIO_NOTIFY_BAR, 0x4, 0xc100 | 1);
            state.virtio_capability(&mut free, NOTIFY, PIO_NOTIFY_BAR, 0, 4);
        }
        let shared = layout.shared_memory.map_or(0, |(_, len)| len);
        let shared_at = (0x3000 + notify_len as u64).next_multiple_of(0x1000);
        let len = (shared_at + shared).next_power_of_two();
        state.add_bar(MEMORY_BAR, len, layout.address | 0b1100);
        for (kind, offset, len) in [
            (COMMON, 0, 56),
            (ISR, 0x1000, 1),
            (DEVICE, 0x2000, config_len),
            (NOTIFY, 0x3000, notify_len),
        ] {
            if len > 0 {
                state.structure(kind, MEMORY_BAR, offset, len);
                state.virtio_capability(&mut free, kind, MEMORY_BAR, offset as u64, len as u64);
            }
        }
        if shared > 0 {
            state.virtio_capability(&mut free, SHARED_MEMORY, MEMORY_BAR, shared_at, shared);
        }
        state
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.config[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A BAR of `len` bytes whose registers read `value`.
    fn add_bar(&mut self, bar: usize, len: u64, value: u64) {
        self.bars[bar] = len;
        let width = if value & 0b101 == 0b100 { 8 } else { 4 };
        self.put(BAR0 + 4 * bar, &value.to_le_bytes()[..width]);
    }

    fn structure(&mut self, kind: u8, bar: usize, offset: usize, len: usize) {
        self.structures.push(Structure {
            kind,
            bar,
            offset,
            len,
        });
    }

    fn virtio_capability(&mut self, free: &mut u8, kind: u8, bar: usize, offset: u64, len: u64) {
        let id = self.layout.shared_memory.map_or(0, |(id, _)| id);
        let (cap_len, id) = match kind {
            NOTIFY => (20, 0),
            SHARED_MEMORY => (24, id),
            _ => (16, 0),
        };
        let mut bytes = std::vec![0x09, 0, cap_len, kind, bar as u8, id, 0, 0];
        bytes.extend((offset as u32).to_le_bytes());
        bytes.extend((len as u32).to_le_bytes());
        if kind == NOTIFY {
            bytes.extend(self.layout.notify_multiplier.to_le_bytes());
        } else if kind == SHARED_MEMORY {
            bytes.extend(((offset >> 32) as u32).to_le_bytes());
            bytes.extend(((len >> 32) as u32).to_le_bytes());
        }
        self.capability(free, kind, &bytes);
    }

    /// Appends a capability to the list.
    fn capability(&mut self, free: &mut u8, kind: u8, bytes: &[u8]) {
        let at = *free;
        let link = match self.capabilities.last() {
            Some((_, last)) => usize::from(*last) + 1,
            None => 0x34,
        };
        self.config[link] = at;
        // Status: there is a capability list.
        self.config[0x06] |= 1 << 4;
        self.put(usize::from(at), bytes);
        self.capabilities.push((kind, at));
        *free = at + (bytes.len() as u8).next_multiple_of(4);
    }

    /// The address in a memory BAR now.
    fn bar_address(&self, bar: usize) -> Option<u64> {
        let at = BAR0 + 4 * bar;
        let low = self.config[at];
        if self.bars[bar] == 0 || low & 1 == 1 {
            return None;
        }
        let mut bytes = [0; 8];
        let width = if low & 0b100 == 0 { 4 } else { 8 };
        bytes[..width].copy_from_slice(&self.config[at..at + width]);
        Some(u64::from_le_bytes(bytes) & !0xf)
    }

    fn write_word(&mut self, at: usize, value: u32) {
        let msix = self
            .capabilities
            .iter()
            .find(|(kind, _)| *kind == MSIX_TABLE);
        if at == COMMAND {
            self.put(COMMAND, &(value as u16 & 0x7).to_le_bytes());
        } else if (BAR0..BAR0 + 24).contains(&at) {
            self.write_bar((at - BAR0) / 4, value);
        } else if msix.is_some_and(|(_, offset)| usize::from(*offset) == at) {
            // Enable and mask-all.
            let control = (value >> 24) as u8 & 0xc0;
            self.config[at + 3] = self.config[at + 3] & 0x3f | control;
        }
    }

    /// The address bits above the length can be written, the others are fixed.
    fn write_bar(&mut self, bar: usize, value: u32) {
        let upper = bar > 0 && self.config[BAR0 + 4 * (bar - 1)] & 0b101 == 0b100;
        let (len, shift) = if upper && self.bars[bar - 1] != 0 {
            (self.bars[bar - 1], 32)
        } else {
            (self.bars[bar], 0)
        };
        if len == 0 {
            return;
        }
        let at = BAR0 + 4 * bar;
        let flags = match (shift, self.config[at] & 1) {
            (32, _) => 0,
            (_, 1) => u32::from(self.config[at] & 0x3),
            _ => u32::from(self.config[at] & 0xf),
        };
        let mask = ((!(len - 1)) >> shift) as u32;
        self.put(at, &(value & mask | flags).to_le_bytes());
    }

    fn queue(&mut self) -> Option<&mut QueueRegisters> {
        let selected = usize::from(self.common.queue_select);
        self.common.queues.get_mut(selected)
    }
}

impl<M: DeviceModel> FakePci<M> {
    /// Puts `device` behind a PCI function.
    pub fn new(device: &FakeDevice<M>, layout: PciLayout) -> Self {
        let id = device.name().id.0 as u16;
        let (queues, config_len) =
            device.with(|model| (model.queue_sizes().len(), model.config().len()));
        let mut state = State::new(id, queues as u16, config_len, layout);
        state.common.queues = std::vec![QueueRegisters::default(); queues];
        Self {
            device: device.clone(),
            function: DeviceFunction {
                bus: 0,
                device: 3,
                function: 0,
            },
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Where the function is on the bus.
    pub fn function(&self) -> DeviceFunction {
        self.function
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes to configuration space what a driver can't: fixed fields.
    pub fn poke(&self, offset: u8, bytes: &[u8]) {
        self.state().put(offset.into(), bytes);
    }

    /// Breaks the last capability of this `cfg_type` (255 for MSI-X), which must be there.
    pub fn break_capability(&self, cfg_type: u8, fault: CapabilityFault) {
        let mut state = self.state();
        let of_kind = |(kind, _): &(u8, u8)| *kind == cfg_type;
        let position = state.capabilities.iter().rposition(of_kind);
        let position = position.expect("a capability of this type");
        let at = usize::from(state.capabilities[position].1);
        match fault {
            CapabilityFault::Loop => state.config[at + 1] = at as u8,
            CapabilityFault::Missing => {
                let before = match position.checked_sub(1) {
                    Some(before) => usize::from(state.capabilities[before].1) + 1,
                    None => 0x34,
                };
                state.config[before] = state.config[at + 1];
                state.capabilities.remove(position);
            }
            CapabilityFault::Bar(bar) => state.config[at + 4] = bar,
            CapabilityFault::Offset(offset) => state.put(at + 8, &offset.to_le_bytes()),
            CapabilityFault::Length(len) => state.put(at + 12, &len.to_le_bytes()),
            CapabilityFault::CapabilityLength(len) => state.config[at + 2] = len,
        }
    }

    /// The registers at a physical address, for [`PciTransport::with_registers`](crate::PciTransport::with_registers).
    ///
    /// # Errors
    ///
    /// They lie in no BAR, which is noted as well; or where the machine has its memory.
    pub fn map(&self, address: u64, len: u64) -> Result<FakeRegisters<M>, Cause> {
        let bad = Cause::BadRegisters { address, len };
        if address < MEMORY_END {
            return Err(bad);
        }
        let state = self.state();
        let bar = (0..6).find(|bar| {
            state
                .bar_address(*bar)
                .is_some_and(|start| address >= start && address - start + len <= state.bars[*bar])
        });
        let Some(bar) = bar else {
            drop(state);
            self.violation(format!("mapped {len} bytes at {address:#x}: not in a BAR"));
            return Err(bad);
        };
        let start = state.bar_address(bar).ok_or(bad)?;
        drop(state);
        Ok(FakeRegisters {
            pci: self.clone(),
            bar,
            offset: (address - start) as usize,
            len: len as usize,
        })
    }

    /// The message that `interrupt` is sent as now: none without MSI-X, a vector, or with the vector masked.
    pub fn message(&self, interrupt: Interrupt) -> Option<Message> {
        let state = self.state();
        let (_, capability) = state
            .capabilities
            .iter()
            .find(|(kind, _)| *kind == MSIX_TABLE)?;
        let control = state.config[usize::from(*capability) + 3];
        let vector = match interrupt {
            Interrupt::Config => state.common.config_vector,
            Interrupt::Queue(queue) => state.common.queues.get(usize::from(queue))?.vector,
        }?;
        let entry = state.msix_table.chunks_exact(16).nth(vector.into())?;
        let entry = u128::from_le_bytes(entry.try_into().ok()?);
        let masked = control & 0xc0 != 0x80 || (entry >> 96) & 1 == 1;
        (!masked).then_some(Message {
            address: entry as u64,
            data: (entry >> 64) as u32,
        })
    }

    fn violation(&self, what: impl Into<std::string::String>) {
        self.device
            .with_core(|core| core.common.violation(what.into()));
    }

    fn has(&self, fault: Fault) -> bool {
        self.device.with_core(|core| core.common.has(fault))
    }

    /// The structure that holds all of a run of a BAR, and the offset in it.
    fn find(&self, bar: usize, offset: usize, len: usize) -> Option<(u8, usize)> {
        let state = self.state();
        let mut structures = state.structures.iter();
        let inside =
            |s: &&Structure| s.bar == bar && offset >= s.offset && offset + len <= s.offset + s.len;
        structures.find(inside).map(|s| (s.kind, offset - s.offset))
    }

    /// A read of `len` bytes reaches a BAR.
    fn read(&self, bar: usize, offset: usize, len: usize) -> u32 {
        if !self.decodes("read") || self.has(Fault::Gone) {
            return u32::MAX;
        }
        match self.find(bar, offset, len) {
            Some((COMMON, at)) => self.read_common(at, len),
            Some((ISR, 0)) => {
                let causes = self.device.with_core(|core| core.take_causes());
                causes.bits().into()
            }
            Some((DEVICE, at)) => {
                let config = self.device.with_core(|core| core.config());
                // The structure may be longer than the configuration has become.
                let bytes = (0..len).map(|index| config.get(at + index).copied().unwrap_or(0));
                bytes
                    .rev()
                    .fold(0, |value, byte| value << 8 | u32::from(byte))
            }
            Some((MSIX_TABLE, at)) => {
                let state = self.state();
                let bytes = state.msix_table[at..at + len].iter();
                bytes
                    .rev()
                    .fold(0, |value, byte| value << 8 | u32::from(*byte))
            }
            _ => 0,
        }
    }

    /// A write of `len` bytes reaches a BAR.
    fn write(&self, bar: usize, offset: usize, len: usize, value: u32) {
        if !self.decodes("write") {
            return;
        }
        let bytes = &value.to_le_bytes()[..len];
        match self.find(bar, offset, len) {
            Some((COMMON, at)) => self.write_common(at, len, value),
            Some((NOTIFY, at)) => self.notify(at, len, value),
            Some((DEVICE, at)) => self.device.with_core(|core| core.write_config(at, bytes)),
            Some((MSIX_TABLE, at)) => {
                self.state().msix_table[at..at + len].copy_from_slice(bytes);
            }
            _ => self.violation(format!("write to nothing at {offset:#x} of BAR {bar}")),
        }
    }

    /// Whether the function answers to memory accesses at all.
    fn decodes(&self, access: &str) -> bool {
        let on = self.state().config[COMMAND] & COMMAND_MEMORY != 0;
        if !on {
            self.violation(format!("{access} with memory decoding off"));
        }
        on
    }

    /// Spec 4.1.4.4: the queue's index goes to the address made of its `queue_notify_off`, as 16 bits.
    fn notify(&self, offset: usize, len: usize, value: u32) {
        let (multiplier, bus_master) = {
            let state = self.state();
            let master = state.config[COMMAND] & COMMAND_BUS_MASTER != 0;
            (state.layout.notify_multiplier as usize, master)
        };
        if !bus_master {
            self.violation("notified without bus mastering");
        }
        if len != 2 || offset != value as usize * multiplier {
            self.violation(format!(
                "queue {value} notified at {offset:#x} of the structure"
            ));
            return;
        }
        self.device.with_core(|core| core.notify(value as u16));
    }

    /// Spec 4.1.4.3, `struct virtio_pci_common_cfg`.
    fn read_common(&self, offset: usize, len: usize) -> u32 {
        self.check_width(offset, len);
        let CommonRegisters {
            device_feature_select,
            driver_feature_select,
            driver_features,
            config_vector,
            queue_select,
            ..
        } = self.state().common.clone();
        let queue = self.state().queue().copied().unwrap_or_default();
        let half = |value: u64, select: u32| match select {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        let vector = |vector: Option<u16>| u32::from(vector.unwrap_or(NO_VECTOR));
        self.device.with_core(|core| match offset {
            0 => device_feature_select,
            4 => half(core.features(), device_feature_select),
            8 => driver_feature_select,
            12 => half(driver_features, driver_feature_select),
            16 => vector(config_vector),
            18 => core.queue_count().into(),
            20 => core.status().into(),
            21 => core.config_generation() & 0xff,
            22 => queue_select.into(),
            24 => {
                let max = core.queue_max_size(queue_select);
                queue.size.unwrap_or(max).into()
            }
            26 => vector(queue.vector),
            28 => core.queue_enabled(queue_select).into(),
            30 => core.notify_offset(queue_select).into(),
            32 | 40 | 48 => queue.addresses[(offset - 32) / 8] as u32,
            36 | 44 | 52 => (queue.addresses[(offset - 36) / 8] >> 32) as u32,
            _ => 0,
        })
    }

    fn write_common(&self, offset: usize, len: usize, value: u32) {
        self.check_width(offset, len);
        let selected = self.state().common.queue_select;
        let enabled = self.device.with_core(|core| core.queue_enabled(selected));
        if enabled && (24..56).contains(&offset) {
            self.violation(format!("queue {selected} changed while it is enabled"));
        }
        let refused = self.has(Fault::VectorsRefused);
        let mut state = self.state();
        let vectors = state.layout.vectors;
        let vector = |value: u32| {
            let vector = value as u16;
            (!refused && vector < vectors).then_some(vector)
        };
        match offset {
            0 => state.common.device_feature_select = value,
            8 => state.common.driver_feature_select = value,
            12 => {
                let common = &mut state.common;
                let (shift, keep) = match common.driver_feature_select {
                    0 => (0, !0 << 32),
                    1 => (32, 0xffff_ffff),
                    _ => return,
                };
                common.driver_features = common.driver_features & keep | u64::from(value) << shift;
                let features = common.driver_features;
                drop(state);
                self.device
                    .with_core(|core| core.set_driver_features(features));
            }
            16 => state.common.config_vector = vector(value),
            20 => {
                let resets = value == 0;
                if resets {
                    let queues = state.common.queues.len();
                    state.common = CommonRegisters {
                        queues: std::vec![QueueRegisters::default(); queues],
                        ..CommonRegisters::default()
                    };
                }
                drop(state);
                self.device.with_core(|core| core.set_status(value as u8));
            }
            22 => state.common.queue_select = value as u16,
            24..56 => {
                let Some(queue) = state.queue() else {
                    drop(state);
                    return self.violation(format!("there is no queue {selected}"));
                };
                match offset {
                    24 => queue.size = Some(value as u16),
                    26 => queue.vector = vector(value),
                    28 => {
                        let queue = *queue;
                        drop(state);
                        self.enable(selected, value, queue);
                    }
                    30 => {
                        drop(state);
                        self.violation("write to queue_notify_off");
                    }
                    _ => {
                        let (part, high) = ((offset - 32) / 8, offset % 8 == 4);
                        let address = &mut queue.addresses[part];
                        *address = if high {
                            *address & 0xffff_ffff | u64::from(value) << 32
                        } else {
                            *address & !0xffff_ffff | u64::from(value)
                        };
                    }
                }
            }
            _ => {
                drop(state);
                self.violation(format!("write to the read-only field at {offset}"));
            }
        }
    }

    /// Spec 4.1.4.3.2: the driver writes 1 only, after the queue's other fields.
    fn enable(&self, selected: u16, value: u32, queue: QueueRegisters) {
        if value != 1 {
            self.violation(format!("queue_enable written with {value}"));
            return;
        }
        let [descriptors, driver, device] = queue.addresses;
        self.device.with_core(|core| {
            let size = queue.size.unwrap_or(core.queue_max_size(selected));
            core.enable_queue(
                selected,
                QueueAddresses {
                    size,
                    descriptors,
                    driver,
                    device,
                },
            );
        });
    }

    /// Spec 4.1.3.1: each field is accessed with its own width; 64-bit ones as two halves.
    fn check_width(&self, offset: usize, len: usize) {
        let width = match offset {
            0 | 4 | 8 | 12 | 32.. => 4,
            20 | 21 => 1,
            _ => 2,
        };
        if len != width {
            self.violation(format!("access of {len} bytes to common field {offset}"));
        }
    }
}

impl<M: DeviceModel> ConfigurationAccess for FakePci<M> {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        let at = usize::from(offset);
        if !at.is_multiple_of(4) {
            self.violation(format!("configuration read at {offset:#x}"));
            return u32::MAX;
        }
        if function != self.function || self.has(Fault::Gone) {
            return u32::MAX;
        }
        let state = self.state();
        let bytes = state.config[at..at + 4].iter();
        bytes
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    fn write_word(&mut self, function: DeviceFunction, offset: u8, value: u32) {
        let at = usize::from(offset);
        let bar = (BAR0..BAR0 + 24).contains(&at);
        if bar && self.state().config[COMMAND] & COMMAND_MEMORY != 0 {
            self.violation("BAR written with memory decoding on");
        }
        if function == self.function && at.is_multiple_of(4) {
            self.state().write_word(at, value);
        }
    }

    #[expect(
        unsafe_code,
        reason = "the trait says so; a clone is as good as the original"
    )]
    unsafe fn unsafe_clone(&self) -> Self {
        self.clone()
    }
}

impl<M: DeviceModel> FakeRegisters<M> {
    fn read(&self, offset: usize, len: usize) -> u32 {
        if offset.checked_add(len).is_none_or(|end| end > self.len) || !self.aligned(offset, len) {
            return u32::MAX;
        }
        self.pci.read(self.bar, self.offset + offset, len)
    }

    fn write(&self, offset: usize, len: usize, value: u32) {
        if offset.checked_add(len).is_some_and(|end| end <= self.len) && self.aligned(offset, len) {
            self.pci.write(self.bar, self.offset + offset, len, value);
        }
    }

    fn aligned(&self, offset: usize, len: usize) -> bool {
        (self.offset + offset).is_multiple_of(len)
    }
}

impl<M: DeviceModel> Registers for FakeRegisters<M> {
    fn len(&self) -> usize {
        self.len
    }

    fn slice(&self, offset: usize, len: usize) -> Option<Self> {
        (offset.checked_add(len)? <= self.len).then(|| Self {
            pci: self.pci.clone(),
            bar: self.bar,
            offset: self.offset + offset,
            len,
        })
    }

    fn read_u8(&self, offset: usize) -> u8 {
        self.read(offset, 1) as u8
    }

    fn read_u16(&self, offset: usize) -> u16 {
        self.read(offset, 2) as u16
    }

    fn read_u32(&self, offset: usize) -> u32 {
        self.read(offset, 4)
    }

    fn write_u8(&self, offset: usize, value: u8) {
        self.write(offset, 1, value.into());
    }

    fn write_u16(&self, offset: usize, value: u16) {
        self.write(offset, 2, value.into());
    }

    fn write_u32(&self, offset: usize, value: u32) {
        self.write(offset, 4, value);
    }
}
