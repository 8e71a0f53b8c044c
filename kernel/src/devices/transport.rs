//! The transports of this kernel's devices as one type, so that each driver is compiled once.

use virtio_drivers::transport::mmio::MmioTransport;
use vringlet::PciTransport;
use vringlet::transport::compat::FromStock;
use vringlet::transport::either::Either;

/// A device's transport: PCI, or virtio-mmio by the `virtio-drivers` crate.
pub type DeviceTransport = Either<PciTransport, FromStock<MmioTransport<'static>>>;
