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
