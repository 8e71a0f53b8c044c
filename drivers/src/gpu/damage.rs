//! Rectangles, and which of them were drawn on since they were last sent.

use core::fmt;

use arrayvec::ArrayVec;

/// A width and a height in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Size {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
}

impl Size {
    /// `width` by `height`.
    pub const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// Number of pixels.
    pub const fn area(self) -> u64 {
        self.width as u64 * self.height as u64
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// A rectangle of pixels; (0, 0) is top left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rect {
    /// The first column.
    pub x: u32,
    /// The first row.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Rect {
    /// `width` by `height` pixels from (`x`, `y`).
    pub const fn new(x: u32, y: u32, width: u32, height: u32) -> Self {
        Self {
            x,
            y,
            width,
            height,
        }
    }

    /// `size` pixels from (0, 0).
    pub const fn of(size: Size) -> Self {
        Self::new(0, 0, size.width, size.height)
    }

    /// Width and height.
    pub const fn size(self) -> Size {
        Size::new(self.width, self.height)
    }

    /// Number of pixels.
    pub const fn area(self) -> u64 {
        self.size().area()
    }

    /// Whether there is no pixel in it.
    pub const fn is_empty(self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// The column behind the last.
    const fn right(self) -> u32 {
        self.x.saturating_add(self.width)
    }

    /// The row below the last.
    const fn bottom(self) -> u32 {
        self.y.saturating_add(self.height)
    }

    /// Whether all of `other` is inside.
    pub const fn contains(self, other: Self) -> bool {
        self.x <= other.x
            && self.y <= other.y
            && other.right() <= self.right()
            && other.bottom() <= self.bottom()
    }

    /// What is in both.
    pub fn intersection(self, other: Self) -> Self {
        let (x, y) = (self.x.max(other.x), self.y.max(other.y));
        let width = self.right().min(other.right()).saturating_sub(x);
        let height = self.bottom().min(other.bottom()).saturating_sub(y);
        Self::new(x, y, width, height)
    }

    /// The smallest rectangle around both; an empty one counts for nothing.
    pub fn union(self, other: Self) -> Self {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let width = self.right().max(other.right()) - x;
        let height = self.bottom().max(other.bottom()) - y;
        Self::new(x, y, width, height)
    }
}

impl fmt::Display for Rect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}+{}", self.size(), self.x, self.y)
    }
}

/// What was drawn on: a few rectangles that together cover it.
///
/// Two are made one where that makes no more pixels to send, or when there would be more than [`Self::MAX_RECTS`].
#[derive(Clone, Debug, Default)]
pub struct Damage {
    /// One more than they may be, for the moment before two are made one.
    rects: ArrayVec<Rect, { Self::MAX_RECTS + 1 }>,
}

impl Damage {
    /// So that a screen's damage fits into the control queue as a transfer and a flush each.
    pub const MAX_RECTS: usize = 8;

    /// Adds `rect`.
    pub fn add(&mut self, rect: Rect) {
        if rect.is_empty() {
            return;
        }
        let mut rect = rect;
        // Every round has one rectangle less, so this ends.
        while let Some(index) = self.rects.iter().position(|other| fits(*other, rect)) {
            rect = rect.union(self.rects.swap_remove(index));
        }
        self.rects.push(rect);
        if self.rects.len() > Self::MAX_RECTS {
            self.merge_two();
        }
    }

    /// Makes those two one that cost the fewest pixels more.
    fn merge_two(&mut self) {
        let mut best: Option<(u64, usize, Rect)> = None;
        for (first, a) in self.rects.iter().enumerate() {
            for b in self.rects.iter().skip(first + 1) {
                let union = a.union(*b);
                let cost = union.area().saturating_sub(a.area() + b.area());
                if best.is_none_or(|(least, ..)| cost < least) {
                    best = Some((cost, first, union));
                }
            }
        }
        if let Some((_, first, union)) = best {
            self.rects.swap_remove(first);
            // What it swallows, its other half among it, goes.
            self.rects.retain(|rect| !union.contains(*rect));
            self.add(union);
        }
    }

    /// The rectangles.
    pub fn rects(&self) -> &[Rect] {
        &self.rects
    }

    /// Whether nothing was drawn.
    pub fn is_empty(&self) -> bool {
        self.rects.is_empty()
    }

    /// Pixels in all of them.
    pub fn area(&self) -> u64 {
        self.rects.iter().map(|rect| rect.area()).sum()
    }

    /// Adds all that `other` has.
    pub fn add_all(&mut self, other: &Self) {
        for rect in &other.rects {
            self.add(*rect);
        }
    }

    /// Begins anew; returns what there was.
    pub fn take(&mut self) -> Self {
        core::mem::take(self)
    }
}

/// Whether one rectangle around both has no more pixels than the two.
fn fits(a: Rect, b: Rect) -> bool {
    a.union(b).area() <= a.area() + b.area()
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn rectangles_do_not_overflow() {
        let huge = Rect::new(u32::MAX, u32::MAX, u32::MAX, u32::MAX);
        assert_eq!(huge.area(), u64::from(u32::MAX) * u64::from(u32::MAX));
        let screen = Rect::new(0, 0, 100, 100);
        assert!(!screen.contains(huge));
        assert!(screen.intersection(huge).is_empty());
        assert!(huge.union(screen).contains(screen));
        assert!(!screen.contains(Rect::new(99, 0, 2, 1)));
    }

    #[test]
    fn damage_far_apart_stays_apart_and_damage_that_adjoins_becomes_one() {
        let mut damage = Damage::default();
        damage.add(Rect::new(0, 0, 10, 10));
        damage.add(Rect::new(90, 90, 10, 10));
        damage.add(Rect::new(0, 0, 0, 5));
        assert_eq!((damage.rects().len(), damage.area()), (2, 200));
        damage.add(Rect::new(10, 0, 10, 10));
        assert_eq!((damage.rects().len(), damage.area()), (2, 300));
        damage.add(Rect::new(2, 2, 3, 3));
        assert_eq!(damage.area(), 300);
        // A small gap is a gap.
        damage.add(Rect::new(25, 0, 10, 10));
        assert_eq!((damage.rects().len(), damage.area()), (3, 400));
        let taken = damage.take();
        assert!(damage.is_empty());
        damage.add_all(&taken);
        assert_eq!(damage.area(), 400);
    }

    #[test]
    fn however_much_is_drawn_all_of_it_is_covered_by_few_rectangles() {
        let mut seed = 1u64;
        let mut next = |below: u32| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
            (seed >> 33) as u32 % below
        };
        for _ in 0..50 {
            let mut damage = Damage::default();
            let mut drawn = Vec::new();
            for _ in 0..60 {
                let rect = Rect::new(next(500), next(500), 1 + next(60), 1 + next(60));
                damage.add(rect);
                drawn.push(rect);
                assert!(damage.rects().len() <= Damage::MAX_RECTS);
            }
            for rect in drawn {
                for (x, y) in [
                    (rect.x, rect.y),
                    (rect.right() - 1, rect.bottom() - 1),
                    (rect.x, rect.bottom() - 1),
                    (rect.right() - 1, rect.y),
                ] {
                    let pixel = Rect::new(x, y, 1, 1);
                    assert!(damage.rects().iter().any(|rect| rect.contains(pixel)));
                }
            }
        }
    }
}
