//! Who called: frame pointers followed up the stack, addresses turned into names by the kernel's own symbol table.

#![allow(unsafe_code)]

use core::fmt::Write;
use core::ops::Range;

use bootloader_api::BootInfo;
use elf::ElfBytes;
use elf::endian::LittleEndian;
use spin::Once;

use super::gdt;
use crate::platform::memory::stack;

const MAX_FRAMES: usize = 32;

struct Sources {
    stack: Range<u64>,
    image: &'static [u8],
}

static SOURCES: Once<Sources> = Once::new();

/// Remembers where the boot loader put the stack and the kernel's ELF file.
pub(super) fn init(boot: &BootInfo, physical_memory_offset: u64) {
    let stack_start = boot.kernel_stack_bottom;
    let image = match boot.kernel_addr {
        0 => &[][..],
        // SAFETY: the boot loader left the kernel's ELF file there, in memory it marks as not usable and maps at the
        // offset; nobody writes to it.
        physical => unsafe {
            core::slice::from_raw_parts(
                (physical + physical_memory_offset) as *const u8,
                boot.kernel_len as usize,
            )
        },
    };
    SOURCES.call_once(|| Sources {
        stack: stack_start..stack_start + boot.kernel_stack_len,
        image,
    });
}

/// The kernel stack's addresses (empty when the boot loader did not say).
pub(in crate::platform) fn kernel_stack() -> Range<u64> {
    SOURCES.get().map_or(0..0, |sources| sources.stack.clone())
}

/// Writes the backtrace of the caller.
pub fn write_here(out: &mut dyn Write) {
    let frame_pointer: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) frame_pointer, options(nomem, nostack)) };
    write_from(out, None, frame_pointer);
}

/// Writes the backtrace of code stopped at `instruction` with this frame pointer.
pub(in crate::platform) fn write_from(
    out: &mut dyn Write,
    instruction: Option<u64>,
    frame_pointer: u64,
) {
    let _ = writeln!(out, "backtrace:");
    if let Some(instruction) = instruction {
        write_frame(out, instruction, instruction);
    }
    let stacks = [kernel_stack(), gdt::fault_stacks()];
    let mut frame = frame_pointer;
    for _ in 0..MAX_FRAMES {
        let readable = |stack: &Range<u64>| stack.contains(&frame) && stack.contains(&(frame + 15));
        let on_fiber = || stack::containing(frame).is_some_and(|stack| readable(&stack));
        if !frame.is_multiple_of(8) || !(stacks.iter().any(readable) || on_fiber()) {
            break;
        }
        // SAFETY: both words lie inside one of our stacks, which are always mapped.
        let (caller, return_address) =
            unsafe { (*(frame as *const u64), *((frame + 8) as *const u64)) };
        if return_address == 0 {
            break;
        }
        // The call is before the address it returns to, and that may be the first of the next function.
        write_frame(out, return_address, return_address - 1);
        if caller <= frame {
            break;
        }
        frame = caller;
    }
}

fn write_frame(out: &mut dyn Write, shown: u64, looked_up: u64) {
    let _ = match symbol(looked_up) {
        Some((name, offset)) => {
            let name = rustc_demangle::demangle(name);
            writeln!(out, "  {shown:#018x} {name:#}+{offset:#x}")
        }
        None => writeln!(out, "  {shown:#018x}"),
    };
}

/// The function that contains the address, and how far into it.
fn symbol(address: u64) -> Option<(&'static str, u64)> {
    let image = SOURCES.get()?.image;
    let file = ElfBytes::<LittleEndian>::minimal_parse(image).ok()?;
    let (symbols, names) = file.symbol_table().ok()??;
    let function = symbols
        .iter()
        .filter(|symbol| symbol.st_symtype() == elf::abi::STT_FUNC)
        .find(|symbol| {
            (symbol.st_value..symbol.st_value.saturating_add(symbol.st_size)).contains(&address)
        })?;
    let name = names.get(function.st_name as usize).ok()?;
    Some((name, address - function.st_value))
}
