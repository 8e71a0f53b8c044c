//! Partition tables, by the crate `hadris-part`.
//!
//! It refuses a whole table for one entry that is not as it should be. Here such an entry is lost alone, and named: it is
//! kept from the crate, which sees the table without it ([`Sifted`]).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::{ControlFlow, Range};
use core::task::{Context, Poll, ready};

use hadris_fs::ErrorKind;
use hadris_io::{Error, ErrorType};
use hadris_part::gpt::types;
use hadris_part::{Guid, MbrType, Partition, PartitionKind};
use hadris_storage::async_::BlockDevice;
use hadris_storage::{BlockIndex, BlockSize};

/// Partitions of a device that are looked at.
const MAX_PARTITIONS: usize = 128;
/// The longest block that `scan` reads a table from.
const MAX_BLOCK: u32 = 4096;
/// Where an MBR has its entries, and how long one is.
const ENTRIES: usize = 446;
const ENTRY_LEN: usize = 16;
/// Where an entry has its first block.
const START: usize = 8;
/// An entry begins with 0, or with this if it is the one to boot from.
const ACTIVE: u8 = 0x80;

/// What a table has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) parts: Vec<Part>,
    /// Why there may be more than these.
    pub(super) rest: Option<String>,
}

/// An entry of a table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Counted as everybody does, from 1.
    pub(super) number: usize,
    /// What the table says of what is in it.
    pub(super) kind: String,
    /// Its blocks, or why it has none.
    pub(super) blocks: Result<Range<u64>, String>,
}

/// Reads the table of a device; an empty one, if it has none.
///
/// # Errors
///
/// The device's.
pub(super) async fn read<D: BlockDevice>(device: &mut D) -> Result<Table, Error<D::Error>> {
    let capacity = device.block_count();
    let block = device.block_size().get();
    if block > MAX_BLOCK {
        return Ok(Table {
            parts: Vec::new(),
            rest: Some(format!(
                "partition tables in blocks of {block} bytes are not read"
            )),
        });
    }
    let mut first = alloc::vec![0; block as usize];
    device.read_blocks(BlockIndex::new(0), &mut first).await?;
    let mut table = Table {
        parts: sift(&mut first),
        rest: None,
    };
    let unsound = table.parts.len();
    let mut sifted = Sifted { device, first };
    let scanned = hadris_part::async_::scan(&mut sifted, |found| {
        if table.parts.len() >= MAX_PARTITIONS {
            table.rest = Some(format!("only the first {MAX_PARTITIONS} are looked at"));
            return ControlFlow::Break(());
        }
        table.parts.push(part(&found, capacity));
        ControlFlow::Continue(())
    });
    if let Err(error) = scanned.await {
        if error.kind() == ErrorKind::NotRecognized {
            return Ok(Table::default());
        }
        if error.device_error().is_some() && table.parts.is_empty() {
            return Err(error);
        }
        table.rest = Some(error.to_string());
    }
    // What has nothing that is sound is no table, but bytes that end as one does.
    if unsound > 0 && table.parts.len() == unsound {
        table.parts.clear();
        table.rest = Some("no entry of the partition table is sound".into());
    }
    table.parts.sort_by_key(|part| part.number);
    Ok(table)
}

/// Takes the entries out of an MBR that would make it no MBR.
fn sift(first: &mut [u8]) -> Vec<Part> {
    let mut unsound = Vec::new();
    let mut is_extended = false;
    let entries = first.get_mut(ENTRIES..ENTRIES + 4 * ENTRY_LEN);
    let entries = entries.unwrap_or_default().chunks_exact_mut(ENTRY_LEN);
    for (number, entry) in (1..).zip(entries) {
        let [flag, _, _, _, kind, ..] = *entry else {
            continue;
        };
        let kind = MbrType::new(kind);
        let start = entry.get(START..).and_then(<[u8]>::first_chunk);
        let fault = if flag & !ACTIVE != 0 {
            format!("its entry begins with {flag:#04x}, which means nothing")
        } else if kind.is_extended() && start == Some(&[0; 4]) {
            "it would have the partition table inside".into()
        } else if kind.is_extended() && is_extended {
            "it is a second extended partition".into()
        } else {
            is_extended |= kind.is_extended();
            continue;
        };
        entry.fill(0);
        if !kind.is_empty() {
            unsound.push(Part {
                number,
                kind: name(kind.into()),
                blocks: Err(fault),
            });
        }
    }
    unsound
}

/// An entry of a table of a device with so many blocks.
fn part(found: &Partition, capacity: u64) -> Part {
    let mut kind = name(found.kind());
    let blocks = match found.start()..found.end() {
        blocks if blocks.is_empty() => Err("it has no blocks".into()),
        blocks if blocks.start >= capacity => {
            let start = blocks.start;
            Err(format!(
                "it begins at block {start}, and the device has {capacity}"
            ))
        }
        // As other kernels do: what is there is not lost. Its file system knows how long it is itself.
        blocks if blocks.end > capacity => {
            kind += ", cut off where the device ends";
            Ok(blocks.start..capacity)
        }
        blocks => Ok(blocks),
    };
    Part {
        number: found.slot().saturating_add(1),
        kind,
        blocks,
    }
}

/// What a partition is for, in words.
fn name(kind: PartitionKind) -> String {
    let guid = match kind {
        PartitionKind::Gpt(guid) => guid,
        PartitionKind::Mbr(kind) => return kind.to_string(),
        _ => return "of an unknown kind".into(),
    };
    let known = GUIDS.iter().find(|(known, _)| *known == guid);
    known.map_or_else(|| guid.to_string(), |(_, name)| (*name).into())
}

/// Kinds of partitions in a GPT that people meet.
const GUIDS: &[(Guid, &str)] = &[
    (types::EFI_SYSTEM, "EFI System"),
    (types::BIOS_BOOT, "BIOS boot"),
    (types::MICROSOFT_RESERVED, "Microsoft reserved"),
    (types::BASIC_DATA, "Microsoft basic data"),
    (types::WINDOWS_LDM_METADATA, "Windows LDM metadata"),
    (types::WINDOWS_LDM_DATA, "Windows LDM data"),
    (types::WINDOWS_RECOVERY, "Windows recovery"),
    (types::WINDOWS_STORAGE_SPACES, "Windows Storage Spaces"),
    (types::LINUX_FILESYSTEM, "Linux"),
    (types::LINUX_ROOT_X86, "Linux root (x86)"),
    (types::LINUX_ROOT_X86_64, "Linux root (x86-64)"),
    (types::LINUX_ROOT_ARM, "Linux root (ARM)"),
    (types::LINUX_ROOT_ARM64, "Linux root (ARM64)"),
    (types::LINUX_HOME, "Linux home"),
    (types::LINUX_SRV, "Linux srv"),
    (types::LINUX_SWAP, "Linux swap"),
    (types::LINUX_LVM, "Linux LVM"),
    (types::LINUX_RAID, "Linux RAID"),
    (types::LINUX_LUKS, "Linux LUKS"),
    (types::APPLE_HFS_PLUS, "Apple HFS+"),
    (types::APPLE_APFS, "Apple APFS"),
    (types::APPLE_BOOT, "Apple boot"),
    (types::FREEBSD_BOOT, "FreeBSD boot"),
    (types::FREEBSD_SWAP, "FreeBSD swap"),
    (types::FREEBSD_UFS, "FreeBSD UFS"),
    (types::FREEBSD_ZFS, "FreeBSD ZFS"),
    (types::NETBSD_FFS, "NetBSD FFS"),
    (types::NETBSD_SWAP, "NetBSD swap"),
    (types::CHROMEOS_KERNEL, "ChromeOS kernel"),
    (types::CHROMEOS_ROOTFS, "ChromeOS root"),
    (types::VMWARE_VMFS, "VMware VMFS"),
];

/// A device, with another first block than it has.
struct Sifted<'a, D> {
    device: &'a mut D,
    first: Vec<u8>,
}

impl<D: BlockDevice> ErrorType for Sifted<'_, D> {
    type Error = D::Error;
}

impl<D: BlockDevice> BlockDevice for Sifted<'_, D> {
    type State = D::State;

    fn block_size(&self) -> BlockSize {
        self.device.block_size()
    }

    fn block_count(&self) -> u64 {
        self.device.block_count()
    }

    fn poll_read_blocks(
        &mut self,
        state: &mut D::State,
        cx: &mut Context<'_>,
        first: BlockIndex,
        buf: &mut [u8],
    ) -> Poll<Result<(), Error<D::Error>>> {
        ready!(self.device.poll_read_blocks(state, cx, first, buf))?;
        if first.get() == 0 {
            for (byte, sifted) in buf.iter_mut().zip(&self.first) {
                *byte = *sifted;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn cancel(&mut self, state: &mut D::State) {
        self.device.cancel(state);
    }
}

#[cfg(test)]
mod tests {
    use embassy_futures::block_on;
    use hadris_part::{DiskLayout, PartitionSpec, Size};
    use hadris_storage::MemDevice;

    use super::*;

    const BLOCKS: u32 = 4096;
    const BLOCK: usize = 512;

    /// An entry of an MBR.
    fn entry(flag: u8, kind: u8, start: u32, count: u32) -> [u8; ENTRY_LEN] {
        let mut entry = [0; ENTRY_LEN];
        entry[0] = flag;
        entry[4] = kind;
        entry[START..START + 4].copy_from_slice(&start.to_le_bytes());
        entry[START + 4..].copy_from_slice(&count.to_le_bytes());
        entry
    }

    /// Writes a table, or a part of the chain of those in an extended partition.
    fn put(disk: &mut [u8], block: u32, entries: &[[u8; ENTRY_LEN]]) {
        let record = &mut disk[block as usize * BLOCK..][..BLOCK];
        for (place, entry) in record[ENTRIES..].chunks_exact_mut(ENTRY_LEN).zip(entries) {
            place.copy_from_slice(entry);
        }
        record[510..].copy_from_slice(&[0x55, 0xaa]);
    }

    fn empty() -> Vec<u8> {
        alloc::vec![0; BLOCKS as usize * BLOCK]
    }

    fn mbr(entries: &[[u8; ENTRY_LEN]]) -> Vec<u8> {
        let mut disk = empty();
        put(&mut disk, 0, entries);
        disk
    }

    fn table(disk: &[u8]) -> Table {
        block_on(read(&mut disk.to_vec())).unwrap()
    }

    fn sound(number: usize, kind: &str, blocks: Range<u64>) -> Part {
        Part {
            number,
            kind: kind.into(),
            blocks: Ok(blocks),
        }
    }

    type There = Vec<(usize, Range<u64>)>;
    type Lost<'a> = Vec<(usize, &'a str)>;

    /// The parts that are there, and what is said of those that are not.
    fn split(table: &Table) -> (There, Lost<'_>) {
        let there = table.parts.iter().filter_map(|part| {
            let blocks = part.blocks.as_ref().ok()?.clone();
            Some((part.number, blocks))
        });
        let lost = table.parts.iter().filter_map(|part| {
            let fault = part.blocks.as_ref().err()?;
            Some((part.number, fault.as_str()))
        });
        (there.collect(), lost.collect())
    }

    #[test]
    fn a_table_says_what_its_partitions_are_for() {
        let disk = mbr(&[
            entry(0x80, 0x0c, 8, 100),
            entry(0, 0x83, 108, 100),
            [0; 16],
            entry(0, 0x42, 300, 1),
        ]);
        let table = table(&disk);
        let parts = [
            sound(1, "FAT32 LBA", 8..108),
            sound(2, "Linux", 108..208),
            sound(4, "0x42", 300..301),
        ];
        assert_eq!(table.parts, parts);
        assert_eq!(table.rest, None);
    }

    #[test]
    fn blocks_that_are_too_long_are_named() {
        let block = BlockSize::new(8192).unwrap();
        let mut disk = MemDevice::new(mbr(&[entry(0, 6, 8, 100)]), block);
        let table = block_on(read(&mut disk)).unwrap();
        assert_eq!(table.parts, []);
        assert!(table.rest.unwrap().contains("blocks of 8192 bytes"));
    }

    #[test]
    fn no_table_is_none() {
        assert_eq!(table(&empty()), Table::default());
        // The sign of a table, and nothing in it.
        assert_eq!(table(&mbr(&[])), Table::default());
    }

    #[test]
    fn a_bad_entry_is_lost_alone() {
        let good = [entry(0, 6, 8, 100), entry(0, 0x83, 200, 50)];
        let there = [(1, 8..108), (3, 200..250)];
        for (bad, fault) in [
            (entry(0x7f, 6, 500, 10), "begins with 0x7f"),
            (entry(0, 6, BLOCKS, 10), "begins at block 4096"),
            (
                entry(0, 6, u32::MAX, u32::MAX),
                "begins at block 4294967295",
            ),
            (entry(0, 6, 500, 0), "has no blocks"),
            (entry(0, 5, 0, 10), "the partition table inside"),
        ] {
            let table = table(&mbr(&[good[0], bad, good[1]]));
            let (found, lost) = split(&table);
            assert_eq!(found, there, "{fault}");
            assert!(
                matches!(&lost[..], [(2, said)] if said.contains(fault)),
                "{lost:?}"
            );
            assert_eq!(table.rest, None);
        }
        // Nothing is said of what is no entry at all.
        let table = table(&mbr(&[good[0], entry(0x7f, 0, 1, 1), good[1]]));
        assert_eq!(split(&table).1, []);
        assert_eq!(split(&table).0, there);
    }

    #[test]
    fn a_partition_that_is_too_long_is_cut_off_and_says_so() {
        let disk = mbr(&[entry(0, 6, 8, u32::MAX), entry(0, 0x83, 4000, 97)]);
        let cut = |kind: &str| format!("{kind}, cut off where the device ends");
        let parts = [
            sound(1, &cut("FAT16"), 8..4096),
            sound(2, &cut("Linux"), 4000..4096),
        ];
        assert_eq!(table(&disk).parts, parts);
    }

    #[test]
    fn bytes_that_only_end_like_a_table_are_none() {
        let mut disk = empty();
        disk[..512].fill(0x33);
        put(&mut disk, 0, &[]);
        let table = table(&disk);
        assert_eq!(table.parts, []);
        assert!(table.rest.unwrap().contains("no entry"));
    }

    /// An extended partition with three in it, each after its part of the chain.
    fn chain() -> Vec<u8> {
        let mut disk = mbr(&[entry(0, 6, 8, 100), entry(0, 5, 1000, 2000)]);
        put(
            &mut disk,
            1000,
            &[entry(0, 0x83, 8, 90), entry(0, 5, 100, 100)],
        );
        put(
            &mut disk,
            1100,
            &[entry(0, 0x83, 8, 90), entry(0, 5, 200, 100)],
        );
        put(&mut disk, 1200, &[entry(0, 0x82, 8, 90)]);
        disk
    }

    #[test]
    fn a_broken_chain_has_what_comes_before() {
        let there = [
            (1, 8..108),
            (5, 1008..1098),
            (6, 1108..1198),
            (7, 1208..1298),
        ];
        let whole = table(&chain());
        assert_eq!(
            (split(&whole).0.as_slice(), &whole.rest),
            (&there[..], &None)
        );
        let link = |to: u32| {
            let mut disk = chain();
            put(
                &mut disk,
                1100,
                &[entry(0, 0x83, 8, 90), entry(0, 5, to, 100)],
            );
            disk
        };
        // Onto itself, back, to nothing, past the extended partition, and past the disk.
        for to in [100, 0, 300, 2000, 60_000] {
            let table = table(&link(to));
            assert_eq!(split(&table).0, there[..3], "{to}");
            assert!(table.rest.unwrap().contains("extended boot record"));
        }
    }

    #[test]
    fn a_second_extended_partition_is_lost_alone() {
        let mut disk = chain();
        put(
            &mut disk,
            0,
            &[
                entry(0, 6, 8, 100),
                entry(0, 5, 1000, 2000),
                entry(0, 0xf, 3000, 100),
            ],
        );
        let table = table(&disk);
        assert_eq!(split(&table).0.len(), 4);
        assert!(matches!(&split(&table).1[..], [(3, said)] if said.contains("second")));
    }

    fn gpt() -> Vec<u8> {
        let layout = DiskLayout::gpt(Guid::from_bytes([7; 16]))
            .partition(PartitionSpec::new(types::EFI_SYSTEM, Size::KiB(512)))
            .partition(PartitionSpec::new(types::LINUX_SWAP, Size::KiB(256)))
            .partition(PartitionSpec::new(
                Guid::from_bytes([9; 16]),
                Size::Remaining,
            ));
        let mut disk = alloc::vec![0; 8192 * BLOCK];
        block_on(hadris_part::async_::create(&mut disk, &layout)).unwrap();
        disk
    }

    #[test]
    fn partitions_of_a_gpt_have_names_too() {
        let table = table(&gpt());
        let kinds: Vec<_> = table.parts.iter().map(|part| &part.kind[..]).collect();
        let other = "09090909-0909-0909-0909-090909090909";
        assert_eq!(kinds, ["EFI System", "Linux swap", other]);
        assert!(table.parts.iter().all(|part| part.blocks.is_ok()));
    }

    #[test]
    fn a_bad_entry_of_a_gpt_is_lost_alone() {
        // The table is believed as long as its checksums are right, so the device is made shorter than it was.
        let mut disk = gpt();
        let second = table(&disk).parts[1].blocks.clone().unwrap();
        disk.truncate((second.start + 10) as usize * BLOCK);
        let short = table(&disk);
        // Its backup is gone, its first copy does not fit the device: nothing is known.
        assert_eq!(short.parts, []);
        assert!(short.rest.unwrap().contains("GPT"));
        // Entries that say nothing sensible, with right checksums.
        let mut disk = gpt();
        let entry = 2 * BLOCK + 128 + 32;
        disk[entry..entry + 16].copy_from_slice(&[100u64, 50].map(u64::to_le_bytes).concat());
        let entry = entry + 128;
        disk[entry..entry + 16].copy_from_slice(&[9000u64, 9999].map(u64::to_le_bytes).concat());
        let crc = hadris_part::raw::crc32(&disk[2 * BLOCK..34 * BLOCK]);
        disk[BLOCK + 88..BLOCK + 92].copy_from_slice(&crc.to_le_bytes());
        disk[BLOCK + 16..BLOCK + 20].fill(0);
        let crc = hadris_part::raw::crc32(&disk[BLOCK..BLOCK + 92]);
        disk[BLOCK + 16..BLOCK + 20].copy_from_slice(&crc.to_le_bytes());
        let table = table(&disk);
        let (there, lost) = split(&table);
        assert_eq!(there.len(), 1);
        assert!(
            matches!(&lost[..], [(2, empty), (3, past)]
                if empty.contains("no blocks") && past.contains("block 9000")),
            "{lost:?}"
        );
    }

    #[test]
    fn a_gpt_that_is_damaged_twice_is_named() {
        let mut disk = gpt();
        disk[BLOCK + 40] ^= 1;
        let once = table(&disk);
        assert_eq!((once.parts.len(), once.rest), (3, None));
        let last = disk.len() - BLOCK;
        disk[last + 40] ^= 1;
        let twice = table(&disk);
        assert_eq!(twice.parts, []);
        assert!(twice.rest.unwrap().contains("GPT"));
    }
}
