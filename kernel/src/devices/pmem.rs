//! Persistent memory: each device's region is mapped where the processor reads and writes it, and a task that owns the
//! device serves the flushes.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;
use vringlet::pmem::{Config, Options, Pmem as Driver};
use vringlet::{Cause, Driver as _, Error, Region, Report};

use super::owner::{self, Owner, Shared};
use super::{DeviceTransport, Driven, Found};
use crate::platform::memory::paging;
use crate::runtime::task;

/// A run of persistent memory.
pub struct Pmem {
    /// Its name, such as `pmem0`.
    pub name: String,
    config: Config,
    shared: Shared<Driver<DeviceTransport>>,
    region: Mutex<Region>,
    in_use: AtomicBool,
}

static ALL: Mutex<Vec<&'static Pmem>> = Mutex::new(Vec::new());

/// All of them, in the order they were found.
pub fn all() -> Vec<&'static Pmem> {
    ALL.lock().clone()
}

/// The one of this name.
pub fn find(name: &str) -> Option<&'static Pmem> {
    ALL.lock().iter().find(|pmem| pmem.name == name).copied()
}

/// Brings a device up.
pub(super) fn start(found: Found) -> Result<Box<dyn Driven>, String> {
    let driver = Driver::new(found.transport, Options::default());
    let driver = driver.map_err(|error| format!("{error}"))?;
    let config = driver.config();
    let region = paging::region(config.start, config.size).map_err(|error| {
        let Config { start, size } = config;
        format!("region of {size:#x} bytes at {start:#x}: {error}")
    })?;
    let pmem: &'static Pmem = Box::leak(Box::new(Pmem {
        name: found.name,
        config,
        shared: Shared::new(driver, found.interrupts, 1),
        region: Mutex::new(region),
        in_use: AtomicBool::new(false),
    }));
    ALL.lock().push(pmem);
    pmem.shared.serve();
    task::spawn(pmem.own());
    Ok(Box::new(pmem))
}

impl Pmem {
    /// Where the region is.
    pub fn config(&self) -> Config {
        self.config
    }

    /// Whether the kernel keeps something of its own in it, which commands must not overwrite.
    pub fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Says whether the kernel keeps something in it.
    pub fn set_in_use(&self, in_use: bool) {
        self.in_use.store(in_use, Ordering::Relaxed);
    }

    /// Looks at the region, or changes it. Shortly: it is locked meanwhile.
    pub fn with_region<R>(&self, f: impl FnOnce(&mut Region) -> R) -> R {
        f(&mut self.region.lock())
    }

    /// Makes everything persistent that was written to the region before.
    pub async fn flush(&self) -> Result<(), Error> {
        self.shared.flush().await
    }

    /// An error of this device.
    pub fn error(&self, cause: Cause) -> Error {
        self.shared.with(|driver| driver.error(cause))
    }

    /// The driver's account of the device.
    pub fn report(&self) -> Report {
        self.shared.report()
    }

    /// The owner's task.
    async fn own(&self) {
        let mut owner = Owner::new(&self.name, &self.shared, owner::timeout());
        let queues = || self.report().queues;
        while owner.serve(self.shared.watch_config(|_| {}), queues).await {}
    }
}

impl Driven for &'static Pmem {
    fn report(&self) -> Report {
        Pmem::report(self)
    }

    fn summary(&self) -> String {
        let Config { start, size } = self.config;
        match size % (1 << 20) {
            0 => format!("{} MiB at {start:#x}", size >> 20),
            _ => format!("{} KiB at {start:#x}", size >> 10),
        }
    }
}
