//! From `qemu -kernel` to a kernel that speaks `bootloader_api`; see the folder's README.
#![no_std]
#![no_main]

mod boot_info;
mod cpu;
mod entry;
mod exceptions;
mod fail;
mod identity;
mod kernel_file;
mod paging;
mod serial;

use core::convert::Infallible;

use vringlet_boot::error::Error;
use vringlet_boot::frames::Frames;
use vringlet_boot::kernel::Kernel;
use vringlet_boot::layout::{Layout, Sizes};
use vringlet_boot::memory_map::{PAGE, page_bounds};
use vringlet_boot::{multiboot2, rsdp, start_info};
use x86_64::VirtAddr;

use crate::identity::Identity;
use crate::paging::{CODE, DATA, PageTables, Part};

/// Where `entry.s` arrives in 64-bit mode: `magic` says by which protocol, `info` is the physical
/// address of what that protocol hands over.
#[unsafe(no_mangle)]
extern "sysv64" fn start(magic: u32, info: u32) -> ! {
    exceptions::install();
    match boot(magic, info) {
        Ok(never) => match never {},
        Err(error) => fail::stop(error),
    }
}

/// Starts the kernel, or says why not.
fn boot(magic: u32, info: u32) -> Result<Infallible, Error> {
    let cpu = cpu::enable_features();

    // What is there?
    let handoff = match magic {
        start_info::MAGIC => start_info::read(&Identity, info.into(), cpu.memory_end)?,
        multiboot2::MAGIC => multiboot2::read(&Identity, info.into(), cpu.memory_end)?,
        other => {
            return Err(Error::Handoff {
                what: "unknown boot protocol",
                value: other.into(),
            });
        }
    };
    let rsdp = rsdp::find(&Identity, handoff.rsdp_hint);
    let ramdisk = handoff.ramdisk;
    let mut memory = handoff.memory;
    memory.require_usable("the loader with its kernel", entry::image())?;
    memory.reserve(entry::image())?;
    // The BIOS data area; and nobody wants a frame with address 0.
    memory.reserve(0..PAGE)?;

    // What does the kernel ask for?
    let kernel_file = kernel_file::bytes();
    let kernel = Kernel::parse(kernel_file)?;
    let layout = Layout::plan(
        &kernel,
        Sizes {
            physical_memory: memory.mapped().last().map_or(0, |last| last.end),
            boot_info: boot_info::SIZE,
            ramdisk: ramdisk.as_ref().map(|ramdisk| {
                let pages = page_bounds(ramdisk);
                pages.end - pages.start
            }),
        },
    )?;

    // Build its address space.
    let mut frames = Frames::new(memory, entry::image().end);
    let mut tables = PageTables::new(cpu, &mut frames)?;
    map_shared_page(&mut tables, &mut frames)?;
    load_kernel(
        &kernel,
        kernel_file.as_ptr() as u64,
        layout.bias,
        &mut tables,
        &mut frames,
    )?;
    map_stack(&layout, &mut tables, &mut frames)?;
    if let Some(offset) = layout.physical_memory {
        map_physical_memory(offset, &mut tables, &mut frames)?;
    }
    if let (Some(ramdisk), Some(address)) = (&ramdisk, layout.ramdisk) {
        let pages = page_bounds(ramdisk);
        let part = Part {
            what: "the ramdisk",
            address,
            physical: pages.start,
            length: pages.end - pages.start,
            access: DATA,
        };
        tables.map(part, &mut frames)?;
    }
    map_boot_info(&layout, cpu, &mut tables, &mut frames)?;
    if let Some(index) = layout.recursive_index {
        tables.map_recursively(index)?;
    }
    if !tables.is_free(VirtAddr::new_truncate(layout.guard_page)) {
        return Err(Error::Mapping {
            what: "the guard page of the kernel's stack",
            address: layout.guard_page,
            reason: "something else is there",
        });
    }

    // Nothing is allocated from here on, so the memory map is final.
    let memory = frames.finish()?;
    // SAFETY: `map_boot_info` mapped it here and there.
    unsafe {
        boot_info::write(layout.boot_info, &memory, |info| {
            info.physical_memory_offset = layout.physical_memory.into();
            info.recursive_index = layout.recursive_index.into();
            info.rsdp_addr = rsdp.into();
            info.tls_template = kernel.tls_template(layout.bias).into();
            if let (Some(ramdisk), Some(address)) = (&ramdisk, layout.ramdisk) {
                info.ramdisk_addr = Some(address + ramdisk.start % PAGE).into();
                info.ramdisk_len = ramdisk.end - ramdisk.start;
            }
            info.kernel_addr = kernel_file.as_ptr() as u64;
            info.kernel_len = kernel_file.len() as u64;
            info.kernel_image_offset = layout.bias;
            info.kernel_stack_bottom = layout.stack;
            info.kernel_stack_len = layout.stack_length;
        });
    }
    // SAFETY: all of it is mapped in `tables`, and a kernel with a `.bootloader-config` was made by
    // bootloader_api's `entry_point!`, so its entry point takes a `BootInfo`.
    unsafe {
        entry::enter(entry::Start {
            level_4_table: tables.root(),
            entry_point: kernel.entry_point.wrapping_add(layout.bias),
            stack_end: layout.stack + layout.stack_length,
            boot_info: layout.boot_info,
        })
    }
}

/// The page with the last instructions of the loader, and with the GDT.
fn map_shared_page(tables: &mut PageTables, frames: &mut Frames) -> Result<(), Error> {
    let page = entry::shared_page();
    let part = Part {
        what: "the loader's last page",
        address: page.start,
        physical: page.start,
        length: page.end - page.start,
        access: CODE,
    };
    tables.map(part, frames)
}

/// Maps each page of the kernel for what its segments need: what is written to, and all that follows, in memory of its own,
/// and what comes before where it is in the file, which begins at the physical address `file`.
fn load_kernel(
    kernel: &Kernel<'_>,
    file: u64,
    bias: u64,
    tables: &mut PageTables,
    frames: &mut Frames,
) -> Result<(), Error> {
    let span = kernel.span();
    let copied = kernel.copied_from();
    let length = span.end - copied;
    let physical = frames.allocate("the kernel", length)?;
    // SAFETY: just allocated.
    let image = unsafe { identity::allocated(physical, length) };
    kernel.load(copied, image, bias)?;
    for page in span.step_by(PAGE as usize) {
        let Some(access) = kernel.access(page) else {
            continue;
        };
        let in_file = kernel.file_page(page).filter(|_| page < copied);
        let part = Part {
            what: "the kernel",
            address: page.wrapping_add(bias),
            physical: match in_file {
                Some(offset) => file + offset,
                None => physical + (page - copied),
            },
            length: PAGE,
            access,
        };
        tables.map(part, frames)?;
    }
    Ok(())
}

fn map_stack(layout: &Layout, tables: &mut PageTables, frames: &mut Frames) -> Result<(), Error> {
    let part = Part {
        what: "the kernel's stack",
        address: layout.stack,
        physical: frames.allocate("the kernel's stack", layout.stack_length)?,
        length: layout.stack_length,
        access: DATA,
    };
    tables.map(part, frames)
}

fn map_physical_memory(
    offset: u64,
    tables: &mut PageTables,
    frames: &mut Frames,
) -> Result<(), Error> {
    let map = frames.map().clone();
    for range in map.mapped() {
        let part = Part {
            what: "physical memory",
            address: offset.wrapping_add(range.start),
            physical: range.start,
            length: range.end - range.start,
            access: DATA,
        };
        tables.map(part, frames)?;
    }
    Ok(())
}

/// Maps the boot information for the kernel, and at the same address for the loader, which fills it
/// with pointers into itself.
fn map_boot_info(
    layout: &Layout,
    cpu: cpu::Cpu,
    tables: &mut PageTables,
    frames: &mut Frames,
) -> Result<(), Error> {
    let part = Part {
        what: "the boot information",
        address: layout.boot_info,
        physical: frames.allocate("the boot information", boot_info::SIZE)?,
        length: boot_info::SIZE,
        access: DATA,
    };
    tables.map(part, frames)?;
    // SAFETY: `entry.s` made these, and nothing else changes them.
    let mut own = unsafe { PageTables::existing(entry::own_level_4_table(), cpu) };
    own.map(part, frames)
}
