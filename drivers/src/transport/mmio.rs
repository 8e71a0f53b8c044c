//! Modern virtio over MMIO (spec 4.2).
//!
//! Nothing lists such devices but the platform (a device tree, ACPI, a command line): it says where the registers of one
//! may be, and [`MmioTransport::new`] looks whether there is one.

use super::{
    Instance, InterruptCauses, Notifier, QueueMemory, Quiesced, SharedMemory, Status, Transport,
    config, tell_context, wait_for_reset,
};
use crate::barrier;
use crate::device::{DeviceId, DeviceName, Location};
use crate::dma::DmaContext;
use crate::error::{Cause, Error, Result};
use crate::registers::{Mmio, Registers};

/// What [`MAGIC_VALUE`](register::MAGIC_VALUE) reads: "virt".
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// What [`VERSION`](register::VERSION) reads of a device with the legacy interface, and of one with this one.
const VERSION_LEGACY: u32 = 1;
const VERSION_MODERN: u32 = 2;
/// What length and address of a shared-memory region read when there is none (spec 4.2.2).
const NO_REGION: u64 = u64::MAX;

/// Offsets of the control registers (spec 4.2.2): 32 bits each, little-endian, and accessed so.
mod register {
    pub(super) const MAGIC_VALUE: usize = 0x000; // R
    pub(super) const VERSION: usize = 0x004; // R
    pub(super) const DEVICE_ID: usize = 0x008; // R
    pub(super) const DEVICE_FEATURES: usize = 0x010; // R
    pub(super) const DEVICE_FEATURES_SEL: usize = 0x014; // W
    pub(super) const DRIVER_FEATURES: usize = 0x020; // W
    pub(super) const DRIVER_FEATURES_SEL: usize = 0x024; // W
    pub(super) const QUEUE_SEL: usize = 0x030; // W
    pub(super) const QUEUE_SIZE_MAX: usize = 0x034; // R
    pub(super) const QUEUE_SIZE: usize = 0x038; // W
    pub(super) const QUEUE_READY: usize = 0x044; // RW
    pub(super) const QUEUE_NOTIFY: usize = 0x050; // W
    pub(super) const INTERRUPT_STATUS: usize = 0x060; // R
    pub(super) const INTERRUPT_ACK: usize = 0x064; // W
    pub(super) const STATUS: usize = 0x070; // RW
    pub(super) const QUEUE_DESC: usize = 0x080; // W, 64 bits
    pub(super) const QUEUE_DRIVER: usize = 0x090; // W, 64 bits
    pub(super) const QUEUE_DEVICE: usize = 0x0a0; // W, 64 bits
    pub(super) const SHM_SEL: usize = 0x0ac; // W
    pub(super) const SHM_LEN: usize = 0x0b0; // R, 64 bits
    pub(super) const SHM_BASE: usize = 0x0b8; // R, 64 bits
    pub(super) const CONFIG_GENERATION: usize = 0x0fc; // R
    /// The device configuration, in the widths of its fields.
    pub(super) const CONFIG: usize = 0x100; // RW
}

/// A virtio device behind a block of registers.
#[derive(Debug)]
pub struct MmioTransport<D, R = Mmio> {
    name: DeviceName,
    instance: Instance,
    dma: D,
    registers: R,
    config: R,
}

impl<D: DmaContext, R: Registers> MmioTransport<D, R> {
    /// Looks for a device behind `registers`, which are at the physical address `address`: that is what it is called by. It
    /// reaches memory by `dma`.
    ///
    /// What lies behind the control registers is taken for the device configuration.
    ///
    /// `None` if there is none, which is no error: a platform may have more places than devices (spec 4.2.2, DeviceID 0).
    /// Only the registers are read that tell this; the device is as it was.
    ///
    /// # Errors
    ///
    /// [`Cause::NotVirtioMmio`] if these are not such registers, [`Cause::LegacyOnly`] for a device with the legacy
    /// interface, [`Cause::UnknownVersion`] for one of another version, [`Cause::InvalidParameter`] if `registers` ends
    /// before the configuration begins.
    pub fn new(registers: R, address: u64, dma: D) -> Result<Option<Self>> {
        let mut name = DeviceName {
            id: DeviceId(0),
            location: Location::Mmio(address),
        };
        let config = registers
            .len()
            .checked_sub(register::CONFIG)
            .and_then(|len| registers.slice(register::CONFIG, len));
        let Some(config) = config else {
            let cause = Cause::InvalidParameter("fewer than 0x100 bytes of registers");
            return Err(Error::new(name, cause));
        };
        let magic = registers.read_u32(register::MAGIC_VALUE);
        if magic != MAGIC {
            return Err(Error::new(name, Cause::NotVirtioMmio { magic }));
        }
        let version = registers.read_u32(register::VERSION);
        if !matches!(version, VERSION_LEGACY | VERSION_MODERN) {
            return Err(Error::new(name, Cause::UnknownVersion { version }));
        }
        // Of both versions this is at the same place, and 0 where there is no device (spec 4.2.4).
        name.id = DeviceId(registers.read_u32(register::DEVICE_ID));
        if name.id == DeviceId(0) {
            return Ok(None);
        }
        if version == VERSION_LEGACY {
            return Err(Error::new(name, Cause::LegacyOnly));
        }
        Ok(Some(Self {
            name,
            instance: Instance::new(),
            dma,
            registers,
            config,
        }))
    }

    /// A second way to the interrupt status, for a handler that must silence the device while the driver has the transport.
    pub fn interrupt_status(&self) -> Option<InterruptStatus<R>> {
        let len = register::INTERRUPT_ACK + 4 - register::INTERRUPT_STATUS;
        let registers = self.registers.slice(register::INTERRUPT_STATUS, len)?;
        Some(InterruptStatus { registers })
    }

    /// The shared-memory region `id`, if the device has it (spec 2.10).
    ///
    /// # Errors
    ///
    /// [`Cause::BadConfig`] for a region that no address space has room for.
    pub fn find_shared_memory(&self, id: u8) -> Result<Option<SharedMemory>> {
        self.registers.write_u32(register::SHM_SEL, id.into());
        let len = self.read_u64(register::SHM_LEN);
        let address = self.read_u64(register::SHM_BASE);
        if len == NO_REGION || address == NO_REGION {
            return Ok(None);
        }
        let bad = |field, value| Err(self.error(Cause::BadConfig { field, value }));
        if len == 0 {
            return bad("SHMLen", len);
        }
        if address.checked_add(len).is_none() {
            return bad("SHMBase", address);
        }
        Ok(Some(SharedMemory { id, address, len }))
    }

    fn read_u64(&self, low: usize) -> u64 {
        let (low, high) = (
            self.registers.read_u32(low),
            self.registers.read_u32(low + 4),
        );
        u64::from(high) << 32 | u64::from(low)
    }

    fn error(&self, cause: Cause) -> Error {
        Error::new(self.name, cause)
    }
}

#[expect(unsafe_code, reason = "keeps the promises of `Transport`")]
// SAFETY: the instance is its own; the device is done when its status reads 0, which all ones are not; the slot has no
// other queues.
unsafe impl<D: DmaContext, R: Registers> Transport for MmioTransport<D, R> {
    type Notifier = MmioNotifier<R>;
    type Dma = D;

    fn name(&self) -> DeviceName {
        self.name
    }

    fn instance(&self) -> &Instance {
        &self.instance
    }

    fn dma(&self) -> &D {
        &self.dma
    }

    fn reset(&mut self) -> Result<Quiesced> {
        self.registers.write_u32(register::STATUS, 0);
        let finished = wait_for_reset(|| self.registers.read_u32(register::STATUS));
        finished.map_err(|cause| self.error(cause))?;
        Ok(self.instance.quiesced())
    }

    fn status(&self) -> Status {
        Status::from_bits_retain(self.registers.read_u32(register::STATUS) as u8)
    }

    fn set_status(&mut self, status: Status) {
        // With DRIVER_OK the device may look at its queues.
        barrier::before_register_write();
        self.registers
            .write_u32(register::STATUS, status.bits().into());
    }

    fn device_features(&mut self) -> u64 {
        let half = |select| {
            self.registers
                .write_u32(register::DEVICE_FEATURES_SEL, select);
            u64::from(self.registers.read_u32(register::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    fn set_driver_features(&mut self, features: u64) -> Result<()> {
        tell_context(&mut self.dma, self.name, features)?;
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.registers
                .write_u32(register::DRIVER_FEATURES_SEL, select);
            self.registers.write_u32(register::DRIVER_FEATURES, half);
        }
        Ok(())
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        self.registers.write_u32(register::QUEUE_SEL, index.into());
        let max = self.registers.read_u32(register::QUEUE_SIZE_MAX);
        u16::try_from(max).unwrap_or(u16::MAX)
    }

    /// The steps of spec 4.2.3.2, but that the memory is the caller's.
    fn enable_queue(&mut self, index: u16, queue: &QueueMemory<'_>) -> Result<MmioNotifier<R>> {
        let queue = queue.addresses();
        let fail = |cause| Err(Error::on_queue(self.name, index, cause));
        let registers = &self.registers;
        registers.write_u32(register::QUEUE_SEL, index.into());
        if registers.read_u32(register::QUEUE_READY) != 0 {
            return fail(Cause::QueueInUse);
        }
        let max = registers.read_u32(register::QUEUE_SIZE_MAX);
        if max == 0 {
            return fail(Cause::NoSuchQueue);
        }
        let size = queue.size.into();
        if size > max {
            return fail(Cause::QueueSize { size, max });
        }
        let Some(bell) = registers.slice(register::QUEUE_NOTIFY, 4) else {
            return fail(Cause::NoSuchQueue);
        };
        registers.write_u32(register::QUEUE_SIZE, size);
        registers.write_u64(register::QUEUE_DESC, queue.descriptors);
        registers.write_u64(register::QUEUE_DRIVER, queue.driver);
        registers.write_u64(register::QUEUE_DEVICE, queue.device);
        barrier::before_register_write();
        registers.write_u32(register::QUEUE_READY, 1);
        // It reads as it was written (spec 4.2.2), unless the device did not take it.
        if registers.read_u32(register::QUEUE_READY) != 1 {
            registers.write_u32(register::QUEUE_READY, 0);
            return fail(Cause::QueueRefused);
        }
        Ok(MmioNotifier { bell, index })
    }

    fn config_generation(&self) -> u32 {
        self.registers.read_u32(register::CONFIG_GENERATION)
    }

    fn read_config(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        config::read(&self.config, offset, bytes).map_err(|cause| self.error(cause))
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        config::write(&self.config, offset, bytes).map_err(|cause| self.error(cause))
    }

    fn take_interrupt_causes(&mut self) -> InterruptCauses {
        self.interrupt_status()
            .map_or(InterruptCauses::empty(), |status| status.take())
    }

    /// As [`MmioTransport::find_shared_memory`]; an impossible region is none, and is logged.
    fn shared_memory(&self, id: u8) -> Option<SharedMemory> {
        self.find_shared_memory(id).unwrap_or_else(|error| {
            log::warn!("{error}");
            None
        })
    }
}

/// The interrupt status and acknowledge registers of an MMIO device (spec 4.2.2).
#[derive(Debug)]
pub struct InterruptStatus<R = Mmio> {
    registers: R,
}

impl<R: Registers> InterruptStatus<R> {
    const STATUS: usize = 0;
    const ACK: usize = register::INTERRUPT_ACK - register::INTERRUPT_STATUS;

    /// Why the device interrupted, and that it may take its interrupt line down: whoever calls keeps the causes, and looks
    /// at the queues or the configuration only then.
    ///
    /// In that order nothing is lost. The device has one bit for all queues: were it acknowledged after a queue was looked
    /// at, what came in between would be acknowledged with it and never seen.
    pub fn take(&self) -> InterruptCauses {
        let status = self.registers.read_u32(Self::STATUS);
        // Bits that are not defined are ignored, and never acknowledged.
        let causes = InterruptCauses::from_bits_truncate(status as u8);
        if causes.is_empty() {
            return causes;
        }
        self.registers.write_u32(Self::ACK, causes.bits().into());
        barrier::after_register_read();
        barrier::after_register_write();
        causes
    }
}

/// The notification register of an MMIO device, for one queue.
#[derive(Debug)]
pub struct MmioNotifier<R> {
    bell: R,
    index: u16,
}

impl<R: Registers> Notifier for MmioNotifier<R> {
    #[inline]
    fn notify(&self) {
        barrier::before_register_write();
        self.bell.write_u32(0, self.index.into());
    }
}

#[cfg(all(test, feature = "fake"))]
mod tests {
    use super::*;
    use crate::fake::{FakeBlk, FakeDevice, FakeDma, FakeMmio, Memory};
    use crate::start::negotiate;
    use crate::transport::QueueAddresses;

    /// A queue asks for no more than there is, so only in here can it be tried.
    #[test]
    fn a_queue_larger_than_the_device_allows_is_not_written() {
        let memory = Memory::fresh();
        let device = FakeDevice::new(FakeBlk::new(8));
        let mmio = FakeMmio::new(&device);
        let transport = MmioTransport::new(mmio.registers(), 0xfeb0_0000, FakeDma::default());
        let mut transport = transport.expect("honest registers").expect("a device");
        negotiate(&mut transport, 0, 0, 0).expect("honest");
        let max = transport.queue_max_size(0);
        let memory_of = |size| {
            QueueMemory::new(QueueAddresses {
                size,
                descriptors: 0,
                driver: 0,
                device: 0,
            })
        };
        let enabled = transport.enable_queue(0, &memory_of(2 * max));
        let error = enabled.map(drop).unwrap_err();
        let (size, max) = (u32::from(2 * max), u32::from(max));
        assert_eq!(error.cause, Cause::QueueSize { size, max });
        let enabled = transport.enable_queue(9, &memory_of(1));
        let error = enabled.map(drop).unwrap_err();
        assert_eq!((error.queue, error.cause), (Some(9), Cause::NoSuchQueue));
        memory.assert_clean();
    }
}
