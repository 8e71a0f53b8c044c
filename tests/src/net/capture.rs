//! Reading back what went over the wire.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use etherparse::{SlicedPacket, TransportSlice};
use pcap_file::pcap::PcapReader;

/// All frames of a pcap file, in order.
pub fn frames(path: &Path) -> Result<Vec<Vec<u8>>> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("opening {name}"))?;
    let mut reader = PcapReader::new(file).with_context(|| format!("reading {name}"))?;
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        frames.push(
            packet
                .with_context(|| format!("reading {name}"))?
                .data
                .into_owned(),
        );
    }
    Ok(frames)
}

/// The payload of a UDP datagram between these ports, if the frame is one.
pub fn udp_payload(frame: &[u8], source: u16, destination: u16) -> Option<&[u8]> {
    match SlicedPacket::from_ethernet(frame).ok()?.transport? {
        TransportSlice::Udp(udp)
            if udp.source_port() == source && udp.destination_port() == destination =>
        {
            Some(udp.payload())
        }
        _ => None,
    }
}

/// A TCP segment or UDP datagram in a captured frame, that is no fragment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// The sender's hardware address.
    pub from: [u8; 6],
    /// It is in an IPv6 packet.
    pub ipv6: bool,
    /// It is one of TCP.
    pub tcp: bool,
    /// The length of the frame. With more than the MTU it stands for several.
    pub len: usize,
    /// What its checksum is.
    pub checksum: Checksum,
}

impl Segment {
    /// Whether its checksum is neither right nor will be.
    pub fn is_bad(&self) -> bool {
        matches!(self.checksum, Checksum::Wrong | Checksum::None)
    }
}

/// What is where a checksum should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The checksum.
    Whole,
    /// The sum of the pseudo-header, as it is while the segment is on its way to who finishes it.
    Partial,
    /// A datagram has none.
    None,
    /// Nothing that makes sense.
    Wrong,
}

/// The segments of captured frames. Frames that are longer than was captured are left out.
pub fn segments(frames: &[Vec<u8>]) -> Vec<Segment> {
    frames.iter().filter_map(|frame| segment(frame)).collect()
}

fn segment(frame: &[u8]) -> Option<Segment> {
    let number = |at: usize| {
        let bytes = frame.get(at..at + 2)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    };
    let (ipv6, protocol, addresses, start, end) = match number(12)? {
        0x0800 if number(20)? & 0x3fff == 0 => {
            let start = 14 + usize::from(frame.get(14)? & 15) * 4;
            (
                false,
                *frame.get(23)?,
                26..34,
                start,
                14 + usize::from(number(16)?),
            )
        }
        0x86dd => (
            true,
            *frame.get(20)?,
            22..54,
            54,
            54 + usize::from(number(18)?),
        ),
        _ => return None,
    };
    let field = match protocol {
        6 => 16,
        17 => 6,
        _ => return None,
    };
    let segment = frame.get(start..end)?;
    let len = segment.len() as u32;
    let pseudo = sum(&[frame.get(addresses)?, &[0, protocol], &len.to_be_bytes()]);
    let there = number(start + field)?;
    let mut blank = segment.to_vec();
    blank.get_mut(field..field + 2)?.fill(0);
    // 0 and 65535 are the same number in this arithmetic.
    let whole = !sum(&[&pseudo.to_be_bytes(), &blank]);
    let checksum = match there {
        0 if protocol == 17 => Checksum::None,
        _ if there == whole || there == !whole && matches!(there, 0 | 0xffff) => Checksum::Whole,
        _ if there == pseudo => Checksum::Partial,
        _ => Checksum::Wrong,
    };
    Some(Segment {
        from: frame.get(6..12)?.try_into().ok()?,
        ipv6,
        tcp: protocol == 6,
        len: frame.len(),
        checksum,
    })
}

/// RFC 1071, of parts that are of even length but for the last.
fn sum(parts: &[&[u8]]) -> u16 {
    let pairs = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = pairs
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_judged_as_what_it_is() {
        // 10.0.2.15 to 10.0.2.2, "abc".
        let mut frame = vec![7; 12];
        frame.extend([8, 0, 0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0, 0]);
        frame.extend([10, 0, 2, 15, 10, 0, 2, 2, 0xc0, 0, 0, 7, 0, 11, 0, 0]);
        frame.extend(*b"abc");
        let pseudo = 0x0a00 + 0x020f + 0x0a00 + 0x0202 + 17 + 11;
        let rest = 0xc000 + 7 + 11 + 0x6162 + 0x6300;
        let whole: u32 = pseudo + rest;
        let whole = !((whole & 0xffff) + (whole >> 16)) as u16;
        for (there, checksum) in [
            (whole, Checksum::Whole),
            (pseudo as u16, Checksum::Partial),
            (0, Checksum::None),
            (whole ^ 1, Checksum::Wrong),
            (pseudo as u16 + 1, Checksum::Wrong),
        ] {
            frame[40..42].copy_from_slice(&there.to_be_bytes());
            let found = segment(&frame).expect("a datagram");
            assert_eq!((found.checksum, found.from), (checksum, [7; 6]));
            assert_eq!((found.ipv6, found.len), (false, 45));
        }
        frame[20] = 0x20;
        assert!(segment(&frame).is_none(), "a fragment");
    }
}
