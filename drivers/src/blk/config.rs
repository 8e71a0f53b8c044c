//! The device configuration (spec 5.2.4): read, checked, and written where the driver may.

use super::wire::{Features, SECTOR_LEN};
use crate::error::{Cause, Error, Result};
use crate::transport::{Fields, Transport};

/// Offsets in `struct virtio_blk_config`. All are written by the device; `writeback` by the driver too.
mod field {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SIZE_MAX: usize = 8;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const CYLINDERS: usize = 16;
    pub(super) const HEADS: usize = 18;
    pub(super) const SECTORS: usize = 19;
    pub(super) const BLK_SIZE: usize = 20;
    pub(super) const PHYSICAL_BLOCK_EXP: usize = 24;
    pub(super) const ALIGNMENT_OFFSET: usize = 25;
    pub(super) const MIN_IO_SIZE: usize = 26;
    pub(super) const OPT_IO_SIZE: usize = 28;
    pub(super) const WRITEBACK: usize = 32;
    pub(super) const MAX_DISCARD_SECTORS: usize = 36;
    pub(super) const MAX_DISCARD_SEG: usize = 40;
    pub(super) const DISCARD_SECTOR_ALIGNMENT: usize = 44;
    pub(super) const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    pub(super) const MAX_WRITE_ZEROES_SEG: usize = 52;
    pub(super) const WRITE_ZEROES_MAY_UNMAP: usize = 56;
}

/// The configuration of a block device at one moment. What depends on a feature that was not agreed on is `None` or the
/// value that the specification implies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Sectors of 512 bytes.
    pub capacity: u64,
    /// Bytes of a block: a power of two, at least 512. Requests begin and end at multiples of it.
    pub block_size: u32,
    /// Every write fails.
    pub read_only: bool,
    /// The most bytes that a segment may have, if there is a limit.
    pub size_max: Option<u32>,
    /// The most data segments that a request may have, at least one, as the device says; the queue may allow fewer.
    pub seg_max: Option<u32>,
    /// An old disk's geometry.
    pub geometry: Option<Geometry>,
    /// How requests are best laid out.
    pub topology: Option<Topology>,
    /// Limits of discard requests, if there are any.
    pub discard: Option<DiscardLimits>,
    /// Limits of write zeroes requests, if there are any.
    pub write_zeroes: Option<WriteZeroesLimits>,
    /// There is a cache to flush.
    pub flush: bool,
    /// When completed writes are stable.
    pub cache_mode: CacheMode,
}

/// An old disk's geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors: u8,
}

/// How requests are best laid out. Advice, none of which decides whether a request succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Blocks per physical block, as the logarithm to base 2.
    pub physical_block_exp: u8,
    /// The first block that is aligned to a physical block.
    pub alignment_offset: u8,
    /// The smallest good request, in blocks.
    pub min_io_size: u16,
    /// The best request, in blocks.
    pub opt_io_size: u32,
}

/// Limits of discard requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// The most sectors in one range.
    pub max_sectors: u32,
    /// The most ranges in one request.
    pub max_ranges: u32,
    /// Where large discards are best split, in sectors; advice.
    pub alignment: u32,
}

/// Limits of write zeroes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteZeroesLimits {
    /// The most sectors in one range.
    pub max_sectors: u32,
    /// The most ranges in one request.
    pub max_ranges: u32,
    /// A request that allows it may give the sectors back to the device's storage.
    pub may_unmap: bool,
}

/// When a completed write is stable (spec 5.2.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMode {
    /// After the next flush.
    WriteBack,
    /// At once.
    WriteThrough,
}

impl Config {
    /// Reads what `features`, those agreed on, say is there. After FEATURES_OK (spec 5.2.5.2).
    pub(super) fn read<T: Transport>(transport: &T, features: Features) -> Result<Self> {
        let config = Fields::snapshot(transport, |fields| Self::of(fields, features))?;
        config
            .check()
            .map_err(|cause| Error::new(transport.name(), cause))?;
        Ok(config)
    }

    fn of<T: Transport>(fields: &Fields<'_, T>, features: Features) -> Self {
        let given = |feature| features.contains(feature);
        let optional_u32 = |feature, offset| given(feature).then(|| fields.u32(offset));
        // A device that offers a request takes one with something in it. Where it says 0 all the same it was not told of a
        // limit to sectors, and of ranges it takes one.
        let sectors = |max| if max == 0 { u32::MAX } else { max };
        let ranges = |max: u32| max.max(1);
        let mut config = Self {
            capacity: fields.u64(field::CAPACITY),
            block_size: optional_u32(Features::BLK_SIZE, field::BLK_SIZE)
                .unwrap_or(SECTOR_LEN as u32),
            read_only: given(Features::RO),
            // QEMU's storage daemon says 0 here and means that there is no limit.
            size_max: optional_u32(Features::SIZE_MAX, field::SIZE_MAX).filter(|max| *max != 0),
            // A request with data has a segment, whatever the device says.
            seg_max: optional_u32(Features::SEG_MAX, field::SEG_MAX).map(|max| max.max(1)),
            geometry: None,
            topology: None,
            discard: None,
            write_zeroes: None,
            flush: given(Features::FLUSH),
            cache_mode: Self::cache_mode(fields, features),
        };
        if given(Features::GEOMETRY) {
            config.geometry = Some(Geometry {
                cylinders: fields.u16(field::CYLINDERS),
                heads: fields.u8(field::HEADS),
                sectors: fields.u8(field::SECTORS),
            });
        }
        if given(Features::TOPOLOGY) {
            let topology = Topology {
                physical_block_exp: fields.u8(field::PHYSICAL_BLOCK_EXP),
                alignment_offset: fields.u8(field::ALIGNMENT_OFFSET),
                min_io_size: fields.u16(field::MIN_IO_SIZE),
                opt_io_size: fields.u32(field::OPT_IO_SIZE),
            };
            // Advice that can't be followed is no reason to do without the disk.
            let exponent = u32::from(topology.physical_block_exp);
            config.topology =
                Some(topology).filter(|_| exponent < config.block_size.leading_zeros());
        }
        if given(Features::DISCARD) {
            config.discard = Some(DiscardLimits {
                max_sectors: sectors(fields.u32(field::MAX_DISCARD_SECTORS)),
                max_ranges: ranges(fields.u32(field::MAX_DISCARD_SEG)),
                alignment: fields.u32(field::DISCARD_SECTOR_ALIGNMENT),
            });
        }
        if given(Features::WRITE_ZEROES) {
            config.write_zeroes = Some(WriteZeroesLimits {
                max_sectors: sectors(fields.u32(field::MAX_WRITE_ZEROES_SECTORS)),
                max_ranges: ranges(fields.u32(field::MAX_WRITE_ZEROES_SEG)),
                may_unmap: fields.u8(field::WRITE_ZEROES_MAY_UNMAP) != 0,
            });
        }
        config
    }

    /// The cache mode. Without CONFIG_WCE, a device that can flush has a cache to flush (spec 5.2.5.2).
    fn cache_mode<T: Transport>(fields: &Fields<'_, T>, features: Features) -> CacheMode {
        let writeback = match features.contains(Features::CONFIG_WCE) {
            true => fields.u8(field::WRITEBACK) != 0,
            false => features.contains(Features::FLUSH),
        };
        match writeback {
            true => CacheMode::WriteBack,
            false => CacheMode::WriteThrough,
        }
    }

    /// The cache mode now.
    pub(super) fn read_cache_mode<T: Transport>(
        transport: &T,
        features: Features,
    ) -> Result<CacheMode> {
        Fields::snapshot(transport, |fields| Self::cache_mode(fields, features))
    }

    /// Asks the device for a cache mode. Only with CONFIG_WCE.
    pub(super) fn write_cache_mode<T: Transport>(transport: &mut T, mode: CacheMode) -> Result<()> {
        let writeback = match mode {
            CacheMode::WriteThrough => 0,
            CacheMode::WriteBack => 1,
        };
        transport.write_config(field::WRITEBACK, &[writeback])
    }

    fn check(&self) -> Result<(), Cause> {
        let bad = |field, value| Err(Cause::BadConfig { field, value });
        // So that no position in bytes overflows.
        if self.capacity > u64::MAX / SECTOR_LEN as u64 {
            return bad("capacity", self.capacity);
        }
        if !self.block_size.is_power_of_two() || self.block_size < SECTOR_LEN as u32 {
            return bad("blk_size", self.block_size.into());
        }
        Ok(())
    }

    /// Bytes of the whole device.
    pub fn bytes(&self) -> u64 {
        self.capacity.saturating_mul(SECTOR_LEN as u64)
    }

    /// Bytes of a physical block, where the device tells.
    pub fn physical_block_size(&self) -> Option<u32> {
        let exponent = u32::from(self.topology?.physical_block_exp);
        self.block_size.checked_shl(exponent)
    }
}
