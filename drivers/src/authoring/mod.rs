//! What a driver for another device type is made of. Who only uses the drivers needs none of it.
//!
//! In the order in which it is best read:
//!
//! 1. [`start`] starts a device, and says in its [`Session`](start::Session) what is left to the driver of a type.
//! 2. [`queue`] is the virtqueue.
//! 3. [`dma`] is memory that is shared with the device.
//! 4. [`registers`] are those of the device: for who writes a transport.
//!
//! The faces want a driver to implement [`Driver`](crate::Driver). The smallest one is [`rng`](crate::rng).

#[expect(unsafe_code, reason = "memory shared with a device")]
pub mod dma;
pub mod queue;
#[expect(unsafe_code, reason = "device registers")]
pub mod registers;
pub mod start;
