//! Page tables.

use core::ptr::with_exposed_provenance_mut;

use vringlet_boot::address_space::canonical;
use vringlet_boot::error::Error;
use vringlet_boot::frames::Frames;
use vringlet_boot::kernel::Access;
use vringlet_boot::memory_map::PAGE;
use x86_64::PhysAddr;
use x86_64::VirtAddr;
use x86_64::structures::paging::mapper::{MapToError, TranslateResult};
use x86_64::structures::paging::{
    Mapper, OffsetPageTable, Page, PageSize, PageTable, PageTableFlags, PageTableIndex, PhysFrame,
    Size1GiB, Size2MiB, Size4KiB, Translate,
};

use crate::cpu::Cpu;

/// Data: written, never run.
pub(crate) const DATA: Access = Access {
    write: true,
    execute: false,
};
/// Code: run, never written.
pub(crate) const CODE: Access = Access {
    write: false,
    execute: true,
};

/// A tree of page tables, all of which the loader reaches at their physical addresses.
pub(crate) struct PageTables {
    root: u64,
    tables: OffsetPageTable<'static>,
    cpu: Cpu,
}

/// Pages to map: a part of the kernel's address space and the memory behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// What it is, for the error message.
    pub(crate) what: &'static str,
    /// Where it appears. Page-aligned.
    pub(crate) address: u64,
    /// The physical memory. Page-aligned.
    pub(crate) physical: u64,
    /// A multiple of the page size.
    pub(crate) length: u64,
    /// What the kernel may do with it besides reading.
    pub(crate) access: Access,
}

impl PageTables {
    /// A tree that maps nothing.
    pub(crate) fn new(cpu: Cpu, frames: &mut Frames) -> Result<Self, Error> {
        let root = frames.allocate("the level 4 page table", PAGE)?;
        let table = with_exposed_provenance_mut::<PageTable>(root as usize);
        // SAFETY: just allocated, below 4 GiB.
        unsafe {
            table.write(PageTable::new());
            Ok(Self::existing(root, cpu))
        }
    }

    /// The tree with a certain level 4 table.
    ///
    /// # Safety
    ///
    /// All tables must be below 4 GiB and sound, and nothing else may change them meanwhile.
    pub(crate) unsafe fn existing(root: u64, cpu: Cpu) -> Self {
        let table = with_exposed_provenance_mut::<PageTable>(root as usize);
        // SAFETY: the caller's promise; physical addresses are the loader's virtual ones.
        let tables = unsafe { OffsetPageTable::new(&mut *table, VirtAddr::zero()) };
        Self { root, tables, cpu }
    }

    /// The physical address of the level 4 table.
    pub(crate) fn root(&self) -> u64 {
        self.root
    }

    /// Maps a part, with the largest pages that fit.
    pub(crate) fn map(&mut self, part: Part, frames: &mut Frames) -> Result<(), Error> {
        let misaligned = |address| Error::Mapping {
            what: part.what,
            address,
            reason: "not the start of a page",
        };
        if !part.address.is_multiple_of(PAGE) || !part.physical.is_multiple_of(PAGE) {
            return Err(misaligned(part.address));
        }
        let mut done = 0;
        while done < part.length {
            let here = Part {
                address: part.address.wrapping_add(done),
                physical: part.physical + done,
                length: part.length - done,
                ..part
            };
            done += if self.cpu.huge_pages && fits::<Size1GiB>(&here) {
                self.map_page::<Size1GiB>(&here, frames)?
            } else if fits::<Size2MiB>(&here) {
                self.map_page::<Size2MiB>(&here, frames)?
            } else {
                self.map_page::<Size4KiB>(&here, frames)?
            };
        }
        Ok(())
    }

    /// Whether nothing is mapped at an address.
    pub(crate) fn is_free(&self, address: VirtAddr) -> bool {
        matches!(self.tables.translate(address), TranslateResult::NotMapped)
    }

    /// Lets an entry of the level 4 table refer to the table itself.
    pub(crate) fn map_recursively(&mut self, index: u16) -> Result<(), Error> {
        let flags = self.flags(DATA);
        let root = PhysFrame::containing_address(PhysAddr::new_truncate(self.root));
        let entry = &mut self.tables.level_4_table_mut()[PageTableIndex::new_truncate(index)];
        if !entry.is_unused() {
            return Err(Error::Mapping {
                what: "the page tables recursively",
                address: u64::from(index),
                reason: "this entry of the level 4 table is taken",
            });
        }
        entry.set_frame(root, flags);
        Ok(())
    }

    /// Maps the first page of a part, and returns its size.
    fn map_page<S: PageSize + core::fmt::Debug>(
        &mut self,
        part: &Part,
        frames: &mut Frames,
    ) -> Result<u64, Error>
    where
        OffsetPageTable<'static>: Mapper<S>,
    {
        let wrong = |reason| Error::Mapping {
            what: part.what,
            address: part.address,
            reason,
        };
        let page = Page::<S>::containing_address(canonical(part.what, part.address)?);
        let physical = PhysAddr::try_new(part.physical).map_err(|_| wrong("no such memory"))?;
        let frame = PhysFrame::<S>::containing_address(physical);
        let parents = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
        // SAFETY: the kernel does not run yet, and the loader runs on other pages.
        let mapped = unsafe {
            self.tables.map_to_with_table_flags(
                page,
                frame,
                self.flags(part.access),
                parents,
                frames,
            )
        };
        match mapped {
            Ok(flush) => {
                flush.flush();
                Ok(S::SIZE)
            }
            Err(MapToError::FrameAllocationFailed) => Err(Error::OutOfMemory {
                what: "page tables",
                bytes: PAGE,
            }),
            Err(_) => Err(wrong("something else is there")),
        }
    }

    fn flags(&self, access: Access) -> PageTableFlags {
        let mut flags = PageTableFlags::PRESENT;
        flags.set(PageTableFlags::WRITABLE, access.write);
        flags.set(
            PageTableFlags::NO_EXECUTE,
            !access.execute && self.cpu.no_execute,
        );
        flags
    }
}

/// Whether a part can begin with a page of this size.
fn fits<S: PageSize>(part: &Part) -> bool {
    part.address.is_multiple_of(S::SIZE)
        && part.physical.is_multiple_of(S::SIZE)
        && part.length >= S::SIZE
}
