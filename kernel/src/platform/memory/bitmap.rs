//! Which frames of one run of memory are free: a bit per frame, set while it is taken.

/// The frames of one run of memory, numbered from 0.
pub struct Bitmap<'a> {
    words: &'a mut [u64],
    frames: usize,
    free: usize,
    /// Where the next search starts: frames below were taken when it was set.
    hint: usize,
}

impl<'a> Bitmap<'a> {
    /// Words needed for this many frames.
    pub const fn words_for(frames: usize) -> usize {
        frames.div_ceil(64)
    }

    /// A bitmap of free frames. Uses as many frames as `words` has bits for, if that is fewer.
    pub fn new(words: &'a mut [u64], frames: usize) -> Self {
        let frames = frames.min(words.len() * 64);
        words.fill(0);
        Self {
            words,
            frames,
            free: frames,
            hint: 0,
        }
    }

    /// Frames not taken.
    pub fn free_frames(&self) -> usize {
        self.free
    }

    /// All frames, taken or not.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Takes `count` frames in a row and returns the first, a number that is `phase` modulo `align` (a power of two).
    pub fn allocate(&mut self, count: usize, align: usize, phase: usize) -> Option<usize> {
        if count == 0 || count > self.free {
            return None;
        }
        let found = self
            .search(self.hint, count, align, phase)
            .or_else(|| self.search(0, count, align, phase))?;
        self.set(found, found + count, true);
        self.free -= count;
        if found == self.hint || count == 1 {
            self.hint = found + count;
        }
        Some(found)
    }

    /// Gives frames back. Returns false, and changes nothing, unless all of them were taken.
    pub fn release(&mut self, first: usize, count: usize) -> bool {
        let Some(end) = first.checked_add(count).filter(|&end| end <= self.frames) else {
            return false;
        };
        if !parts(first, end).all(|(index, part)| self.taken(index, part) == part) {
            return false;
        }
        self.set(first, end, false);
        self.free += count;
        self.hint = self.hint.min(first);
        true
    }

    fn search(&self, from: usize, count: usize, align: usize, phase: usize) -> Option<usize> {
        let aligned = |frame: usize| {
            let beyond = frame.wrapping_sub(phase) & (align - 1);
            if beyond == 0 {
                frame
            } else {
                frame + (align - beyond)
            }
        };
        let mut start = aligned(from);
        while start + count <= self.frames {
            match self.last_taken(start, start + count) {
                None => return Some(start),
                Some(taken) => start = aligned(self.next_free(taken + 1)?),
            }
        }
        None
    }

    fn next_free(&self, from: usize) -> Option<usize> {
        let mut index = from / 64;
        let mut taken = self.words.get(index)? | !(u64::MAX << (from % 64));
        while taken == u64::MAX {
            index += 1;
            taken = *self.words.get(index)?;
        }
        Some(index * 64 + taken.trailing_ones() as usize)
    }

    /// The last of the frames in `first..end` that is taken.
    fn last_taken(&self, first: usize, end: usize) -> Option<usize> {
        let taken = parts(first, end).map(|(index, part)| (index, self.taken(index, part)));
        let (index, taken) = taken.rev().find(|(_, taken)| *taken != 0)?;
        Some(index * 64 + taken.ilog2() as usize)
    }

    /// Which bits of `part` are taken in a word.
    fn taken(&self, index: usize, part: u64) -> u64 {
        self.words.get(index).map_or(part, |word| word & part)
    }

    fn set(&mut self, first: usize, end: usize, taken: bool) {
        for (index, part) in parts(first, end) {
            if let Some(word) = self.words.get_mut(index) {
                *word = if taken { *word | part } else { *word & !part };
            }
        }
    }
}

/// The frames in `first..end` word by word: which word, and which of its bits.
fn parts(first: usize, end: usize) -> impl DoubleEndedIterator<Item = (usize, u64)> {
    (first / 64..end.div_ceil(64)).map(move |index| {
        let start = index * 64;
        // Both are less than 64, as the range reaches the word.
        let below = first.saturating_sub(start);
        let above = (start + 64).saturating_sub(end);
        (index, u64::MAX << below & u64::MAX >> above)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn takes_every_frame_once_and_no_more() {
        let mut words = [0; 3];
        let mut bitmap = Bitmap::new(&mut words, 130);
        let mut taken: Vec<_> = core::iter::from_fn(|| bitmap.allocate(1, 1, 0)).collect();
        taken.sort_unstable();
        assert_eq!(taken, (0..130).collect::<Vec<_>>());
        assert_eq!(bitmap.free_frames(), 0);
    }

    #[test]
    fn runs_are_contiguous_aligned_and_disjoint() {
        let mut words = [0; 4];
        let mut bitmap = Bitmap::new(&mut words, 256);
        assert_eq!(bitmap.allocate(1, 1, 0), Some(0));
        // Frame n stands for physical frame n + 5 here: alignment counts from the physical frame.
        let run = bitmap.allocate(70, 8, 8 - 5).unwrap();
        assert_eq!((run + 5) % 8, 0);
        assert!(run >= 1);
        let other = bitmap.allocate(64, 1, 0).unwrap();
        assert!(other + 64 <= run || other >= run + 70);
        assert_eq!(bitmap.allocate(200, 1, 0), None);
    }

    #[test]
    fn a_hole_too_small_is_passed_over_and_used_later() {
        let mut words = [0; 2];
        let mut bitmap = Bitmap::new(&mut words, 128);
        assert_eq!(bitmap.allocate(128, 1, 0), Some(0));
        assert!(bitmap.release(10, 2));
        assert!(bitmap.release(100, 20));
        assert_eq!(bitmap.allocate(3, 1, 0), Some(100));
        assert_eq!(bitmap.allocate(2, 1, 0), Some(10));
    }

    /// Every range of a few words is taken, found again and given back, and nothing beside it.
    #[test]
    fn a_range_of_frames_is_those_frames() {
        const FRAMES: usize = 200;
        for first in 0..FRAMES {
            for end in first + 1..=FRAMES {
                let mut words = [0; 4];
                let mut bitmap = Bitmap::new(&mut words, FRAMES);
                bitmap.set(first, end, true);
                for frame in 0..FRAMES {
                    let taken = (first..end).contains(&frame);
                    assert_eq!(bitmap.last_taken(frame, frame + 1).is_some(), taken);
                }
                assert_eq!(bitmap.last_taken(0, FRAMES), Some(end - 1));
                assert_eq!(bitmap.last_taken(first, end), Some(end - 1));
                assert_eq!(bitmap.last_taken(0, first), None);
                assert_eq!(bitmap.last_taken(end, FRAMES), None);
                bitmap.set(first, end, false);
                assert_eq!(bitmap.last_taken(0, FRAMES), None);
            }
        }
    }

    #[test]
    fn a_release_of_what_is_not_taken_is_refused() {
        let mut words = [0; 1];
        let mut bitmap = Bitmap::new(&mut words, 64);
        assert_eq!(bitmap.allocate(4, 1, 0), Some(0));
        assert!(!bitmap.release(2, 4));
        assert!(!bitmap.release(60, 10));
        assert!(!bitmap.release(usize::MAX, 2));
        assert_eq!(bitmap.free_frames(), 60);
        assert!(bitmap.release(0, 4));
        assert!(!bitmap.release(0, 4));
    }
}
