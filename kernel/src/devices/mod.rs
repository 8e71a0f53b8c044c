//! The virtio devices: found, named (blk0, net0, ...), driven, and kept where the shell can show them.
//!
//! [`init`] walks the PCI functions and the virtio-mmio slots, in that order. Each device gets a name by type and order,
//! a transport ([`DeviceTransport`]) and a way to be told of interrupts ([`Interrupts`]); then the file of its type takes
//! it over. To add a type, write `devices/TYPE.rs` with
//!
//! ```ignore
//! pub(super) fn start(found: Found) -> Result<Box<dyn Driven>, vringlet::Error>
//! ```
//!
//! that makes the driver, spawns its owner's task (an [`Owner`](owner::Owner) serves the device and starts it again) and
//! keeps what the commands of the type need; and list it in `start`.

pub mod blk;
pub mod gpu;
mod interrupts;
mod mmio;
pub mod net;
mod owner;
#[cfg(feature = "peers")]
pub mod peers;
pub mod pmem;
pub mod rng;
pub mod sound;
mod transport;

pub use interrupts::{Interrupts, Mode};
pub use owner::timeout;
pub use transport::DeviceTransport;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use spin::Mutex;
use vringlet::transport::pci;
use vringlet::{DeviceId, DeviceName, Location, Report, Transport};

use crate::platform::memory::dma::KernelDma;
use crate::platform::pci::{ConfigSpace, Function, functions};

/// A device that was found, on its way to a driver.
pub struct Found {
    /// Its name, such as `blk0`.
    pub name: String,
    /// How its registers are reached.
    pub transport: DeviceTransport,
    /// How it is heard.
    pub interrupts: Interrupts,
}

/// A device with a driver.
pub trait Driven: Send + Sync {
    /// The driver's account of its device.
    fn report(&self) -> Report;

    /// What the boot log says of the device, such as `64 MiB, 512-byte blocks`.
    fn summary(&self) -> String;
}

/// An entry of the registry.
pub struct Device {
    /// Its name, such as `blk0`.
    pub name: String,
    /// Its type and place.
    pub place: DeviceName,
    /// How it is heard; `None` if it was not brought up.
    interrupts: Option<Interrupts>,
    /// Its driver, or why it has none.
    pub driver: Result<Box<dyn Driven>, String>,
}

impl Device {
    /// How it is heard.
    pub fn mode(&self) -> Mode {
        self.interrupts
            .as_ref()
            .map_or(Mode::None, Interrupts::mode)
    }
}

static REGISTRY: Mutex<Vec<&'static Device>> = Mutex::new(Vec::new());

/// All devices found, in the order they were named.
pub fn all() -> Vec<&'static Device> {
    REGISTRY.lock().clone()
}

/// The device of this name.
pub fn find(name: &str) -> Option<&'static Device> {
    REGISTRY
        .lock()
        .iter()
        .find(|device| device.name == name)
        .copied()
}

/// Finds the devices and brings up those there is a driver for.
pub async fn init() {
    for function in functions() {
        let Some(id) = pci::device_id(function.vendor, function.device, function.subsystem) else {
            continue;
        };
        let place = DeviceName {
            id,
            location: Location::Pci(function.address),
        };
        let name = name_for(id);
        match open_pci(function, &name) {
            Ok((transport, interrupts)) => bring_up(name, place, transport, interrupts).await,
            Err(error) => register(name, place, None, Err(error)),
        }
    }
    for slot in mmio::slots() {
        match slot.open() {
            Ok(None) => {}
            Ok(Some(transport)) => {
                let place = transport.name();
                let name = name_for(place.id);
                let interrupts = Interrupts::of_mmio(&transport, slot.line, &name);
                let transport = DeviceTransport::Second(transport);
                bring_up(name, place, transport, interrupts).await;
            }
            Err(error) => {
                let name = name_for(error.device.id);
                register(name, error.device, None, Err(format!("{}", error.cause)));
            }
        }
    }
}

/// The type's name and the number of such devices before: `blk0`, `blk1`.
fn name_for(id: DeviceId) -> String {
    let number = REGISTRY
        .lock()
        .iter()
        .filter(|device| device.place.id == id)
        .count();
    let kind = match id {
        // As everybody else calls them.
        DeviceId::SOUND => Some("snd"),
        _ => id.name(),
    };
    match kind {
        Some(kind) => format!("{kind}{number}"),
        None => format!("type{}-{number}", id.0),
    }
}

fn open_pci(function: &Function, name: &str) -> Result<(DeviceTransport, Interrupts), String> {
    let transport = transport::Pci::new(&mut ConfigSpace, function.address, KernelDma);
    let mut transport = transport.map_err(|error| format!("{error}"))?;
    let interrupts = Interrupts::of_pci(&mut transport, function, name);
    Ok((DeviceTransport::First(transport), interrupts))
}

async fn bring_up(
    name: String,
    place: DeviceName,
    transport: DeviceTransport,
    interrupts: Interrupts,
) {
    let known = interrupts.clone();
    let found = Found {
        name: name.clone(),
        transport,
        interrupts,
    };
    let driver = start(place.id, found).await;
    register(name, place, Some(known), driver);
}

/// Hands the device to the file of its type.
async fn start(id: DeviceId, mut found: Found) -> Result<Box<dyn Driven>, String> {
    #[cfg(feature = "peers")]
    if id == DeviceId::BLK && peers::is_wanted() {
        return Err(peers::keep(found));
    }
    let started = match id {
        DeviceId::BLK => blk::start(found),
        DeviceId::GPU => gpu::start(found),
        DeviceId::SOUND => sound::start(found),
        DeviceId::NET => net::start(found),
        DeviceId::PMEM => return pmem::start(found),
        DeviceId::RNG => rng::start(found),
        _ => {
            let _ = found.transport.reset();
            return Err(format!("no driver for {id}"));
        }
    };
    // The device is named beside it.
    started.map_err(|error| match error.queue {
        Some(queue) => format!("queue {queue}: {}", error.cause),
        None => format!("{}", error.cause),
    })
}

fn register(
    name: String,
    place: DeviceName,
    interrupts: Option<Interrupts>,
    driver: Result<Box<dyn Driven>, String>,
) {
    let device = Device {
        name,
        place,
        interrupts,
        driver,
    };
    let (name, mode) = (&device.name, device.mode());
    match &device.driver {
        Ok(driven) => log::info!("{name}: {place} ({mode}): {}", driven.summary()),
        Err(reason) => log::warn!("{name}: {place}: {reason}"),
    }
    REGISTRY.lock().push(Box::leak(Box::new(device)));
}
