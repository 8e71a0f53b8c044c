//! A small ELF file, and what becomes of it when one field is wrong.

use super::*;

/// Where the test file has its parts.
const PROGRAM_HEADERS: usize = 64;
const TEXT: usize = 0x1000;
const DATA: usize = 0x2000;
const DYNAMIC: usize = DATA + 0x100;
const RELOCATIONS: usize = DATA + 0x200;
const CONFIG: usize = 0x3000;
const NAMES: usize = 0x3100;
const SECTIONS: usize = 0x3200;
const LENGTH: usize = SECTIONS + 3 * 64;
const SECTION_NAMES: &[u8] = b"\0.shstrtab\0.bootloader-config\0";

/// Number and length of the program headers: text, data, dynamic, TLS, RELRO.
const HEADERS: usize = 5;
const HEADER_SIZE: usize = 56;

/// An ELF64 file, linked at `base`: a page of text, and data with a relocation, a template for
/// thread-local storage and a page of zeros.
pub(crate) fn elf(e_type: u16, base: u64, config: &BootloaderConfig) -> std::vec::Vec<u8> {
    let mut file = vec![0; LENGTH];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &e_type.to_le_bytes());
    put(&mut file, 18, &EM_X86_64.to_le_bytes());
    put(&mut file, 20, &1u32.to_le_bytes());
    put(&mut file, 24, &(base + 0x1010).to_le_bytes());
    put(&mut file, 32, &(PROGRAM_HEADERS as u64).to_le_bytes());
    put(&mut file, 40, &(SECTIONS as u64).to_le_bytes());
    for (index, half) in [64, HEADER_SIZE as u16, HEADERS as u16, 64, 3, 1]
        .iter()
        .enumerate()
    {
        put(&mut file, 52 + 2 * index, &half.to_le_bytes());
    }

    let headers = [
        // type, flags, offset, address, size in the file, size in memory, alignment
        (PT_LOAD, PF_X, TEXT, 0x1000, 0x100, 0x100, 0x1000),
        (PT_LOAD, PF_W, DATA, 0x2000, 0x300, 0x2000, 0x1000),
        (PT_DYNAMIC, PF_W, DYNAMIC, 0x2100, 0x50, 0x50, 8),
        (PT_TLS, 0, DATA + 0x80, 0x2080, 0x10, 0x30, 16),
        (PT_GNU_RELRO, 0, DATA, 0x2000, 0x1000, 0x1000, 1),
    ];
    for (index, (kind, flags, offset, address, in_file, in_memory, align)) in
        headers.into_iter().enumerate()
    {
        let at = PROGRAM_HEADERS + index * HEADER_SIZE;
        put(&mut file, at, &kind.to_le_bytes());
        put(&mut file, at + 4, &flags.to_le_bytes());
        let address = base + address;
        let fields = [offset as u64, address, address, in_file, in_memory, align];
        for (field, value) in fields.iter().enumerate() {
            put(&mut file, at + 8 + 8 * field, &value.to_le_bytes());
        }
    }

    file[TEXT..TEXT + 0x100].fill(0x90);
    file[DATA..DATA + 0x80].fill(0xda);
    let dynamic = [
        (DT_RELA, base + 0x2200),
        (DT_RELASZ, 2 * RELA_SIZE),
        (DT_RELAENT, RELA_SIZE),
        (DT_NULL, 0),
    ];
    for (index, (tag, value)) in dynamic.into_iter().enumerate() {
        put(&mut file, DYNAMIC + 16 * index, &tag.to_le_bytes());
        put(&mut file, DYNAMIC + 16 * index + 8, &value.to_le_bytes());
    }
    // Two pointers to the entry point: one in the data, one in the zeros behind it.
    for (index, address) in [0x2008, 0x3ff8].into_iter().enumerate() {
        let at = RELOCATIONS + index * RELA_SIZE as usize;
        put(&mut file, at, &(base + address).to_le_bytes());
        put(
            &mut file,
            at + 8,
            &u64::from(R_X86_64_RELATIVE).to_le_bytes(),
        );
        put(&mut file, at + 16, &(base + 0x1010).to_le_bytes());
    }

    put(&mut file, CONFIG, &config.serialize());
    put(&mut file, NAMES, SECTION_NAMES);
    let sections = [
        (1, 1, 3u32, NAMES, SECTION_NAMES.len()),
        (2, 11, 1, CONFIG, BootloaderConfig::SERIALIZED_LEN),
    ];
    for (index, name, kind, offset, size) in sections {
        let at = SECTIONS + 64 * index;
        put(&mut file, at, &u32::to_le_bytes(name));
        put(&mut file, at + 4, &kind.to_le_bytes());
        put(&mut file, at + 24, &(offset as u64).to_le_bytes());
        put(&mut file, at + 32, &(size as u64).to_le_bytes());
    }
    file
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

const BASE: u64 = 0xffff_ffff_8000_0000;

fn kernel() -> std::vec::Vec<u8> {
    elf(ET_EXEC, BASE, &BootloaderConfig::new_default())
}

/// Loads as `main.rs` does, but for the size of the image: that much memory has no test machine.
fn load(file: &[u8], bias: u64) -> Result<std::vec::Vec<u8>, Error> {
    let kernel = Kernel::parse(file)?;
    let span = kernel.span();
    let length = span.end - span.start;
    if length > 1 << 20 {
        return Err(Error::OutOfMemory {
            what: "the kernel",
            bytes: length,
        });
    }
    for page in span.step_by(PAGE as usize) {
        kernel.access(page);
        if let Some(offset) = kernel.file_page(page) {
            assert!(offset.is_multiple_of(PAGE) && offset + PAGE <= file.len() as u64);
        }
    }
    let mut image = vec![0xff; length as usize];
    kernel.load(kernel.span().start, &mut image, bias)?;
    Ok(image)
}

/// The error for a kernel with other bytes at an offset.
fn error_with(at: usize, bytes: &[u8]) -> &'static str {
    let mut file = kernel();
    assert!(load(&file, 0).is_ok());
    put(&mut file, at, bytes);
    match load(&file, 0) {
        Err(Error::Kernel { what, .. } | Error::Config(what) | Error::OutOfMemory { what, .. }) => {
            what
        }
        other => panic!("{other:?}"),
    }
}

/// The offset of a field of a program header.
fn header(index: usize, field: usize) -> usize {
    PROGRAM_HEADERS + index * HEADER_SIZE + field
}
const P_OFFSET: usize = 8;
const P_VADDR: usize = 16;
const P_FILESZ: usize = 32;
const P_MEMSZ: usize = 40;
const P_ALIGN: usize = 48;

#[test]
fn segments_are_where_they_belong() {
    let file = kernel();
    let parsed = Kernel::parse(&file).unwrap();
    assert_eq!(parsed.span(), BASE + 0x1000..BASE + 0x4000);
    assert_eq!(parsed.entry_point, BASE + 0x1010);
    assert!(!parsed.position_independent);
    let code = Access {
        write: false,
        execute: true,
    };
    let data = Access {
        write: true,
        execute: false,
    };
    assert_eq!(parsed.access(BASE), None);
    assert_eq!(parsed.access(BASE + 0x1000), Some(code));
    assert_eq!(
        parsed.access(BASE + 0x2000),
        Some(Access::default()),
        "RELRO"
    );
    assert_eq!(parsed.access(BASE + 0x3000), Some(data));
    assert_eq!(parsed.access(BASE + 0x4000), None);
    let tls = parsed.tls_template(0).unwrap();
    assert_eq!(
        (tls.start_addr, tls.file_size, tls.mem_size),
        (BASE + 0x2080, 0x10, 0x30)
    );

    let image = load(&file, 0).unwrap();
    assert!(image[..0x100].iter().all(|&byte| byte == 0x90));
    assert!(image[0x100..0x1000].iter().all(|&byte| byte == 0));
    assert!(image[0x1010..0x1080].iter().all(|&byte| byte == 0xda));
    assert!(
        image[0x1300..0x2ff8].iter().all(|&byte| byte == 0),
        "zeros behind the data"
    );
}

#[test]
fn what_is_only_read_stays_in_the_file() {
    let copied = |file: &[u8]| Kernel::parse(file).unwrap().copied_from();
    let mut file = kernel();
    assert_eq!(copied(&file), BASE + 0x1000, "relocations may be anywhere");
    // No dynamic section, no relocations.
    put(&mut file, header(2, 0), &0u32.to_le_bytes());
    let parsed = Kernel::parse(&file).unwrap();
    assert_eq!(parsed.file_page(BASE + 0x1000), Some(TEXT as u64));
    // Zeros follow that are not in the file; it is written to; there is none.
    for page in [0x2000, 0x3000, 0x4000, 0] {
        assert_eq!(parsed.file_page(BASE + page), None);
    }
    assert_eq!(parsed.copied_from(), BASE + 0x2000);
    let mut image = vec![0xff; 0x2000];
    parsed.load(BASE + 0x2000, &mut image, 0).unwrap();
    assert_eq!(image, load(&file, 0).unwrap()[0x1000..]);

    let mut zeros = file.clone();
    put(&mut zeros, header(0, P_MEMSZ), &0x1000u64.to_le_bytes());
    assert_eq!(copied(&zeros), BASE + 0x1000, "zeros follow in the page");
    let mut unaligned = file.clone();
    put(&mut unaligned, header(0, P_ALIGN), &1u64.to_le_bytes());
    put(
        &mut unaligned,
        header(0, P_OFFSET),
        &(TEXT as u64 + 8).to_le_bytes(),
    );
    assert_eq!(copied(&unaligned), BASE + 0x1000);
}

#[test]
fn relocations_add_the_bias() {
    let file = elf(ET_DYN, 0, &BootloaderConfig::new_default());
    let bias = 0xffff_8000_0000_0000;
    let image = load(&file, bias).unwrap();
    for at in [0x1008, 0x2ff8] {
        assert_eq!(image[at..at + 8], (bias + 0x1010).to_le_bytes());
    }
    let parsed = Kernel::parse(&file).unwrap();
    assert!(parsed.position_independent);
    assert_eq!(parsed.tls_template(bias).unwrap().start_addr, bias + 0x2080);
}

#[test]
fn two_segments_on_one_page_share_their_rights() {
    let mut file = kernel();
    // The data begins on the page of the text, at the same offset modulo the alignment.
    let address = BASE + 0x1800;
    put(&mut file, header(1, P_VADDR), &address.to_le_bytes());
    put(&mut file, header(1, P_ALIGN), &0x800u64.to_le_bytes());
    for index in 2..HEADERS {
        put(&mut file, header(index, 0), &0u32.to_le_bytes());
    }
    let parsed = Kernel::parse(&file).unwrap();
    let both = Access {
        write: true,
        execute: true,
    };
    assert_eq!(parsed.access(BASE + 0x1000), Some(both));
    let image = load(&file, 0).unwrap();
    assert_eq!((image[0], image[0x800]), (0x90, 0xda));
}

#[test]
fn a_wrong_header_is_named() {
    assert_eq!(Kernel::parse(&[]).unwrap_err(), Error::NoKernel);
    for (at, bytes, expected) in [
        (0, &b"\x7fELG"[..], "not a sound ELF file"),
        (5, &[2], "not a sound ELF file"),
        (6, &[0], "not a sound ELF file"),
        (16, &[1, 0], "not an executable"),
        (18, &[3, 0], "not for x86-64"),
        (24, &[0x0f, 0x20], "not in an executable segment: e_entry"),
        (32, &[0xff; 8], "not a sound ELF file"),
        (32, &[0; 8], "no program headers"),
        (40, &[0xff; 8], "not a sound ELF file"),
        (40, &[0; 8], "no section .bootloader-config"),
        (54, &[55, 0], "not a sound ELF file"),
        (56, &[0, 0], "no loadable segment"),
        (56, &[0xff, 0xfe], "not a sound ELF file"),
        (56, &[0xff, 0xff], "no loadable segment"),
        (58, &[63, 0], "not a sound ELF file"),
        (62, &[9, 0], "damaged section headers"),
    ] {
        let error = error_with(at, bytes);
        assert!(error.starts_with(expected), "offset {at}: {error}");
    }
}

#[test]
fn a_32_bit_kernel_is_refused() {
    let mut file = [0; 52];
    put(&mut file, 0, b"\x7fELF\x01\x01\x01");
    put(&mut file, 16, &[2, 0, 3, 0, 1]);
    let what = "not a 64-bit ELF file; e_machine";
    assert_eq!(Kernel::parse(&file).unwrap_err(), wrong(what, 3));
}

#[test]
fn a_wrong_segment_is_named() {
    let huge = u64::MAX.to_le_bytes();
    for (field, value, expected) in [
        (header(0, P_OFFSET), huge, "a segment is not in the file"),
        (
            header(0, P_OFFSET),
            0x1001u64.to_le_bytes(),
            "a segment is misaligned",
        ),
        (
            header(0, P_VADDR),
            (BASE + 0x1008).to_le_bytes(),
            "a segment is misaligned",
        ),
        (
            header(0, P_VADDR),
            (BASE + 0x3000).to_le_bytes(),
            "segments overlap",
        ),
        (
            header(0, P_VADDR),
            (!0xfffu64).to_le_bytes(),
            "a segment is too long",
        ),
        (
            header(0, P_FILESZ),
            0x101u64.to_le_bytes(),
            "p_filesz is larger than p_memsz",
        ),
        (
            header(0, P_MEMSZ),
            0xffu64.to_le_bytes(),
            "p_filesz is larger than p_memsz",
        ),
        (
            header(0, P_MEMSZ),
            0x1001u64.to_le_bytes(),
            "segments overlap",
        ),
        (header(1, P_MEMSZ), huge, "a segment is too long"),
        (header(1, P_MEMSZ), (1u64 << 30).to_le_bytes(), "the kernel"),
        (
            header(0, P_ALIGN),
            0x1800u64.to_le_bytes(),
            "a segment is misaligned",
        ),
        (header(0, P_ALIGN), huge, "a segment is misaligned"),
        (header(2, P_OFFSET), huge, "PT_DYNAMIC is not in the file"),
        (header(2, P_FILESZ), huge, "PT_DYNAMIC is not in the file"),
        (header(3, P_VADDR), huge, "PT_TLS is not in a segment"),
        (
            header(3, P_VADDR),
            (BASE + 0x22f8).to_le_bytes(),
            "PT_TLS is not in a segment",
        ),
        (
            header(3, P_MEMSZ),
            0u64.to_le_bytes(),
            "PT_TLS is not in a segment",
        ),
    ] {
        let error = error_with(field, &value);
        assert!(
            error.starts_with(expected),
            "offset {field}, {value:x?}: {error}"
        );
    }
}

#[test]
fn a_wrong_relocation_is_named() {
    let huge = u64::MAX.to_le_bytes();
    for (at, value, expected) in [
        (
            DYNAMIC,
            (DT_REL as u64).to_le_bytes(),
            "only DT_RELA relocations",
        ),
        (DYNAMIC + 8, huge, "relocations are not in a segment"),
        (
            DYNAMIC + 8,
            (BASE + 0x22f0).to_le_bytes(),
            "relocations are not in a segment",
        ),
        (
            DYNAMIC + 24,
            25u64.to_le_bytes(),
            "not a number of relocations",
        ),
        (
            DYNAMIC + 24,
            (RELA_SIZE << 40).to_le_bytes(),
            "relocations are not in a segment",
        ),
        (
            DYNAMIC + 40,
            16u64.to_le_bytes(),
            "wrong size of relocations",
        ),
        (RELOCATIONS, huge, "a relocation is out of range"),
        (
            RELOCATIONS,
            (BASE + 0xff8).to_le_bytes(),
            "a relocation is out of range",
        ),
        (
            RELOCATIONS,
            (BASE + 0x3ff9).to_le_bytes(),
            "a relocation is out of range",
        ),
        (
            RELOCATIONS + 8,
            1u64.to_le_bytes(),
            "only R_X86_64_RELATIVE",
        ),
    ] {
        let error = error_with(at, &value);
        assert!(
            error.starts_with(expected),
            "offset {at:#x}, {value:x?}: {error}"
        );
    }
}

#[test]
fn a_wrong_configuration_is_named() {
    assert_eq!(error_with(NAMES + 11, b"x"), {
        "no section .bootloader-config (bootloader_api's entry_point! makes it); e_shoff"
    });
    let section = SECTIONS + 2 * 64;
    assert!(
        error_with(section + 24, &[0xff; 8]).starts_with(".bootloader-config is not in the file")
    );
    assert_eq!(
        error_with(section + 32, &100u64.to_le_bytes()),
        "invalid len"
    );
    assert_eq!(error_with(CONFIG, &[0]), "invalid UUID");
    assert_eq!(error_with(CONFIG + 31, &[2]), "invalid mapping value");
}

/// Every byte of every header, with every bit flipped and a few telling values: whatever it means, it
/// is no panic.
#[test]
fn no_damage_is_fatal() {
    let file = kernel();
    let headers = 0..PROGRAM_HEADERS + HEADERS * HEADER_SIZE;
    let places = headers
        .chain(DYNAMIC..RELOCATIONS + 48)
        .chain(CONFIG..LENGTH);
    let mut loaded = 0;
    let mut refused = 0;
    for at in places {
        let bits = (0..8).map(|bit| file[at] ^ (1 << bit));
        for value in bits.chain([0, 1, 0x7f, 0x80, 0xff]) {
            let mut damaged = file.clone();
            damaged[at] = value;
            match load(&damaged, 0x1000_0000) {
                Ok(_) => loaded += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(loaded > 0 && refused > 0);
    for length in (0..file.len()).step_by(7) {
        assert!(load(&file[..length], 0).is_err(), "cut off at {length:#x}");
    }
}
