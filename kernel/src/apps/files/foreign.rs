//! File systems, and other things, that are known by name and not read.

/// What they begin with: where, which bytes, and the name.
const MAGICS: &[(usize, &[u8], &str)] = &[
    (3, b"NTFS    ", "NTFS"),
    (3, b"-FVE-FS-", "BitLocker"),
    (3, b"ReFS\0\0\0\0", "ReFS"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"XFSB", "XFS"),
    (0, b"hsqs", "squashfs"),
    (32, b"NXSB", "APFS"),
    (512, b"LABELONE", "LVM"),
    (1024, b"H+\0\x04", "HFS+"),
    (1024, b"HX\0\x05", "HFS+"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS"),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (4086, b"SWAPSPACE2", "Linux swap"),
];

/// What the first bytes of a medium, 4096 of them, are the beginning of.
pub(super) fn name(start: &[u8]) -> Option<&'static str> {
    let is_there =
        |at: usize, magic: &[u8]| start.get(at..).is_some_and(|it| it.starts_with(magic));
    let mut magics = MAGICS.iter();
    let found = magics.find(|(at, magic, _)| is_there(*at, magic));
    found.map(|(_, _, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_read_has_a_name() {
        let mut start = [0; 4096];
        assert_eq!(name(&start), None);
        assert_eq!(name(b""), None);
        start[3..11].copy_from_slice(b"NTFS    ");
        assert_eq!(name(&start), Some("NTFS"));
        let mut start = [0; 4096];
        start[4086..].copy_from_slice(b"SWAPSPACE2");
        assert_eq!(name(&start), Some("Linux swap"));
    }
}
