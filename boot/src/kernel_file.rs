//! The kernel's ELF file, inside the loader.

const FILE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernel.elf"));

/// The memory map deals in whole pages, and so must the file that the kernel keeps.
#[repr(C, align(4096))]
struct PageAligned([u8; FILE.len()]);

#[unsafe(link_section = ".kernel")]
static KERNEL: PageAligned = PageAligned({
    let mut bytes = [0; FILE.len()];
    bytes.copy_from_slice(FILE);
    bytes
});

/// The file; empty in a loader that was built without one.
pub(crate) fn bytes() -> &'static [u8] {
    &KERNEL.0
}
