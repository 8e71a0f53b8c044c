//! Random numbers, by the driver of the `virtio-drivers` crate on our transport: its drivers run there unpatched.
//!
//! That driver is polled, keeps no counters, and waits for the device without a bound; so it is only used when somebody
//! asks for numbers.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use spin::Mutex;
use virtio_drivers::device::rng::VirtIORng;
use vringlet::transport::compat::{IntoStock, Leaky};

use super::{DeviceTransport, Found};
use crate::memory::dma::KernelHal;

/// A source of random numbers.
pub struct Rng {
    name: String,
    driver: Mutex<VirtIORng<Leaky<KernelHal>, IntoStock<DeviceTransport>>>,
}

static RNGS: Mutex<Vec<&'static Rng>> = Mutex::new(Vec::new());

/// The first source, if there is one.
pub fn first() -> Option<&'static Rng> {
    RNGS.lock().first().copied()
}

/// Has `virtio-drivers` drive the device.
pub(super) fn start(found: Found) -> Result<(), String> {
    #[expect(unsafe_code, reason = "its trait promises nothing")]
    // SAFETY: it goes to a driver of virtio-drivers, with a `Hal` that leaks what a device did not let go of.
    let transport = unsafe { IntoStock::new(found.transport) };
    let transport = transport.map_err(|error| format!("{error}"))?;
    let driver = VirtIORng::new(transport).map_err(|error| format!("{error}"))?;
    RNGS.lock().push(Box::leak(Box::new(Rng {
        name: found.name,
        driver: Mutex::new(driver),
    })));
    Ok(())
}

impl Rng {
    /// Its name, such as `rng0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Fills the beginning of `bytes`; gives how much of it, which is up to the device.
    pub fn fill(&self, bytes: &mut [u8]) -> Result<usize, String> {
        let filled = self.driver.lock().request_entropy(bytes);
        let filled = filled.map_err(|error| format!("{}: {error}", self.name))?;
        Ok(filled.min(bytes.len()))
    }
}
