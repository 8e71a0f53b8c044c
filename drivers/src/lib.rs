//! Guest-side virtio drivers for any kernel: `no_std`, safe against the device.
//!
//! Three layers, each of which knows only the one before:
//!
//! 1. [`transport`]: how to reach the registers of a device: PCI, MMIO, or any transport of the `virtio-drivers`
//!    crate.
//! 2. [`authoring::queue`]: the virtqueue. It owns what a request lends to the device and checks what the device says.
//! 3. A folder for each device type.
//!
//! What a kernel brings is a [`DmaContext`] for memory and registers, and for PCI
//! [`virtio_drivers::transport::pci::bus::ConfigurationAccess`].
//!
//! # Example
//!
//! A disk, here one of the `fake` module (feature `fake`); on a PCI bus the transport is made by [`PciTransport::new`],
//! which takes the kernel's own [`DmaContext`].
//!
//! ```
//! use vringlet::blk::{Blk, Options};
//! use vringlet::blocking::Blocking;
//! use vringlet::fake::{FakeBlk, FakeDevice};
//! use vringlet::Buffer;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = FakeDevice::new(FakeBlk::new(2048));
//! let disk = Blk::new(device.transport(), Options::default())?;
//! assert_eq!(disk.config().capacity, 2048);
//!
//! // Each wait has a bound of the caller's: here the device may be asked a thousand times.
//! let mut disk = Blocking::new(disk);
//! let mut left = 1000;
//! let mut wait = || {
//!     left -= 1;
//!     left > 0
//! };
//! let block = Buffer::from(vec![7; 512]);
//! let block = disk.write(100, block, &mut wait).map_err(|failed| failed.error)?;
//! let block = disk.read(101, block, &mut wait).map_err(|failed| failed.error)?;
//! assert_eq!(*block, [0; 512]);
//! assert_eq!(device.with(|disk| disk.disk[100 * 512]), 7);
//! # Ok(())
//! # }
//! ```
//!
//! # Features, memory and size
//!
//! `net`, `gpu`, `sound` and `pmem` are the device types besides [`blk`] and [`rng`], which are always there; `smoltcp`
//! (with `net`), `embedded-graphics` (with `gpu`) and `rand_core` are adapters to the crates of these names. All of them are
//! on by default. `fake` is a device in plain memory, for tests. Only modern devices (VERSION_1) are driven, by split queues:
//! [`features::SUPPORTED`] are the device-independent features, and each device type's `Features` its own.
//!
//! How much a driver needs of the global allocator and of the platform's memory for DMA is said at the `Options` of each
//! device type; when one of the two runs out, that is [`Cause::NoMemory`] or [`Cause::NoDmaMemory`].
//!
//! A driver is 29 KB (rng), 38 KB (blk) to 77 KB (gpu) of x86_64 code in a kernel that is optimised for size; the README says
//! it of each, and how it is measured.
//!
//! # Trust
//!
//! Nothing that a device writes can make this crate panic, wait for ever, or access memory that is not its own: lengths,
//! ids, indices, configuration and capabilities are unverified until checked. What can't be prevented without an IOMMU
//! is that a device writes to memory which it was never lent.
//!
//! `unsafe` is confined to `dma`, `registers`, `barrier`, [`buffer`], [`region`], the loans of `queue`
//! (`queue/slot.rs`) and [`stock`], which calls an unsafe `Hal`; there is none in a device driver. [`Transport`] and
//! [`DmaContext`] are unsafe to implement.

#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]
// Not the workspace's: the other crates are nobody's library.
#![deny(clippy::missing_errors_doc)]

/// So that what the README shows compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

extern crate alloc;
#[cfg(all(feature = "fake", not(test)))]
extern crate std;

pub mod asynchronous;
pub mod authoring;
#[allow(unsafe_code, reason = "barrier instructions, of which x86 needs none")]
mod barrier;
pub mod blk;
pub mod blocking;
#[expect(unsafe_code, reason = "raw ownership of lent bytes")]
pub mod buffer;
pub mod device;
pub mod driver;
pub mod error;
#[cfg(feature = "fake")]
pub mod fake;
pub mod features;
#[cfg(feature = "gpu")]
pub mod gpu;
#[cfg(feature = "net")]
pub mod net;
#[cfg(feature = "pmem")]
pub mod pmem;
#[expect(unsafe_code, reason = "memory of a device, mapped")]
pub mod region;
pub mod report;
pub mod rng;
#[cfg(feature = "sound")]
pub mod sound;
pub mod stock;
pub mod transport;

use authoring::{dma, queue, registers, start};

pub use buffer::Buffer;
pub use device::{DeviceId, DeviceName, Location};
pub use dma::{Direction, DmaContext, PAGE_LEN};
pub use driver::{Device, Driver, Failed, Finished};
pub use error::{Cause, Error, Result};
#[cfg(feature = "net")]
pub use net::Net;
pub use queue::{QueueStats, Ready, Rejected, Token};
pub use region::Region;
pub use report::{QueueReport, Report};
pub use transport::{MmioTransport, PciTransport, Transport};
