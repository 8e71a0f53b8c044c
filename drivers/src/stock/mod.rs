//! Both ways between this crate and `virtio-drivers`:
//!
//! - [`StockDma`] makes a [`DmaContext`](crate::DmaContext) of any of its `Hal`s;
//! - [`FromStock`] puts any of its transports under our drivers, polled;
//! - [`IntoStock`] puts any of our transports under its drivers, unpatched.

mod dma;
mod transport;

pub use self::dma::StockDma;
pub use self::transport::{FromStock, IntoStock, Leaky, StockNotifier};
