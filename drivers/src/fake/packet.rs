//! [`Packet`]: a frame with its `struct virtio_net_hdr` (spec 5.1.6), and what an honest device makes of it.

use std::string::String;
use std::vec::Vec;

/// The length of the header, as every modern device has it.
const HEADER: usize = 12;
/// Where the IP packet begins in a frame.
const IP: usize = 14;

/// A frame on its way between driver and device: `struct virtio_net_hdr`, field by field, and the bytes behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// 1: the checksum is unfinished. 2: it was verified.
    pub flags: u8,
    /// 0: one frame. 1, 4, 5: it stands for several, of TCP over IPv4, of TCP over IPv6, of UDP.
    pub gso_type: u8,
    /// The length of the headers that each of them gets.
    pub hdr_len: u16,
    /// The most bytes behind those.
    pub gso_size: u16,
    /// From where on the checksum is.
    pub csum_start: u16,
    /// Where it belongs, from there.
    pub csum_offset: u16,
    /// How many receive buffers it is spread over; set when it is received.
    pub num_buffers: u16,
    /// Ethernet header and all.
    pub frame: Vec<u8>,
}

impl Packet {
    /// A frame as it is on a wire.
    pub fn plain(frame: impl Into<Vec<u8>>) -> Self {
        Self {
            frame: frame.into(),
            ..Self::default()
        }
    }

    /// Reads what a driver sent; `None` if it is shorter than the header.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let number = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        Some(Self {
            flags: header[0],
            gso_type: header[1],
            hdr_len: number(2),
            gso_size: number(4),
            csum_start: number(6),
            csum_offset: number(8),
            num_buffers: number(10),
            frame: bytes[HEADER..].to_vec(),
        })
    }

    /// As a device writes it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = std::vec![self.flags, self.gso_type];
        for number in [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(&self.frame);
        bytes
    }
}

/// The frames that go out to the wire for one that was sent, or what is wrong with it. `hdr_len` is taken to be exact, as
/// GUEST_HDRLEN has it.
pub(super) fn wire(packet: &Packet) -> Result<Vec<Vec<u8>>, String> {
    let mut frame = packet.frame.clone();
    if packet.flags & 1 == 0 {
        return match packet.gso_type {
            0 => Ok(std::vec![frame]),
            _ => Err("segments without a checksum".into()),
        };
    }
    let start = usize::from(packet.csum_start);
    let field = start + usize::from(packet.csum_offset);
    if start < IP || field + 2 > frame.len() {
        return Err("a checksum outside the frame".into());
    }
    let ipv6 = frame[12..14] == [0x86, 0xdd];
    if start < IP + if ipv6 { 40 } else { 20 } {
        return Err("a checksum in the header of IP".into());
    }
    let sum = checksum(&[&frame[start..]]);
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    let whole = transport_checksum(&frame, ipv6, start);
    if whole != 0 {
        return Err(std::format!("the checksum is off by {whole:#x}"));
    }
    if packet.gso_type == 0 {
        return Ok(std::vec![frame]);
    }
    let protocol = if ipv6 { frame[20] } else { frame[23] };
    let expected = match (protocol, ipv6) {
        (6, false) => 1,
        (6, true) => 4,
        (17, _) => 5,
        _ => return Err("neither TCP nor UDP".into()),
    };
    let headers = match protocol {
        6 => start + usize::from(frame[start + 12] >> 4) * 4,
        _ => start + 8,
    };
    if packet.gso_type != expected {
        return Err("another type of segments than the frame has".into());
    }
    if usize::from(packet.hdr_len) != headers {
        return Err("headers of another length".into());
    }
    if packet.gso_size == 0 || frame.len() <= headers + usize::from(packet.gso_size) {
        return Err("nothing to cut".into());
    }
    let (headers, payload) = frame.split_at(headers);
    let size = usize::from(packet.gso_size);
    let last = payload.len().div_ceil(size) - 1;
    let segments = payload.chunks(size).enumerate();
    Ok(segments
        .map(|(index, part)| {
            let mut segment = headers.to_vec();
            segment.extend(part);
            let mut put = |at: usize, value: u16| {
                segment[at..at + 2].copy_from_slice(&value.to_be_bytes());
            };
            let get = |at: usize| u16::from_be_bytes([headers[at], headers[at + 1]]);
            let len = headers.len() + part.len();
            if ipv6 {
                put(IP + 4, (len - IP - 40) as u16);
            } else {
                put(IP + 2, (len - IP) as u16);
                put(IP + 4, get(IP + 4).wrapping_add(index as u16));
                put(IP + 10, 0);
            }
            put(field, 0);
            if protocol == 17 {
                put(start + 4, (len - start) as u16);
            } else {
                let sequence = [start + 4, start + 6].map(get);
                let sequence = u32::from(sequence[0]) << 16 | u32::from(sequence[1]);
                let sequence = sequence.wrapping_add((index * size) as u32);
                put(start + 4, (sequence >> 16) as u16);
                put(start + 6, sequence as u16);
                if index < last {
                    // FIN and PSH are for the last one.
                    put(start + 12, get(start + 12) & !9);
                }
            }
            if !ipv6 {
                let sum = checksum(&[&segment[IP..start]]);
                segment[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
            }
            let sum = transport_checksum(&segment, ipv6, start);
            segment[field..field + 2].copy_from_slice(&sum.to_be_bytes());
            segment
        })
        .collect())
}

/// The checksum of a segment with its pseudo-header; 0 if there is one and it is right.
fn transport_checksum(frame: &[u8], ipv6: bool, start: usize) -> u16 {
    let len = ((frame.len() - start) as u32).to_be_bytes();
    let (addresses, protocol) = match ipv6 {
        true => (IP + 8..IP + 40, frame[IP + 6]),
        false => (IP + 12..IP + 20, frame[IP + 9]),
    };
    checksum(&[&frame[addresses], &[0, protocol], &len, &frame[start..]])
}

/// RFC 1071, of parts of even length but for the last.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        let low = pair.get(1).copied().unwrap_or_default();
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !sum as u16
}
