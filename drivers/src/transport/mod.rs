//! How a driver reaches its device: [`Transport`], and the ways there are.
//!
//! - [`pci`]: modern virtio over PCI, with MSI-X and shared-memory regions.
//! - [`mmio`]: modern virtio over MMIO, with shared-memory regions.
//! - [`either`]: one type for both.

mod config;
pub mod either;
pub mod mmio;
pub mod pci;

use core::marker::PhantomData;

use bitflags::bitflags;
use spin::Mutex;

use crate::barrier;
use crate::device::DeviceName;
use crate::dma::DmaContext;
use crate::error::{Cause, Error, Result};
use crate::features::RingFeatures;

pub use crate::registers::{Mmio, Registers};
pub(crate) use config::Fields;
pub use mmio::MmioTransport;
pub use pci::PciTransport;

bitflags! {
    /// The device status field (spec 2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u8 {
        /// The guest has noticed the device.
        const ACKNOWLEDGE = 1;
        /// The guest knows how to drive it.
        const DRIVER = 2;
        /// The driver is ready.
        const DRIVER_OK = 4;
        /// Features are agreed on.
        const FEATURES_OK = 8;
        /// The device gave up and must be reset.
        const DEVICE_NEEDS_RESET = 64;
        /// The driver gave up.
        const FAILED = 128;
        // What a device may set besides is kept as read.
        const _ = !0;
    }

    /// Why a device interrupted (spec 4.1.4.5, 4.2.2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct InterruptCauses: u8 {
        /// A queue has used buffers.
        const QUEUE = 1;
        /// The device configuration changed.
        const CONFIG = 2;
    }
}

/// Where a queue's three parts are, as the device addresses them (spec 2.6).
#[derive(Clone, Copy, Debug)]
pub struct QueueAddresses {
    /// Number of descriptors.
    pub size: u16,
    /// The descriptor area.
    pub descriptors: u64,
    /// The driver area: the available ring of a split queue.
    pub driver: u64,
    /// The device area: the used ring of a split queue.
    pub device: u64,
}

/// The memory of a queue, for [`Transport::enable_queue`]. Only a [`crate::authoring::queue::Queue`] makes one, of memory that
/// it owns and does not free before it was shown a proof that the device has let go of it; so no device can be pointed anywhere
/// else.
#[derive(Debug)]
pub struct QueueMemory<'a> {
    addresses: QueueAddresses,
    _owned: PhantomData<&'a ()>,
}

impl QueueMemory<'_> {
    /// For a queue that owns what is at `addresses` and outlives the device's use of it.
    pub(crate) fn new(addresses: QueueAddresses) -> Self {
        let _owned = PhantomData;
        Self { addresses, _owned }
    }

    /// Where it is.
    pub fn addresses(&self) -> QueueAddresses {
        self.addresses
    }
}

/// One hold on one device: what a [`Transport`] has, and no two have the same. Queues remember whose they are, and take no
/// other's word for it that a device was reset.
#[derive(Debug)]
pub struct Instance {
    number: Moment,
    /// When the device last came back from a reset.
    reset: Moment,
}

impl Instance {
    /// For a transport that is being made.
    #[expect(clippy::new_without_default, reason = "no two are equal")]
    pub fn new() -> Self {
        let number = Moment::now();
        let reset = number;
        Self { number, reset }
    }

    /// For the transport that owns it, when its device has come back from a reset: the proof of that.
    ///
    /// The contract of [`Transport`] says when it may be made.
    pub fn quiesced(&mut self) -> Quiesced {
        self.reset = Moment::now();
        Quiesced {
            instance: self.number,
            moment: self.reset,
        }
    }

    pub(crate) fn number(&self) -> Moment {
        self.number
    }

    /// Whether the device was reset since `moment`.
    pub(crate) fn was_reset_since(&self, moment: Moment) -> bool {
        self.reset > moment
    }
}

/// Proof that a device was reset and touches nothing of ours that it was told of before. Only the transport that reset it
/// can make it ([`Instance::quiesced`]), and a queue gives up its memory for nothing less.
#[derive(Debug)]
pub struct Quiesced {
    instance: Moment,
    moment: Moment,
}

impl Quiesced {
    /// Whether it is about the device that `instance` is a hold on, and the reset came later than `moment`.
    pub(crate) fn covers(&self, instance: Moment, moment: Moment) -> bool {
        self.instance == instance && self.moment > moment
    }
}

/// Before and after: a proof of an earlier reset says nothing about a queue that was enabled since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    /// Later than any moment before.
    pub(crate) fn now() -> Self {
        // Not an atomic of 64 bits, which not every machine has; and 32 bits would come round.
        static NEXT: Mutex<u64> = Mutex::new(0);
        let mut next = NEXT.lock();
        let moment = *next;
        *next += 1;
        Self(moment)
    }
}

/// A device's bell for one queue.
pub trait Notifier: Send {
    /// Tells the device that buffers are available (an "available buffer notification", spec 2.3).
    fn notify(&self);
}

/// How a driver reaches its device.
///
/// The methods are the device's registers, no more: [`crate::start`] says in which order a driver uses them.
///
/// # Safety
///
/// Drivers lend memory to the device and free it when the transport says that the device has let go of it. So whoever
/// implements this promises that
///
/// - [`Self::instance`] always gives the same [`Instance`], which this transport made for itself and lends to nobody;
/// - [`Self::reset`] makes a proof ([`Instance::quiesced`]) only after the device has said, since the reset was asked for,
///   that it is done (its status reads 0, and not because nothing is there to be read), and nothing else makes one;
/// - [`Self::enable_queue`] tells this device, and none other, of the addresses that it is given, and remembers them no
///   longer than until the next reset; if it fails, it has told the device nothing, unless with [`Cause::QueueRefused`];
/// - [`Self::set_driver_features`] writes what it is given, after the DMA context was told, and nothing else does either;
/// - [`Self::dma`] gives a context of this device.
///
/// A transport that wraps another one keeps these promises by handing the calls on.
#[expect(
    unsafe_code,
    reason = "its contract is what the safety of all drivers stands on"
)]
pub unsafe trait Transport: Send {
    /// The bell of one queue.
    type Notifier: Notifier;

    /// How the device reaches memory.
    type Dma: DmaContext;

    /// What the device is and where.
    fn name(&self) -> DeviceName;

    /// Which hold on the device this is.
    fn instance(&self) -> &Instance;

    /// How the device reaches memory.
    fn dma(&self) -> &Self::Dma;

    /// Resets the device and waits, for a bounded time, until it says that it is done.
    ///
    /// # Errors
    ///
    /// [`Cause::ResetTimeout`] if it does not: it may go on using what it was told of.
    fn reset(&mut self) -> Result<Quiesced>;

    /// Reads the device status.
    fn status(&self) -> Status;

    /// Writes the device status. Not for resetting: see [`Self::reset`].
    fn set_status(&mut self, status: Status);

    /// Reads the features that the device offers.
    fn device_features(&mut self) -> u64;

    /// Writes the features that the driver accepts, and tells the DMA context whether ACCESS_PLATFORM is among them.
    ///
    /// # Errors
    ///
    /// What the context says of that ([`DmaContext::negotiated`]).
    fn set_driver_features(&mut self, features: u64) -> Result<()>;

    /// The largest size that queue `index` may have; 0 if there is no such queue.
    fn queue_max_size(&mut self, index: u16) -> u16;

    /// Tells the device where queue `index` is and turns it on, with the interrupt vector that the platform gave it (if
    /// any).
    ///
    /// # Errors
    ///
    /// [`Cause::NoSuchQueue`], [`Cause::QueueInUse`], a size that the device does not take, or a device that refuses its vector
    /// ([`Cause::VectorRefused`]) or, when it knows where the queue is, does not turn it on ([`Cause::QueueRefused`]).
    fn enable_queue(&mut self, index: u16, queue: &QueueMemory<'_>) -> Result<Self::Notifier>;

    /// The generation of the device configuration: it changes whenever several fields changed together (spec 2.5).
    fn config_generation(&self) -> u32;

    /// Reads `bytes.len()` bytes of the device configuration at `offset`: 1, 2 or 4 as one access, 8 as two of 4, anything
    /// else byte by byte. An access is aligned to its width.
    ///
    /// # Errors
    ///
    /// [`Cause::ConfigOutOfRange`] if the device configuration ends before.
    fn read_config(&self, offset: usize, bytes: &mut [u8]) -> Result<()>;

    /// Writes to the device configuration, with accesses as for [`Self::read_config`].
    ///
    /// # Errors
    ///
    /// As for [`Self::read_config`].
    fn write_config(&mut self, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Reads and thereby clears why the device last interrupted. For INTx and polling; with MSI-X the vector says it and
    /// this read is a needless exit.
    fn take_interrupt_causes(&mut self) -> InterruptCauses;

    /// The shared-memory region `id`, if the device has it (spec 2.10): physical address and length in bytes.
    fn shared_memory(&self, id: u8) -> Option<SharedMemory> {
        let _ = id;
        None
    }

    /// Reads a little-endian `u8` of the device configuration.
    ///
    /// # Errors
    ///
    /// As for [`Self::read_config`].
    fn config_u8(&self, offset: usize) -> Result<u8> {
        let mut bytes = [0; 1];
        self.read_config(offset, &mut bytes)?;
        Ok(u8::from_le_bytes(bytes))
    }

    /// Reads a little-endian `u16` of the device configuration.
    ///
    /// # Errors
    ///
    /// As for [`Self::read_config`].
    fn config_u16(&self, offset: usize) -> Result<u16> {
        let mut bytes = [0; 2];
        self.read_config(offset, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Reads a little-endian `u32` of the device configuration.
    ///
    /// # Errors
    ///
    /// As for [`Self::read_config`].
    fn config_u32(&self, offset: usize) -> Result<u32> {
        let mut bytes = [0; 4];
        self.read_config(offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads a little-endian `u64` of the device configuration. Two accesses: read it under [`Self::config_snapshot`].
    ///
    /// # Errors
    ///
    /// As for [`Self::read_config`].
    fn config_u64(&self, offset: usize) -> Result<u64> {
        let mut bytes = [0; 8];
        self.read_config(offset, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads several fields of the device configuration so that they belong together: `read` runs again, a bounded
    /// number of times, until the configuration generation is the same before and after (spec 2.5.1).
    ///
    /// # Errors
    ///
    /// Those of `read`, or [`Cause::ConfigUnstable`] if it never stays the same.
    fn config_snapshot<T>(&self, read: impl Fn(&Self) -> Result<T>) -> Result<T>
    where
        Self: Sized,
    {
        const TRIES: usize = 100;
        for _ in 0..TRIES {
            let before = self.config_generation();
            let value = read(self)?;
            if self.config_generation() == before {
                return Ok(value);
            }
        }
        Err(Error::new(self.name(), Cause::ConfigUnstable))
    }
}

/// How often the status is read while a reset is under way. Each read is an exit to the device, of the order of a
/// microsecond at least, so this is a tenth of a second or more; QEMU's devices finish before the first read.
const RESET_READS: usize = 100_000;

/// After 0 was written to the device status: reads it until it says that the reset is over (spec 2.4).
///
/// # Errors
///
/// [`Cause::ResetTimeout`].
pub(crate) fn wait_for_reset(read_status: impl Fn() -> u32) -> Result<(), Cause> {
    let mut status = 0;
    for _ in 0..RESET_READS {
        status = read_status();
        if status == 0 {
            barrier::after_register_read();
            return Ok(());
        }
        core::hint::spin_loop();
    }
    let status = status as u8;
    Err(Cause::ResetTimeout { status })
}

/// Tells a device's DMA context what of `features` is about memory: what [`Transport::set_driver_features`] does before it
/// writes them.
///
/// # Errors
///
/// As for [`DmaContext::negotiated`].
pub fn tell_context<D: DmaContext>(dma: &mut D, device: DeviceName, features: u64) -> Result<()> {
    let access_platform = features & RingFeatures::ACCESS_PLATFORM.bits() != 0;
    let agreed = dma.negotiated(device, access_platform);
    agreed.map_err(|cause| Error::new(device, cause))
}

/// A region of memory that the device offers to the guest (spec 2.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedMemory {
    /// Its id, whose meaning depends on the device type.
    pub id: u8,
    /// Physical address of its first byte.
    pub address: u64,
    /// Length in bytes.
    pub len: u64,
}
