//! Output that waits for the port: a ring of bytes that forgets the oldest lines when it is full, and says so in their
//! place.

use core::fmt::Write;

/// Bytes of the longest notice: a line end, 20 digits, and the words around them.
const NOTICE_BYTES: usize = 64;

/// A ring of `N` bytes of output.
pub(super) struct Queue<const N: usize> {
    bytes: [u8; N],
    start: usize,
    length: usize,
    /// Bytes forgotten so far.
    lost: u64,
    /// Those of them that no notice tells of yet.
    untold: u64,
    /// What is sent in place of the bytes forgotten, and how much of it is sent already.
    notice: heapless::String<NOTICE_BYTES>,
    noticed: usize,
    /// What was sent last does not end a line.
    in_line: bool,
}

impl<const N: usize> Queue<N> {
    pub(super) const fn new() -> Self {
        Self {
            bytes: [0; N],
            start: 0,
            length: 0,
            lost: 0,
            untold: 0,
            notice: heapless::String::new(),
            noticed: 0,
            in_line: false,
        }
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Bytes forgotten so far.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Appends output. If there is no room for it, the oldest lines are forgotten.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let cut = bytes.len().saturating_sub(N);
        let (cut, bytes) = bytes.split_at(cut);
        self.forget(cut.len() as u64);
        self.make_room(bytes.len());
        for byte in bytes {
            let place = (self.start + self.length) % N;
            if let Some(place) = self.bytes.get_mut(place) {
                *place = *byte;
                self.length += 1;
            }
        }
    }

    /// What must be sent next; empty if nothing waits.
    pub(super) fn front(&mut self) -> &[u8] {
        if self.noticed == self.notice.len() && self.untold > 0 {
            let line_end = if self.in_line { "\r\n" } else { "" };
            self.notice.clear();
            self.noticed = 0;
            // It fits.
            let _ = write!(
                self.notice,
                "{line_end}... {} bytes of output lost\r\n",
                self.untold
            );
            self.untold = 0;
        }
        match self.notice.as_bytes().get(self.noticed..) {
            None | Some([]) => {
                let end = N.min(self.start + self.length);
                self.bytes.get(self.start..end).unwrap_or_default()
            }
            Some(notice) => notice,
        }
    }

    /// So many bytes of [`front`](Self::front) were sent.
    pub(super) fn sent(&mut self, count: usize) {
        let last = count.checked_sub(1).and_then(|last| self.front().get(last));
        let Some(last) = last else { return };
        self.in_line = *last != b'\n';
        if self.noticed < self.notice.len() {
            self.noticed += count;
        } else {
            self.advance(count);
        }
    }

    /// Forgets everything that waits.
    pub(super) fn clear(&mut self) {
        self.forget(self.length as u64);
        self.advance(self.length);
    }

    fn make_room(&mut self, wanted: usize) {
        while N - self.length < wanted {
            let line = (0..self.length).find(|index| self.at(*index) == b'\n');
            // With no line end in it, no more goes than must, but no character is cut.
            let mut count = match line {
                Some(end) => end + 1,
                None => wanted - (N - self.length),
            };
            while count < self.length && is_inside_character(self.at(count)) {
                count += 1;
            }
            self.forget(count as u64);
            self.advance(count);
        }
    }

    fn forget(&mut self, count: u64) {
        self.lost += count;
        self.untold += count;
    }

    fn at(&self, index: usize) -> u8 {
        let place = (self.start + index) % N;
        self.bytes.get(place).copied().unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        let count = count.min(self.length);
        self.start = (self.start + count) % N;
        self.length -= count;
    }
}

/// Whether a byte of UTF-8 goes on with a character.
fn is_inside_character(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use alloc::vec::Vec;

    use super::*;

    /// Sends everything, `piece` bytes at a time.
    fn send<const N: usize>(queue: &mut Queue<N>, piece: usize) -> String {
        let mut sent = Vec::new();
        loop {
            let front = queue.front();
            let count = front.len().min(piece);
            if count == 0 {
                return String::from_utf8(sent).unwrap();
            }
            sent.extend_from_slice(&front[..count]);
            queue.sent(count);
        }
    }

    #[test]
    fn what_fits_comes_out_as_it_went_in() {
        for piece in 1..=16 {
            let mut queue = Queue::<16>::new();
            for number in 0..40 {
                let text = alloc::format!("line {number}\r\n");
                queue.push(text.as_bytes());
                assert_eq!(send(&mut queue, piece), text);
            }
            assert_eq!((queue.len(), queue.lost()), (0, 0));
        }
    }

    #[test]
    fn the_oldest_lines_go_and_are_counted_and_the_place_is_shown() {
        for piece in 1..=16 {
            let mut queue = Queue::<16>::new();
            for line in [b"111\r\n", b"222\r\n", b"333\r\n", b"444\r\n"] {
                queue.push(line);
            }
            assert_eq!(queue.lost(), 5);
            let shown = "... 5 bytes of output lost\r\n222\r\n333\r\n444\r\n";
            assert_eq!(send(&mut queue, piece), shown);
            // It is said once.
            queue.push(b"555\r\n");
            assert_eq!(send(&mut queue, piece), "555\r\n");
            assert_eq!(queue.lost(), 5);
        }
    }

    #[test]
    fn the_notice_stands_on_a_line_of_its_own() {
        let mut queue = Queue::<16>::new();
        queue.push(b"11111\r\n222\r\n");
        queue.sent(2);
        queue.push(b"3333333333\r\n");
        let shown = "\r\n... 10 bytes of output lost\r\n3333333333\r\n";
        assert_eq!(send(&mut queue, 16), shown);
    }

    #[test]
    fn what_is_lost_while_the_notice_is_sent_gets_a_notice_too() {
        let mut queue = Queue::<8>::new();
        queue.push(b"111\r\n");
        queue.push(b"222\r\n");
        assert_eq!(&queue.front()[..4], b"... ");
        queue.sent(4);
        queue.push(b"333\r\n");
        let shown = "5 bytes of output lost\r\n... 5 bytes of output lost\r\n333\r\n";
        assert_eq!(send(&mut queue, 3), shown);
        assert_eq!(queue.lost(), 10);
    }

    #[test]
    fn a_line_longer_than_the_queue_keeps_its_end_and_its_characters() {
        let mut queue = Queue::<8>::new();
        queue.push("äbcdefgh".as_bytes());
        queue.push("xy".as_bytes());
        // 11 bytes: three must go, and the first character has two.
        assert_eq!(queue.lost(), 3);
        assert_eq!(
            send(&mut queue, 8),
            "... 3 bytes of output lost\r\ncdefghxy"
        );
        let mut queue = Queue::<8>::new();
        queue.push("aäbcdef".as_bytes());
        queue.push("xy".as_bytes());
        assert_eq!(send(&mut queue, 8), "... 3 bytes of output lost\r\nbcdefxy");
    }

    #[test]
    fn what_is_given_up_is_counted() {
        let mut queue = Queue::<8>::new();
        queue.push(b"12345");
        queue.clear();
        assert_eq!((queue.len(), queue.lost()), (0, 5));
        assert_eq!(send(&mut queue, 8), "... 5 bytes of output lost\r\n");
    }
}
