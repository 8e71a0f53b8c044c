//! A device in plain memory: for host tests, fuzzing and teaching. Honest by default, hostile on request.
//!
//! - [`FakeDma`] and [`Memory`]: the guest's memory as a device may reach it; notes every access that it may not make.
//! - [`DeviceQueue`]: the device's side of a split virtqueue; notes every rule that the driver breaks.
//! - [`FakeDevice`]: the registers of a device around a [`DeviceModel`], which says what the device does.
//! - [`FakeTransport`], [`FakePci`] and [`FakeMmio`]: how a driver reaches it, directly or by the registers of a bus.
//! - [`FakeBlk`], [`FakeGpu`], [`FakeNic`], [`FakePmem`], [`FakeRng`], [`FakeSound`]: models of the device types.
//!
//! Everything happens on the thread that calls, in an order that is the same in every run: a device works when it is
//! notified, before the notification returns, or when [`FakeDevice::pump`] is called (see [`Pace`]).
//!
//! A test begins with [`Memory::fresh`] and ends with [`Memory::assert_clean`].

mod blk;
mod device;
mod fault;
mod gpu;
#[expect(unsafe_code, reason = "the memory behind the fake platform")]
mod memory;
mod mmio;
mod net;
mod packet;
mod pci;
mod pmem;
mod queue;
mod random;
mod rng;
mod sound;
mod transport;

pub use blk::FakeBlk;
pub use device::{DeviceModel, FakeDevice, Interrupt, Order, Pace, Queues};
pub use fault::Fault;
pub use gpu::{FakeCursor, FakeGpu, FakeRect, Lie};
pub use memory::{FakeDma, FakeHal, Memory};
pub use mmio::{FakeMmio, FakeMmioRegisters};
pub use net::FakeNic;
pub use packet::Packet;
pub use pci::{CapabilityFault, FakePci, FakeRegisters, PciLayout};
pub use pmem::FakePmem;
pub use queue::{DeviceQueue, Request, Segment};
pub use random::Random;
pub use rng::FakeRng;
pub use sound::{FakeControl, FakeSound, FakeState, FakeStream};
pub use transport::{FakeNotifier, FakeTransport};
