//! The kernel's ELF file: checked in full before anything of it is used.

use core::ops::Range;

use bootloader_api::BootloaderConfig;
use bootloader_api::info::TlsTemplate;
use elf::ElfBytes;
use elf::abi::{
    DT_JMPREL, DT_NULL, DT_REL, DT_RELA, DT_RELAENT, DT_RELASZ, EM_X86_64, ET_DYN, ET_EXEC, PF_W,
    PF_X, PT_DYNAMIC, PT_GNU_RELRO, PT_LOAD, PT_TLS, R_X86_64_NONE, R_X86_64_RELATIVE,
};
use elf::dynamic::DynamicTable;
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::relocation::RelaIterator;
use elf::segment::ProgramHeader;
use heapless::Vec;

use crate::error::Error;
use crate::memory_map::{PAGE, page_bounds};

/// The most loadable segments that a kernel may have.
const MAX_SEGMENTS: usize = 16;
/// Size of one `Elf64_Rela`.
const RELA_SIZE: u64 = 24;
/// `DT_RELR`, compact relative relocations, which the `elf` crate does not name.
const DT_RELR: i64 = 36;

/// A kernel that can be loaded. Addresses are as linked; the bias, which is what is added to them
/// at run time, is 0 unless the kernel is position-independent.
#[derive(Debug)]
pub struct Kernel<'a> {
    /// What the kernel asks of its boot loader.
    pub config: BootloaderConfig,
    /// Address of the first instruction.
    pub entry_point: u64,
    /// Whether the kernel may be loaded with a bias.
    pub position_independent: bool,
    bytes: &'a [u8],
    segments: Vec<ProgramHeader, MAX_SEGMENTS>,
    tls: Option<ProgramHeader>,
    /// Data that only relocations write to, which are applied before the kernel runs.
    read_only_data: Range<u64>,
    relocations: &'a [u8],
}

/// What code may do with a page besides reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Write to it.
    pub write: bool,
    /// Run it.
    pub execute: bool,
}

impl<'a> Kernel<'a> {
    /// Checks an ELF file, all of it that [`Self::load`] will use.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        if bytes.is_empty() {
            return Err(Error::NoKernel);
        }
        let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).map_err(|_| {
            wrong(
                "not a sound ELF file; its size in bytes",
                bytes.len() as u64,
            )
        })?;
        if file.ehdr.class != Class::ELF64 {
            return Err(wrong(
                "not a 64-bit ELF file; e_machine",
                file.ehdr.e_machine.into(),
            ));
        }
        if file.ehdr.e_machine != EM_X86_64 {
            return Err(wrong(
                "not for x86-64; e_machine",
                file.ehdr.e_machine.into(),
            ));
        }
        let position_independent = match file.ehdr.e_type {
            ET_EXEC => false,
            ET_DYN => true,
            other => return Err(wrong("not an executable; e_type", other.into())),
        };

        let headers = file
            .segments()
            .ok_or(wrong("no program headers; e_phoff", file.ehdr.e_phoff))?;
        let mut segments: Vec<ProgramHeader, MAX_SEGMENTS> = Vec::new();
        let mut tls = None;
        let mut dynamic = None;
        let mut read_only_data = 0..0;
        for header in headers.iter() {
            match header.p_type {
                PT_LOAD if header.p_memsz > 0 => {
                    check_segment(&header, bytes.len() as u64)?;
                    if let Some(before) = segments.last()
                        && header.p_vaddr < before.p_vaddr + before.p_memsz
                    {
                        return Err(wrong("segments overlap; p_vaddr", header.p_vaddr));
                    }
                    segments.push(header).map_err(|_| {
                        wrong("too many segments; e_phnum", file.ehdr.e_phnum.into())
                    })?;
                }
                PT_TLS => tls = Some(header),
                PT_DYNAMIC => dynamic = Some(header),
                PT_GNU_RELRO => {
                    read_only_data = header.p_vaddr..header.p_vaddr.saturating_add(header.p_memsz);
                }
                _ => {}
            }
        }
        if segments.is_empty() {
            return Err(wrong(
                "no loadable segment; e_phnum",
                file.ehdr.e_phnum.into(),
            ));
        }

        let kernel = Self {
            config: read_config(&file)?,
            entry_point: file.ehdr.e_entry,
            position_independent,
            relocations: match dynamic {
                Some(dynamic) => find_relocations(bytes, &dynamic, &segments)?,
                None => &[],
            },
            bytes,
            segments,
            tls,
            read_only_data,
        };
        kernel.check_references()?;
        Ok(kernel)
    }

    /// The pages that the kernel occupies, from its first segment to its last.
    pub fn span(&self) -> Range<u64> {
        let start = self.segments.first().map_or(0, |first| first.p_vaddr);
        let end = self
            .segments
            .last()
            .map_or(0, |last| last.p_vaddr + last.p_memsz);
        page_bounds(&(start..end))
    }

    /// What the kernel's bias must be a multiple of.
    pub fn alignment(&self) -> u64 {
        let alignments = self.segments.iter().map(|segment| segment.p_align);
        alignments.fold(PAGE, u64::max)
    }

    /// What the segments on the page at an address need; `None` if there are none.
    pub fn access(&self, page: u64) -> Option<Access> {
        let on_page = self.segments.iter().filter(|segment| {
            page_bounds(&(segment.p_vaddr..segment.p_vaddr + segment.p_memsz)).contains(&page)
        });
        let read_only = self.read_only_data.start <= page
            && page.saturating_add(PAGE) <= self.read_only_data.end;
        on_page.fold(None, |access: Option<Access>, segment| {
            let access = access.unwrap_or_default();
            Some(Access {
                write: access.write | (segment.p_flags & PF_W != 0 && !read_only),
                execute: access.execute | (segment.p_flags & PF_X != 0),
            })
        })
    }

    /// The thread-local storage template, at its run-time address.
    pub fn tls_template(&self, bias: u64) -> Option<TlsTemplate> {
        self.tls.map(|tls| TlsTemplate {
            start_addr: tls.p_vaddr.wrapping_add(bias),
            file_size: tls.p_filesz,
            mem_size: tls.p_memsz,
        })
    }

    /// The page of the file that is what the kernel wants to see at a page: it is only read or run, of one segment, and lies at
    /// a page's boundary in the file, too. Around the segment's bytes there it sees others of the file.
    pub fn file_page(&self, page: u64) -> Option<u64> {
        // Relocations may be for any page.
        if !self.relocations.is_empty() || self.access(page)?.write {
            return None;
        }
        let on_page = |segment: &&ProgramHeader| {
            page_bounds(&(segment.p_vaddr..segment.p_vaddr + segment.p_memsz)).contains(&page)
        };
        let mut segments = self.segments.iter().filter(on_page);
        let segment = segments.next().filter(|_| segments.next().is_none())?;
        let offset = match page.checked_sub(segment.p_vaddr) {
            Some(into) => segment.p_offset.checked_add(into)?,
            None => segment.p_offset.checked_sub(segment.p_vaddr - page)?,
        };
        let end = page.checked_add(PAGE)?;
        let is_in_file =
            segment.p_memsz == segment.p_filesz || end <= segment.p_vaddr + segment.p_filesz;
        let fits =
            offset.is_multiple_of(PAGE) && offset.checked_add(PAGE)? <= self.bytes.len() as u64;
        (is_in_file && fits).then_some(offset)
    }

    /// The first page of the [span](Self::span) that is in no [page of the file](Self::file_page), or the span's end: from there
    /// on the kernel is copied.
    pub fn copied_from(&self) -> u64 {
        let span = self.span();
        let mut pages = span.clone().step_by(PAGE as usize);
        let copied = pages.find(|page| self.file_page(*page).is_none());
        copied.unwrap_or(span.end)
    }

    /// Puts the kernel's [span](Self::span) from the page `base` on into memory as long as that, and applies its relocations.
    pub fn load(&self, base: u64, image: &mut [u8], bias: u64) -> Result<(), Error> {
        image.fill(0);
        for segment in &self.segments {
            let skipped = base.saturating_sub(segment.p_vaddr).min(segment.p_filesz);
            let (offset, length) = (segment.p_offset + skipped, segment.p_filesz - skipped);
            if length == 0 {
                continue;
            }
            let data = slice(self.bytes, offset, length).ok_or(wrong(
                "a segment is not in the file; p_offset",
                segment.p_offset,
            ))?;
            at(image, segment.p_vaddr + skipped - base, length)
                .ok_or(wrong("a segment is out of range; p_vaddr", segment.p_vaddr))?
                .copy_from_slice(data);
        }
        for relocation in RelaIterator::new(LittleEndian, Class::ELF64, self.relocations) {
            match relocation.r_type {
                R_X86_64_NONE => continue,
                R_X86_64_RELATIVE if relocation.r_sym == 0 => {}
                other => {
                    return Err(wrong(
                        "only R_X86_64_RELATIVE relocations are understood; r_type",
                        other.into(),
                    ));
                }
            }
            let value = bias.wrapping_add_signed(relocation.r_addend);
            relocation
                .r_offset
                .checked_sub(base)
                .and_then(|offset| at(image, offset, 8))
                .ok_or(wrong(
                    "a relocation is out of range; r_offset",
                    relocation.r_offset,
                ))?
                .copy_from_slice(&value.to_le_bytes());
        }
        Ok(())
    }

    /// Checks what refers to the segments from elsewhere.
    fn check_references(&self) -> Result<(), Error> {
        let in_code = self.segments.iter().any(|segment| {
            segment.p_flags & PF_X != 0
                && (segment.p_vaddr..segment.p_vaddr + segment.p_memsz).contains(&self.entry_point)
        });
        if !in_code {
            return Err(wrong(
                "not in an executable segment: e_entry",
                self.entry_point,
            ));
        }
        if let Some(tls) = self.tls
            && (tls.p_memsz < tls.p_filesz
                || file_offset(&self.segments, tls.p_vaddr, tls.p_filesz).is_none())
        {
            return Err(wrong("PT_TLS is not in a segment; p_vaddr", tls.p_vaddr));
        }
        Ok(())
    }
}

fn wrong(what: &'static str, value: u64) -> Error {
    Error::Kernel { what, value }
}

/// `length` bytes of the image at an offset.
fn at(image: &mut [u8], offset: u64, length: u64) -> Option<&mut [u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    image.get_mut(start..end)
}

/// `length` bytes of the file at an offset.
fn slice(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    bytes.get(start..end)
}

/// Checks a loadable segment of a file of `file_size` bytes by itself.
fn check_segment(segment: &ProgramHeader, file_size: u64) -> Result<(), Error> {
    if segment.p_filesz > segment.p_memsz {
        return Err(wrong("p_filesz is larger than p_memsz", segment.p_filesz));
    }
    if segment
        .p_offset
        .checked_add(segment.p_filesz)
        .is_none_or(|end| end > file_size)
    {
        return Err(wrong(
            "a segment is not in the file; p_offset",
            segment.p_offset,
        ));
    }
    // The last page must end below 2^64 too.
    if segment
        .p_vaddr
        .checked_add(segment.p_memsz)
        .and_then(|end| end.checked_next_multiple_of(PAGE))
        .is_none()
    {
        return Err(wrong("a segment is too long; p_memsz", segment.p_memsz));
    }
    if segment.p_align > 1
        && (!segment.p_align.is_power_of_two()
            || segment.p_vaddr % segment.p_align != segment.p_offset % segment.p_align)
    {
        return Err(wrong("a segment is misaligned; p_align", segment.p_align));
    }
    Ok(())
}

/// Where in the file `length` bytes at an address are, if all of them are in one segment's data.
fn file_offset(segments: &[ProgramHeader], address: u64, length: u64) -> Option<u64> {
    let end = address.checked_add(length)?;
    segments
        .iter()
        .find(|segment| segment.p_vaddr <= address && end <= segment.p_vaddr + segment.p_filesz)
        .map(|segment| segment.p_offset + (address - segment.p_vaddr))
}

fn read_config(file: &ElfBytes<'_, LittleEndian>) -> Result<BootloaderConfig, Error> {
    let section = file
        .section_header_by_name(".bootloader-config")
        .map_err(|_| wrong("damaged section headers; e_shoff", file.ehdr.e_shoff))?
        .ok_or(wrong(
            "no section .bootloader-config (bootloader_api's entry_point! makes it); e_shoff",
            file.ehdr.e_shoff,
        ))?;
    let (bytes, _) = file.section_data(&section).map_err(|_| {
        wrong(
            ".bootloader-config is not in the file; sh_offset",
            section.sh_offset,
        )
    })?;
    BootloaderConfig::deserialize(bytes).map_err(Error::Config)
}

/// The kernel's `Elf64_Rela` entries.
fn find_relocations<'a>(
    bytes: &'a [u8],
    dynamic: &ProgramHeader,
    segments: &[ProgramHeader],
) -> Result<&'a [u8], Error> {
    let table = slice(bytes, dynamic.p_offset, dynamic.p_filesz).ok_or(wrong(
        "PT_DYNAMIC is not in the file; p_offset",
        dynamic.p_offset,
    ))?;
    let (mut address, mut size, mut entry_size) = (0, 0, RELA_SIZE);
    for entry in DynamicTable::new(LittleEndian, Class::ELF64, table).iter() {
        match entry.d_tag {
            DT_NULL => break,
            DT_RELA => address = entry.d_ptr(),
            DT_RELASZ => size = entry.d_val(),
            DT_RELAENT => entry_size = entry.d_val(),
            DT_REL | DT_RELR | DT_JMPREL => {
                return Err(wrong(
                    "only DT_RELA relocations are understood; d_tag",
                    entry.d_tag.unsigned_abs(),
                ));
            }
            _ => {}
        }
    }
    if size == 0 {
        return Ok(&[]);
    }
    if entry_size != RELA_SIZE {
        return Err(wrong("wrong size of relocations; DT_RELAENT", entry_size));
    }
    if size % RELA_SIZE != 0 {
        return Err(wrong("not a number of relocations; DT_RELASZ", size));
    }
    file_offset(segments, address, size)
        .and_then(|offset| slice(bytes, offset, size))
        .ok_or(wrong("relocations are not in a segment; DT_RELA", address))
}

#[cfg(test)]
pub(crate) mod tests;
