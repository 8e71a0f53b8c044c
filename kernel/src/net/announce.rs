//! Frames that an interface sends of its own accord: router solicitations, and "here I am" after its addresses changed
//! or the machine was moved to another host.

use smoltcp::phy::{ChecksumCapabilities, Device, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv6Packet, Icmpv6Repr, IpCidr, IpProtocol, Ipv4Address, Ipv6Address, Ipv6Packet, Ipv6Repr,
    NdiscNeighborFlags, NdiscRepr,
};

use super::slaac::link_local;

const ALL_NODES: Ipv6Address = Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Address = Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// Neighbour discovery is only believed with it: no router passed the packet on.
const HOP_LIMIT: u8 = 255;

/// Tells every neighbour who has these addresses now. A frame that the device has no room for is lost, as it may be
/// on the wire; neighbours then ask.
pub(super) fn addresses<D: Device + ?Sized>(
    device: &mut D,
    now: Instant,
    mac: EthernetAddress,
    own: &[IpCidr],
) {
    for cidr in own {
        match cidr {
            IpCidr::Ipv4(cidr) => gratuitous_arp(device, now, mac, cidr.address()),
            IpCidr::Ipv6(cidr) => neighbor_advertisement(device, now, mac, cidr.address()),
        }
    }
}

/// Asks the routers on the link to advertise themselves.
pub(super) fn router_solicitation<D: Device + ?Sized>(
    device: &mut D,
    now: Instant,
    mac: EthernetAddress,
) {
    let lladdr = Some(mac.into());
    let solicitation = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr });
    icmpv6(
        device,
        now,
        mac,
        link_local(mac).address(),
        ALL_ROUTERS,
        &solicitation,
    );
}

fn neighbor_advertisement<D: Device + ?Sized>(
    device: &mut D,
    now: Instant,
    mac: EthernetAddress,
    address: Ipv6Address,
) {
    let advertisement = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::OVERRIDE,
        target_addr: address,
        lladdr: Some(mac.into()),
    });
    icmpv6(device, now, mac, address, ALL_NODES, &advertisement);
}

fn gratuitous_arp<D: Device + ?Sized>(
    device: &mut D,
    now: Instant,
    mac: EthernetAddress,
    address: Ipv4Address,
) {
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: mac,
        source_protocol_addr: address,
        target_hardware_addr: EthernetAddress::BROADCAST,
        target_protocol_addr: address,
    };
    let destination = EthernetAddress::BROADCAST;
    frame(
        device,
        now,
        mac,
        destination,
        EthernetProtocol::Arp,
        request.buffer_len(),
        |payload| {
            request.emit(&mut ArpPacket::new_unchecked(payload));
        },
    );
}

fn icmpv6<D: Device + ?Sized>(
    device: &mut D,
    now: Instant,
    mac: EthernetAddress,
    source: Ipv6Address,
    group: Ipv6Address,
    message: &Icmpv6Repr<'_>,
) {
    let header = Ipv6Repr {
        src_addr: source,
        dst_addr: group,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.buffer_len(),
        hop_limit: HOP_LIMIT,
    };
    let [.., g0, g1, g2, g3] = group.octets();
    let destination = EthernetAddress([0x33, 0x33, g0, g1, g2, g3]);
    let length = header.buffer_len() + message.buffer_len();
    frame(
        device,
        now,
        mac,
        destination,
        EthernetProtocol::Ipv6,
        length,
        |payload| {
            let mut packet = Ipv6Packet::new_unchecked(payload);
            header.emit(&mut packet);
            let mut body = Icmpv6Packet::new_unchecked(packet.payload_mut());
            message.emit(&source, &group, &mut body, &ChecksumCapabilities::default());
        },
    );
}

fn frame<D: Device + ?Sized>(
    device: &mut D,
    now: Instant,
    source: EthernetAddress,
    destination: EthernetAddress,
    protocol: EthernetProtocol,
    length: usize,
    fill: impl FnOnce(&mut [u8]),
) {
    let Some(token) = device.transmit(now) else {
        return;
    };
    token.consume(EthernetFrame::<&[u8]>::buffer_len(length), |buffer| {
        let mut frame = EthernetFrame::new_unchecked(buffer);
        frame.set_src_addr(source);
        frame.set_dst_addr(destination);
        frame.set_ethertype(protocol);
        fill(frame.payload_mut());
    });
}
