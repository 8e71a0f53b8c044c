//! Modern virtio over PCI (spec 4.1).
//!
//! [`PciTransport::new`] finds the virtio structures of a PCI function, [`PciTransport::enable_msix`] gives it interrupt
//! messages; then the transport goes to a driver. Configuration space is reached through
//! [`virtio_drivers::transport::pci::bus::ConfigurationAccess`], registers through [`Registers`].

mod bar;
mod capability;
mod msix;

use alloc::vec::Vec;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use self::capability::{MsixCapability, Region};
use self::msix::{Msix, NO_VECTOR};
use super::{
    Instance, InterruptCauses, Notifier, QueueMemory, Quiesced, SharedMemory, Status, Transport,
    config, tell_context, wait_for_reset,
};
use crate::barrier;
use crate::device::{DeviceId, DeviceName, Location};
use crate::dma::DmaContext;
use crate::error::{Cause, Error, Result};
use crate::registers::{Mmio, Registers};

pub use bar::Bar;
pub use msix::Message;

/// The PCI vendor id of virtio devices.
pub const VENDOR_ID: u16 = 0x1af4;
/// PCI device ids from here on are `0x1040 + device id` (spec 4.1.2.1).
const MODERN_DEVICE_IDS: u16 = 0x1040;
/// PCI device ids of transitional devices (spec 4.1.2.1), which say their type in the subsystem id.
const TRANSITIONAL_DEVICE_IDS: core::ops::Range<u16> = 0x1000..0x1040;

/// Offsets in `struct virtio_pci_common_cfg` (spec 4.1.4.3). "rw" fields are written by the driver.
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0; // rw
    pub(super) const DEVICE_FEATURE: usize = 4;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 8; // rw
    pub(super) const DRIVER_FEATURE: usize = 12; // rw
    pub(super) const CONFIG_MSIX_VECTOR: usize = 16; // rw
    pub(super) const NUM_QUEUES: usize = 18;
    pub(super) const DEVICE_STATUS: usize = 20; // rw
    pub(super) const CONFIG_GENERATION: usize = 21;
    pub(super) const QUEUE_SELECT: usize = 22; // rw
    pub(super) const QUEUE_SIZE: usize = 24; // rw
    pub(super) const QUEUE_MSIX_VECTOR: usize = 26; // rw
    pub(super) const QUEUE_ENABLE: usize = 28; // rw
    pub(super) const QUEUE_NOTIFY_OFF: usize = 30;
    pub(super) const QUEUE_DESC: usize = 32; // rw
    pub(super) const QUEUE_DRIVER: usize = 40; // rw
    pub(super) const QUEUE_DEVICE: usize = 48; // rw
    /// Length without the fields of later versions, none of which is used here.
    pub(super) const LEN: u64 = 56;
}

/// The type of virtio device that a PCI function is, by its ids alone; `None` if it is no virtio device.
///
/// `subsystem` is the subsystem id of the function, which names the type of a transitional device.
pub fn device_id(vendor: u16, device: u16, subsystem: u16) -> Option<DeviceId> {
    if vendor != VENDOR_ID {
        return None;
    }
    if TRANSITIONAL_DEVICE_IDS.contains(&device) {
        return Some(DeviceId(u32::from(subsystem)));
    }
    match device.checked_sub(MODERN_DEVICE_IDS) {
        Some(id) if (1..0x40).contains(&id) => Some(DeviceId(u32::from(id))),
        _ => None,
    }
}

/// A virtio device on a PCI bus.
#[derive(Debug)]
pub struct PciTransport<D, R = Mmio> {
    name: DeviceName,
    instance: Instance,
    dma: D,
    function: DeviceFunction,
    common: R,
    notify: R,
    notify_multiplier: u32,
    isr: R,
    device: Option<R>,
    shared_memory: Vec<SharedMemory>,
    msix_vectors: u16,
    /// Taken when MSI-X is turned on.
    msix_capability: Option<(MsixCapability, R)>,
    msix: Option<Msix<R>>,
}

impl<D: DmaContext> PciTransport<D> {
    /// Finds the virtio structures of `function`, whose device reaches memory by `dma`, and has `dma` map them. Turns on
    /// memory decoding and bus mastering.
    ///
    /// A kernel that has a `PciRoot` of `virtio-drivers` gives a second `ConfigurationAccess` for the same bus, such as a clone
    /// made before the root was ([`ConfigurationAccess::unsafe_clone`]): the root itself hands no words of configuration
    /// space out.
    ///
    /// # Errors
    ///
    /// The function is no virtio device, has only the legacy interface, or lacks a structure; a structure lies outside its
    /// BAR; or what `dma` says of registers where a BAR claims to be ([`DmaContext::map_registers`]).
    pub fn new<C: ConfigurationAccess>(
        config: &mut C,
        function: DeviceFunction,
        dma: D,
    ) -> Result<Self> {
        let context = dma.clone();
        Self::with_registers(config, function, dma, |address, len| {
            Mmio::map(&context, address, len)
        })
    }
}

impl<D: DmaContext, R: Registers> PciTransport<D, R> {
    /// As [`PciTransport::new`], with registers of the caller's kind: `map` gives those at a physical address, of a
    /// length in bytes. Both are allegations of the device: `map` refuses what can't be registers.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn with_registers<C: ConfigurationAccess>(
        config: &mut C,
        function: DeviceFunction,
        dma: D,
        mut map: impl FnMut(u64, u64) -> Result<R, Cause>,
    ) -> Result<Self> {
        let ids = config.read_word(function, 0);
        let (vendor, device) = (ids as u16, (ids >> 16) as u16);
        let subsystem = (config.read_word(function, 0x2c) >> 16) as u16;
        let location = Location::Pci(function);
        let Some(id) = device_id(vendor, device, subsystem) else {
            let name = DeviceName {
                id: DeviceId(0),
                location,
            };
            return Err(Error::new(name, Cause::NotVirtio { vendor, device }));
        };
        let name = DeviceName { id, location };
        let fail = |cause| Error::new(name, cause);
        let missing = |what| fail(Cause::MissingCapability(what));

        let bars = bar::read_bars(config, function);
        let found = capability::find(config, function, &bars).map_err(fail)?;
        let nothing = found.common.is_none() && found.notify.is_none() && found.isr.is_none();
        if nothing && TRANSITIONAL_DEVICE_IDS.contains(&device) {
            return Err(fail(Cause::LegacyOnly));
        }
        let common = found
            .common
            .ok_or_else(|| missing("common configuration"))?;
        if common.len < common::LEN {
            return Err(missing("whole common configuration"));
        }
        let (notify, notify_multiplier) = found.notify.ok_or_else(|| missing("notification"))?;
        let isr = found.isr.ok_or_else(|| missing("interrupt status"))?;

        bar::enable_memory_and_bus_master(config, function);
        let mut map = |region: Region| map(region.address, region.len).map_err(fail);
        Ok(Self {
            name,
            instance: Instance::new(),
            dma,
            function,
            common: map(common)?,
            notify: map(notify)?,
            notify_multiplier,
            isr: map(isr)?,
            device: found.device.map(&mut map).transpose()?,
            shared_memory: found.shared_memory,
            msix_vectors: found.msix.map_or(0, |capability| capability.vectors),
            msix_capability: match found.msix {
                Some(capability) => Some((capability, map(capability.table)?)),
                None => None,
            },
            msix: None,
        })
    }

    /// The same, in a machine with several PCI segments: that is what the device is called from now on.
    #[must_use]
    pub fn in_segment(mut self, segment: u16) -> Self {
        self.name.location = match segment {
            0 => Location::Pci(self.function),
            _ => Location::PciSegment(segment, self.function),
        };
        self
    }

    /// How many MSI-X vectors the device has; 0 without MSI-X.
    pub fn msix_vectors(&self) -> u16 {
        self.msix_vectors
    }

    /// Turns MSI-X on with a message per vector: the first for configuration changes, the next for queue 0, 1 and so on;
    /// if there are fewer messages than that, the last one serves all queues that are left. With one message it serves
    /// everything. Call it before the driver is made, since queues take their vectors when they are enabled.
    ///
    /// # Errors
    ///
    /// [`Cause::MissingCapability`] if the device has no MSI-X, or it is on already; [`Cause::VectorRefused`] if there are more
    /// messages than vectors.
    pub fn enable_msix<C: ConfigurationAccess>(
        &mut self,
        config: &mut C,
        messages: &[Message],
    ) -> Result<()> {
        let enough = |(capability, _): &mut (MsixCapability, R)| {
            messages.len() <= usize::from(capability.vectors)
        };
        let Some((capability, table)) = self.msix_capability.take_if(enough) else {
            return Err(self.error(match &self.msix_capability {
                Some((capability, _)) => Cause::VectorRefused(capability.vectors),
                None => Cause::MissingCapability("MSI-X"),
            }));
        };
        let msix = Msix::enable(table, &capability, config, self.function, messages);
        self.msix = Some(msix);
        Ok(())
    }

    /// Redirects the interrupt `vector`, counted as in [`Self::enable_msix`].
    ///
    /// # Errors
    ///
    /// [`Cause::VectorRefused`] if MSI-X is off or has no such vector.
    pub fn set_message(&self, vector: u16, message: Message) -> Result<()> {
        let result = match &self.msix {
            Some(msix) => msix.set_message(vector, message),
            None => Err(Cause::VectorRefused(vector)),
        };
        result.map_err(|cause| Error::new(self.name, cause))
    }

    /// A second way to the interrupt status register, for an INTx handler that must silence the device while the driver
    /// has the transport.
    pub fn interrupt_status(&self) -> Option<InterruptStatus<R>> {
        self.isr.slice(0, 1).map(|isr| InterruptStatus { isr })
    }

    /// The PCI function that the device is.
    pub fn function(&self) -> DeviceFunction {
        self.function
    }

    /// How many queues the device has. With some devices it changes with the features accepted, so read it after
    /// negotiation.
    pub fn queue_count(&self) -> u16 {
        self.common.read_u16(common::NUM_QUEUES)
    }

    fn error(&self, cause: Cause) -> Error {
        Error::new(self.name, cause)
    }

    /// Sets a vector register and sees whether the device took it: it reads back `NO_VECTOR` if it could not (spec
    /// 4.1.5.1.2).
    fn set_vector(&self, register: usize, vector: u16) -> Result<(), Cause> {
        self.common.write_u16(register, vector);
        if self.common.read_u16(register) == vector {
            Ok(())
        } else {
            Err(Cause::VectorRefused(vector))
        }
    }

    /// The bell of the selected queue (spec 4.1.4.4).
    fn bell(&self, index: u16) -> Result<PciNotifier<R>, Cause> {
        let slot = self.common.read_u16(common::QUEUE_NOTIFY_OFF);
        let bell = u64::from(slot)
            .checked_mul(u64::from(self.notify_multiplier))
            .and_then(|offset| usize::try_from(offset).ok())
            .and_then(|offset| self.notify.slice(offset, 2));
        match bell {
            Some(bell) => Ok(PciNotifier { bell, index }),
            None => Err(Cause::BadConfig {
                field: "queue_notify_off",
                value: slot.into(),
            }),
        }
    }

    /// The device configuration, if there is one for `len` bytes at `offset` to be in.
    fn config(&self, offset: usize, len: usize) -> Result<&R> {
        let cause = Cause::ConfigOutOfRange { offset, len };
        self.device.as_ref().ok_or_else(|| self.error(cause))
    }
}

#[expect(unsafe_code, reason = "keeps the promises of `Transport`")]
// SAFETY: the instance is its own; the device is done when its status reads 0, which all ones are not; the function has no
// other queues.
unsafe impl<D: DmaContext, R: Registers> Transport for PciTransport<D, R> {
    type Notifier = PciNotifier<R>;
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
        self.common.write_u8(common::DEVICE_STATUS, 0);
        let finished = wait_for_reset(|| self.common.read_u8(common::DEVICE_STATUS).into());
        finished.map_err(|cause| self.error(cause))?;
        Ok(self.instance.quiesced())
    }

    fn status(&self) -> Status {
        Status::from_bits_retain(self.common.read_u8(common::DEVICE_STATUS))
    }

    fn set_status(&mut self, status: Status) {
        // With DRIVER_OK the device may look at its queues.
        barrier::before_register_write();
        self.common.write_u8(common::DEVICE_STATUS, status.bits());
    }

    fn device_features(&mut self) -> u64 {
        self.common.write_u32(common::DEVICE_FEATURE_SELECT, 0);
        let low = self.common.read_u32(common::DEVICE_FEATURE);
        self.common.write_u32(common::DEVICE_FEATURE_SELECT, 1);
        let high = self.common.read_u32(common::DEVICE_FEATURE);
        u64::from(high) << 32 | u64::from(low)
    }

    fn set_driver_features(&mut self, features: u64) -> Result<()> {
        tell_context(&mut self.dma, self.name, features)?;
        self.common.write_u32(common::DRIVER_FEATURE_SELECT, 0);
        self.common
            .write_u32(common::DRIVER_FEATURE, features as u32);
        self.common.write_u32(common::DRIVER_FEATURE_SELECT, 1);
        self.common
            .write_u32(common::DRIVER_FEATURE, (features >> 32) as u32);
        Ok(())
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        if index >= self.queue_count() {
            return 0;
        }
        self.common.write_u16(common::QUEUE_SELECT, index);
        self.common.read_u16(common::QUEUE_SIZE)
    }

    fn enable_queue(&mut self, index: u16, queue: &QueueMemory<'_>) -> Result<PciNotifier<R>> {
        let queue = queue.addresses();
        let fail = |cause| Error::on_queue(self.name, index, cause);
        if index >= self.queue_count() {
            return Err(fail(Cause::NoSuchQueue));
        }
        if let Some(msix) = &self.msix {
            // The configuration vector was lost with the last reset; setting it again each time is harmless.
            self.set_vector(common::CONFIG_MSIX_VECTOR, msix.config_vector())
                .map_err(fail)?;
        }
        self.common.write_u16(common::QUEUE_SELECT, index);
        if self.common.read_u16(common::QUEUE_ENABLE) != 0 {
            return Err(fail(Cause::QueueInUse));
        }
        self.common.write_u16(common::QUEUE_SIZE, queue.size);
        let vector = self.msix.as_ref().map(|msix| msix.queue_vector(index));
        let vector = vector.unwrap_or(NO_VECTOR);
        self.set_vector(common::QUEUE_MSIX_VECTOR, vector)
            .map_err(fail)?;
        self.common.write_u64(common::QUEUE_DESC, queue.descriptors);
        self.common.write_u64(common::QUEUE_DRIVER, queue.driver);
        self.common.write_u64(common::QUEUE_DEVICE, queue.device);
        let bell = self.bell(index).map_err(fail)?;
        barrier::before_register_write();
        self.common.write_u16(common::QUEUE_ENABLE, 1);
        Ok(bell)
    }

    fn config_generation(&self) -> u32 {
        self.common.read_u8(common::CONFIG_GENERATION).into()
    }

    fn read_config(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let registers = self.config(offset, bytes.len())?;
        config::read(registers, offset, bytes).map_err(|cause| self.error(cause))
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let registers = self.config(offset, bytes.len())?;
        config::write(registers, offset, bytes).map_err(|cause| self.error(cause))
    }

    fn take_interrupt_causes(&mut self) -> InterruptCauses {
        take_causes(&self.isr)
    }

    fn shared_memory(&self, id: u8) -> Option<SharedMemory> {
        self.shared_memory
            .iter()
            .copied()
            .find(|region| region.id == id)
    }
}

/// The interrupt status register of a PCI device (spec 4.1.4.5).
#[derive(Debug)]
pub struct InterruptStatus<R = Mmio> {
    isr: R,
}

impl<R: Registers> InterruptStatus<R> {
    /// Why the device interrupted. Reading takes the interrupt line down and clears the causes: whoever reads keeps them.
    pub fn take(&self) -> InterruptCauses {
        take_causes(&self.isr)
    }
}

/// Reads and thereby clears the interrupt status.
fn take_causes<R: Registers>(isr: &R) -> InterruptCauses {
    let causes = InterruptCauses::from_bits_truncate(isr.read_u8(0));
    // What the device did before it interrupted is there to be seen.
    barrier::after_register_read();
    causes
}

/// The notification register of one queue of a PCI device: a notification is one store.
#[derive(Debug)]
pub struct PciNotifier<R> {
    bell: R,
    index: u16,
}

impl<R: Registers> Notifier for PciNotifier<R> {
    #[inline]
    fn notify(&self) {
        barrier::before_register_write();
        self.bell.write_u16(0, self.index);
    }
}
