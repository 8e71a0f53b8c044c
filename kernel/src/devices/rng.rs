//! Entropy devices: each has a task that owns it, and is shared by whoever wants random bytes.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use spin::Mutex;
use vringlet::rng::{Options, Rng as Driver};
use vringlet::{Cause, Driver as _, Error, Report};

use super::owner::{self, Owner, Shared};
use super::{DeviceTransport, Driven, Found};
use crate::platform::time;
use crate::runtime::task;

/// How long one answer may take, of whatever length: the host may ration its random bytes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A source of random bytes.
pub struct Rng {
    name: String,
    shared: Shared<Driver<DeviceTransport>>,
}

static RNGS: Mutex<Vec<&'static Rng>> = Mutex::new(Vec::new());

/// All sources, in the order they were found.
pub fn all() -> Vec<&'static Rng> {
    RNGS.lock().clone()
}

/// The first source, if there is one.
pub fn first() -> Option<&'static Rng> {
    RNGS.lock().first().copied()
}

/// Brings a device up.
pub(super) fn start(found: Found) -> Result<Box<dyn Driven>, Error> {
    let driver = Driver::new(found.transport, Options::default())?;
    let rng: &'static Rng = Box::leak(Box::new(Rng {
        name: found.name,
        shared: Shared::new(driver, found.interrupts, 1),
    }));
    RNGS.lock().push(rng);
    rng.shared.serve();
    task::spawn(rng.own());
    Ok(Box::new(rng))
}

impl Rng {
    /// Its name, such as `rng0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Fills `bytes`, in as many answers as the device makes of it, each of which brings at least one byte. Fails if one of
    /// them does not come; then `bytes` may be filled in part.
    pub async fn fill(&self, bytes: &mut [u8]) -> Result<(), Error> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let read = time::timeout(PATIENCE, self.shared.read(rest)).await;
            let given =
                read.unwrap_or_else(|_| Err(self.shared.with(|rng| rng.error(Cause::Timeout))))?;
            rest = rest.get_mut(given..).unwrap_or_default();
        }
        Ok(())
    }

    /// The owner's task.
    async fn own(&self) {
        let mut owner = Owner::new(&self.name, &self.shared, owner::timeout());
        // The host may ration its random bytes for as long as it likes.
        while owner
            .serve(self.shared.watch_config(|_| {}), Vec::new)
            .await
        {}
    }
}

impl Driven for &'static Rng {
    fn report(&self) -> Report {
        self.shared.report()
    }

    fn summary(&self) -> String {
        let size = self.shared.with(|rng| rng.queue_size());
        format!("random bytes, queue of {size}")
    }
}
