//! Why the kernel was not started.

use core::fmt;

/// Why the kernel was not started; its text is the one line that the user sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// What was handed to the loader makes no sense.
    Handoff {
        /// The field that is wrong, and how.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// Something that must be in RAM is not, or the RAM is taken: most often there is too little of it.
    NotInRam {
        /// What it is.
        what: &'static str,
        /// Its first physical address.
        start: u64,
        /// The physical address after its last byte.
        end: u64,
    },
    /// No free memory is left below 4 GiB.
    OutOfMemory {
        /// What it was for.
        what: &'static str,
        /// How much of it was needed, in bytes.
        bytes: u64,
    },
    /// The loader was built without a kernel.
    NoKernel,
    /// The kernel's ELF file can't be loaded.
    Kernel {
        /// The field that is wrong, and how.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// The kernel's `BootloaderConfig` can't be understood.
    Config(&'static str),
    /// A part of the kernel's address space can't be where it must be.
    Mapping {
        /// The part.
        what: &'static str,
        /// Its virtual address.
        address: u64,
        /// Why not.
        reason: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Handoff { what, value } => write!(f, "firmware: {what} ({value:#x})"),
            Self::NotInRam { what, start, end } => write!(
                f,
                "{what} at {start:#x}..{end:#x} is not in free RAM; is there too little memory (-m)?"
            ),
            Self::OutOfMemory { what, bytes } => write!(
                f,
                "too little memory: no {} KiB free below 4 GiB for {what}",
                bytes.div_ceil(1024)
            ),
            Self::NoKernel => write!(
                f,
                "no kernel inside: this loader was built without VRINGLET_KERNEL"
            ),
            Self::Kernel { what, value } => write!(f, "kernel: {what} ({value:#x})"),
            Self::Config(reason) => write!(
                f,
                "kernel: {reason} in .bootloader-config; made with another bootloader_api than 0.11?"
            ),
            Self::Mapping {
                what,
                address,
                reason,
            } => write!(f, "cannot map {what} at {address:#x}: {reason}"),
        }
    }
}

impl core::error::Error for Error {}
