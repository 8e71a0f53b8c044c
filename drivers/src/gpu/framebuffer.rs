//! [`Framebuffer`]: a picture in memory that the device reads, and what of it was drawn on.

use core::ops::Range;

use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::damage::{Damage, Rect, Size};
use crate::dma::{DmaContext, Lease, Outbound};
use crate::error::Cause;

/// Bytes of a pixel, in every format that there is.
pub const PIXEL_LEN: usize = 4;

/// The largest width and height: a picture has at most 2^30 bytes, in at most 4096 pieces (QEMU takes 16384).
pub const MAX_DIMENSION: u32 = 16384;

/// Memory comes in runs of about this many bytes.
const PIECE_LEN: usize = 256 * 1024;

/// Pixels that are set at once where many are to be the same.
const FILL_RUN: usize = 128;

/// A picture in memory that a device can read, four bytes a pixel, row after row without gaps.
///
/// A pixel is a number: 0xRRGGBB, with the alpha in the highest byte where there is one. All that draws takes note of the
/// pixels that it touched ([`Self::damage`]), and leaves out what is outside.
#[derive(Debug)]
pub struct Framebuffer<D: DmaContext> {
    size: Size,
    memory: Outbound<D>,
    /// Each piece has 2^this rows.
    rows_shift: u32,
    stride: usize,
    damage: Damage,
}

impl<D: DmaContext> Framebuffer<D> {
    /// A black (or clear) picture, all of it damaged, in memory that the device of `dma` reaches.
    ///
    /// # Errors
    ///
    /// No memory, or a width or height that is 0 or more than [`MAX_DIMENSION`].
    pub fn new(dma: &D, size: Size) -> Result<Self, Cause> {
        let possible = 1..=MAX_DIMENSION;
        if !possible.contains(&size.width) || !possible.contains(&size.height) {
            return Err(Cause::InvalidParameter("width or height of a picture"));
        }
        let stride = size.width as usize * PIXEL_LEN;
        let len = usize::try_from(size.area() * PIXEL_LEN as u64);
        let len = len.map_err(|_| Cause::NoDmaMemory)?;
        let rows_shift = (PIECE_LEN / stride).ilog2();
        let mut damage = Damage::default();
        damage.add(Rect::of(size));
        Ok(Self {
            size,
            memory: Outbound::new(dma, len, stride << rows_shift)?,
            rows_shift,
            stride,
            damage,
        })
    }

    /// Width and height.
    pub fn size(&self) -> Size {
        self.size
    }

    /// What was drawn on since it was last sent.
    pub fn damage(&self) -> &Damage {
        &self.damage
    }

    /// As [`Self::damage`], to be taken or added to.
    pub(super) fn damage_mut(&mut self) -> &mut Damage {
        &mut self.damage
    }

    /// Where the device finds the pieces of the picture, and how long each is.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, usize)> {
        self.memory.pieces()
    }

    pub(super) fn lease(&self) -> Lease<D> {
        self.memory.lease()
    }

    /// Of a row: its piece, and the bytes there.
    #[inline]
    fn place(&self, y: u32) -> (usize, Range<usize>) {
        let piece = (y >> self.rows_shift) as usize;
        let start = (y & ((1 << self.rows_shift) - 1)) as usize * self.stride;
        (piece, start..start + self.stride)
    }

    /// The pixels of row `y`; none if there is no such row.
    #[inline]
    pub fn row(&self, y: u32) -> &[U32] {
        let (piece, range) = self.place(y);
        let bytes = self.memory.piece(piece).and_then(|piece| piece.get(range));
        // Rows are whole pixels, and a pixel can be at any address.
        bytes
            .and_then(|bytes| <[U32]>::ref_from_bytes(bytes).ok())
            .unwrap_or(&[])
    }

    /// As [`Self::row`], to be drawn on by who takes note of it.
    #[inline]
    pub(super) fn row_mut(&mut self, y: u32) -> &mut [U32] {
        let (piece, range) = self.place(y);
        let piece = self.memory.piece_mut(piece);
        piece
            .and_then(|piece| piece.get_mut(range))
            .and_then(|bytes| <[U32]>::mut_from_bytes(bytes).ok())
            .unwrap_or(&mut [])
    }

    /// The pixel in column `x` of row `y`, if there is one.
    pub fn pixel(&self, x: u32, y: u32) -> Option<u32> {
        self.row(y).get(x as usize).map(|pixel| pixel.get())
    }

    /// Sets one pixel and takes no note of it. Says whether there is one.
    #[inline]
    pub(super) fn set_unnoted(&mut self, x: u32, y: u32, pixel: u32) -> bool {
        match self.row_mut(y).get_mut(x as usize) {
            Some(place) => {
                place.set(pixel);
                true
            }
            None => false,
        }
    }

    /// Sets one pixel.
    pub fn set(&mut self, x: u32, y: u32, pixel: u32) {
        if self.set_unnoted(x, y, pixel) {
            self.damage.add(Rect::new(x, y, 1, 1));
        }
    }

    /// Fills a rectangle.
    pub fn fill(&mut self, rect: Rect, pixel: u32) {
        let rect = rect.intersection(Rect::of(self.size));
        // Copied run by run, as many pixels go at once then.
        let run = [U32::new(pixel); FILL_RUN];
        for y in rows(rect) {
            let row = self.row_mut(y).get_mut(columns(rect)).unwrap_or_default();
            for part in row.chunks_mut(FILL_RUN) {
                if let Some(run) = run.get(..part.len()) {
                    part.copy_from_slice(run);
                }
            }
        }
        self.damage.add(rect);
    }

    /// Draws `pixels`, row after row, where `rect` says. If there are too few of them the rest stays as it is.
    pub fn draw(&mut self, rect: Rect, pixels: &[u32]) {
        if rect.is_empty() {
            return;
        }
        let visible = rect.intersection(Rect::of(self.size));
        let mut given = pixels.chunks(rect.width as usize);
        let mut drawn = Rect::default();
        for y in rows(visible) {
            // What lies outside is to the right and below, since coordinates are not negative.
            let Some(from) = given.next() else { break };
            let Some(to) = self.row_mut(y).get_mut(columns(visible)) else {
                break;
            };
            for (to, from) in to.iter_mut().zip(from) {
                to.set(*from);
            }
            drawn = drawn.union(Rect::new(visible.x, y, visible.width, 1));
        }
        self.damage.add(drawn);
    }

    /// Makes `rect` the same as in `other`, a picture of the same size, and takes no note of it.
    pub(super) fn copy_from(&mut self, other: &Self, rect: Rect) {
        let rect = rect.intersection(Rect::of(self.size));
        for y in rows(rect) {
            if let Some(from) = other.row(y).get(columns(rect))
                && let Some(to) = self.row_mut(y).get_mut(columns(rect))
            {
                to.copy_from_slice(from);
            }
        }
    }
}

/// The rows of a rectangle that lies inside some picture.
fn rows(rect: Rect) -> Range<u32> {
    rect.y..rect.y.saturating_add(rect.height)
}

/// The columns of a rectangle that lies inside some picture.
fn columns(rect: Rect) -> Range<usize> {
    let start = rect.x as usize;
    start..start.saturating_add(rect.width as usize)
}
