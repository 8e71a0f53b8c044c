//! IPv6 addresses and routers from router advertisements (RFC 4861, RFC 4862), as a state machine without sockets.
//!
//! smoltcp 0.14 has this too, but there an advertised multicast prefix panics, an unanswered solicitation leaves a
//! deadline in the past (the processor would never sleep again), and it cannot start over when the link comes back.
//! Duplicate addresses are not looked for, as smoltcp does not either.

use alloc::vec::Vec;

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    EthernetAddress, Ipv6Address, Ipv6Cidr, NdiscPrefixInfoFlags, NdiscPrefixInformation,
};

/// RFC 4861, section 10.
const MAX_SOLICITATIONS: u8 = 3;
const SOLICITATION_INTERVAL: Duration = Duration::from_secs(4);
/// Prefixes and routers kept. More are ignored: a neighbour must not fill our memory.
const MAX_PREFIXES: usize = 4;
const MAX_ROUTERS: usize = 4;
/// An advertisement cannot shorten an address's life below this (RFC 4862, section 5.5.3 e).
const TWO_HOURS: Duration = Duration::from_secs(2 * 60 * 60);
/// Interface identifiers made from a hardware address need just this length.
const PREFIX_LENGTH: u8 = 64;

/// What the routers on the link told.
pub(super) struct Slaac {
    mac: EthernetAddress,
    solicitations_left: u8,
    next_solicitation: Option<Instant>,
    /// A router spoke since the link last went up or down.
    confirmed: bool,
    prefixes: Vec<Known>,
    routers: Vec<Known>,
}

/// A prefix or a router, and how long it is good for.
struct Known {
    address: Ipv6Address,
    until: Instant,
}

impl Slaac {
    pub(super) fn new(mac: EthernetAddress) -> Self {
        Self {
            mac,
            solicitations_left: 0,
            next_solicitation: None,
            confirmed: false,
            prefixes: Vec::new(),
            routers: Vec::new(),
        }
    }

    /// The link came up: asks the routers on it.
    pub(super) fn start(&mut self, now: Instant) {
        self.confirmed = false;
        self.solicitations_left = MAX_SOLICITATIONS;
        self.next_solicitation = Some(now);
    }

    /// The link went down: there is nobody to ask.
    pub(super) fn pause(&mut self) {
        self.confirmed = false;
        self.next_solicitation = None;
    }

    /// If no router spoke since the link went up or down, what was learned is another network's.
    pub(super) fn forget_unconfirmed(&mut self) {
        if !self.confirmed {
            self.prefixes.clear();
            self.routers.clear();
        }
    }

    /// Whether a solicitation is to be sent now; it counts as sent.
    pub(super) fn solicits(&mut self, now: Instant) -> bool {
        let due = self.next_solicitation.is_some_and(|due| due <= now);
        if due {
            self.solicitations_left = self.solicitations_left.saturating_sub(1);
            self.next_solicitation =
                (self.solicitations_left > 0).then(|| now + SOLICITATION_INTERVAL);
        }
        due
    }

    /// A router spoke. The caller has checked that it is on this link.
    pub(super) fn advertised(
        &mut self,
        router: Ipv6Address,
        lifetime: Duration,
        prefix: Option<NdiscPrefixInformation>,
        now: Instant,
    ) {
        self.next_solicitation = None;
        self.confirmed = true;
        self.routers.retain(|known| known.address != router);
        if lifetime > Duration::ZERO && self.routers.len() < MAX_ROUTERS {
            self.routers.push(Known {
                address: router,
                until: now + lifetime,
            });
        }
        if let Some(prefix) = prefix {
            self.advertised_prefix(&prefix, now);
        }
    }

    fn advertised_prefix(&mut self, prefix: &NdiscPrefixInformation, now: Instant) {
        let address = prefix.prefix;
        let usable = prefix.flags.contains(NdiscPrefixInfoFlags::ADDRCONF)
            && prefix.prefix_len == PREFIX_LENGTH
            && prefix.preferred_lifetime <= prefix.valid_lifetime
            && !(address.is_multicast() || address.is_unspecified() || address.is_loopback())
            && !address.is_unicast_link_local();
        if !usable {
            return;
        }
        let address = Ipv6Address::from_bits(address.to_bits() & !u128::from(u64::MAX));
        let until = now + prefix.valid_lifetime;
        let room = self.prefixes.len() < MAX_PREFIXES;
        match self
            .prefixes
            .iter_mut()
            .find(|known| known.address == address)
        {
            Some(known) if until >= known.until || prefix.valid_lifetime > TWO_HOURS => {
                known.until = until
            }
            Some(known) => known.until = known.until.min(now + TWO_HOURS),
            None if prefix.valid_lifetime > Duration::ZERO && room => {
                self.prefixes.push(Known { address, until });
            }
            None => {}
        }
    }

    /// Forgets what is no longer good.
    pub(super) fn expire(&mut self, now: Instant) {
        self.prefixes.retain(|known| known.until > now);
        self.routers.retain(|known| known.until > now);
    }

    /// When there is something to send or to forget.
    pub(super) fn next_work(&self) -> Option<Instant> {
        let known = self
            .prefixes
            .iter()
            .chain(&self.routers)
            .map(|known| known.until);
        known.chain(self.next_solicitation).min()
    }

    /// The addresses that follow from the prefixes.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Ipv6Cidr> {
        self.prefixes
            .iter()
            .map(|known| address(known.address, self.mac))
    }

    /// The router to use: the first that is still good.
    pub(super) fn router(&self) -> Option<Ipv6Address> {
        self.routers.first().map(|known| known.address)
    }
}

/// The address that every interface has, router or no router.
pub(super) fn link_local(mac: EthernetAddress) -> Ipv6Cidr {
    address(Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), mac)
}

/// The prefix with the modified EUI-64 identifier made from the hardware address.
fn address(prefix: Ipv6Address, mac: EthernetAddress) -> Ipv6Cidr {
    let [p0, p1, p2, p3, p4, p5, p6, p7, ..] = prefix.octets();
    let EthernetAddress([m0, m1, m2, m3, m4, m5]) = mac;
    let octets = [
        p0,
        p1,
        p2,
        p3,
        p4,
        p5,
        p6,
        p7,
        m0 ^ 0x02,
        m1,
        m2,
        0xff,
        0xfe,
        m3,
        m4,
        m5,
    ];
    Ipv6Cidr::new(Ipv6Address::from_octets(octets), PREFIX_LENGTH)
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    const MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const ROUTER: Ipv6Address = Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

    fn at(seconds: i64) -> Instant {
        Instant::from_secs(seconds)
    }

    fn prefix(text: &str, seconds: u64) -> Option<NdiscPrefixInformation> {
        Some(NdiscPrefixInformation {
            prefix_len: 64,
            flags: NdiscPrefixInfoFlags::ADDRCONF,
            valid_lifetime: Duration::from_secs(seconds),
            preferred_lifetime: Duration::ZERO,
            prefix: text.parse().unwrap(),
        })
    }

    fn addresses(slaac: &Slaac) -> Vec<std::string::String> {
        slaac
            .addresses()
            .map(|address| address.to_string())
            .collect()
    }

    #[test]
    fn three_solicitations_and_then_silence() {
        let mut slaac = Slaac::new(MAC);
        slaac.start(at(1));
        let mut sent = Vec::new();
        while let Some(due) = slaac.next_work() {
            assert!(!slaac.solicits(due - Duration::from_millis(1)));
            assert!(slaac.solicits(due));
            sent.push(due.secs());
        }
        assert_eq!(sent, [1, 5, 9]);
    }

    #[test]
    fn an_advertisement_gives_an_address_and_a_router_until_they_expire() {
        let mut slaac = Slaac::new(MAC);
        slaac.start(at(0));
        slaac.advertised(
            ROUTER,
            Duration::from_secs(60),
            prefix("2001:db8::", 100),
            at(1),
        );
        assert!(!slaac.solicits(at(5)), "a router answered");
        assert_eq!(addresses(&slaac), ["2001:db8::5054:ff:fe12:3456/64"]);
        assert_eq!(slaac.router(), Some(ROUTER));
        assert_eq!(slaac.next_work(), Some(at(61)));
        slaac.expire(at(61));
        assert_eq!(slaac.router(), None);
        assert_eq!(addresses(&slaac).len(), 1);
        slaac.expire(at(101));
        assert!(addresses(&slaac).is_empty());
        assert_eq!(slaac.next_work(), None);
    }

    #[test]
    fn prefixes_no_interface_may_have_are_ignored() {
        let mut slaac = Slaac::new(MAC);
        for bad in ["ff02::", "fe80::", "::"] {
            slaac.advertised(ROUTER, Duration::ZERO, prefix(bad, 100), at(0));
        }
        let mut short = prefix("2001:db8::", 100);
        short.as_mut().unwrap().prefix_len = 48;
        slaac.advertised(ROUTER, Duration::ZERO, short, at(0));
        assert!(addresses(&slaac).is_empty());
        assert_eq!(slaac.router(), None, "a lifetime of 0 is no router");
    }

    #[test]
    fn a_neighbour_can_neither_fill_memory_nor_cut_an_address_short() {
        let mut slaac = Slaac::new(MAC);
        for number in 0..100 {
            let router = Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, number);
            let text = std::format!("2001:db8:{number:x}::");
            slaac.advertised(router, Duration::from_secs(9), prefix(&text, 86400), at(0));
        }
        assert_eq!(
            (slaac.prefixes.len(), slaac.routers.len()),
            (MAX_PREFIXES, MAX_ROUTERS)
        );
        slaac.advertised(ROUTER, Duration::ZERO, prefix("2001:db8:1::", 0), at(10));
        slaac.expire(at(10 + 7199));
        assert_eq!(addresses(&slaac).len(), MAX_PREFIXES);
        slaac.expire(at(10 + 7200));
        assert_eq!(addresses(&slaac).len(), MAX_PREFIXES - 1);
    }

    #[test]
    fn a_link_that_comes_back_starts_over() {
        let mut slaac = Slaac::new(MAC);
        slaac.start(at(0));
        slaac.advertised(
            ROUTER,
            Duration::from_secs(60),
            prefix("2001:db8::", 100),
            at(1),
        );
        slaac.pause();
        assert_eq!(addresses(&slaac).len(), 1, "it may be back in a moment");
        slaac.start(at(1));
        slaac.advertised(ROUTER, Duration::from_secs(60), None, at(1));
        slaac.forget_unconfirmed();
        assert_eq!(addresses(&slaac).len(), 1);
        slaac.pause();
        slaac.forget_unconfirmed();
        assert!(addresses(&slaac).is_empty() && slaac.next_work().is_none());
        slaac.start(at(2));
        assert!(slaac.solicits(at(2)));
    }
}
