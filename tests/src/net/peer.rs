//! A neighbour of our own on the guest's wire: QEMU hands each frame to a datagram socket, and takes each from there.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, ArpPacketSlice, EtherType, Icmpv4Type, Icmpv6Type,
    NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
};
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress};
use tempfile::TempDir;

use crate::cell::PATIENCE;
use crate::net::capture::udp_payload;
use crate::qemu::{Qemu, escape, utf8};

/// The guest's hardware address on this wire.
pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
/// The guest's address on this wire.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 15);
/// The guest's link-local address, which follows from its hardware address (RFC 4291, appendix A).
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0x00ff, 0xfe12, 0x3456);

const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc];
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 1);
const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0x00ff, 0xfeaa, 0xbbcc);

const FLOOD_PORT: u16 = 4000;

/// How often a frame that nobody answers is sent again.
const RETRY: Duration = Duration::from_secs(1);

/// The neighbour.
pub struct Peer {
    socket: UnixDatagram,
    directory: TempDir,
}

impl Peer {
    /// Opens the wire. QEMU must be told of it before it is started.
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("vringlet-").tempdir()?;
        let socket =
            UnixDatagram::bind(directory.path().join("here")).context("the wire's socket")?;
        Ok(Peer { socket, directory })
    }

    /// The end of the wire that is QEMU's.
    fn there(&self) -> PathBuf {
        self.directory.path().join("qemu")
    }

    /// Adds the network back end `id` with this neighbour on it, and a device for it.
    pub fn plug(&self, qemu: &mut Qemu, id: &str) -> Result<()> {
        let (there, here) = (self.there(), self.directory.path().join("here"));
        let (local, remote) = (escape(utf8(&there)?), escape(utf8(&here)?));
        qemu.arg(
            "-netdev",
            &format!("dgram,id={id},local.type=unix,local.path={local},remote.type=unix,remote.path={remote}"),
        );
        qemu.virtio("net", "dev0", &format!("netdev={id},mac=52:54:00:12:34:56"));
        Ok(())
    }

    /// Puts a frame on the wire.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.socket
            .send_to(frame, self.there())
            .map(drop)
            .context("sending a frame")
    }

    /// Takes the next frame from the wire, if one comes within `bound`.
    pub fn receive(&self, bound: Duration) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; 65536];
        self.socket
            .set_read_timeout(Some(bound.max(Duration::from_millis(1))))?;
        match self.socket.recv(&mut frame) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error).context("receiving a frame"),
        }
    }

    /// Sends `frame` until `answered` finds its answer, answering on the way what the guest asks of this neighbour.
    fn exchange<T>(
        &self,
        what: &str,
        frame: &[u8],
        mut answered: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.send(frame)?;
            let retry = Instant::now() + RETRY;
            while let Some(frame) = self.receive(retry.saturating_duration_since(Instant::now()))? {
                if let Some(answer) = answered(&frame) {
                    return Ok(answer);
                }
                self.be_neighbourly(&frame)?;
            }
        }
        bail!("no answer to {what} within {} s", PATIENCE.as_secs())
    }

    /// Answers the guest's question for this neighbour's hardware address.
    fn be_neighbourly(&self, frame: &[u8]) -> Result<()> {
        let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
            return Ok(());
        };
        match (packet.net, packet.transport) {
            (Some(NetSlice::Arp(arp)), _) if is_arp_for_us(&arp) => {
                let answer = arp_packet(ArpOperation::REPLY, GUEST_MAC, GUEST)?;
                self.send(&ethernet_arp(GUEST_MAC, answer)?)?;
            }
            (Some(NetSlice::Ipv6(_)), Some(TransportSlice::Icmpv6(icmp)))
                if icmp.type_u8() == 135 && icmp.payload().starts_with(&ADDRESS_V6.octets()) =>
            {
                // Solicited and override; the option says the hardware address.
                let flags = [0x60, 0, 0, 0];
                let body = [&ADDRESS_V6.octets()[..], &[2, 1], &MAC].concat();
                self.send(&icmpv6(GUEST_MAC, GUEST_V6, (136, flags), &body)?)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Asks by ARP who has the guest's address.
    pub fn resolve(&self) -> Result<()> {
        let question = ethernet_arp([0xff; 6], arp_packet(ArpOperation::REQUEST, [0; 6], GUEST)?)?;
        let (sender, mac) =
            self.exchange(
                "an ARP request",
                &question,
                |frame| match SlicedPacket::from_ethernet(frame).ok()?.net? {
                    NetSlice::Arp(arp) if arp.operation() == ArpOperation::REPLY => Some((
                        arp.sender_protocol_addr().to_vec(),
                        arp.sender_hw_addr().to_vec(),
                    )),
                    _ => None,
                },
            )?;
        ensure!(
            sender == GUEST.octets() && mac == GUEST_MAC,
            "the ARP reply says {sender:?} is at {mac:x?}"
        );
        Ok(())
    }

    /// Asks by neighbour discovery who has the guest's link-local address.
    pub fn resolve_v6(&self) -> Result<()> {
        let target = GUEST_V6.octets();
        // The solicited-node group of the address, and the Ethernet group for that (RFC 4291 2.7.1, RFC 2464 7).
        let group = Ipv6Addr::new(
            0xff02,
            0,
            0,
            0,
            0,
            1,
            0xff00 | u16::from(target[13]),
            0x3456,
        );
        let mac = [0x33, 0x33, 0xff, target[13], target[14], target[15]];
        let body = [&target[..], &[1, 1], &MAC].concat();
        let question = icmpv6(mac, group, (135, [0; 4]), &body)?;
        self.exchange("a neighbour solicitation", &question, |frame| {
            let advertisement = valid_icmpv6(frame, 136)?;
            // The target link-layer address option.
            (advertisement.get(..16) == Some(&target[..])
                && advertisement.get(16..24)? == [&[2, 1], &GUEST_MAC[..]].concat())
            .then_some(())
        })
    }

    /// Pings the guest with `payload`; the reply must hold the same and have right checksums.
    pub fn ping(&self, sequence: u16, payload: &[u8]) -> Result<()> {
        let mut request = Vec::new();
        PacketBuilder::ethernet2(MAC, GUEST_MAC)
            .ipv4(ADDRESS.octets(), GUEST.octets(), 64)
            .icmpv4_echo_request(0x1234, sequence)
            .write(&mut request, payload)?;
        let reply = self.exchange("an ICMP echo request", &request, |frame| {
            let packet = SlicedPacket::from_ethernet(frame).ok()?;
            let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) =
                (&packet.net, &packet.transport)
            else {
                return None;
            };
            match icmp.icmp_type() {
                Icmpv4Type::EchoReply(echo) if echo.id == 0x1234 && echo.seq == sequence => Some((
                    ip.header().header_checksum() == ip.header().to_header().calc_header_checksum()
                        && icmp.header().icmp_type.calc_checksum(icmp.payload()) == icmp.checksum(),
                    icmp.payload().to_vec(),
                )),
                _ => None,
            }
        })?;
        ensure!(reply.0, "the ICMP echo reply's checksums are wrong");
        ensure!(
            reply.1 == payload,
            "the ICMP echo reply has {} other bytes",
            reply.1.len()
        );
        Ok(())
    }

    /// The same over IPv6.
    pub fn ping_v6(&self, sequence: u16, payload: &[u8]) -> Result<()> {
        let identifier = [0x12, 0x34, (sequence >> 8) as u8, sequence as u8];
        let request = icmpv6(GUEST_MAC, GUEST_V6, (128, identifier), payload)?;
        let reply = self.exchange("an ICMPv6 echo request", &request, |frame| {
            let body = valid_icmpv6(frame, 129)?;
            let packet = SlicedPacket::from_ethernet(frame).ok()?;
            match packet.transport? {
                TransportSlice::Icmpv6(icmp) if icmp.bytes5to8() == identifier => Some(body),
                _ => None,
            }
        })?;
        ensure!(
            reply == payload,
            "the ICMPv6 echo reply has {} other bytes",
            reply.len()
        );
        Ok(())
    }

    /// Waits for the guest's next DHCP message, being a neighbour meanwhile, and hands it to `judge` with the address
    /// it was sent to.
    pub fn dhcp_message<T>(
        &self,
        judge: impl FnOnce(&DhcpRepr<'_>, Ipv4Addr) -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(frame) = self.receive(deadline.saturating_duration_since(Instant::now()))? {
            if let Some(payload) = udp_payload(&frame, 68, 67) {
                let packet = DhcpPacket::new_checked(payload)
                    .map_err(|_| anyhow::anyhow!("a short DHCP message"))?;
                let message = DhcpRepr::parse(&packet)
                    .map_err(|_| anyhow::anyhow!("a malformed DHCP message"))?;
                let destination = match SlicedPacket::from_ethernet(&frame)?.net {
                    Some(NetSlice::Ipv4(ip)) => ip.header().destination_addr(),
                    _ => bail!("a DHCP message outside IPv4"),
                };
                return judge(&message, destination);
            }
            self.be_neighbourly(&frame)?;
        }
        bail!("no DHCP message within {} s", PATIENCE.as_secs())
    }

    /// Answers a DHCP message: an offer or an acknowledgement of [`GUEST`] for `seconds`.
    pub fn dhcp_answer(&self, kind: DhcpMessageType, transaction: u32, seconds: u32) -> Result<()> {
        let message = DhcpRepr {
            message_type: kind,
            transaction_id: transaction,
            secs: 0,
            client_hardware_address: EthernetAddress(GUEST_MAC),
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: GUEST,
            server_ip: ADDRESS,
            router: Some(ADDRESS),
            subnet_mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(ADDRESS),
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: Some(seconds),
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let mut payload = vec![0; message.buffer_len()];
        message
            .emit(&mut DhcpPacket::new_unchecked(&mut payload))
            .map_err(|_| anyhow::anyhow!("a DHCP answer that can't be written"))?;
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(MAC, GUEST_MAC)
            .ipv4(ADDRESS.octets(), GUEST.octets(), 64)
            .udp(67, 68)
            .write(&mut frame, &payload)?;
        self.send(&frame)
    }

    /// Sends `count` datagrams to the guest as fast as it takes them: most are for its echo service, of sixteen one each is
    /// for a port and for a host that are not there, and one has a wrong checksum. Returns how many came back meanwhile.
    pub fn flood(&self, count: u64) -> Result<u64> {
        let datagram = |address: Ipv4Addr, port| -> Result<Vec<u8>> {
            let mut datagram = Vec::new();
            PacketBuilder::ethernet2(MAC, GUEST_MAC)
                .ipv4(ADDRESS.octets(), address.octets(), 64)
                .udp(FLOOD_PORT, port)
                .write(&mut datagram, &[0x5a; 100])?;
            Ok(datagram)
        };
        let good = datagram(GUEST, 7)?;
        let unheard = datagram(GUEST, 9)?;
        let foreign = datagram(Ipv4Addr::new(10, 9, 8, 99), 7)?;
        let mut malformed = good.clone();
        malformed.pop();
        malformed.push(0xa5);
        let mut echoed = 0;
        let deadline = Instant::now() + PATIENCE;
        self.socket
            .set_write_timeout(Some(Duration::from_millis(1)))?;
        for number in 0..count {
            let datagram = match number % 16 {
                3 => &unheard,
                7 => &foreign,
                11 => &malformed,
                _ => &good,
            };
            // A wire that is full in both directions would stay so if nobody read.
            while let Err(error) = self.socket.send_to(datagram, self.there()) {
                ensure!(
                    error.kind() == std::io::ErrorKind::WouldBlock,
                    "sending a datagram: {error}"
                );
                ensure!(
                    Instant::now() < deadline,
                    "only {number} of {count} datagrams were taken within {} s",
                    PATIENCE.as_secs()
                );
                echoed += self.echoes(Duration::ZERO)?;
            }
        }
        self.socket.set_write_timeout(None)?;
        Ok(echoed)
    }

    /// How many echoes of a flood come until none does for as long as `bound`.
    pub fn echoes(&self, bound: Duration) -> Result<u64> {
        let mut echoed = 0;
        while let Some(frame) = self.receive(bound)? {
            match udp_payload(&frame, 7, FLOOD_PORT) {
                Some(_) => echoed += 1,
                None => self.be_neighbourly(&frame)?,
            }
        }
        Ok(echoed)
    }

    /// Good frames of every kind that this neighbour knows, for a test to spoil.
    pub fn samples(&self) -> Result<Vec<Vec<u8>>> {
        let mut ping = Vec::new();
        PacketBuilder::ethernet2(MAC, GUEST_MAC)
            .ipv4(ADDRESS.octets(), GUEST.octets(), 64)
            .icmpv4_echo_request(1, 1)
            .write(&mut ping, &[0x55; 100])?;
        let mut datagram = Vec::new();
        PacketBuilder::ethernet2(MAC, GUEST_MAC)
            .ipv4(ADDRESS.octets(), GUEST.octets(), 64)
            .udp(1000, 7)
            .write(&mut datagram, &[0x66; 100])?;
        let mut open = Vec::new();
        PacketBuilder::ethernet2(MAC, GUEST_MAC)
            .ipv4(ADDRESS.octets(), GUEST.octets(), 64)
            .tcp(1000, 80, 1, 1000)
            .syn()
            .write(&mut open, &[])?;
        let solicitation = [&GUEST_V6.octets()[..], &[1, 1], &MAC].concat();
        Ok(vec![
            ping,
            datagram,
            open,
            ethernet_arp(GUEST_MAC, arp_packet(ArpOperation::REQUEST, [0; 6], GUEST)?)?,
            icmpv6(GUEST_MAC, GUEST_V6, (135, [0; 4]), &solicitation)?,
            icmpv6(GUEST_MAC, GUEST_V6, (128, [0; 4]), &[0x77; 100])?,
        ])
    }

    /// This neighbour's address.
    pub fn address(&self) -> Ipv4Addr {
        ADDRESS
    }
}

fn is_arp_for_us(arp: &ArpPacketSlice<'_>) -> bool {
    arp.operation() == ArpOperation::REQUEST && arp.target_protocol_addr() == ADDRESS.octets()
}

fn arp_packet(operation: ArpOperation, target_mac: [u8; 6], target: Ipv4Addr) -> Result<ArpPacket> {
    Ok(ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &MAC,
        &ADDRESS.octets(),
        &target_mac,
        &target.octets(),
    )?)
}

fn ethernet_arp(destination: [u8; 6], packet: ArpPacket) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC, destination)
        .arp(packet)
        .write(&mut frame)?;
    Ok(frame)
}

/// An ICMPv6 frame: `header` is the type and the four bytes after the checksum.
fn icmpv6(
    destination: [u8; 6],
    address: Ipv6Addr,
    header: (u8, [u8; 4]),
    body: &[u8],
) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC, destination)
        // Neighbour discovery is heard with this hop limit alone (RFC 4861 7.1).
        .ipv6(ADDRESS_V6.octets(), address.octets(), 255)
        .icmpv6(Icmpv6Type::Unknown {
            type_u8: header.0,
            code_u8: 0,
            bytes5to8: header.1,
        })
        .write(&mut frame, body)?;
    Ok(frame)
}

/// What follows the header of an ICMPv6 message of this type with a right checksum.
fn valid_icmpv6(frame: &[u8], kind: u8) -> Option<Vec<u8>> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    match (packet.net?, packet.transport?) {
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp))
            if icmp.type_u8() == kind
                && icmp.is_checksum_valid(ip.header().source(), ip.header().destination()) =>
        {
            Some(icmp.payload().to_vec())
        }
        _ => None,
    }
}
