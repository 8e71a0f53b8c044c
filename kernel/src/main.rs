//! The Vringlet kernel: where it starts, and in which order its parts come up.
//!
//! # How to work in here
//!
//! - **A command**: an `async fn(Args, Output) -> Result<(), Error>` and a [`Command`](vringlet_kernel::shell::Command)
//!   with its name, usage and help, in a file of `shell/commands/`; see `shell/mod.rs`.
//! - **A task**: `task::spawn(async { ... })`, at any time; it may run for ever or end.
//! - **A library that knows nothing of tasks**, or is not to be trusted with the bytes it gets: `fiber::run(bytes, || ...).await`.
//! - **Time**: `time::now()`, `time::after(duration).await`, `time::timeout(duration, future).await`.
//! - **An interrupt that wakes a task**: `static EVENT: Event = Event::new()`, hand `&EVENT` to
//!   `interrupts::allocate(name, handler)` (MSI-X: gives the message address and data) or to
//!   `interrupts::lines::connect_shared(line, name, handler)`, then `EVENT.wait().await` in the task. A handler of your
//!   own implements `interrupts::Handler` and takes no lock.
//! - **Memory for a device**: `memory::dma::KernelDma` is the `vringlet::DmaContext`; registers are mapped by
//!   `memory::paging::map_mmio`, which refuses what cannot be registers.
//! - **A setting**: `fw_cfg::option("name")` is the value of `name=...` in `opt/vringlet/cmdline`.
//!
//! Everything runs on one processor: tasks one at a time, interrupted by handlers that only raise flags and wake tasks.

#![no_std]
#![no_main]

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use bootloader_api::config::Mapping;
use bootloader_api::{BootInfo, BootloaderConfig};
use vringlet_kernel::apps::{dashboard, status, store};
use vringlet_kernel::platform::memory::heap::KernelHeap;
use vringlet_kernel::platform::power::{self, ExitCode};
use vringlet_kernel::platform::serial::{self, Emergency, terminal};
use vringlet_kernel::platform::{acpi, arch, fw_cfg, interrupts, memory, pci, time, traps};
use vringlet_kernel::runtime::{fiber, task};
use vringlet_kernel::{devices, net, shell};

#[global_allocator]
static ALLOCATOR: KernelHeap = KernelHeap;

/// What the kernel asks of its boot loader.
static CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.mappings.physical_memory = Some(Mapping::Dynamic);
    config.kernel_stack_size = 128 * 1024;
    config
};

bootloader_api::entry_point!(start, config = &CONFIG);

fn start(boot: &'static mut BootInfo) -> ! {
    let boot: &'static BootInfo = boot;
    time::start();
    serial::init();
    let Some(offset) = boot.physical_memory_offset.as_ref().copied() else {
        panic!("the boot loader did not map physical memory, which the kernel asks for");
    };
    arch::init(boot, offset);
    traps::init();
    if let Err(too_little) = memory::init(boot, offset) {
        let _ = writeln!(Emergency, "\nkernel: error: {too_little}");
        power::exit(ExitCode::TooLittleMemory);
    }
    acpi::init(boot.rsdp_addr.as_ref().copied());
    interrupts::init();
    time::init();
    fiber::init();
    if let Some(level) = fw_cfg::option("log").and_then(|level| level.parse().ok()) {
        log::set_max_level(level);
    }
    if let Some(kind) = fw_cfg::option("terminal").and_then(|kind| kind.parse().ok()) {
        terminal::set(kind);
    }
    log::info!(
        "vringlet {}: {} MiB, {} CPUs, boot path {}, {}",
        env!("CARGO_PKG_VERSION"),
        memory::installed(boot).div_ceil(1 << 20),
        processors(),
        boot_path(boot),
        arch::cpu::features().name,
    );
    status::mark("memory, interrupts and clock");
    if let Some(sender) = serial::start() {
        task::spawn(sender);
    }
    pci::init();
    status::mark("PCI");
    task::spawn(async {
        devices::init().await;
        status::mark("devices");
        net::init(status::json).await;
        status::mark("network");
        store::init().await;
        dashboard::start();
        log::info!("ready");
        shell::run().await;
    });
    task::run()
}

/// How many processors there are, all but one of them parked.
fn processors() -> usize {
    match acpi::info().processors {
        0 => fw_cfg::processors().unwrap_or(1),
        known => known,
    }
}

/// Who booted us, as far as it can be told: our loader hands over the `bootloader_api` version it was built with and no
/// framebuffer.
fn boot_path(boot: &BootInfo) -> &'static str {
    match boot.framebuffer.as_ref() {
        None => "vringlet-boot",
        Some(_) => "bootloader",
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    static PANICKING: AtomicBool = AtomicBool::new(false);
    fiber::contain(info);
    x86_64::instructions::interrupts::disable();
    let out = &mut Emergency;
    // A panic in the report itself gets one line and no second report.
    if PANICKING.swap(true, Ordering::Relaxed) {
        let _ = writeln!(out, "\n{info} (while reporting a panic)");
    } else {
        let _ = writeln!(out, "\n{info}");
        arch::backtrace::write_here(out);
    }
    power::exit(ExitCode::Panic)
}
