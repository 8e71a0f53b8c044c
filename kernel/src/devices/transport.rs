//! The transports of this kernel's devices as one type, so that each driver is compiled once.

use virtio_drivers::transport::mmio::MmioTransport;
use vringlet::mmio::Mmio;
use vringlet::transport::compat::{FromStock, StockNotifier};
use vringlet::transport::pci::PciNotifier;
use vringlet::transport::{
    InterruptCauses, Notifier, QueueAddresses, Quiesced, SharedMemory, Status,
};
use vringlet::{DeviceName, PciTransport, Result, Transport};

/// A device's transport.
pub enum DeviceTransport {
    /// PCI.
    Pci(PciTransport),
    /// virtio-mmio, by the `virtio-drivers` crate.
    Mmio(FromStock<MmioTransport<'static>>),
}

/// The bell of one queue of a device.
pub enum DeviceNotifier {
    /// PCI.
    Pci(PciNotifier<Mmio>),
    /// virtio-mmio.
    Mmio(StockNotifier<MmioTransport<'static>>),
}

impl Notifier for DeviceNotifier {
    #[inline]
    fn notify(&self) {
        match self {
            Self::Pci(bell) => bell.notify(),
            Self::Mmio(bell) => bell.notify(),
        }
    }
}

/// Calls the same method of whichever transport it is.
macro_rules! either {
    ($self:expr, $transport:ident => $call:expr) => {
        match $self {
            DeviceTransport::Pci($transport) => $call,
            DeviceTransport::Mmio($transport) => $call,
        }
    };
}

impl Transport for DeviceTransport {
    type Notifier = DeviceNotifier;

    fn name(&self) -> DeviceName {
        either!(self, transport => transport.name())
    }

    fn reset(&mut self) -> Result<Quiesced> {
        either!(self, transport => transport.reset())
    }

    fn status(&self) -> Status {
        either!(self, transport => transport.status())
    }

    fn set_status(&mut self, status: Status) {
        either!(self, transport => transport.set_status(status));
    }

    fn device_features(&mut self) -> u64 {
        either!(self, transport => transport.device_features())
    }

    fn set_driver_features(&mut self, features: u64) {
        either!(self, transport => transport.set_driver_features(features));
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        either!(self, transport => transport.queue_max_size(index))
    }

    fn enable_queue(&mut self, index: u16, queue: &QueueAddresses) -> Result<DeviceNotifier> {
        match self {
            Self::Pci(transport) => transport
                .enable_queue(index, queue)
                .map(DeviceNotifier::Pci),
            Self::Mmio(transport) => transport
                .enable_queue(index, queue)
                .map(DeviceNotifier::Mmio),
        }
    }

    fn config_generation(&self) -> u32 {
        either!(self, transport => transport.config_generation())
    }

    fn read_config(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        either!(self, transport => transport.read_config(offset, bytes))
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        either!(self, transport => transport.write_config(offset, bytes))
    }

    fn take_interrupt_causes(&mut self) -> InterruptCauses {
        either!(self, transport => transport.take_interrupt_causes())
    }

    fn shared_memory(&self, id: u8) -> Option<SharedMemory> {
        either!(self, transport => transport.shared_memory(id))
    }
}
