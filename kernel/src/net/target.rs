//! Whom to talk to, and through which interface.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use smoltcp::wire::IpAddress;

use super::stack::Stack;

/// An address as people write it: `10.0.2.2`, `fec0::2`, `fe80::2%net0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address.
    pub address: IpAddress,
    /// The interface named after `%`.
    pub interface: Option<String>,
}

/// Why an address cannot be talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// Names are not looked up.
    NotAnAddress,
    /// Not the address of one host.
    NotUnicast,
    /// No interface has that name.
    NoInterface(String),
    /// A link-local address is on every link: the interface must be named.
    WhichInterface,
    /// No interface is on that network or has a router.
    NoRoute,
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnAddress => {
                write!(f, "not an IPv4 or IPv6 address (names are not looked up)")
            }
            Self::NotUnicast => write!(f, "not the address of one host"),
            Self::NoInterface(name) => write!(f, "no interface {name}"),
            Self::WhichInterface => {
                write!(f, "a link-local address needs its interface: ADDRESS%net0")
            }
            Self::NoRoute => write!(f, "no route to that address"),
        }
    }
}

impl core::error::Error for TargetError {}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (address, interface) = match text.split_once('%') {
            Some((address, interface)) => (address, Some(interface.to_string())),
            None => (text, None),
        };
        let address: IpAddress = address.parse().map_err(|()| TargetError::NotAnAddress)?;
        if !address.is_unicast() {
            return Err(TargetError::NotUnicast);
        }
        Ok(Self { address, interface })
    }
}

impl Target {
    /// The stack to reach it by: the named one; loopback for our own addresses; else the one on the same network, else
    /// the first with a router.
    pub fn route(
        &self,
        stacks: &[&'static Stack],
        loopback: &'static Stack,
    ) -> Result<&'static Stack, TargetError> {
        let address = self.address;
        if is_loopback(address) || stacks.iter().any(|stack| stack.accepts(address)) {
            return Ok(loopback);
        }
        if let Some(name) = &self.interface {
            let named = stacks.iter().find(|stack| stack.name() == name);
            return named
                .copied()
                .ok_or_else(|| TargetError::NoInterface(name.clone()));
        }
        let link_local =
            matches!(address, IpAddress::Ipv6(address) if address.is_unicast_link_local());
        if link_local && stacks.len() > 1 {
            return Err(TargetError::WhichInterface);
        }
        let neighbour = stacks.iter().find(|stack| stack.is_neighbour(address));
        let route = neighbour.or_else(|| stacks.iter().find(|stack| stack.has_route(address)));
        route.copied().ok_or(TargetError::NoRoute)
    }
}

fn is_loopback(address: IpAddress) -> bool {
    match address {
        IpAddress::Ipv4(address) => address.is_loopback(),
        IpAddress::Ipv6(address) => address.is_loopback(),
    }
}
