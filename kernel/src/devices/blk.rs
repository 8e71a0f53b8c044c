//! Disks: each has a task that owns it, and is shared by whoever reads and writes it.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Deref;
use core::time::Duration;

use spin::Mutex;
use vringlet::asynchronous::Asynchronous;
use vringlet::blk::{Blk, Options};
use vringlet::{Cause, Error, Report};

use super::owner::Owner;
use super::{DeviceTransport, Driven, Found, Interrupts, Mode};
use crate::memory::dma::KernelHal;
use crate::{task, time};

/// How often the configuration of a disk without interrupts is looked at.
const CONFIG_POLL: Duration = Duration::from_secs(1);

/// A disk. Dereferences to the driver's asynchronous face.
pub struct Disk {
    /// Its name, such as `blk0`.
    pub name: String,
    shared: Asynchronous<Blk<KernelHal, DeviceTransport>>,
    interrupts: Interrupts,
}

impl Deref for Disk {
    type Target = Asynchronous<Blk<KernelHal, DeviceTransport>>;

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
        shared: Asynchronous::new(blk),
        interrupts: found.interrupts,
    }));
    DISKS.lock().push(disk);
    task::spawn(disk.own());
    Ok(Box::new(disk))
}

impl Disk {
    /// The owner's task.
    async fn own(&self) {
        let mut owner = Owner::new(&self.name, &self.shared);
        let completions = async || self.completions().await;
        while owner.serve(completions, self.watch_config()).await {}
    }

    /// Waits until the device may be done with something.
    async fn completions(&self) {
        let busy = || self.with(|blk| blk.in_flight()) > 0;
        self.interrupts.completions(1, busy).await;
        self.with(Blk::count_interrupt);
    }

    /// Follows the device's configuration, until it wants to be reset.
    async fn watch_config(&self) -> Error {
        loop {
            match self.interrupts.mode() {
                Mode::Polled => time::after(CONFIG_POLL).await,
                _ => self.interrupts.config().await,
            }
            if let Err(error) = self.take_config_change() {
                return error;
            }
        }
    }

    fn take_config_change(&self) -> Result<(), Error> {
        match self.with(Blk::take_config_change) {
            Ok(None) => {}
            Ok(Some(change)) if change.old.capacity != change.new.capacity => {
                let (old, new) = (change.old.capacity, change.new.capacity);
                log::info!("{}: resized from {old} to {new} sectors", self.name);
            }
            Ok(Some(_)) => log::debug!("{}: the configuration changed", self.name),
            Err(error) if error.cause == Cause::NeedsReset => return Err(error),
            Err(error) => log::warn!("{}: {error}", self.name),
        }
        Ok(())
    }
}

impl Driven for &'static Disk {
    fn report(&self) -> Report {
        self.with(|blk| blk.report())
    }

    fn summary(&self) -> String {
        let config = self.with(|blk| *blk.config());
        let access = if config.read_only { ", read-only" } else { "" };
        let mib = config.bytes() >> 20;
        format!("{mib} MiB, {}-byte blocks{access}", config.block_size)
    }
}
