//! [`Layout`]: which scanouts are there for a user to see, where, and how large; and what became of that.

use alloc::vec::Vec;

use super::damage::{Rect, Size};
use super::framebuffer::MAX_DIMENSION;
use super::wire::{DisplayOne, RespDisplayInfo};

/// A scanout that a user looks at: a window, a monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub scanout: u32,
    /// Where it is in the arrangement of all heads, and how large it wants to be.
    pub rect: Rect,
}

/// All heads, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    heads: Vec<Head>,
}

/// How a layout differs from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A head came.
    Connected(Head),
    /// A head went.
    Disconnected(Head),
    /// A head has another size.
    Resized {
        /// As it is now.
        head: Head,
        /// What it was.
        from: Size,
    },
    /// A head has another place.
    Moved(Head),
}

/// What a screen shows where no head wants any size (spec 5.7.5).
pub const FALLBACK: Head = Head {
    scanout: 0,
    rect: Rect::new(0, 0, 1024, 768),
};

impl Layout {
    /// What the device says of its first `scanouts` scanouts, and how many of the enabled ones have a size that can't be.
    pub(super) fn from_device(info: &RespDisplayInfo, scanouts: u32) -> (Self, u32) {
        let mut heads = Vec::new();
        let mut impossible = 0;
        for (scanout, mode) in (0..scanouts).zip(&info.pmodes) {
            if mode.enabled.get() == 0 {
                continue;
            }
            match possible(mode) {
                Some(rect) => heads.push(Head { scanout, rect }),
                None => impossible += 1,
            }
        }
        (Self { heads }, impossible)
    }

    /// The heads there are, by number.
    pub fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// The first head, or where there is none what to show all the same ([`FALLBACK`]).
    pub fn primary(&self) -> Head {
        self.heads.first().copied().unwrap_or(FALLBACK)
    }

    /// The head at a scanout.
    pub fn head(&self, scanout: u32) -> Option<Head> {
        self.heads
            .iter()
            .copied()
            .find(|head| head.scanout == scanout)
    }

    /// What happened between `old` and this.
    pub(super) fn changes_since(&self, old: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for was in &old.heads {
            if self.head(was.scanout).is_none() {
                changes.push(Change::Disconnected(*was));
            }
        }
        for &head in &self.heads {
            match old.head(head.scanout) {
                None => changes.push(Change::Connected(head)),
                Some(was) if was.rect.size() != head.rect.size() => {
                    let from = was.rect.size();
                    changes.push(Change::Resized { head, from });
                }
                Some(was) if was.rect != head.rect => changes.push(Change::Moved(head)),
                Some(_) => {}
            }
        }
        changes
    }
}

/// The rectangle of a mode, if there can be such a picture at such a place.
fn possible(mode: &DisplayOne) -> Option<Rect> {
    let rect = Rect::from(mode.r);
    let sizes = 1..=MAX_DIMENSION;
    let fine = sizes.contains(&rect.width)
        && sizes.contains(&rect.height)
        && rect.x.checked_add(rect.width).is_some()
        && rect.y.checked_add(rect.height).is_some();
    fine.then_some(rect)
}
