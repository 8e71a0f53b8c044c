//! [`FakeMmio`]: a block of virtio-mmio registers with a [`FakeDevice`] behind it (spec 4.2).

use std::fmt;
use std::format;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use super::device::{DeviceModel, FakeDevice};
use super::fault::Fault;
use crate::registers::Registers;
use crate::transport::{InterruptCauses, QueueAddresses, SharedMemory};

const CONFIG: usize = 0x100;

/// The registers of a device. Clones are the same ones.
///
/// They do what the specification says and note every rule that the driver breaks, but for those that
/// [`Self::set_register`] says otherwise of.
pub struct FakeMmio<M> {
    device: FakeDevice<M>,
    state: Arc<Mutex<State>>,
}

/// A run of the registers of a [`FakeMmio`].
pub struct FakeMmioRegisters<M> {
    mmio: FakeMmio<M>,
    offset: usize,
    len: usize,
}

#[derive(Default)]
struct State {
    /// Registers that read so, whatever they should read.
    lies: Vec<(usize, u32)>,
    regions: Vec<SharedMemory>,
    written: Written,
}

/// What the driver wrote and a reset forgets.
#[derive(Clone, Default)]
struct Written {
    device_features_sel: Option<u32>,
    driver_features_sel: Option<u32>,
    driver_features: u64,
    queue_sel: u32,
    shm_sel: Option<u32>,
    queues: Vec<QueueRegisters>,
}

#[derive(Clone, Copy, Default)]
struct QueueRegisters {
    size: u32,
    /// `QueueDesc`, `QueueDriver`, `QueueDevice`.
    addresses: [u64; 3],
}

impl<M> Clone for FakeMmio<M> {
    fn clone(&self) -> Self {
        Self {
            device: self.device.clone(),
            state: self.state.clone(),
        }
    }
}

impl<M> fmt::Debug for FakeMmio<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeMmio")
    }
}

impl<M> fmt::Debug for FakeMmioRegisters<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FakeMmioRegisters({} bytes)", self.len)
    }
}

impl<M: DeviceModel> FakeMmio<M> {
    /// Puts `device` behind registers.
    pub fn new(device: &FakeDevice<M>) -> Self {
        Self {
            device: device.clone(),
            state: Arc::default(),
        }
    }

    /// All of the registers, with room for a configuration of 0x100 bytes as QEMU has it.
    pub fn registers(&self) -> FakeMmioRegisters<M> {
        self.registers_of(2 * CONFIG)
    }

    /// The first `len` bytes of the registers.
    pub fn registers_of(&self, len: usize) -> FakeMmioRegisters<M> {
        FakeMmioRegisters {
            mmio: self.clone(),
            offset: 0,
            len,
        }
    }

    /// Has the register at `offset` read `value` from now on.
    pub fn set_register(&self, offset: usize, value: u32) {
        let mut state = self.state();
        state.lies.retain(|(other, _)| *other != offset);
        state.lies.push((offset, value));
    }

    /// Adds a shared-memory region.
    pub fn add_shared_memory(&self, region: SharedMemory) {
        self.state().regions.push(region);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn violation(&self, what: impl Into<std::string::String>) {
        self.device
            .with_core(|core| core.common.violation(what.into()));
    }

    fn is_gone(&self) -> bool {
        self.device.with_core(|core| core.common.has(Fault::Gone))
    }

    fn read(&self, offset: usize, len: usize) -> u32 {
        if self.is_gone() {
            return u32::MAX;
        }
        if let Some(at) = offset.checked_sub(CONFIG) {
            let config = self.device.with_core(|core| core.config());
            // As QEMU has it behind the end.
            let bytes = (0..len).map(|index| config.get(at + index).copied().unwrap_or(0xff));
            return bytes
                .rev()
                .fold(0, |value, byte| value << 8 | u32::from(byte));
        }
        if !self.is_whole_register(offset, len) {
            return u32::MAX;
        }
        let value = self.read_register(offset);
        let state = self.state();
        let lie = state.lies.iter().find(|(other, _)| *other == offset);
        lie.map_or(value, |(_, lie)| *lie)
    }

    /// Spec 4.2.2.2: control registers are accessed as 32 bits, aligned.
    fn is_whole_register(&self, offset: usize, len: usize) -> bool {
        let whole = len == 4 && offset.is_multiple_of(4);
        if !whole {
            self.violation(format!("access of {len} bytes to register {offset:#x}"));
        }
        whole
    }

    fn read_register(&self, offset: usize) -> u32 {
        let written = self.state().written.clone();
        let selected = written.queue_sel;
        let queue = u16::try_from(selected).unwrap_or(u16::MAX);
        let half = |value: u64, select: u32| match select {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        match offset {
            0x00 => u32::from_le_bytes(*b"virt"),
            0x04 => 2,
            0x08 => self.device.name().id.0,
            0x0c => 0,
            0x10 => match written.device_features_sel {
                Some(select) => half(self.device.with_core(|core| core.features()), select),
                None => {
                    self.violation("DeviceFeatures read before DeviceFeaturesSel was written");
                    0
                }
            },
            0x34 => self
                .device
                .with_core(|core| core.queue_max_size(queue))
                .into(),
            0x44 => self
                .device
                .with_core(|core| core.queue_enabled(queue))
                .into(),
            0x60 => self.device.with_core(|core| core.causes()).into(),
            0x70 => self.device.with_core(|core| core.status()).into(),
            0xb0 | 0xb4 | 0xb8 | 0xbc => {
                let Some(select) = written.shm_sel else {
                    self.violation("shared memory asked for before SHMSel was written");
                    return u32::MAX;
                };
                let state = self.state();
                let mut regions = state.regions.iter();
                let region = regions.find(|region| u32::from(region.id) == select);
                let value = region.map_or(u64::MAX, |region| match offset {
                    0xb0 | 0xb4 => region.len,
                    _ => region.address,
                });
                half(value, u32::from(offset & 4 != 0))
            }
            0xfc => self.device.with_core(|core| core.config_generation()),
            _ => {
                self.violation(format!("read of register {offset:#x}"));
                0
            }
        }
    }

    fn write(&self, offset: usize, len: usize, value: u32) {
        if self.is_gone() {
            return;
        }
        if let Some(at) = offset.checked_sub(CONFIG) {
            let bytes = &value.to_le_bytes()[..len];
            self.device.with_core(|core| core.write_config(at, bytes));
        } else if self.is_whole_register(offset, len) {
            self.write_register(offset, value);
        }
    }

    fn write_register(&self, offset: usize, value: u32) {
        let mut state = self.state();
        let written = &mut state.written;
        match offset {
            0x14 => written.device_features_sel = Some(value),
            0x20 => {
                let features = match written.driver_features_sel {
                    Some(0) => written.driver_features & !0 << 32 | u64::from(value),
                    Some(1) => written.driver_features & 0xffff_ffff | u64::from(value) << 32,
                    _ => {
                        drop(state);
                        return self.violation("DriverFeatures written before DriverFeaturesSel");
                    }
                };
                written.driver_features = features;
                drop(state);
                self.device
                    .with_core(|core| core.set_driver_features(features));
            }
            0x24 => written.driver_features_sel = Some(value),
            0x30 => written.queue_sel = value,
            0x50 => {
                drop(state);
                match u16::try_from(value) {
                    Ok(queue) => self.device.with_core(|core| core.notify(queue)),
                    Err(_) => self.violation(format!("queue {value} notified")),
                }
            }
            0x64 => {
                drop(state);
                let causes = InterruptCauses::from_bits_truncate(value as u8);
                if u32::from(causes.bits()) != value {
                    self.violation(format!("undefined bits acknowledged: {value:#x}"));
                }
                self.device
                    .with_core(|core| core.acknowledge(causes.bits()));
            }
            0x70 => {
                if value == 0 {
                    *written = Written::default();
                }
                drop(state);
                self.device.with_core(|core| core.set_status(value as u8));
            }
            0xac => written.shm_sel = Some(value),
            0x38 | 0x44 | 0x80 | 0x84 | 0x90 | 0x94 | 0xa0 | 0xa4 => {
                drop(state);
                self.write_queue(offset, value);
            }
            _ => {
                drop(state);
                self.violation(format!("write to register {offset:#x}"));
            }
        }
    }

    /// A register of the selected queue is written.
    fn write_queue(&self, offset: usize, value: u32) {
        let selected = self.state().written.queue_sel;
        let queues = self.device.with_core(|core| core.queue_count());
        let Some(index) = u16::try_from(selected).ok().filter(|index| *index < queues) else {
            return self.violation(format!("there is no queue {selected}"));
        };
        let ready = self.device.with_core(|core| core.queue_enabled(index));
        if ready && offset != 0x44 {
            return self.violation(format!("queue {index} changed while it is ready"));
        }
        let mut state = self.state();
        let registers = &mut state.written.queues;
        registers.resize(queues.into(), QueueRegisters::default());
        let Some(queue) = registers.get_mut(usize::from(index)) else {
            return;
        };
        match offset {
            0x38 => queue.size = value,
            0x44 => {
                let QueueRegisters { size, addresses } = *queue;
                drop(state);
                self.set_ready(index, value, size, addresses);
            }
            _ => {
                // 0x80, 0x90 and 0xa0, each with an upper half.
                let Some(address) = queue.addresses.get_mut((offset - 0x80) / 0x10) else {
                    return;
                };
                *address = match offset & 4 {
                    0 => *address & !0 << 32 | u64::from(value),
                    _ => *address & 0xffff_ffff | u64::from(value) << 32,
                };
            }
        }
    }

    fn set_ready(&self, index: u16, value: u32, size: u32, addresses: [u64; 3]) {
        let [descriptors, driver, device] = addresses;
        match (value, u16::try_from(size)) {
            (1, Ok(size)) => {
                let addresses = QueueAddresses {
                    size,
                    descriptors,
                    driver,
                    device,
                };
                self.device
                    .with_core(|core| core.enable_queue(index, addresses));
            }
            (1, Err(_)) => self.violation(format!("queue {index} of {size} descriptors")),
            (0, _) => self.device.with_core(|core| core.disable_queue(index)),
            _ => self.violation(format!("QueueReady written with {value}")),
        }
    }
}

impl<M: DeviceModel> FakeMmioRegisters<M> {
    /// Whether an access lies inside and is aligned.
    fn reaches(&self, offset: usize, len: usize) -> bool {
        let end = offset.checked_add(len);
        end.is_some_and(|end| end <= self.len) && (self.offset + offset).is_multiple_of(len)
    }

    fn read(&self, offset: usize, len: usize) -> u32 {
        match self.reaches(offset, len) {
            true => self.mmio.read(self.offset + offset, len),
            false => u32::MAX,
        }
    }

    fn write(&self, offset: usize, len: usize, value: u32) {
        if self.reaches(offset, len) {
            self.mmio.write(self.offset + offset, len, value);
        }
    }
}

impl<M: DeviceModel> Registers for FakeMmioRegisters<M> {
    fn len(&self) -> usize {
        self.len
    }

    fn slice(&self, offset: usize, len: usize) -> Option<Self> {
        (offset.checked_add(len)? <= self.len).then(|| Self {
            mmio: self.mmio.clone(),
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
