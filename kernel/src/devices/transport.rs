//! The transports of this kernel's devices as one type, so that each driver is compiled once.

use vringlet::transport::either::Either;
use vringlet::{MmioTransport, PciTransport};

/// A device's transport: PCI, or virtio-mmio.
pub type DeviceTransport = Either<PciTransport, MmioTransport>;
