//! [`FakeNic`]: a network card behind virtio-net (spec 5.1).

use std::collections::VecDeque;
use std::string::String;
use std::vec::Vec;

use super::device::{DeviceModel, Queues};
use super::packet::{Packet, wire};
use super::queue::Request;
use crate::device::DeviceId;

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_CTRL_RX: u64 = 1 << 18;
const F_CTRL_VLAN: u64 = 1 << 19;
const F_CTRL_RX_EXTRA: u64 = 1 << 20;
const F_GUEST_ANNOUNCE: u64 = 1 << 21;
const F_CTRL_MAC_ADDR: u64 = 1 << 23;
const F_HOST_USO: u64 = 1 << 56;
const F_GUEST_HDRLEN: u64 = 1 << 59;
const F_SPEED_DUPLEX: u64 = 1 << 63;

/// What a command can turn on and off.
const GUEST_OFFLOADS: u64 = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const CONTROL: u16 = 2;

/// `struct virtio_net_hdr` with `num_buffers`, as every modern device has it.
const HEADER: usize = 12;

const S_LINK_UP: u16 = 1;
const S_ANNOUNCE: u16 = 2;

const ACK_OK: u8 = 0;
const ACK_ERR: u8 = 1;

/// A network card whose wire ends in the test. Its fields say what it offers and hold what it was told; change them
/// before the driver is made, or by [`FakeDevice::with`](super::FakeDevice::with) and
/// [`FakeDevice::change_config`](super::FakeDevice::change_config).
#[derive(Debug)]
pub struct FakeNic {
    /// Feature bits of the device type that it offers.
    pub features: u64,
    /// The largest sizes of receive, transmit and control queue.
    pub queue_sizes: [u16; 3],
    /// Its address.
    pub mac: [u8; 6],
    /// Whether the link is up.
    pub link: bool,
    /// Whether it asks the driver to announce itself.
    pub announce: bool,
    /// `mtu`.
    pub mtu: u16,
    /// `speed` and `duplex`.
    pub speed_duplex: (u32, u8),
    /// Whether what is sent comes back.
    pub loopback: bool,
    /// Frames as they went out to the wire: with their checksums, and cut as the driver said.
    pub sent: Vec<Vec<u8>>,
    /// Frames as the driver sent them.
    pub packets: Vec<Packet>,
    /// Frames on their way to the driver.
    pub incoming: VecDeque<Packet>,
    /// Frames that the filters kept from the driver.
    pub filtered: u64,
    /// Receive modes that are on, by their command of class 0 (promiscuous, allmulti, alluni, nomulti, nouni, nobcast).
    pub modes: [bool; 6],
    /// The unicast and multicast tables.
    pub tables: [Vec<[u8; 6]>; 2],
    /// VLANs whose frames pass once the driver negotiated the filter.
    pub vlans: Vec<u16>,
    /// Announcements that the driver acknowledged.
    pub announced: u64,
    /// The class and command of each control request.
    pub commands: Vec<(u8, u8)>,
    /// Control requests of this class and command fail.
    pub refuse: Option<(u8, u8)>,
    /// `num_buffers` of the next frame is this, whatever is true.
    pub lie_about_buffers: Option<u16>,
    /// What it leaves to the driver, by feature bits; all that the driver accepted at first.
    pub guest_offloads: u64,
    negotiated: u64,
    /// Receive buffers taken from the queue and not used yet.
    posted: VecDeque<Request>,
}

impl Default for FakeNic {
    fn default() -> Self {
        Self {
            features: F_MTU
                | F_MAC
                | F_MRG_RXBUF
                | F_STATUS
                | F_CTRL_VQ
                | F_CTRL_RX
                | F_CTRL_VLAN
                | F_CTRL_RX_EXTRA
                | F_GUEST_ANNOUNCE
                | F_CTRL_MAC_ADDR
                | F_SPEED_DUPLEX,
            queue_sizes: [256, 256, 64],
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            link: true,
            announce: false,
            mtu: 1500,
            speed_duplex: (1000, 1),
            loopback: false,
            sent: Vec::new(),
            packets: Vec::new(),
            incoming: VecDeque::new(),
            filtered: 0,
            modes: [false; 6],
            tables: [Vec::new(), Vec::new()],
            vlans: Vec::new(),
            announced: 0,
            commands: Vec::new(),
            refuse: None,
            lie_about_buffers: None,
            guest_offloads: 0,
            negotiated: 0,
            posted: VecDeque::new(),
        }
    }
}

impl FakeNic {
    /// A card that offers everything that this model does but offloads, with its link up.
    pub fn new() -> Self {
        Self::default()
    }

    /// A card that offers offloads, too.
    pub fn offloading() -> Self {
        let mut nic = Self::default();
        nic.features |= F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_USO | F_GUEST_HDRLEN;
        nic.features |= GUEST_OFFLOADS | F_CTRL_GUEST_OFFLOADS;
        nic
    }

    /// A frame arrives. The device sees it when it is pumped.
    pub fn inject(&mut self, frame: impl Into<Vec<u8>>) {
        self.incoming.push_back(Packet::plain(frame));
    }

    /// A frame arrives whose header is this, whatever was agreed on.
    pub fn inject_packet(&mut self, packet: Packet) {
        self.incoming.push_back(packet);
    }

    /// A frame arrives from another card of the same host: as it was sent, if the driver takes that, else as it would be on a
    /// wire.
    pub fn forward(&mut self, packet: Packet) {
        let needed = match packet.gso_type {
            0 if packet.flags & 1 == 0 => 0,
            0 => F_GUEST_CSUM,
            1 => F_GUEST_TSO4,
            4 => F_GUEST_TSO6,
            _ => u64::MAX,
        };
        if self.guest_offloads & needed == needed {
            self.incoming.push_back(packet);
            return;
        }
        for frame in wire(&packet).unwrap_or_default() {
            self.inject(frame);
        }
    }

    /// Takes what the driver sent so far, as it is on the wire.
    pub fn take_sent(&mut self) -> Vec<Vec<u8>> {
        self.packets.clear();
        std::mem::take(&mut self.sent)
    }

    /// Takes what the driver sent so far, as it sent it.
    pub fn take_packets(&mut self) -> Vec<Packet> {
        self.sent.clear();
        std::mem::take(&mut self.packets)
    }

    /// Receive buffers that the device holds.
    pub fn posted(&self) -> usize {
        self.posted.len()
    }

    fn has(&self, feature: u64) -> bool {
        self.negotiated & feature != 0
    }

    /// Whether the filters let `frame` through.
    fn passes(&self, frame: &[u8]) -> bool {
        let Some(to) = frame.get(..6) else {
            return false;
        };
        let [
            promiscuous,
            all_multi,
            all_uni,
            no_multi,
            no_uni,
            no_broadcast,
        ] = self.modes;
        let listed = |table: &Vec<[u8; 6]>| table.iter().any(|mac| mac == to);
        let [unicast, multicast] = &self.tables;
        let by_address = if to == [0xff; 6] {
            !no_broadcast
        } else if to[0] & 1 == 1 {
            !no_multi && (all_multi || listed(multicast))
        } else {
            !no_uni && (all_uni || to == self.mac || listed(unicast))
        };
        let tagged = frame.get(12..14) == Some(&[0x81, 0]);
        let vlan = match frame.get(14..16) {
            Some(&[high, low]) if tagged => Some(u16::from_be_bytes([high, low]) & 0xfff),
            _ => None,
        };
        let by_vlan = match vlan {
            Some(id) if self.has(F_CTRL_VLAN) => self.vlans.contains(&id),
            _ => true,
        };
        promiscuous || (by_address && by_vlan)
    }

    fn transmit(&mut self, queues: &mut Queues<'_>) {
        while let Some(request) = queues.pop(TRANSMIT) {
            if request.writable_len() > 0 {
                queues.violation("transmit request with a writable part");
            }
            let sent = match Packet::parse(&request.read_all()) {
                None => Err("transmit request shorter than its header".into()),
                Some(packet) => self.send(packet),
            };
            if let Err(what) = sent
                && !request.is_dubious()
            {
                queues.violation(what);
            }
            queues.push(TRANSMIT, request, 0);
        }
    }

    /// Sends a frame, or says what is wrong with it (spec 5.1.6.2.1).
    fn send(&mut self, packet: Packet) -> Result<(), String> {
        let allowed = match packet.gso_type {
            0 => self.has(F_CSUM) || packet.flags == 0,
            1 => self.has(F_HOST_TSO4),
            4 => self.has(F_HOST_TSO6),
            5 => self.has(F_HOST_USO),
            _ => false,
        };
        if !allowed || packet.flags & !1 != 0 || packet.num_buffers != 0 {
            return Err(std::format!("transmit header {packet:?}"));
        }
        let frames = wire(&packet).map_err(|what| std::format!("{what}: {packet:?}"))?;
        let longest = frames.iter().map(Vec::len).max().unwrap_or_default();
        if longest > usize::from(self.mtu) + 14 {
            return Err(std::format!("a frame of {longest} bytes"));
        }
        if self.loopback {
            let packets = frames.iter().cloned().map(Packet::plain);
            self.incoming.extend(packets);
        }
        if self.link {
            self.sent.extend(frames);
            self.packets.push(packet);
        }
        Ok(())
    }

    fn receive(&mut self, queues: &mut Queues<'_>) {
        while let Some(request) = queues.pop(RECEIVE) {
            if request.readable_len() > 0 {
                queues.violation("receive buffer with a readable part");
            }
            // Spec 5.1.6.3.1: with mergeable buffers only the header, else a whole frame, which may stand for several.
            let least = match self.has(F_GUEST_TSO4) || self.has(F_GUEST_TSO6) {
                _ if self.has(F_MRG_RXBUF) => HEADER,
                true => 65601,
                false => 1526,
            };
            if request.writable_len() < least && !request.is_dubious() {
                queues.violation(std::format!("receive buffer of {}", request.writable_len()));
            }
            self.posted.push_back(request);
        }
        while let Some(packet) = self.incoming.front() {
            if !self.link || !self.passes(&packet.frame) {
                self.incoming.pop_front();
                self.filtered += 1;
                continue;
            }
            let need = HEADER + packet.frame.len();
            // How many buffers that is.
            let mut room = 0;
            let mut count = 0;
            for request in &self.posted {
                room += request.writable_len();
                count += 1;
                if room >= need || !self.has(F_MRG_RXBUF) {
                    break;
                }
            }
            if count == 0 || (room < need && self.has(F_MRG_RXBUF)) {
                // No buffers now: the frame waits.
                return;
            }
            let Some(mut packet) = self.incoming.pop_front() else {
                return;
            };
            if room < need {
                // Never fits: dropped, as a device without mergeable buffers does.
                self.filtered += 1;
                continue;
            }
            packet.num_buffers = self.lie_about_buffers.take().unwrap_or(count);
            let bytes = packet.bytes();
            let mut rest = bytes.as_slice();
            for request in self.posted.drain(..usize::from(count)) {
                let (part, behind) = rest.split_at(rest.len().min(request.writable_len()));
                request.write(0, part);
                queues.push(RECEIVE, request, part.len() as u32);
                rest = behind;
            }
        }
    }

    fn control(&mut self, queues: &mut Queues<'_>) {
        while let Some(request) = queues.pop(CONTROL) {
            let bytes = request.read_all();
            if request.writable_len() != 1 {
                queues.violation("control request without a byte for the answer");
            }
            let ack = match &*bytes {
                [class, command, data @ ..] => {
                    let (class, command) = (*class, *command);
                    self.commands.push((class, command));
                    match self.obey(class, command, data) {
                        Some(()) => ACK_OK,
                        None => ACK_ERR,
                    }
                }
                _ => ACK_ERR,
            };
            request.write(0, &[ack]);
            queues.push(CONTROL, request, 1);
        }
    }

    /// Spec 5.1.6.5. `None` is an error.
    fn obey(&mut self, class: u8, command: u8, data: &[u8]) -> Option<()> {
        if self.refuse == Some((class, command)) {
            return None;
        }
        match (class, command, data) {
            (0, 0..=1, [on]) if self.has(F_CTRL_RX) => {
                self.modes[usize::from(command)] = *on == 1;
            }
            (0, 2..=5, [on]) if self.has(F_CTRL_RX_EXTRA) => {
                self.modes[usize::from(command)] = *on == 1;
            }
            (1, 0, tables) if self.has(F_CTRL_RX) => {
                let (unicast, rest) = table(tables)?;
                let (multicast, rest) = table(rest)?;
                if !rest.is_empty() {
                    return None;
                }
                self.tables = [unicast, multicast];
            }
            (1, 1, mac) if self.has(F_CTRL_MAC_ADDR) => self.mac = mac.try_into().ok()?,
            (2, 0, &[low, high]) if self.has(F_CTRL_VLAN) => {
                self.vlans.push(u16::from_le_bytes([low, high]));
            }
            (2, 1, &[low, high]) if self.has(F_CTRL_VLAN) => {
                let id = u16::from_le_bytes([low, high]);
                self.vlans.retain(|other| *other != id);
            }
            (5, 0, bits) if self.has(F_CTRL_GUEST_OFFLOADS) => {
                let offloads = u64::from_le_bytes(bits.try_into().ok()?);
                if offloads & !(self.negotiated & GUEST_OFFLOADS) != 0 {
                    return None;
                }
                self.guest_offloads = offloads;
            }
            (3, 0, []) if self.has(F_GUEST_ANNOUNCE) => {
                self.announce = false;
                self.announced += 1;
            }
            _ => return None,
        }
        Some(())
    }
}

/// `struct virtio_net_ctrl_mac`: le32 entries, then the addresses. Gives what is behind it too.
fn table(bytes: &[u8]) -> Option<(Vec<[u8; 6]>, &[u8])> {
    let (count, rest) = bytes.split_at_checked(4)?;
    let count = u32::from_le_bytes(count.try_into().ok()?) as usize;
    let (macs, rest) = rest.split_at_checked(count.checked_mul(6)?)?;
    let macs = macs.chunks_exact(6).map(|mac| mac.try_into().ok());
    Some((macs.collect::<Option<_>>()?, rest))
}

impl DeviceModel for FakeNic {
    fn id(&self) -> DeviceId {
        DeviceId::NET
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let count = if self.features & F_CTRL_VQ != 0 { 3 } else { 2 };
        self.queue_sizes[..count].to_vec()
    }

    fn config(&self) -> Vec<u8> {
        let link = if self.link { S_LINK_UP } else { 0 };
        let announce = if self.announce { S_ANNOUNCE } else { 0 };
        let mut config = self.mac.to_vec();
        config.extend((link | announce).to_le_bytes());
        // max_virtqueue_pairs
        config.extend(1u16.to_le_bytes());
        config.extend(self.mtu.to_le_bytes());
        config.extend(self.speed_duplex.0.to_le_bytes());
        config.push(self.speed_duplex.1);
        config
    }

    fn negotiated(&mut self, features: u64) {
        self.negotiated = features;
        self.guest_offloads = features & GUEST_OFFLOADS;
    }

    fn reset(&mut self) {
        self.posted.clear();
        self.modes = [false; 6];
        self.tables = [Vec::new(), Vec::new()];
        self.vlans.clear();
    }

    fn process(&mut self, queue: u16, queues: &mut Queues<'_>) {
        match queue {
            TRANSMIT => {
                self.transmit(queues);
                // What came back by the loop.
                self.receive(queues);
            }
            CONTROL => self.control(queues),
            _ => self.receive(queues),
        }
    }
}
