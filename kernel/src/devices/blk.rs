//! Disks: each has a task that owns it, and is shared by whoever reads and writes it.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Deref;

use spin::Mutex;
use vringlet::asynchronous::Asynchronous;
use vringlet::blk::{Blk, ConfigChange, Options};
use vringlet::{Error, Report};

use super::owner::{self, Owner, Shared};
use super::{DeviceTransport, Driven, Found};
use crate::runtime::task;

/// A disk. Dereferences to the driver's asynchronous face.
pub struct Disk {
    /// Its name, such as `blk0`.
    pub name: String,
    shared: Shared<Blk<DeviceTransport>>,
}

impl Deref for Disk {
    type Target = Asynchronous<Blk<DeviceTransport>>;

    fn deref(&self) -> &Self::Target {
        &self.shared
    }
}

static DISKS: Mutex<Vec<&'static Disk>> = Mutex::new(Vec::new());

/// All disks, in the order they were found.
pub fn all() -> Vec<&'static Disk> {
    DISKS.lock().clone()
}

/// The disk of this name.
pub fn find(name: &str) -> Option<&'static Disk> {
    DISKS.lock().iter().find(|disk| disk.name == name).copied()
}

/// Brings a disk up.
pub(super) fn start(found: Found) -> Result<Box<dyn Driven>, Error> {
    let blk = Blk::new(found.transport, Options::default())?;
    let disk: &'static Disk = Box::leak(Box::new(Disk {
        name: found.name,
        shared: Shared::new(blk, found.interrupts, 1),
    }));
    DISKS.lock().push(disk);
    disk.shared.serve();
    task::spawn(disk.own());
    Ok(Box::new(disk))
}

impl Disk {
    /// The driver's account of the disk.
    pub fn report(&self) -> Report {
        self.shared.report()
    }

    /// The owner's task.
    async fn own(&self) {
        let mut owner = Owner::new(&self.name, &self.shared, owner::timeout());
        let queues = || self.report().queues;
        while owner.serve(self.watch_config(), queues).await {}
    }

    /// Follows the device's configuration, until it wants to be reset.
    async fn watch_config(&self) -> Error {
        let changed = |change: ConfigChange| {
            let (old, new) = (change.old.capacity, change.new.capacity);
            match old == new {
                true => log::debug!("{}: the configuration changed", self.name),
                false => log::info!("{}: resized from {old} to {new} sectors", self.name),
            }
        };
        self.shared.watch_config(changed).await
    }
}

impl Driven for &'static Disk {
    fn report(&self) -> Report {
        Disk::report(self)
    }

    fn summary(&self) -> String {
        let config = self.control().config();
        let access = if config.read_only { ", read-only" } else { "" };
        let mib = config.bytes() >> 20;
        format!("{mib} MiB, {}-byte blocks{access}", config.block_size)
    }
}
