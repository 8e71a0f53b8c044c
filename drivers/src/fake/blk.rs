//! [`FakeBlk`]: a RAM disk behind virtio-blk (spec 5.2).

use std::vec::Vec;

use super::device::{DeviceModel, Queues};
use super::queue::Request;
use crate::device::DeviceId;

const SECTOR: usize = 512;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_GEOMETRY: u64 = 1 << 4;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_CONFIG_WCE: u64 = 1 << 11;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

/// Offset of `writeback` in the configuration.
const WRITEBACK: usize = 32;

/// A RAM disk. Its fields say what it offers and hold what it did; change them before the driver is made, or by
/// [`FakeDevice::with`](super::FakeDevice::with) and [`FakeDevice::change_config`](super::FakeDevice::change_config).
#[derive(Clone, Debug)]
pub struct FakeBlk {
    /// The disk's bytes, a whole number of sectors.
    pub disk: Vec<u8>,
    /// Feature bits of the device type that it offers.
    pub features: u64,
    /// Number of queues (more than one with MQ), and the largest size of each.
    pub queues: u16,
    /// The largest size of each queue.
    pub queue_size: u16,
    /// What GET_ID gives; up to 20 bytes count.
    pub serial: Vec<u8>,
    /// `size_max`: bytes per segment.
    pub size_max: u32,
    /// `seg_max`: data segments per request.
    pub seg_max: u32,
    /// `blk_size`: the logical block, which requests must be aligned to.
    pub block_size: u32,
    /// Whether the cache is in writeback mode.
    pub writeback: bool,
    /// `max_discard_sectors` and `max_write_zeroes_sectors`.
    pub max_range_sectors: u32,
    /// `max_discard_seg` and `max_write_zeroes_seg`.
    pub max_ranges: u32,
    /// `discard_sector_alignment`.
    pub discard_alignment: u32,
    /// Requests that fail: type, first sector, number of sectors, and the status that they get.
    pub errors: Vec<(u32, u64, u64, u8)>,
    /// The types of all requests so far.
    pub log: Vec<u32>,
    /// How long each segment of data of the last request was.
    pub data_segments: Vec<u32>,
    /// A request that says so is returned with no status written, and 0 bytes.
    pub omit_status: bool,
    negotiated: u64,
}

impl FakeBlk {
    /// A disk of `sectors` sectors of zeros that offers everything that this model does.
    pub fn new(sectors: usize) -> Self {
        Self {
            disk: std::vec![0; sectors * SECTOR],
            features: F_SEG_MAX
                | F_GEOMETRY
                | F_BLK_SIZE
                | F_FLUSH
                | F_TOPOLOGY
                | F_CONFIG_WCE
                | F_DISCARD
                | F_WRITE_ZEROES,
            queues: 1,
            queue_size: 256,
            serial: b"fake".to_vec(),
            size_max: 1 << 20,
            seg_max: 254,
            block_size: 512,
            writeback: true,
            max_range_sectors: 4096,
            max_ranges: 1,
            discard_alignment: 8,
            errors: Vec::new(),
            log: Vec::new(),
            data_segments: Vec::new(),
            omit_status: false,
            negotiated: 0,
        }
    }

    /// The same, read-only.
    pub fn read_only(sectors: usize) -> Self {
        let mut disk = Self::new(sectors);
        disk.features |= F_RO;
        disk
    }

    fn has(&self, feature: u64) -> bool {
        self.negotiated & feature != 0
    }

    /// The bytes of `len` bytes at `sector`, if the disk has them.
    fn range(&self, sector: u64, len: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(sector).ok()?.checked_mul(SECTOR)?;
        let end = start.checked_add(len)?;
        (end <= self.disk.len()).then_some(start..end)
    }

    /// Does what `request` asks; returns the status and how many data bytes were written to memory.
    fn serve(&mut self, request: &Request, queues: &Queues<'_>) -> (u8, usize) {
        let mut header = [0; 16];
        if request.read(0, &mut header) < header.len() {
            queues.violation("request shorter than its header");
            return (S_IOERR, 0);
        }
        let header = u128::from_le_bytes(header);
        let (kind, sector) = (header as u32, (header >> 64) as u64);
        self.log.push(kind);
        self.check_segments(request, queues);

        let room = request.writable_len() - 1;
        let data_len = match kind {
            T_IN => room,
            _ => request.readable_len() - 16,
        };
        let sectors = data_len.div_ceil(SECTOR) as u64;
        let rule = self.errors.iter().find(|(of, first, count, _)| {
            *of == kind && sector < first.saturating_add(*count) && *first < sector + sectors.max(1)
        });
        if let Some((_, _, _, status)) = rule {
            return (*status, 0);
        }

        match kind {
            T_IN | T_OUT => {
                if !data_len.is_multiple_of(SECTOR) || data_len == 0 {
                    queues.violation(std::format!("transfer of {data_len} bytes"));
                    return (S_IOERR, 0);
                }
                let block = u64::from(self.block_size);
                if self.has(F_BLK_SIZE)
                    && (!(sector * SECTOR as u64).is_multiple_of(block)
                        || !(data_len as u64).is_multiple_of(block))
                {
                    return (S_IOERR, 0);
                }
                let Some(range) = self.range(sector, data_len) else {
                    return (S_IOERR, 0);
                };
                if kind == T_IN {
                    return (S_OK, request.write(0, &self.disk[range]));
                }
                if self.features & F_RO != 0 {
                    return (S_IOERR, 0);
                }
                request.read(16, &mut self.disk[range]);
                (S_OK, 0)
            }
            T_FLUSH if self.has(F_FLUSH) => {
                if sector != 0 {
                    queues.violation("flush with a sector other than 0");
                }
                (S_OK, 0)
            }
            T_GET_ID => {
                if room != 20 {
                    queues.violation(std::format!("GET_ID with room for {room} bytes"));
                }
                let mut id = [0; 20];
                for (to, from) in id.iter_mut().zip(&self.serial) {
                    *to = *from;
                }
                (S_OK, request.write(0, &id))
            }
            T_DISCARD if self.has(F_DISCARD) => (self.ranges(request, queues, true), 0),
            T_WRITE_ZEROES if self.has(F_WRITE_ZEROES) => (self.ranges(request, queues, false), 0),
            _ => (S_UNSUPP, 0),
        }
    }

    /// SEG_MAX and SIZE_MAX bound the data of a request (spec 5.2.5).
    fn check_segments(&mut self, request: &Request, queues: &Queues<'_>) {
        let segments = request.segments();
        let data = segments.len().saturating_sub(2);
        let lens = segments.iter().skip(1).take(data);
        self.data_segments = lens.map(|segment| segment.len).collect();
        if self.has(F_SEG_MAX) && data > self.seg_max as usize {
            queues.violation(std::format!(
                "{data} data segments, seg_max {}",
                self.seg_max
            ));
        }
        let longest = segments.iter().map(|segment| segment.len).max();
        if self.has(F_SIZE_MAX) && longest > Some(self.size_max) {
            queues.violation(std::format!(
                "segment of {longest:?}, size_max {}",
                self.size_max
            ));
        }
    }

    /// DISCARD and WRITE_ZEROES (spec 5.2.6).
    fn ranges(&mut self, request: &Request, queues: &Queues<'_>, discard: bool) -> u8 {
        if self.features & F_RO != 0 {
            return S_IOERR;
        }
        let mut data = request.read_all();
        data.drain(..16);
        if data.is_empty() || !data.len().is_multiple_of(16) {
            queues.violation(std::format!("{} bytes of ranges", data.len()));
            return S_IOERR;
        }
        if data.len() / 16 > self.max_ranges as usize {
            queues.violation("more ranges than the device takes");
            return S_IOERR;
        }
        for raw in data.chunks_exact(16) {
            let raw = u128::from_le_bytes(raw.try_into().expect("16 bytes"));
            let (sector, count, flags) = (raw as u64, (raw >> 64) as u32, (raw >> 96) as u32);
            if count > self.max_range_sectors {
                queues.violation(std::format!("range of {count} sectors"));
                return S_IOERR;
            }
            if flags > 1 || (discard && flags != 0) {
                return S_UNSUPP;
            }
            let Some(range) = self.range(sector, count as usize * SECTOR) else {
                return S_IOERR;
            };
            self.disk[range].fill(0);
        }
        S_OK
    }
}

impl DeviceModel for FakeBlk {
    fn id(&self) -> DeviceId {
        DeviceId::BLK
    }

    fn features(&self) -> u64 {
        self.features | if self.queues > 1 { F_MQ } else { 0 }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        std::vec![self.queue_size; self.queues.into()]
    }

    fn config(&self) -> Vec<u8> {
        let capacity = (self.disk.len() / SECTOR) as u64;
        let mut config = Vec::with_capacity(72);
        config.extend(capacity.to_le_bytes());
        config.extend(self.size_max.to_le_bytes());
        config.extend(self.seg_max.to_le_bytes());
        // geometry: cylinders, heads, sectors
        config.extend(((capacity / 16 / 63) as u16).to_le_bytes());
        config.extend([16, 63]);
        config.extend(self.block_size.to_le_bytes());
        // topology: physical_block_exp, alignment_offset, min_io_size, opt_io_size
        config.extend([3, 0, 1, 0, 0, 0, 0, 0]);
        config.extend([u8::from(self.writeback), 0]);
        config.extend(self.queues.to_le_bytes());
        for _discard_then_write_zeroes in 0..2 {
            config.extend(self.max_range_sectors.to_le_bytes());
            config.extend(self.max_ranges.to_le_bytes());
            if config.len() < 48 {
                config.extend(self.discard_alignment.to_le_bytes());
            }
        }
        // write_zeroes_may_unmap, unused1
        config.extend([1, 0, 0, 0]);
        config
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        if let (WRITEBACK, [mode @ (0 | 1)], true) = (offset, bytes, self.has(F_CONFIG_WCE)) {
            self.writeback = *mode == 1;
        }
    }

    fn negotiated(&mut self, features: u64) {
        self.negotiated = features;
    }

    fn process(&mut self, queue: u16, queues: &mut Queues<'_>) {
        while let Some(request) = queues.pop(queue) {
            if request.writable_len() == 0 || request.readable_len() < 16 {
                queues.violation("request without a header or a place for the status");
                queues.push(queue, request, 0);
                continue;
            }
            let (status, written) = self.serve(&request, queues);
            if self.omit_status {
                queues.push(queue, request, 0);
                continue;
            }
            request.write(request.writable_len() - 1, &[status]);
            // What was written is only a prefix if all data were; else the length is an underestimate, as it may be.
            let all = written + 1 == request.writable_len();
            let len = if all { written + 1 } else { written };
            queues.push(queue, request, len.max(1) as u32);
        }
    }
}
