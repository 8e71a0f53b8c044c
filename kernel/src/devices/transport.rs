//! The transports of this kernel's devices as one type, so that each driver is compiled once.

use vringlet::transport::either::Either;
use vringlet::{MmioTransport, PciTransport};

use crate::platform::memory::dma::KernelDma;

/// A device's transport: PCI, or virtio-mmio.
pub type DeviceTransport = Either<Pci, Mmio>;

/// A transport over PCI.
pub(super) type Pci = PciTransport<KernelDma>;
/// A transport over virtio-mmio.
pub(super) type Mmio = MmioTransport<KernelDma>;
