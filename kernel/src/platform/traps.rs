//! The interrupt descriptor table: one stub per vector, one entry for exceptions, which are reported, and one for interrupts,
//! which are dispatched.

#![allow(unsafe_code)]

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::{LazyLock, Once};
use x86_64::VirtAddr;
use x86_64::registers::control::{Cr2, Cr3};
use x86_64::structures::idt::InterruptDescriptorTable;

use super::arch::backtrace;
use super::arch::gdt::FaultStack;
use crate::platform::interrupts;
use crate::platform::memory::stack;
use crate::platform::power::{self, ExitCode};
use crate::platform::serial::Emergency;

const STUB_BYTES: u64 = 16;
const BREAKPOINT: u64 = 3;
const PAGE_FAULT: u64 = 14;

/// What the processor and a stub push.
#[repr(C)]
struct Interrupted {
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// The same, below the registers that the entry of exceptions pushes for the report.
#[repr(C)]
struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    at: Interrupted,
}

// A stub pushes 0 where the processor pushes no error code, then its vector number (`push imm32`, so that all stubs
// are alike). The stack is 16-byte aligned at the calls: the processor aligns it before it pushes five words, and the
// stub and its entry push seventeen or eleven more. An interrupt's entry keeps what a call may change.
core::arch::global_asm!(
    r#"
    .section .text.trap_stubs, "ax", @progbits
    .balign 16
    .global trap_stubs
trap_stubs:
    .set vector, 0
    .rept 256
        .balign 16
        .if (vector != 8) && ((vector < 10) || (vector > 14)) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30)
            push 0
        .endif
        .byte 0x68
        .long vector
        .if vector < {first}
            jmp exception_entry
        .else
            jmp interrupt_entry
        .endif
        .set vector, vector + 1
    .endr

    .type interrupt_entry, @function
interrupt_entry:
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    cld
    lea rdi, [rsp + 9 * 8]
    call {interrupt}
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq
    .size interrupt_entry, . - interrupt_entry

    .type exception_entry, @function
exception_entry:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    call {exception}
    .size exception_entry, . - exception_entry
    "#,
    first = const interrupts::FIRST_VECTOR,
    interrupt = sym interrupt,
    exception = sym exception,
);

unsafe extern "C" {
    #[link_name = "trap_stubs"]
    safe static TRAP_STUBS: u8;
}

static TABLE: LazyLock<InterruptDescriptorTable> = LazyLock::new(|| {
    let stubs = VirtAddr::from_ptr(&raw const TRAP_STUBS);
    let stub = |vector: u8| stubs + u64::from(vector) * STUB_BYTES;
    let mut table = InterruptDescriptorTable::new();
    // SAFETY: every stub is written for its vector (error code or not) and the four fault stacks are each used by
    // one vector only.
    unsafe {
        table.divide_error.set_handler_addr(stub(0));
        table.debug.set_handler_addr(stub(1));
        table
            .non_maskable_interrupt
            .set_handler_addr(stub(2))
            .set_stack_index(FaultStack::NonMaskable as u16);
        table.breakpoint.set_handler_addr(stub(3));
        table.overflow.set_handler_addr(stub(4));
        table.bound_range_exceeded.set_handler_addr(stub(5));
        table.invalid_opcode.set_handler_addr(stub(6));
        table.device_not_available.set_handler_addr(stub(7));
        table
            .double_fault
            .set_handler_addr(stub(8))
            .set_stack_index(FaultStack::DoubleFault as u16);
        table.invalid_tss.set_handler_addr(stub(10));
        table.segment_not_present.set_handler_addr(stub(11));
        table.stack_segment_fault.set_handler_addr(stub(12));
        table.general_protection_fault.set_handler_addr(stub(13));
        table
            .page_fault
            .set_handler_addr(stub(14))
            .set_stack_index(FaultStack::PageFault as u16);
        table.x87_floating_point.set_handler_addr(stub(16));
        table.alignment_check.set_handler_addr(stub(17));
        table
            .machine_check
            .set_handler_addr(stub(18))
            .set_stack_index(FaultStack::MachineCheck as u16);
        table.simd_floating_point.set_handler_addr(stub(19));
        table.virtualization.set_handler_addr(stub(20));
        table.cp_protection_exception.set_handler_addr(stub(21));
        table.hv_injection_exception.set_handler_addr(stub(28));
        table.vmm_communication_exception.set_handler_addr(stub(29));
        table.security_exception.set_handler_addr(stub(30));
        for vector in interrupts::FIRST_VECTOR..=u8::MAX {
            table[vector].set_handler_addr(stub(vector));
        }
    }
    table
});

/// Code that must not run for too long without a break, and where it goes on when it did.
pub struct Watchdog {
    /// Whether the interrupted code, which has this stack pointer, is such code and is overdue.
    pub is_overdue: fn(u64) -> bool,
    /// Takes the place of that code.
    pub overrun: extern "sysv64" fn() -> !,
}

static WATCHDOG: Once<Watchdog> = Once::new();

/// Has every interrupt look whether what it interrupted is overdue. There is one watchdog: the first.
pub fn watch(watchdog: Watchdog) {
    WATCHDOG.call_once(|| watchdog);
}

/// Loads the table: from here on exceptions are reported.
pub fn init() {
    TABLE.load();
}

extern "sysv64" fn interrupt(at: &mut Interrupted) {
    interrupts::dispatch(at.vector as u8);
    if let Some(watchdog) = WATCHDOG.get()
        && (watchdog.is_overdue)(at.rsp)
    {
        // As if it had called that function, which never returns. The kernel has no red zone.
        at.rip = watchdog.overrun as *const () as u64;
        at.rsp = (at.rsp & !0xf) - 8;
    }
}

/// Reports the exception and ends the guest. Everything here works without locks, allocation or a sane stack below.
extern "sysv64" fn exception(frame: &Frame) -> ! {
    static REPORTING: AtomicBool = AtomicBool::new(false);
    let (out, at) = (&mut Emergency, &frame.at);
    if REPORTING.swap(true, Ordering::Relaxed) {
        let _ = writeln!(
            out,
            "\nexception {} at {:#018x} while reporting another",
            at.vector, at.rip
        );
        power::exit(ExitCode::FatalException);
    }

    let fault_address = Cr2::read_raw();
    let stack = backtrace::kernel_stack();
    // The guard page is one page, but a fault just below the stack is an overflow wherever it lands.
    let below_stack = stack.start.saturating_sub(0x1_0000)..stack.start;
    if at.vector == PAGE_FAULT && below_stack.contains(&fault_address) {
        let _ = writeln!(
            out,
            "\nkernel stack overflow: {fault_address:#018x} is below the stack {:#018x}..{:#018x}",
            stack.start, stack.end
        );
    } else if at.vector == PAGE_FAULT && stack::is_below(fault_address) {
        let _ = writeln!(
            out,
            "\nfiber stack overflow: {fault_address:#018x} is below the stack of a fiber"
        );
    } else {
        let _ = writeln!(out, "\nfatal exception {}: {}", at.vector, name(at.vector));
    }
    if at.vector == PAGE_FAULT {
        let code = at.error_code;
        let access = match (code & 0x10 != 0, code & 0x2 != 0) {
            (true, _) => "instruction fetch",
            (false, true) => "write",
            (false, false) => "read",
        };
        let cause = match code & 0x1 {
            0 => "nothing is mapped there",
            _ => "the mapping forbids it",
        };
        let _ = writeln!(out, "{access} at {fault_address:#018x}: {cause}");
    }
    write_registers(out, frame, fault_address);
    backtrace::write_from(out, Some(at.rip), frame.rbp);
    power::exit(ExitCode::FatalException);
}

fn write_registers(out: &mut Emergency, frame: &Frame, cr2: u64) {
    let (f, at) = (frame, &frame.at);
    let rows = [
        [("rip", at.rip), ("rsp", at.rsp), ("rbp", f.rbp)],
        [("rax", f.rax), ("rbx", f.rbx), ("rcx", f.rcx)],
        [("rdx", f.rdx), ("rsi", f.rsi), ("rdi", f.rdi)],
        [("r8", f.r8), ("r9", f.r9), ("r10", f.r10)],
        [("r11", f.r11), ("r12", f.r12), ("r13", f.r13)],
        [("r14", f.r14), ("r15", f.r15), ("flags", at.rflags)],
        [
            ("cr2", cr2),
            ("cr3", Cr3::read().0.start_address().as_u64()),
            ("error", at.error_code),
        ],
    ];
    for row in rows {
        for (name, value) in row {
            let _ = write!(out, "  {name:>5} {value:#018x}");
        }
        let _ = writeln!(out);
    }
    let _ = writeln!(out, "     cs {:#06x}  ss {:#06x}", at.cs, at.ss);
}

fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        2 => "non-maskable interrupt",
        BREAKPOINT => "breakpoint",
        4 => "overflow",
        5 => "bound range exceeded",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid task state segment",
        11 => "segment not present",
        12 => "stack segment fault",
        13 => "general protection fault",
        PAGE_FAULT => "page fault",
        16 => "x87 floating point",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD floating point",
        20 => "virtualization",
        21 => "control protection",
        28 => "hypervisor injection",
        29 => "VMM communication",
        30 => "security",
        _ => "reserved",
    }
}
