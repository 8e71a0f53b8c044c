//! The checksums of TCP and UDP (RFC 1071) in Ethernet frames: found, verified and begun.

/// Offsets in an Ethernet frame.
const ETHERTYPE: usize = 12;
const NETWORK: usize = super::wire::ETHERNET_HEADER_LEN;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

const IPV6_HEADER_LEN: usize = 40;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// Extension headers of IPv6 behind which the packet goes on: hop-by-hop options, routing, destination options.
const EXTENSION_HEADERS: [u8; 3] = [0, 43, 60];

/// Which protocol a checksum is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// Where the checksum is in the header.
    fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// A TCP segment or a UDP datagram in a frame, that is whole: no fragment of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) protocol: Protocol,
    /// It is in an IPv6 packet, else in an IPv4 packet.
    pub(super) ipv6: bool,
    /// Where its header begins in the frame.
    pub(super) start: usize,
    /// Where the segment ends, which is before the end of a padded frame.
    pub(super) end: usize,
    /// The sum of the pseudo-header.
    pseudo: Sum,
}

/// What a frame holds, as far as checksums go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    Segment(Segment),
    /// Something else, such as a fragment or an echo request, which whoever takes it verifies.
    Other,
    /// It says that it holds a segment, but there can be none.
    Malformed,
}

impl Contents {
    /// Looks into a frame.
    #[inline]
    pub(super) fn of(frame: &[u8]) -> Self {
        match frame.get(ETHERTYPE..NETWORK) {
            Some(bytes) if *bytes == ETHERTYPE_IPV4 => Self::of_ipv4(frame),
            Some(bytes) if *bytes == ETHERTYPE_IPV6 => Self::of_ipv6(frame),
            _ => Self::Other,
        }
    }

    #[inline]
    fn of_ipv4(frame: &[u8]) -> Self {
        let Some(&[first, _, l0, l1, _, _, f0, f1, _, protocol]) = header(frame, NETWORK) else {
            return Self::Malformed;
        };
        let Some(protocol) = transport(protocol) else {
            return Self::Other;
        };
        // A reserved bit, "don't fragment", "more fragments" and an offset.
        if u16::from_be_bytes([f0, f1]) & 0x3fff != 0 {
            return Self::Other;
        }
        let start = NETWORK + usize::from(first & 15) * 4;
        let end = NETWORK + usize::from(u16::from_be_bytes([l0, l1]));
        match frame.get(NETWORK + 12..NETWORK + 20) {
            Some(addresses) if first >> 4 == 4 && first & 15 >= 5 => {
                Self::segment(frame, protocol, false, addresses, start, end)
            }
            _ => Self::Malformed,
        }
    }

    fn of_ipv6(frame: &[u8]) -> Self {
        let Some(&[_, _, _, _, l0, l1, mut next]) = header(frame, NETWORK) else {
            return Self::Malformed;
        };
        let mut start = NETWORK + IPV6_HEADER_LEN;
        let end = start + usize::from(u16::from_be_bytes([l0, l1]));
        // Each takes eight bytes at least, so there are no more than the frame has room for.
        while EXTENSION_HEADERS.contains(&next) {
            let Some(&[following, len]) = header(frame, start) else {
                return Self::Malformed;
            };
            next = following;
            start += (usize::from(len) + 1) * 8;
        }
        let Some(protocol) = transport(next) else {
            return Self::Other;
        };
        match frame.get(NETWORK + 8..NETWORK + IPV6_HEADER_LEN) {
            Some(addresses) => Self::segment(frame, protocol, true, addresses, start, end),
            None => Self::Malformed,
        }
    }

    #[inline]
    fn segment(
        frame: &[u8],
        protocol: Protocol,
        ipv6: bool,
        addresses: &[u8],
        start: usize,
        end: usize,
    ) -> Self {
        if end > frame.len() {
            return Self::Malformed;
        }
        let mut end = end;
        if protocol == Protocol::Udp {
            // The length that it has itself, which may be less than the packet's.
            let Some(&[_, _, _, _, l0, l1]) = header(frame, start) else {
                return Self::Malformed;
            };
            let len = usize::from(u16::from_be_bytes([l0, l1]));
            if start + len > end {
                return Self::Malformed;
            }
            end = start + len;
        }
        let field = start + protocol.checksum_offset();
        if field + 2 > end {
            return Self::Malformed;
        }
        let number = match protocol {
            Protocol::Tcp => PROTOCOL_TCP,
            Protocol::Udp => PROTOCOL_UDP,
        };
        let pseudo = Sum::default()
            .of(addresses)
            .number(number.into())
            .number(end - start);
        Self::Segment(Segment {
            protocol,
            ipv6,
            start,
            end,
            pseudo,
        })
    }

    /// Whether what is in `frame`, of which this was found, may be shown to whoever believes that its checksum is right.
    pub(super) fn is_credible(&self, frame: &[u8]) -> bool {
        match self {
            Self::Segment(segment) => segment.is_valid(frame),
            Self::Other => true,
            Self::Malformed => false,
        }
    }
}

impl Segment {
    /// Where the checksum is, from the beginning of the segment.
    #[inline]
    pub(super) fn checksum_offset(&self) -> usize {
        self.protocol.checksum_offset()
    }

    /// Whether the checksum is right. With IPv4 a datagram need not have one (RFC 768).
    fn is_valid(&self, frame: &[u8]) -> bool {
        let Some(bytes) = frame.get(self.start..self.end) else {
            return false;
        };
        if self.protocol == Protocol::Udp
            && bytes
                .get(self.checksum_offset()..)
                .is_some_and(|rest| rest.starts_with(&[0, 0]))
        {
            return !self.ipv6;
        }
        self.pseudo.of(bytes).fold() == u16::MAX
    }

    /// Writes the sum of the pseudo-header where the checksum is to be: whoever sums up the whole segment then gets the
    /// checksum.
    #[inline]
    pub(super) fn begin(&self, frame: &mut [u8]) {
        let field = frame.get_mut(self.start + self.checksum_offset()..);
        if let Some(field) = field.and_then(|rest| rest.first_chunk_mut()) {
            *field = self.pseudo.fold().to_be_bytes();
        }
    }

    /// Where the payload begins, if the header is whole.
    #[inline]
    pub(super) fn payload(&self, frame: &[u8]) -> Option<usize> {
        let len = match self.protocol {
            // The upper half of the byte, in words of four bytes.
            Protocol::Tcp => usize::from(frame.get(self.start + 12)? >> 4) * 4,
            Protocol::Udp => 8,
        };
        let payload = self.start + len;
        (len >= self.checksum_offset() + 2 && payload <= self.end).then_some(payload)
    }
}

/// Finishes a checksum that was begun: it is over everything from `start` on, and goes to `offset` from there.
pub(super) fn finish(frame: &mut [u8], start: usize, offset: usize) {
    let Some(bytes) = frame.get_mut(start..) else {
        return;
    };
    let sum = Sum::default().of(bytes).fold();
    if let Some(field) = bytes
        .get_mut(offset..)
        .and_then(|rest| rest.first_chunk_mut())
    {
        // 0 would mean that a datagram has none; 65535 is the same number in this arithmetic (RFC 768).
        let checksum = match !sum {
            0 => u16::MAX,
            checksum => checksum,
        };
        *field = checksum.to_be_bytes();
    }
}

fn transport(protocol: u8) -> Option<Protocol> {
    match protocol {
        PROTOCOL_TCP => Some(Protocol::Tcp),
        PROTOCOL_UDP => Some(Protocol::Udp),
        _ => None,
    }
}

/// The first bytes of the header at `start`.
#[inline]
fn header<const LEN: usize>(frame: &[u8], start: usize) -> Option<&[u8; LEN]> {
    frame.get(start..)?.first_chunk()
}

/// A ones' complement sum of 16-bit numbers, not folded yet, in the machine's own byte order: it does not matter for adding up,
/// so bytes need not be turned around (RFC 1071, section 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even place.
    #[inline]
    fn of(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut sum = self.0;
        for word in words {
            sum = add(sum, u64::from_ne_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            for (to, from) in last.iter_mut().zip(rest) {
                *to = *from;
            }
            sum = add(sum, u64::from_ne_bytes(last));
        }
        Self(sum)
    }

    /// Adds a number of up to 32 bits.
    #[inline]
    fn number(self, number: usize) -> Self {
        let number = (number as u32).to_be();
        Self(add(self.0, number.into()))
    }

    /// The sum as a 16-bit number.
    #[inline]
    fn fold(self) -> u16 {
        let fold = |sum: u64, bits: u32| (sum & ((1 << bits) - 1)) + (sum >> bits);
        // Twice each, for the carry of the first time.
        let sum = fold(fold(self.0, 32), 32);
        let sum = fold(fold(sum, 16), 16);
        let sum = fold(sum, 16);
        u16::from_be(sum as u16)
    }
}

/// Adds with the carry coming back in at the other end.
#[inline]
fn add(sum: u64, word: u64) -> u64 {
    let (sum, carry) = sum.overflowing_add(word);
    sum + u64::from(carry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    /// The plain way, number by number.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn a_sum_by_words_is_the_sum_by_numbers() {
        let mut bytes = Vec::new();
        for index in 0..600u32 {
            bytes.push((index.wrapping_mul(2_654_435_761) >> 24) as u8);
            assert_eq!(Sum::default().of(&bytes).fold(), plain(&bytes), "{index}");
        }
        // As many carries as there can be.
        let ones = vec![0xff; 65_535];
        assert_eq!(Sum::default().of(&ones).fold(), plain(&ones));
        assert_eq!(Sum::default().of(&[0; 65_535]).fold(), 0);
        let number = Sum::default().number(0x0001_fffe).fold();
        assert_eq!(number, plain(&[0, 1, 0xff, 0xfe]));
    }

    /// A datagram of RFC 768's kind, captured: 10.0.2.15 to 10.0.2.2, and its checksum as Linux made it.
    fn datagram() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend(ETHERTYPE_IPV4);
        frame.extend([0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, PROTOCOL_UDP, 0, 0]);
        frame.extend([10, 0, 2, 15, 10, 0, 2, 2]);
        frame.extend([0xc0, 0, 0, 7, 0, 11, 0, 0, b'a', b'b', b'c']);
        frame
    }

    fn segment(frame: &[u8]) -> Segment {
        match Contents::of(frame) {
            Contents::Segment(segment) => segment,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_checksum_begun_and_finished_is_valid() {
        let mut frame = datagram();
        let found = segment(&frame);
        assert_eq!((found.start, found.end, found.ipv6), (34, 45, false));
        assert_eq!(found.payload(&frame), Some(42));
        found.begin(&mut frame);
        // The sum of 0a00, 020f, 0a00, 0202, 0011 and 000b.
        assert_eq!(frame[40..42], [0x18, 0x2d]);
        assert!(!Contents::of(&frame).is_credible(&frame));
        finish(&mut frame, 34, 6);
        assert!(Contents::of(&frame).is_credible(&frame));
        // Padding is not part of it.
        frame.extend([0xaa; 15]);
        assert!(Contents::of(&frame).is_credible(&frame));
        for bit in 34 * 8..45 * 8 {
            let mut bent = frame.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            assert!(!Contents::of(&bent).is_credible(&bent), "bit {bit}");
        }
    }

    #[test]
    fn a_datagram_without_a_checksum_is_one_of_ipv4() {
        let frame = datagram();
        assert!(Contents::of(&frame).is_credible(&frame));
        let mut six = vec![0; 12];
        six.extend(ETHERTYPE_IPV6);
        six.extend([0x60, 0, 0, 0, 0, 11, PROTOCOL_UDP, 64]);
        six.extend([7; 32]);
        six.extend(&frame[34..]);
        assert!(!Contents::of(&six).is_credible(&six));
        let found = segment(&six);
        found.begin(&mut six);
        finish(&mut six, found.start, found.checksum_offset());
        assert!(Contents::of(&six).is_credible(&six));
    }

    #[test]
    fn segments_are_found_behind_options_and_extension_headers() {
        let mut six = vec![0; 12];
        six.extend(ETHERTYPE_IPV6);
        six.extend([0x60, 0, 0, 0, 0, 24 + 16 + 20, 0, 64]);
        six.extend([7; 32]);
        six.extend([60, 1]);
        six.extend([0; 14]);
        six.extend([43, 0, 0, 0, 0, 0, 0, 0]);
        six.extend([PROTOCOL_TCP, 1]);
        six.extend([0; 14]);
        six.extend([0; 12]);
        six.extend([0x50, 0, 0, 0, 0, 0, 0, 0]);
        let found = segment(&six);
        assert_eq!(
            (found.protocol, found.ipv6, found.start, found.end),
            (Protocol::Tcp, true, 54 + 40, 54 + 60)
        );
        assert_eq!(found.payload(&six), Some(114));
        found.begin(&mut six);
        finish(&mut six, found.start, found.checksum_offset());
        assert!(Contents::of(&six).is_credible(&six));
        six[54 + 50] ^= 1;
        assert!(!Contents::of(&six).is_credible(&six));

        let mut four = datagram();
        four[14] = 0x46;
        four[17] += 4;
        four.splice(34..34, [1, 1, 1, 0]);
        assert_eq!(segment(&four).start, 38);
    }

    #[test]
    fn what_holds_no_segment_is_told_from_what_lies() {
        let frame = datagram();
        let with = |place: usize, value: u8| {
            let mut frame = frame.clone();
            frame[place] = value;
            Contents::of(&frame)
        };
        // Another protocol, a fragment, the first of several.
        for (place, value) in [(12, 7), (23, 1), (21, 8), (20, 0x20)] {
            assert_eq!(with(place, value), Contents::Other, "{place}");
        }
        // No version, header too short, packet too long or too short, datagram too long, too short.
        for (place, value) in [
            (14, 0x55),
            (14, 0x44),
            (17, 32),
            (17, 27),
            (39, 12),
            (39, 7),
        ] {
            assert_eq!(with(place, value), Contents::Malformed, "{place} {value}");
        }
        for len in 0..frame.len() {
            let cut = &frame[..len];
            let contents = Contents::of(cut);
            assert!(!matches!(contents, Contents::Segment(_)), "{len}");
            assert_eq!(contents.is_credible(cut), len < 14, "{len}");
        }
        let mut six = vec![0; 12];
        six.extend(ETHERTYPE_IPV6);
        six.extend([0x60, 0, 0, 0, 0xff, 0xff, 0, 64]);
        six.extend([0; 32]);
        six.extend([0; 2000]);
        // Hop-by-hop options to the end of it.
        assert_eq!(Contents::of(&six), Contents::Malformed);
    }
}
