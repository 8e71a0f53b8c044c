//! Device registers. [`Registers`] is what a transport needs of them; [`Mmio`] is the real thing, and the fake device
//! has its own.

use core::ptr::NonNull;

use crate::dma::DmaContext;
use crate::error::Cause;

/// A run of device registers, little-endian.
///
/// An access that does not lie wholly inside the run, or is not aligned to its width, never reaches the device: a read
/// gives all ones, as a bus without a device does, and a write is dropped. Transports check lengths where they learn
/// them; this is the last line of defence.
pub trait Registers: Send + Sized {
    /// Length of the run in bytes.
    fn len(&self) -> usize;
    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The part of `len` bytes from `offset`, if it lies inside.
    fn slice(&self, offset: usize, len: usize) -> Option<Self>;
    /// Reads a byte.
    fn read_u8(&self, offset: usize) -> u8;
    /// Reads two bytes in one access.
    fn read_u16(&self, offset: usize) -> u16;
    /// Reads four bytes in one access.
    fn read_u32(&self, offset: usize) -> u32;
    /// Writes a byte.
    fn write_u8(&self, offset: usize, value: u8);
    /// Writes two bytes in one access.
    fn write_u16(&self, offset: usize, value: u16);
    /// Writes four bytes in one access.
    fn write_u32(&self, offset: usize, value: u32);
    /// Writes eight bytes as two accesses, low half first (spec 4.1.3.1 allows this for every 64-bit field).
    fn write_u64(&self, offset: usize, value: u64) {
        self.write_u32(offset, value as u32);
        self.write_u32(offset + 4, (value >> 32) as u32);
    }
}

/// Registers mapped into memory.
#[derive(Debug)]
pub struct Mmio {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a register access is a single load or store, which any CPU may make; there is no thread-bound state.
unsafe impl Send for Mmio {}
// SAFETY: as for `Send`; concurrent accesses are ordered by the device, not torn.
unsafe impl Sync for Mmio {}

impl Mmio {
    /// Takes over the registers at `base`.
    ///
    /// # Safety
    ///
    /// `base..base + len` must be mapped (uncached, or whatever the bus wants) for as long as the value lives, and no memory
    /// that Rust knows as its own may lie there.
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }

    /// Maps the registers that a device is said to have at a physical address, of `len` bytes.
    ///
    /// # Errors
    ///
    /// As for [`DmaContext::map_registers`].
    pub fn map<D: DmaContext>(context: &D, address: u64, len: u64) -> Result<Self, Cause> {
        let too_long = |_| Cause::BadRegisters { address, len };
        let bytes = usize::try_from(len).map_err(too_long)?;
        let base = context.map_registers(address, bytes)?;
        // SAFETY: the context promises that so many bytes are mapped for good, and are no memory that the program knows
        // otherwise.
        Ok(unsafe { Self::new(base, bytes) })
    }

    /// The address of a `T` at `offset`, if it lies inside and is aligned.
    #[inline]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.len {
            return None;
        }
        let address = self.base.as_ptr().wrapping_add(offset).cast::<T>();
        address.is_aligned().then_some(address)
    }
}

/// A width that a register is accessed in.
///
/// Where a device is emulated, the processor tells the hypervisor what a trapped access was, but only of plain forms: on
/// Arm of none that also changes the base register (Arm ARM, data aborts, `ISS.ISV`), and the compiler may make such a one
/// of a volatile access in a loop. KVM then stops the machine. So the instruction is chosen here. On x86 every form of a
/// volatile access is emulated.
trait Width: Sized {
    /// One load.
    ///
    /// # Safety
    ///
    /// `at` must be the address of a device register, mapped and aligned.
    unsafe fn load(at: *const Self) -> Self;

    /// One store.
    ///
    /// # Safety
    ///
    /// As for [`Self::load`].
    unsafe fn store(at: *mut Self, value: Self);
}

#[cfg(target_arch = "aarch64")]
macro_rules! instruction {
    ($name:literal) => {
        concat!($name, " {value:w}, [{at}]")
    };
}

#[cfg(target_arch = "arm")]
macro_rules! instruction {
    ($name:literal) => {
        concat!($name, " {value}, [{at}]")
    };
}

#[cfg(any(target_arch = "riscv32", target_arch = "riscv64"))]
macro_rules! instruction {
    ($name:literal) => {
        concat!($name, " {value}, 0({at})")
    };
}

#[cfg(any(
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "riscv32",
    target_arch = "riscv64"
))]
macro_rules! width {
    ($type:ty, $load:literal, $store:literal) => {
        impl Width for $type {
            #[inline]
            unsafe fn load(at: *const Self) -> Self {
                let value;
                // SAFETY: the caller's promise.
                unsafe {
                    core::arch::asm!(
                        instruction!($load),
                        value = out(reg) value,
                        at = in(reg) at,
                        options(nostack, preserves_flags)
                    );
                }
                value
            }

            #[inline]
            unsafe fn store(at: *mut Self, value: Self) {
                // SAFETY: the caller's promise.
                unsafe {
                    core::arch::asm!(
                        instruction!($store),
                        value = in(reg) value,
                        at = in(reg) at,
                        options(nostack, preserves_flags)
                    );
                }
            }
        }
    };
}

#[cfg(not(any(
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "riscv32",
    target_arch = "riscv64"
)))]
macro_rules! width {
    ($type:ty) => {
        impl Width for $type {
            #[inline]
            unsafe fn load(at: *const Self) -> Self {
                // SAFETY: the caller's promise.
                unsafe { at.read_volatile() }
            }

            #[inline]
            unsafe fn store(at: *mut Self, value: Self) {
                // SAFETY: the caller's promise.
                unsafe { at.write_volatile(value) }
            }
        }
    };
}

#[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
mod widths {
    use super::Width;
    width!(u8, "ldrb", "strb");
    width!(u16, "ldrh", "strh");
    width!(u32, "ldr", "str");
}

#[cfg(any(target_arch = "riscv32", target_arch = "riscv64"))]
mod widths {
    use super::Width;
    width!(u8, "lbu", "sb");
    width!(u16, "lhu", "sh");
    width!(u32, "lw", "sw");
}

#[cfg(not(any(
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "riscv32",
    target_arch = "riscv64"
)))]
mod widths {
    use super::Width;
    width!(u8);
    width!(u16);
    width!(u32);
}

macro_rules! accessors {
    ($read:ident, $write:ident, $type:ty) => {
        #[inline]
        fn $read(&self, offset: usize) -> $type {
            match self.at::<$type>(offset) {
                // SAFETY: `at` checked that the access lies inside the run, which is mapped by the contract of `new`.
                Some(address) => <$type>::from_le(unsafe { Width::load(address) }),
                None => <$type>::MAX,
            }
        }

        #[inline]
        fn $write(&self, offset: usize, value: $type) {
            if let Some(address) = self.at::<$type>(offset) {
                // SAFETY: as for the read above.
                unsafe { Width::store(address, value.to_le()) }
            }
        }
    };
}

impl Registers for Mmio {
    fn len(&self) -> usize {
        self.len
    }

    fn slice(&self, offset: usize, len: usize) -> Option<Self> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        let base = NonNull::new(self.base.as_ptr().wrapping_add(offset))?;
        Some(Self { base, len })
    }

    accessors!(read_u8, write_u8, u8);
    accessors!(read_u16, write_u16, u16);
    accessors!(read_u32, write_u32, u32);
}
