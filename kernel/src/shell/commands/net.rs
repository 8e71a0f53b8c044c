//! Commands that show and use the network: net, ping, fetch.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use sha2::{Digest, Sha256};
use smoltcp::wire::EthernetAddress;
use vringlet::net::{Command as Order, Features, MacAddress, ReceiveMode};

use crate::devices::net::{self as cards, Card};
use crate::net::fetch::{Response, Sink, Url, fetch as get};
use crate::net::ping::Pinger;
use crate::net::stack::Stack;
use crate::net::target::Target;
use crate::net::{self, KernelClock, Lease};
use crate::platform::time;
use crate::shell::progress::Progress;
use crate::shell::{Args, Command, Error, Output};

pub(in crate::shell) const COMMANDS: &[Command] = &[
    Command {
        name: "net",
        usage: &[
            "net",
            "net sockets",
            "net promisc|allmulti on|off [card=NAME]",
            "net mac XX:XX:XX:XX:XX:XX [card=NAME]",
            "net vlan add|del ID [card=NAME]",
            "net offload csum|tso4|tso6 on|off [card=NAME]",
        ],
        help: "shows interfaces, leases and sockets; tells a card which frames to receive, and what of them to leave to its driver",
        run: |args, out| Box::pin(net(args, out)),
    },
    Command {
        name: "ping",
        usage: &["ping ADDRESS [count=N]"],
        help: "asks a host (10.0.2.2, fec0::2, fe80::2%net0) for echoes",
        run: |args, out| Box::pin(ping(args, out)),
    },
    Command {
        name: "fetch",
        usage: &["fetch http://ADDRESS[:PORT][/PATH]"],
        help: "gets a page and shows its status, length and hash; redirects are shown, not followed",
        run: |args, out| Box::pin(fetch(args, out)),
    },
];

const DEFAULT_PINGS: u64 = 4;
const PING_PATIENCE: Duration = Duration::from_secs(2);
const PING_INTERVAL: Duration = Duration::from_millis(200);

async fn net(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    match args.next_word() {
        None => interfaces(out),
        Some("sockets") => {
            args.end()?;
            sockets(out)
        }
        Some(what) => order(what, args, out).await,
    }
}

fn interfaces(out: Output<'_>) -> Result<(), Error> {
    for stack in all_stacks() {
        let summary = stack.summary();
        let link = if summary.link { "up" } else { "down" };
        write!(out, "{}: link {link}, mtu {}", summary.name, summary.mtu)?;
        if let Some(mac) = summary.mac {
            write!(out, ", mac {}", MacAddress(mac.0))?;
        }
        writeln!(out)?;
        for address in &summary.addresses {
            writeln!(out, "  address {address}")?;
        }
        for gateway in &summary.gateways {
            writeln!(out, "  gateway {gateway}")?;
        }
        if let Some(lease) = &summary.lease {
            show_lease(lease, out)?;
        }
        if let Some(card) = cards::find(Some(&summary.name)) {
            show_counters(card, out)?;
        }
        let drops = summary.drops;
        writeln!(
            out,
            "  packets malformed={} foreign={} unheard={} unassembled={} unsent={}",
            drops.malformed, drops.foreign, drops.unheard, drops.unassembled, drops.unsent
        )?;
    }
    Ok(())
}

fn show_lease(lease: &Lease, out: Output<'_>) -> Result<(), Error> {
    let Some(server) = lease.server else {
        writeln!(out, "  static address")?;
        return Ok(());
    };
    write!(out, "  lease from {server}")?;
    if let Some(duration) = lease.duration {
        let end = lease
            .renewed
            .total_micros()
            .saturating_add_unsigned(duration.total_micros());
        let left = end.saturating_sub_unsigned(time::now().as_micros()) / 1_000_000;
        write!(out, ": {} s, {left} s left", duration.secs())?;
    } else {
        write!(out, ", for ever")?;
    }
    write!(out, ", renewed {} times, DNS", lease.renewals)?;
    for server in &lease.dns {
        write!(out, " {server}")?;
    }
    writeln!(out)?;
    Ok(())
}

fn show_counters(card: &Card, out: Output<'_>) -> Result<(), Error> {
    let (received, sent) = card.with(|driver| (driver.receive_stats(), driver.transmit_stats()));
    writeln!(
        out,
        "  received packets={} bytes={} dropped={} no_buffer={} large={} trusted={}",
        received.packets,
        received.bytes,
        received.dropped(),
        received.no_buffer,
        received.large,
        received.trusted
    )?;
    writeln!(
        out,
        "  sent packets={} bytes={} dropped={} large={} partial={}",
        sent.packets,
        sent.bytes,
        sent.dropped(),
        sent.large,
        sent.partial
    )?;
    Ok(())
}

fn sockets(out: Output<'_>) -> Result<(), Error> {
    for stack in all_stacks() {
        for socket in stack.sockets() {
            let name = stack.name();
            let (received, sent) = socket.queued;
            let dropped = socket.dropped;
            let protocol = socket.protocol;
            let (local, remote) = (socket.local.to_string(), socket.remote.to_string());
            let state = socket.state.map(|state| state.to_string());
            let state = state.unwrap_or_default();
            writeln!(
                out,
                "{name:5} {protocol:6} {local:30} {remote:30} {state:12} in={received} out={sent} dropped={dropped}"
            )?;
        }
    }
    Ok(())
}

fn all_stacks() -> impl Iterator<Item = &'static Stack> {
    net::stacks().into_iter().chain(net::loopback())
}

/// Has a card obey.
async fn order(what: &str, mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let name = args.option("card");
    let wanted = match what {
        "promisc" => Wanted::Order(Order::Receive(
            ReceiveMode::Promiscuous,
            on_or_off(&mut args)?,
        )),
        "allmulti" => Wanted::Order(Order::Receive(
            ReceiveMode::AllMulticast,
            on_or_off(&mut args)?,
        )),
        "mac" => Wanted::Order(Order::MacAddress(mac(args.word("ADDRESS")?)?)),
        "vlan" => Wanted::Order(vlan(&mut args)?),
        "offload" => Wanted::Offload(offload(&mut args)?, on_or_off(&mut args)?),
        _ => return Err(Error::usage(format_args!("no `net {what}`"))),
    };
    let name = name.or_else(|| args.next_word());
    args.end()?;
    let card = cards::find(name).ok_or_else(|| match name {
        Some(name) => Error::failed(format_args!("no card {name}")),
        None => Error::failed("no network card"),
    })?;
    let order = wanted.of(card);
    let obeyed = card.command(order).await;
    obeyed.map_err(|error| Error::failed(format_args!("{}: {error}", card.name())))?;
    if let Order::MacAddress(address) = order
        && let Some(stack) = net::stacks()
            .into_iter()
            .find(|stack| stack.name() == card.name())
    {
        stack.set_mac(EthernetAddress(address.0));
    }
    writeln!(out, "{}: done", card.name())?;
    Ok(())
}

/// What a card is to do.
enum Wanted {
    Order(Order<'static>),
    /// To leave something to the driver, or not, besides what it leaves to it already.
    Offload(Features, bool),
}

impl Wanted {
    fn of(self, card: &Card) -> Order<'static> {
        match self {
            Self::Order(order) => order,
            Self::Offload(offload, on) => {
                let mut offloads = card.with(|driver| driver.guest_offloads());
                offloads.set(offload, on);
                Order::GuestOffloads(offloads)
            }
        }
    }
}

fn offload(args: &mut Args<'_>) -> Result<Features, Error> {
    match args.word("csum, tso4 or tso6")? {
        "csum" => Ok(Features::GUEST_CSUM),
        "tso4" => Ok(Features::GUEST_TSO4),
        "tso6" => Ok(Features::GUEST_TSO6),
        other => Err(Error::usage(format_args!(
            "`{other}` is none of csum, tso4, tso6"
        ))),
    }
}

fn on_or_off(args: &mut Args<'_>) -> Result<bool, Error> {
    match args.word("on or off")? {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(Error::usage(format_args!(
            "`{other}` is neither on nor off"
        ))),
    }
}

fn vlan(args: &mut Args<'_>) -> Result<Order<'static>, Error> {
    let action = args.word("add or del")?;
    let id = args.number("ID")?;
    let id = u16::try_from(id).map_err(|_| Error::usage(format_args!("{id} is no VLAN id")))?;
    match action {
        "add" => Ok(Order::VlanAdd(id)),
        "del" => Ok(Order::VlanDelete(id)),
        other => Err(Error::usage(format_args!(
            "`{other}` is neither add nor del"
        ))),
    }
}

fn mac(text: &str) -> Result<MacAddress, Error> {
    let wrong = || {
        Error::usage(format_args!(
            "`{text}` is not of the form 52:54:00:12:34:56"
        ))
    };
    let byte = |part: &str| {
        (part.len() == 2)
            .then(|| u8::from_str_radix(part, 16).ok())
            .flatten()
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    bytes.map(MacAddress).ok_or_else(wrong)
}

async fn ping(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let count = args.number_option("count")?;
    let target: Target = args.word("ADDRESS")?.parse().map_err(Error::usage)?;
    let count = args.or_next("COUNT", count)?.unwrap_or(DEFAULT_PINGS);
    let count = u16::try_from(count).map_err(|_| Error::usage("count is at most 65535"))?;
    args.end()?;
    let received = ping_host(&target, count, out).await?;
    writeln!(out, "{count} sent, {received} received")?;
    match received {
        0 if count > 0 => Err(Error::failed(format_args!(
            "{} does not answer",
            target.address
        ))),
        _ => Ok(()),
    }
}

/// Asks `count` times; returns how many answers came.
pub(super) async fn ping_host(target: &Target, count: u16, out: Output<'_>) -> Result<u16, Error> {
    let stack = route(target)?;
    let pinger = Pinger::new(stack, KernelClock, target.address, stack.identifier());
    let mut received = 0;
    for sequence in 0..count {
        if sequence > 0 {
            time::after(PING_INTERVAL).await;
        }
        match pinger.ask(sequence, PING_PATIENCE).await {
            Some(taken) => {
                received += 1;
                let micros = taken.as_micros();
                let (millis, rest) = (micros / 1000, micros % 1000);
                writeln!(
                    out,
                    "{}: sequence {sequence}, {millis}.{rest:03} ms",
                    target.address
                )?;
            }
            None => writeln!(out, "{}: sequence {sequence}, no answer", target.address)?,
        }
    }
    Ok(received)
}

async fn fetch(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let progress = args.progress();
    let url: Url = args.word("URL")?.parse().map_err(Error::usage)?;
    args.end()?;
    let (response, hash) = fetch_url(&url, progress).await?;
    writeln!(
        out,
        "status={} bytes={} sha256={hash}",
        response.status, response.bytes
    )?;
    if let Some(location) = &response.location {
        writeln!(out, "not followed: location={location:?}")?;
    }
    match response.status {
        200..400 => Ok(()),
        status => Err(Error::failed(format_args!(
            "the server answered with status {status}"
        ))),
    }
}

/// Gets a page; returns its hash with it.
pub(super) async fn fetch_url(url: &Url, progress: Progress) -> Result<(Response, String), Error> {
    let stack = route(&url.target)?;
    let mut page = Page {
        hash: Sha256::new(),
        progress,
    };
    let response = get(stack, KernelClock, url.target.address, url, &mut page).await;
    let response = response.map_err(Error::failed)?;
    let hash = page
        .hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok((response, hash))
}

/// A page as it comes: its hash, and how far it is.
struct Page {
    hash: Sha256,
    progress: Progress,
}

impl Sink for &mut Page {
    fn length(&mut self, length: u64) {
        self.progress.expect(length);
    }

    fn piece(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.progress.add(bytes.len() as u64);
    }
}

fn route(target: &Target) -> Result<&'static Stack, Error> {
    let loopback = net::loopback().ok_or_else(|| Error::failed("networking is not up yet"))?;
    target
        .route(&net::stacks(), loopback)
        .map_err(Error::failed)
}
