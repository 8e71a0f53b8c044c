//! [`Record`]: what a request has in the queue's shared memory.
//!
//! A record consists of entries of 16 bytes, which is what descriptor tables are aligned to (spec 2.7):
//!
//! | entries | what is there | who writes it |
//! |---|---|---|
//! | from 0 | the header | the driver |
//! | from [`Places::footer`] | the footer | the device |
//! | from [`Places::table`] | indirect descriptors, if they were agreed on | the driver |

use alloc::sync::Arc;

use super::QueueOptions;
use super::ring::Descriptor;
use crate::dma::{self, Direction, Dma, DmaContext, Le64, Part};
use crate::error::Cause;

/// What a record consists of; also an entry of a descriptor table (spec 2.7.5): le64 addr; le32 len, le16 flags, le16 next.
pub(super) type Entry = [Le64; 2];

/// The most bytes that header and footer of a request may have together.
pub(super) const MAX_WRAPPING: u32 = 4096;

/// Indirect descriptors that every record has room for; a longer request gets a record of its own.
const SHORT_TABLE: usize = 4;

/// Where the parts of a record are: the same for all requests of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// The most bytes that a header may have.
    header_len: usize,
    /// In bytes.
    pub(super) footer_len: usize,
    /// The footer's first entry; none that there is without a footer.
    footer: usize,
    /// The entry with the first indirect descriptor.
    pub(super) table: usize,
    /// How many entries a record has.
    pub(super) len: usize,
}

impl Places {
    pub(super) fn new(options: QueueOptions, indirect: bool) -> Result<Self, Cause> {
        let QueueOptions {
            header_len,
            footer_len,
            ..
        } = options;
        if header_len.saturating_add(footer_len) > MAX_WRAPPING as usize {
            return Err(Cause::InvalidParameter("header and footer too long"));
        }
        let behind_header = header_len.div_ceil(size_of::<Entry>());
        let table = behind_header + footer_len.div_ceil(size_of::<Entry>());
        Ok(Self {
            header_len,
            footer_len,
            footer: match footer_len {
                0 => usize::MAX,
                _ => behind_header,
            },
            table,
            len: match indirect {
                true => table + SHORT_TABLE,
                false => table,
            },
        })
    }
}

/// What requests have in common whose descriptors differ in nothing but the loans: the length of the header, and the number
/// of loans. In one number, so that comparing costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape(u64);

impl Shape {
    const HEADER_SHIFT: u32 = 48;
    /// That of no request: none has so long a header.
    const NONE: Self = Self(u64::MAX);

    #[inline(always)]
    pub(super) fn new(header_len: usize, loans: usize) -> Self {
        // One longer than the longest is as good as any that is refused.
        let header_len = header_len.min(MAX_WRAPPING as usize + 1) as u64;
        Self(header_len << Self::HEADER_SHIFT | loans as u64)
    }

    /// Checks what such requests are, for a queue of so many descriptors.
    #[cold]
    pub(super) fn check(self, places: &Places, queue_size: u16) -> Result<(), Cause> {
        if self.header_len() > places.header_len {
            return Err(Cause::InvalidParameter("header longer than the queue's"));
        }
        let (segments, max) = (self.segments(places), queue_size.into());
        if segments > max {
            return Err(Cause::TooManySegments { segments, max });
        }
        if segments == 0 {
            return Err(Cause::EmptyRequest);
        }
        Ok(())
    }

    pub(super) fn header_len(self) -> usize {
        (self.0 >> Self::HEADER_SHIFT) as usize
    }

    /// How many descriptors such a request has.
    pub(super) fn segments(self, places: &Places) -> usize {
        let header = usize::from(self.header_len() > 0);
        let loans = self.0 & ((1 << Self::HEADER_SHIFT) - 1);
        let footer = usize::from(places.footer_len > 0);
        header + loans as usize + footer
    }
}

/// A request's part of the queue's shared memory, and what was written there for all requests of one shape.
pub(super) struct Record<D: DmaContext> {
    pub(super) entries: Part<[Entry], D>,
    /// Of the requests that it is prepared for.
    pub(super) shape: Shape,
    /// The entry with the descriptor of the first loan.
    pub(super) first: usize,
    /// What that descriptor says whatever the loan is: how it leads to the next.
    pub(super) link: u64,
}

impl<D: DmaContext> Record<D> {
    pub(super) fn new(entries: Part<[Entry], D>) -> Self {
        Self {
            entries,
            shape: Shape::NONE,
            first: 0,
            link: 0,
        }
    }

    /// Makes the table have at least `descriptors`.
    pub(super) fn lengthen(
        &mut self,
        dma: &D,
        places: &Places,
        descriptors: usize,
    ) -> Result<(), Cause> {
        let entries = places.table + descriptors;
        if self.entries.len() < entries {
            let memory = Dma::new(dma, entries * size_of::<Entry>(), Direction::Both)?;
            let entries = memory.len() / size_of::<Entry>();
            self.entries = Arc::new(memory).array(0, entries)?;
        }
        Ok(())
    }

    /// Writes the header, and makes room for the footer.
    #[inline(always)]
    pub(super) fn begin(&self, places: &Places, header: &[u8]) {
        dma::store_bytes(self.entries.as_flattened(), header);
        // So that a device which writes no footer is not taken to have written zeros, which mean "OK" to many.
        if let Some([first, _]) = self.entries.get(places.footer) {
            first.store(u64::MAX);
        }
        if places.footer_len > size_of::<Le64>() {
            self.blank_footer(places);
        }
    }

    #[cold]
    fn blank_footer(&self, places: &Places) {
        for word in self.footer(places) {
            word.store(u64::MAX);
        }
    }

    /// The words of the footer.
    pub(super) fn footer(&self, places: &Places) -> &[Le64] {
        let footer = self.entries.get(places.footer..places.table);
        footer.unwrap_or_default().as_flattened()
    }

    /// The first eight bytes of the footer, if there is one.
    #[inline(always)]
    pub(super) fn status(&self, places: &Places) -> u64 {
        let first = self.entries.get(places.footer);
        first.map_or(0, |[first, _]| first.load())
    }

    /// Where the device finds an entry.
    pub(super) fn address(&self, entry: usize) -> u64 {
        self.entries.address() + (entry * size_of::<Entry>()) as u64
    }

    /// The segment that the header is, if requests of that shape have one.
    pub(super) fn header_segment(&self, shape: Shape) -> Option<Descriptor> {
        let len = shape.header_len();
        (len > 0).then(|| Descriptor {
            address: self.address(0),
            len: len as u32,
            is_writable: false,
        })
    }

    /// The segment that the footer is, if there is one.
    pub(super) fn footer_segment(&self, places: &Places) -> Option<Descriptor> {
        (places.footer_len > 0).then(|| Descriptor {
            address: self.address(places.footer),
            len: places.footer_len as u32,
            is_writable: true,
        })
    }
}
