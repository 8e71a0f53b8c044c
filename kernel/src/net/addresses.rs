//! Which addresses and routes an interface has: IPv4 from DHCP or a setting, IPv6 from the hardware address and the
//! routers on the link. A link that is down for longer takes them with it.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::str::FromStr;

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{dhcpv4, raw};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, IpAddress, IpCidr, IpProtocol, IpVersion,
    Ipv4Address, Ipv4Cidr, Ipv6Address, Ipv6Packet, Ipv6Repr, NdiscPrefixInformation, NdiscRepr,
};

use super::slaac::{Slaac, link_local};

/// Room for the ICMPv6 packets of one burst of frames. If there are more, an advertisement may be lost; routers repeat.
const ICMPV6_PACKETS: usize = 16;
const ICMPV6_BYTES: usize = 4096;
/// smoltcp's own default of 10 s makes one lost packet a long boot. Further waits are longer and longer.
const DISCOVER_INTERVAL: Duration = Duration::from_secs(3);
/// A lease that never ends (RFC 2131, section 3.3).
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
/// How long addresses outlive the link.
const GRACE: Duration = Duration::from_secs(10);
/// A packet that arrives with it was not passed on by any router.
const ON_LINK_HOP_LIMIT: u8 = 255;

/// Where the IPv4 address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv4Setup {
    /// A DHCP server on the network.
    Dhcp,
    /// The kernel's command line.
    Static {
        /// The address and its network.
        address: Ipv4Cidr,
        /// The default router.
        gateway: Option<Ipv4Address>,
    },
}

impl FromStr for Ipv4Setup {
    type Err = &'static str;

    /// `dhcp` or `10.0.2.15/24[,10.0.2.2]`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "dhcp" {
            return Ok(Self::Dhcp);
        }
        let (address, gateway) = match text.split_once(',') {
            Some((address, gateway)) => (address, Some(gateway)),
            None => (text, None),
        };
        let address: Ipv4Cidr = address
            .parse()
            .map_err(|()| "the address is not of the form 10.0.2.15/24")?;
        let gateway = gateway.map(|gateway| {
            gateway
                .parse()
                .map_err(|_| "the gateway is not an IPv4 address")
        });
        let gateway: Option<Ipv4Address> = gateway.transpose()?;
        if !is_unicast(address.address()) || gateway.is_some_and(|gateway| !is_unicast(gateway)) {
            return Err("not an address that one host can have");
        }
        Ok(Self::Static { address, gateway })
    }
}

/// An IPv4 address that the interface has, and how it came by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address and its network.
    pub address: Ipv4Cidr,
    /// The default router.
    pub gateway: Option<Ipv4Address>,
    /// Name servers that the DHCP server told of.
    pub dns: Vec<Ipv4Address>,
    /// The DHCP server; `None` for a static address.
    pub server: Option<Ipv4Address>,
    /// For how long the address is ours, counted from `renewed`; `None` if for ever.
    pub duration: Option<Duration>,
    /// When the server last confirmed it.
    pub renewed: Instant,
    /// How often it was confirmed after the first time.
    pub renewals: u32,
}

/// The addresses of one interface.
pub(super) struct Addresses {
    name: String,
    mac: EthernetAddress,
    setup: Ipv4Setup,
    dhcp: Option<SocketHandle>,
    icmpv6: SocketHandle,
    slaac: Slaac,
    link: bool,
    /// When it last went up or down.
    link_since: Instant,
    /// Until when addresses from before that are kept: smoltcp ends the connections of an address that is taken away,
    /// and most links come back soon, to the same network.
    grace: Option<Instant>,
    lease: Option<Lease>,
}

impl Addresses {
    pub(super) fn new(
        name: &str,
        mac: EthernetAddress,
        setup: Ipv4Setup,
        sockets: &mut SocketSet<'static>,
    ) -> Self {
        let buffer = |packets: usize, bytes: usize| {
            raw::PacketBuffer::new(vec![raw::PacketMetadata::EMPTY; packets], vec![0; bytes])
        };
        let icmpv6 = raw::Socket::new(
            Some(IpVersion::Ipv6),
            Some(IpProtocol::Icmpv6),
            buffer(ICMPV6_PACKETS, ICMPV6_BYTES),
            buffer(0, 0),
        );
        Self {
            name: name.to_owned(),
            mac,
            setup,
            dhcp: (setup == Ipv4Setup::Dhcp).then(|| sockets.add(dhcp_socket())),
            icmpv6: sockets.add(icmpv6),
            slaac: Slaac::new(mac),
            link: false,
            link_since: Instant::ZERO,
            grace: None,
            lease: None,
        }
    }

    pub(super) fn mac(&self) -> EthernetAddress {
        self.mac
    }

    /// Another hardware address: the next update finds the link coming up with it.
    pub(super) fn set_mac(&mut self, mac: EthernetAddress) {
        self.mac = mac;
        self.slaac = Slaac::new(mac);
        self.lease = None;
        self.grace = None;
        self.link = false;
    }

    pub(super) fn link(&self) -> bool {
        self.link
    }

    pub(super) fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// Learns what came in and brings the interface's addresses and routes in line. True if there are new ones.
    pub(super) fn update(
        &mut self,
        interface: &mut Interface,
        sockets: &mut SocketSet<'static>,
        link: bool,
        now: Instant,
    ) -> bool {
        let mut changed = link != self.link;
        if changed {
            self.link = link;
            self.link_changed(sockets, now);
        }
        changed |= self.hear_dhcp(sockets, now);
        changed |= self.hear_routers(sockets, now);
        if self.next_work().is_some_and(|due| due <= now) {
            self.end_grace(now);
            self.slaac.expire(now);
            changed = true;
        }
        changed && self.apply(interface)
    }

    /// Whether a router solicitation is to be sent now; it counts as sent.
    pub(super) fn solicits(&mut self, now: Instant) -> bool {
        self.slaac.solicits(now)
    }

    /// When there is work that no packet asks for. DHCP's own is among that of the sockets.
    pub(super) fn next_work(&self) -> Option<Instant> {
        self.slaac.next_work().into_iter().chain(self.grace).min()
    }

    fn link_changed(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        log::info!(
            "{}: link {}",
            self.name,
            if self.link { "up" } else { "down" }
        );
        // The other end of the wire may be another network now, so DHCP starts over as well.
        if let Some(dhcp) = self.dhcp {
            sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).reset();
        }
        self.link_since = now;
        self.grace = Some(now + GRACE);
        match self.link {
            true => self.slaac.start(now),
            false => self.slaac.pause(),
        }
        if let (true, Ipv4Setup::Static { address, gateway }) = (self.link, self.setup) {
            self.lease = Some(Lease {
                address,
                gateway,
                dns: Vec::new(),
                server: None,
                duration: None,
                renewed: now,
                renewals: 0,
            });
        }
    }

    /// Gives up what nobody confirmed since the link changed.
    fn end_grace(&mut self, now: Instant) {
        if self.grace.take_if(|end| *end <= now).is_none() {
            return;
        }
        let stale = |lease: &mut Lease| !self.link || lease.renewed < self.link_since;
        if self.lease.take_if(stale).is_some() {
            log::warn!("{}: the lease is lost", self.name);
        }
        self.slaac.forget_unconfirmed();
    }

    /// Says whether the server or the socket had something to say.
    fn hear_dhcp(&mut self, sockets: &mut SocketSet<'static>, now: Instant) -> bool {
        let Some(dhcp) = self.dhcp else {
            return false;
        };
        let socket = sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp);
        let duration = socket.lease_duration();
        let event = socket.poll();
        let heard = event.is_some();
        match event {
            // What was under way when the link went down does not count.
            Some(dhcpv4::Event::Configured(config)) if self.link => {
                let same = |lease: &Lease| lease.address == config.address;
                let old = self.lease.take().filter(same);
                let kept = old
                    .as_ref()
                    .is_some_and(|old| old.renewed < self.link_since);
                self.lease = Some(Lease {
                    address: config.address,
                    gateway: config.router.filter(|router| {
                        is_unicast(*router) && *router != config.address.address()
                    }),
                    dns: config.dns_servers.to_vec(),
                    server: Some(config.server.address),
                    duration: duration.filter(|duration| *duration < FOR_EVER),
                    renewed: now,
                    renewals: old.map_or(0, |old| old.renewals + 1),
                });
                if kept {
                    self.log(config.address.into());
                }
            }
            // It is so right after the link changed.
            Some(_) if self.grace.is_some() => {}
            Some(_) if self.lease.take().is_some() => {
                log::warn!("{}: the lease is lost", self.name);
            }
            Some(_) | None => {}
        }
        heard
    }

    /// Says whether one spoke.
    fn hear_routers(&mut self, sockets: &mut SocketSet<'static>, now: Instant) -> bool {
        let mut heard = false;
        let socket = sockets.get_mut::<raw::Socket<'_>>(self.icmpv6);
        while let Ok(packet) = socket.recv() {
            if let (true, Some(advert)) = (self.link, router_advertisement(packet)) {
                self.slaac
                    .advertised(advert.router, advert.lifetime, advert.prefix, now);
                heard = true;
            }
        }
        heard
    }

    fn apply(&self, interface: &mut Interface) -> bool {
        let gateway = self.lease.as_ref().and_then(|lease| lease.gateway);
        set_gateways(interface, gateway, self.slaac.router());
        let link_local = (self.link || self.grace.is_some()).then(|| link_local(self.mac).into());
        let leased = self.lease.as_ref().map(|lease| IpCidr::Ipv4(lease.address));
        let wanted: Vec<IpCidr> = leased
            .into_iter()
            .chain(link_local)
            .chain(self.slaac.addresses().map(IpCidr::Ipv6))
            .collect();
        let had = interface.ip_addrs().to_vec();
        if had == wanted {
            return false;
        }
        interface.update_ip_addrs(|addresses| {
            addresses.clear();
            // There is room: `Slaac` keeps no more prefixes than that.
            addresses.extend(wanted.iter().copied().take(addresses.capacity()));
        });
        let new = wanted.iter().filter(|address| !had.contains(address));
        new.clone().for_each(|address| self.log(*address));
        for lost in had.iter().filter(|address| !wanted.contains(address)) {
            log::info!("{}: address {lost} removed", self.name);
        }
        new.count() > 0
    }

    fn log(&self, address: IpCidr) {
        let (gateway, origin) = match (address, &self.lease) {
            (IpCidr::Ipv4(_), Some(lease)) => {
                let origin = if lease.server.is_some() {
                    "dhcp"
                } else {
                    "static"
                };
                (lease.gateway.map(Into::into), origin)
            }
            (IpCidr::Ipv6(cidr), _) if !cidr.address().is_unicast_link_local() => {
                (self.slaac.router().map(IpAddress::Ipv6), "slaac")
            }
            _ => (None, "link-local"),
        };
        match gateway {
            Some(gateway) => log::info!(
                "{}: address {address} gateway {gateway} ({origin})",
                self.name
            ),
            None => log::info!("{}: address {address} ({origin})", self.name),
        }
    }
}

fn dhcp_socket() -> dhcpv4::Socket<'static> {
    let mut socket = dhcpv4::Socket::new();
    // With room for answers, if only for none, the socket tells of those that change nothing, too: they are renewals.
    socket.set_receive_packet_buffer(&mut []);
    let mut retry = socket.get_retry_config();
    retry.discover_timeout = DISCOVER_INTERVAL;
    retry.initial_request_timeout = DISCOVER_INTERVAL;
    socket.set_retry_config(retry);
    socket
}

fn set_gateways(interface: &mut Interface, ipv4: Option<Ipv4Address>, ipv6: Option<Ipv6Address>) {
    let routes = interface.routes_mut();
    // Two default routes fit in a table that holds four; nothing else is put there.
    match ipv4 {
        Some(gateway) => drop(routes.add_default_ipv4_route(gateway)),
        None => drop(routes.remove_default_ipv4_route()),
    }
    match ipv6 {
        Some(gateway) => drop(routes.add_default_ipv6_route(gateway)),
        None => drop(routes.remove_default_ipv6_route()),
    }
}

fn is_unicast(address: Ipv4Address) -> bool {
    !(address.is_multicast() || address.is_broadcast() || address.is_unspecified())
}

struct Advertisement {
    router: Ipv6Address,
    lifetime: Duration,
    prefix: Option<NdiscPrefixInformation>,
}

/// The router advertisement in an IPv6 packet, if it is one and comes from this link (RFC 4861, section 6.1.2).
fn router_advertisement(packet: &[u8]) -> Option<Advertisement> {
    let packet = Ipv6Packet::new_checked(packet).ok()?;
    let header = Ipv6Repr::parse(&packet).ok()?;
    let icmp = Icmpv6Packet::new_checked(packet.payload()).ok()?;
    let checksums = ChecksumCapabilities::default();
    let message = Icmpv6Repr::parse(&header.src_addr, &header.dst_addr, &icmp, &checksums).ok()?;
    match message {
        Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
            router_lifetime,
            prefix_info,
            ..
        }) if header.hop_limit == ON_LINK_HOP_LIMIT && header.src_addr.is_unicast_link_local() => {
            Some(Advertisement {
                router: header.src_addr,
                lifetime: router_lifetime,
                prefix: prefix_info,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_nonsense_is_refused() {
        assert_eq!("dhcp".parse(), Ok(Ipv4Setup::Dhcp));
        let address = Ipv4Cidr::new(Ipv4Address::new(10, 0, 2, 15), 24);
        assert_eq!(
            "10.0.2.15/24".parse(),
            Ok(Ipv4Setup::Static {
                address,
                gateway: None
            })
        );
        let gateway = Some(Ipv4Address::new(10, 0, 2, 2));
        assert_eq!(
            "10.0.2.15/24,10.0.2.2".parse(),
            Ok(Ipv4Setup::Static { address, gateway })
        );
        for wrong in [
            "",
            "10.0.2.15",
            "10.0.2.15/33",
            "10.0.2.15/24,",
            "224.0.0.1/8",
            "0.0.0.0/0",
            "10.0.2.15/24,255.255.255.255",
        ] {
            assert!(wrong.parse::<Ipv4Setup>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_is_a_router_on_this_link_is_believed() {
        let from = |source: Ipv6Address, hop_limit: u8| {
            let mut bytes = vec![0; 40 + 16];
            let header = Ipv6Repr {
                src_addr: source,
                dst_addr: Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
                next_header: IpProtocol::Icmpv6,
                payload_len: 16,
                hop_limit,
            };
            let mut packet = Ipv6Packet::new_unchecked(&mut bytes);
            header.emit(&mut packet);
            // A router advertisement without options, lifetime 1800 s.
            packet
                .payload_mut()
                .copy_from_slice(&[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
            Icmpv6Packet::new_unchecked(packet.payload_mut())
                .fill_checksum(&header.src_addr, &header.dst_addr);
            bytes
        };
        let router = Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
        let advert = router_advertisement(&from(router, 255)).unwrap();
        assert_eq!(
            (advert.router, advert.lifetime),
            (router, Duration::from_secs(1800))
        );
        assert!(
            router_advertisement(&from(router, 64)).is_none(),
            "passed on by a router"
        );
        assert!(
            router_advertisement(&from(Ipv6Address::new(0x2001, 0, 0, 0, 0, 0, 0, 2), 255))
                .is_none()
        );
        let mut broken = from(router, 255);
        broken[46] ^= 1;
        assert!(
            router_advertisement(&broken).is_none(),
            "the checksum is wrong"
        );
        for length in 0..56 {
            assert!(router_advertisement(&from(router, 255)[..length]).is_none());
        }
    }
}
