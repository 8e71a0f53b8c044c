//! Networks: addresses, neighbours, services, and what must not harm them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr};
use vringlet_tests::cell::{Booted, Cell, MEMORY, PATIENCE};
use vringlet_tests::disk::sha256;
use vringlet_tests::net::capture::{Checksum, Segment, frames, segments, udp_payload};
use vringlet_tests::net::clients::{
    STATUS, answer, connect, curl, curl_arguments, echo_over, raw_request, status, tcp_echo,
    udp_echo,
};
use vringlet_tests::net::peer::{self, Peer};
use vringlet_tests::net::{ECHO, FORWARDS, WEB, namespace};

use super::services::no_iperf3_or_namespace;
use crate::Spec;

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for machine in ["q35", "microvm"] {
        cells.push(Spec::new(format!("{machine}/net/dhcp"), move |cell| {
            dhcp(cell, machine)
        }));
        cells.push(Spec::new(
            format!("{machine}/net/dhcp-renewal"),
            move |cell| dhcp_renewal(cell, machine),
        ));
        cells.push(Spec::new(
            format!("{machine}/net/static-address"),
            move |cell| static_address(cell, machine),
        ));
        cells.push(Spec::new(format!("{machine}/net/neighbour"), move |cell| {
            neighbour(cell, machine)
        }));
        cells.push(Spec::new(
            format!("{machine}/net/malformed-frames"),
            move |cell| malformed_frames(cell, machine),
        ));
        cells.push(Spec::new(format!("{machine}/net/flood"), move |cell| {
            flood(cell, machine)
        }));
        cells.push(Spec::new(format!("{machine}/net/page"), move |cell| {
            page(cell, machine)
        }));
        cells.push(Spec::new(
            format!("{machine}/net/64-connections"),
            move |cell| many_connections(cell, machine),
        ));
        cells.push(Spec::new(
            format!("{machine}/net/bad-clients"),
            move |cell| bad_clients(cell, machine),
        ));
        cells.push(Spec::new(format!("{machine}/net/fetch"), move |cell| {
            fetch(cell, machine)
        }));
        cells.push(Spec::new(
            format!("{machine}/net/link-under-load"),
            move |cell| link_under_load(cell, machine),
        ));
        cells.push(
            Spec::new(format!("{machine}/net/tap"), move |cell| {
                tap(cell, machine, "")
            })
            .unless(namespace::unavailable),
        );
        cells.push(
            Spec::new(format!("{machine}/net/offloads"), move |cell| {
                offloads(cell, machine, "", &ALL_OFFLOADS)
            })
            .unless(namespace::unavailable),
        );
        cells.push(
            Spec::new(format!("{machine}/net/offloads-datagrams"), move |cell| {
                datagram_offload(cell, machine, "", true)
            })
            .unless(no_iperf3_or_namespace),
        );
        cells.push(
            Spec::new(format!("{machine}/net/offload-command"), move |cell| {
                offload_command(cell, machine)
            })
            .unless(namespace::unavailable),
        );
        cells.push(
            Spec::new(format!("{machine}/net/tap-same-port"), move |cell| {
                same_port(cell, machine)
            })
            .unless(namespace::unavailable),
        );
    }
    // Without mergeable buffers a whole frame must fit into one, and with a small ring it must be refilled in time.
    for properties in [
        "mrg_rxbuf=off",
        "rx_queue_size=256,tx_queue_size=256",
        "ctrl_vq=off",
        "guest_csum=off,csum=off",
    ] {
        cells.push(
            Spec::new(format!("q35/net/tap/{properties}"), move |cell| {
                tap(cell, "q35", properties)
            })
            .unless(namespace::unavailable),
        );
    }
    cells.push(
        Spec::new(
            "q35/net/offloads-datagrams/host_uso=off".to_string(),
            |cell| datagram_offload(cell, "q35", ",host_uso=off", false),
        )
        .unless(no_iperf3_or_namespace),
    );
    // Each offload turned off by the device, and whatever needs it with it.
    for (properties, expected) in FEWER_OFFLOADS {
        cells.push(
            Spec::new(format!("q35/net/offloads/{properties}"), move |cell| {
                offloads(cell, "q35", properties, expected)
            })
            .unless(namespace::unavailable),
        );
    }
    cells
}

/// A guest with a user-mode network that has its address; what goes over the wire is kept.
pub(crate) fn on_user_net(cell: &Cell, machine: &str) -> Result<Booted> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.user_net("n0", FORWARDS);
    qemu.capture("n0", &cell.file("wire.pcap"))?;
    qemu.virtio("net", "dev0", "netdev=n0,mac=52:54:00:12:34:56");
    let mut guest = cell.boot(qemu)?;
    guest.eventually("net0: address 10.0.2.15/24 gateway 10.0.2.2 (dhcp)")?;
    guest.expect_prompt()?;
    Ok(guest)
}

/// The whole exchange as it was on the wire: discover, offer, request, acknowledgement.
fn dhcp(cell: &Cell, machine: &str) -> Result<()> {
    on_user_net(cell, machine)?.power_off()?;
    let frames = frames(&cell.file("wire.pcap"))?;
    let packets = frames
        .iter()
        .filter_map(|frame| udp_payload(frame, 68, 67).or_else(|| udp_payload(frame, 67, 68)))
        .map(|payload| {
            DhcpPacket::new_checked(payload)
                .ok()
                .context("a short DHCP message")
        })
        .collect::<Result<Vec<_>>>()?;
    let parsed = packets
        .iter()
        .map(|packet| {
            DhcpRepr::parse(packet)
                .ok()
                .context("a malformed DHCP message")
        })
        .collect::<Result<Vec<_>>>()?;
    let kinds: Vec<_> = parsed.iter().map(|message| message.message_type).collect();
    let exchange = [
        DhcpMessageType::Discover,
        DhcpMessageType::Offer,
        DhcpMessageType::Request,
        DhcpMessageType::Ack,
    ];
    ensure!(kinds.ends_with(&exchange), "DHCP went {kinds:?}");
    let [discover, offer, request, _] = &parsed[parsed.len() - 4..] else {
        bail!("DHCP went {kinds:?}")
    };

    ensure!(
        discover.client_hardware_address.0 == [0x52, 0x54, 0, 0x12, 0x34, 0x56],
        "whose discover: {discover:?}"
    );
    ensure!(
        discover.client_ip.is_unspecified() && request.client_ip.is_unspecified(),
        "an address before the lease"
    );
    ensure!(
        discover.transaction_id == offer.transaction_id,
        "the offer belongs to another discover"
    );
    ensure!(
        request.requested_ip == Some(offer.your_ip),
        "requested: {:?}",
        request.requested_ip
    );
    ensure!(
        request.server_identifier == offer.server_identifier,
        "server: {:?}",
        request.server_identifier
    );
    // Subnet mask and router are what the guest can't do without.
    let wanted = request.parameter_request_list.unwrap_or_default();
    ensure!(
        wanted.contains(&1) && wanted.contains(&3),
        "the request asks for the options {wanted:?}"
    );
    Ok(())
}

/// A lease of seconds: the guest must ask for more time before it is over, of the server that gave it, from the
/// address it has; and keep that address.
fn dhcp_renewal(cell: &Cell, machine: &str) -> Result<()> {
    const LEASE: u32 = 20;
    let wire = Peer::new()?;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    wire.plug(&mut qemu, "n0")?;
    qemu.capture("n0", &cell.file("wire.pcap"))?;
    let mut guest = cell.boot(qemu)?;
    lease(&wire, LEASE)?;
    let leased = Instant::now();
    guest.expect(&format!(
        "net0: address {}/24 gateway {} (dhcp)",
        peer::GUEST,
        wire.address()
    ))?;
    let transaction = wire.dhcp_message(|message, destination| {
        ensure!(
            message.message_type == DhcpMessageType::Request,
            "{:?} instead of a renewal",
            message.message_type
        );
        ensure!(
            message.client_ip == peer::GUEST,
            "the renewal is from {}",
            message.client_ip
        );
        ensure!(
            destination == wire.address(),
            "the renewal went to {destination}"
        );
        Ok(message.transaction_id)
    })?;
    // Under load the guest and this test may both be late; the lease's end is what counts.
    ensure!(
        leased.elapsed() < Duration::from_secs(LEASE.into()),
        "the renewal came after the lease's end"
    );
    wire.dhcp_answer(DhcpMessageType::Ack, transaction, 3600)?;
    wire.resolve()?;
    wire.ping(1, b"still here")?;
    guest.power_off()
}

/// Gives the guest its address for `seconds`.
fn lease(wire: &Peer, seconds: u32) -> Result<()> {
    let mut offered = false;
    for _ in 0..10 {
        let (kind, transaction) =
            wire.dhcp_message(|message, _| Ok((message.message_type, message.transaction_id)))?;
        match kind {
            DhcpMessageType::Discover => {
                wire.dhcp_answer(DhcpMessageType::Offer, transaction, seconds)?;
                offered = true;
            }
            DhcpMessageType::Request if offered => {
                return wire.dhcp_answer(DhcpMessageType::Ack, transaction, seconds);
            }
            other => bail!("a DHCP {other:?} out of turn"),
        }
    }
    bail!("ten DHCP messages and no lease")
}

/// The address from the command line; no DHCP on the wire.
fn static_address(cell: &Cell, machine: &str) -> Result<()> {
    let wire = Peer::new()?;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    wire.plug(&mut qemu, "n0")?;
    qemu.capture("n0", &cell.file("wire.pcap"))?;
    qemu.cmdline(&format!("ip={}/24,{}", peer::GUEST, wire.address()));
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    wire.resolve()?;
    wire.ping(1, &[0xa5; 56])?;
    guest.power_off()?;
    let asked = frames(&cell.file("wire.pcap"))?
        .iter()
        .filter(|frame| udp_payload(frame, 68, 67).is_some())
        .count();
    ensure!(
        asked == 0,
        "{asked} DHCP messages from a guest with a static address"
    );
    Ok(())
}

/// ARP, neighbour discovery and both pings, from an empty payload to the longest that fits into a frame.
fn neighbour(cell: &Cell, machine: &str) -> Result<()> {
    let wire = Peer::new()?;
    let mut guest = with_neighbour(cell, machine, &wire)?;
    guest.expect_prompt()?;
    wire.resolve()?;
    wire.resolve_v6()?;
    let bytes: Vec<u8> = (0..1472)
        .map(|index| (index * 7 + index / 256) as u8)
        .collect();
    for (sequence, length) in [0, 1, 56, 1000, 1452, 1472].into_iter().enumerate() {
        wire.ping(sequence as u16, &bytes[..length])?;
        wire.ping_v6(sequence as u16, &bytes[..length.min(1452)])?;
    }
    guest.power_off()
}

fn with_neighbour(cell: &Cell, machine: &str, wire: &Peer) -> Result<Booted> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    wire.plug(&mut qemu, "n0")?;
    qemu.capture("n0", &cell.file("wire.pcap"))?;
    qemu.cmdline(&format!("ip={}/24,{}", peer::GUEST, wire.address()));
    cell.boot(qemu)
}

/// Frames that no decent neighbour sends: cut, stretched and bent copies of good ones, and plain noise. The guest
/// must go on answering.
fn malformed_frames(cell: &Cell, machine: &str) -> Result<()> {
    let wire = Peer::new()?;
    let mut guest = with_neighbour(cell, machine, &wire)?;
    guest.expect_prompt()?;
    wire.resolve()?;
    let samples = wire.samples()?;
    let mut random = fastrand::Rng::with_seed(2);
    for round in 0..400 {
        let mut frame = samples[round % samples.len()].clone();
        match random.u8(0..4) {
            0 => frame.truncate(random.usize(1..frame.len())),
            1 => frame.resize(random.usize(frame.len()..1514), 0xff),
            2 => (0..8).for_each(|_| {
                // The destination stays: the frame shall be let in.
                let index = random.usize(6..frame.len());
                frame[index] = random.u8(..);
            }),
            _ => frame[12..].fill_with(|| random.u8(..)),
        }
        wire.send(&frame)?;
        if round % 50 == 0 {
            wire.ping(round as u16, b"still here")?;
        }
    }
    wire.ping(400, b"still here")?;
    wire.resolve_v6()?;
    guest.power_off()
}

/// More datagrams than the echo service takes, and some that nobody takes: each comes back, or a counter says where it was
/// dropped.
fn flood(cell: &Cell, machine: &str) -> Result<()> {
    const SENT: u64 = 20_000;
    let wire = Peer::new()?;
    let mut guest = with_neighbour(cell, machine, &wire)?;
    guest.expect_prompt()?;
    wire.resolve()?;
    let before = refused(&mut guest)?;
    let mut echoed = wire.flood(SENT)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let card = dropped(&mut guest, "net", "  received ")?;
        let socket = dropped(&mut guest, "net sockets", "net0  udp    *:7 ")?;
        let stack = refused(&mut guest)?;
        let stack: Vec<u64> = stack
            .iter()
            .zip(before)
            .map(|(now, before)| now - before)
            .collect();
        echoed += wire.echoes(Duration::from_millis(100))?;
        match echoed + card + socket + stack.iter().sum::<u64>() {
            SENT if stack.contains(&0) => bail!("malformed, foreign and unheard: {stack:?}"),
            SENT => break,
            // What was sent last is still on its way back.
            sum if sum < SENT && Instant::now() < deadline => {}
            sum => bail!(
                "{SENT} sent: {echoed} echoed, {card} dropped by the card, {socket} by the socket, \
                 {stack:?} by the stack, in all {sum}"
            ),
        }
    }
    wire.ping(1, b"still here")?;
    guest.power_off()
}

/// How much was dropped, as a line in a command's output says.
fn dropped(guest: &mut Booted, command: &str, line: &str) -> Result<u64> {
    counter(&guest.command(command, line)?.text, "dropped=")
}

/// How many packets the stack found malformed, for another host, and for nobody.
fn refused(guest: &mut Booted) -> Result<[u64; 3]> {
    let line = guest.command("net", "  packets malformed=")?.text;
    Ok([
        counter(&line, "malformed=")?,
        counter(&line, "foreign=")?,
        counter(&line, "unheard=")?,
    ])
}

fn counter(line: &str, name: &str) -> Result<u64> {
    let number = line.split(' ').find_map(|word| word.strip_prefix(name));
    Ok(number
        .with_context(|| format!("no {name} in {line:?}"))?
        .parse()?)
}

/// The page for people and the same as JSON; what is not there is not found.
fn page(cell: &Cell, machine: &str) -> Result<()> {
    let mut guest = on_user_net(cell, machine)?;
    let port = guest.process().qmp.forwarded_port("tcp", WEB)?;
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let page = curl(&url("/"), &[])?;
    ensure!(page.status == 200, "the page answers {}", page.status);
    ensure!(
        page.content_type.starts_with("text/html"),
        "the page is {}",
        page.content_type
    );
    ensure!(
        page.body.contains("net0") && page.body.contains("</html>"),
        "the page is not whole: {}",
        page.body
    );

    let first = status(port)?;
    let second = status(port)?;
    ensure!(
        first.to_string().contains("net0"),
        "the JSON does not know net0: {first}"
    );
    ensure!(
        first != second,
        "two answers are the same to the last counter: nothing in it is live"
    );

    ensure!(
        curl(&url("/no/such/page"), &[])?.status == 404,
        "what is not there must not be found"
    );
    let head = curl(&url("/"), &["--head"])?;
    ensure!(head.status == 200, "HEAD answers {}", head.status);
    let post = curl(&url("/"), &["--data", "x=1"])?;
    ensure!(post.status == 405, "POST answers {}", post.status);
    guest.power_off()
}

/// All connections open before the first is used, to the page and to the echo service.
fn many_connections(cell: &Cell, machine: &str) -> Result<()> {
    const PAGES: usize = 64;
    const ECHOES: usize = 16;
    let mut guest = on_user_net(cell, machine)?;
    let qmp = &mut guest.process().qmp;
    let (web, echo) = (
        qmp.forwarded_port("tcp", WEB)?,
        qmp.forwarded_port("tcp", ECHO)?,
    );

    let clients = connect_all(ECHOES, echo)?;
    for (index, client) in clients.iter().enumerate() {
        echo_over(client, format!("first word of {index}").as_bytes())?;
    }
    let mut random = fastrand::Rng::with_seed(3);
    for client in clients.iter().rev() {
        echo_over(
            client,
            &std::iter::repeat_with(|| random.u8(..))
                .take(5000)
                .collect::<Vec<_>>(),
        )?;
    }
    drop(clients);

    let mut clients = connect_all(PAGES, web)?;
    for client in &mut clients {
        client.write_all(b"GET / HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n")?;
    }
    for (index, client) in clients.iter_mut().enumerate() {
        let mut text = Vec::new();
        client
            .read_to_end(&mut text)
            .with_context(|| format!("client {index} of {PAGES}"))?;
        ensure!(
            text.starts_with(b"HTTP/1.1 200 "),
            "client {index} got {:?}",
            String::from_utf8_lossy(&text)
        );
    }
    guest.power_off()
}

/// Opens connections that all stay open.
fn connect_all(count: usize, port: u16) -> Result<Vec<TcpStream>> {
    let one = |_| {
        // QEMU's forwarder has room for one that waits; what finds no room tries again after a second.
        std::thread::sleep(Duration::from_millis(5));
        connect(port)
    };
    (0..count).map(one).collect()
}

/// Clients that say nonsense, too much, or nothing for ever; the others must not notice.
fn bad_clients(cell: &Cell, machine: &str) -> Result<()> {
    let mut guest = on_user_net(cell, machine)?;
    let port = guest.process().qmp.forwarded_port("tcp", WEB)?;
    let good = || -> Result<()> {
        let page = curl(&format!("http://127.0.0.1:{port}/"), &[])?;
        ensure!(page.status == 200, "the page answers {}", page.status);
        Ok(())
    };
    // More of them than there are likely to be places for, each with half a request.
    let silent = (0..16)
        .map(|_| {
            let mut client = connect(port)?;
            client.write_all(b"GET / HTTP/1.1\r\nHost: ")?;
            Ok(client)
        })
        .collect::<Result<Vec<_>>>()?;
    good()?;

    let long = [b"GET /".as_slice(), &[b'a'; 100_000], b" HTTP/1.1\r\n\r\n"].concat();
    let many = [
        b"GET / HTTP/1.1\r\n".as_slice(),
        &b"X: y\r\n".repeat(20_000),
        b"\r\n",
    ]
    .concat();
    let mut random = fastrand::Rng::with_seed(4);
    let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(20_000)
        .collect();
    let bad: [&[u8]; 9] = [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"NONSENSE / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        &long,
        &many,
        &noise,
    ];
    for request in bad {
        let answer = raw_request(port, request, Duration::from_secs(10))?;
        let shown = String::from_utf8_lossy(&request[..request.len().min(40)]);
        ensure!(!answer.starts_with(b"HTTP/1.1 200 "), "200 for {shown:?}");
        good().with_context(|| format!("after {shown:?}"))?;
    }
    for client in &silent {
        ensure!(
            is_closed(client)?,
            "a client that sent half a request is still connected after {PATIENCE:?}"
        );
    }
    good()?;
    guest.power_off()
}

/// Waits for the guest to close the connection.
fn is_closed(mut client: &TcpStream) -> Result<bool> {
    let mut rest = Vec::new();
    match client.read_to_end(&mut rest) {
        Ok(_) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            ) =>
        {
            Ok(false)
        }
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(true),
        Err(error) => Err(error).context("a silent client"),
    }
}

/// The guest as a client: it fetches a megabyte from this machine, and its own page.
fn fetch(cell: &Cell, machine: &str) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(5);
    let body: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(1 << 20)
        .collect();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let hash = sha256(&body);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A client that goes away early is the cell's failure, seen in what the guest prints.
            let _ = serve(client, &body);
        }
    });
    let mut guest = on_user_net(cell, machine)?;
    guest.command(
        &format!("fetch http://10.0.2.2:{port}/x"),
        &format!("status=200 bytes=1048576 sha256={hash}"),
    )?;
    guest.command("fetch http://10.0.2.15/", "status=200 bytes=")?;
    guest.command("fetch http://10.0.2.15/no/such/page", "status=404")?;
    guest.command(
        "fetch http://10.0.2.2:1/",
        "error: the connection was refused",
    )?;
    guest.power_off()
}

fn serve(mut client: TcpStream, body: &[u8]) -> Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && request.len() < 10_000 {
        client.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    write!(
        client,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    client.write_all(body)?;
    Ok(())
}

/// The link goes down and comes back while bytes are on their way: none is lost.
fn link_under_load(cell: &Cell, machine: &str) -> Result<()> {
    let mut guest = on_user_net(cell, machine)?;
    let qmp = &mut guest.process().qmp;
    let (tcp, udp) = (
        qmp.forwarded_port("tcp", ECHO)?,
        qmp.forwarded_port("udp", ECHO)?,
    );
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let load = scope.spawn(|| -> Result<u32> {
            let mut random = fastrand::Rng::with_seed(6);
            let client = connect(tcp)?;
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                echo_over(
                    &client,
                    &std::iter::repeat_with(|| random.u8(..))
                        .take(20_000)
                        .collect::<Vec<_>>(),
                )?;
                rounds += 1;
            }
            Ok(rounds)
        });
        let flaps = (|| -> Result<()> {
            for _ in 0..3 {
                std::thread::sleep(Duration::from_millis(500));
                set_link(&mut guest, false)?;
                guest.expect("net0: link down")?;
                std::thread::sleep(Duration::from_millis(500));
                set_link(&mut guest, true)?;
                guest.expect("net0: link up")?;
            }
            Ok(())
        })();
        done.store(true, Ordering::Relaxed);
        let rounds = load
            .join()
            .map_err(|_| anyhow::anyhow!("the load panicked"))?;
        flaps?;
        ensure!(rounds? > 0, "there was no load");
        Ok(())
    })?;
    tcp_echo(tcp, b"after all")?;
    udp_echo(udp, b"after all")?;
    guest.power_off()
}

fn set_link(guest: &mut Booted, up: bool) -> Result<()> {
    guest
        .process()
        .qmp
        .execute("set_link", json!({ "name": "dev0", "up": up }))
        .map(drop)
}

/// Linux at the other end of the wire, with the offloads that it offers: ping, the page over IPv4 and IPv6.
fn tap(cell: &Cell, machine: &str, properties: &str) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    let comma = if properties.is_empty() { "" } else { "," };
    namespace::plug(&mut qemu, &format!("{comma}{properties}"));
    qemu.capture("n0", &cell.file("wire.pcap"))?;
    let mut guest = cell.boot(qemu)?;
    guest.eventually(&format!("net0: address {}/24", namespace::GUEST))?;
    guest.expect_prompt()?;
    let pid = guest.process().pid();
    guest.command(&format!("ping {} 3", namespace::HERE), "3 sent, 3 received")?;

    // In several fragments, and in as many as there can be.
    for size in ["2000", "4080", "65507"] {
        let arguments = ["-n", "-c", "1", "-W", "30", "-s", size, namespace::GUEST];
        namespace::run(pid, "ping", &arguments)?;
    }
    let link_local = peer::GUEST_V6.to_string();
    for target in [namespace::GUEST.to_string(), format!("{link_local}%tap0")] {
        // 1400 bytes: a frame that is nearly full.
        for size in ["0", "56", "1400"] {
            namespace::run(
                pid,
                "ping",
                &[
                    "-n", "-c", "3", "-i", "0.2", "-W", "30", "-s", size, &target,
                ],
            )?;
        }
    }
    for host in [
        namespace::GUEST.to_string(),
        format!("[{link_local}%25tap0]"),
    ] {
        let mut command = namespace::command(pid, "curl");
        let page = answer(
            command
                .args(curl_arguments())
                .arg(format!("http://{host}{STATUS}")),
        )?;
        ensure!(
            page.status == 200 && page.body.contains("net0"),
            "http://{host}{STATUS} answers {}",
            page.status
        );
    }
    guest.power_off()
}

/// What is to be seen in what a guest and Linux send each other. IPv4 comes first, then IPv6.
struct Offloads {
    /// The guest sends frames that the device cuts.
    sends_large: [bool; 2],
    /// It is sent frames that stand for several.
    gets_large: [bool; 2],
    /// It leaves checksums to the device.
    sends_partial: bool,
    /// They are left to it.
    gets_partial: bool,
}

const ALL_OFFLOADS: Offloads = Offloads {
    sends_large: [true; 2],
    gets_large: [true; 2],
    sends_partial: true,
    gets_partial: true,
};

const FEWER_OFFLOADS: &[(&str, &Offloads)] = &[
    (
        "csum=off",
        &Offloads {
            sends_large: [false; 2],
            sends_partial: false,
            ..ALL_OFFLOADS
        },
    ),
    (
        "guest_csum=off",
        &Offloads {
            gets_large: [false; 2],
            gets_partial: false,
            ..ALL_OFFLOADS
        },
    ),
    (
        "host_tso4=off",
        &Offloads {
            sends_large: [false, true],
            ..ALL_OFFLOADS
        },
    ),
    (
        "host_tso6=off",
        &Offloads {
            sends_large: [true, false],
            ..ALL_OFFLOADS
        },
    ),
    (
        "guest_tso4=off",
        &Offloads {
            gets_large: [false, true],
            ..ALL_OFFLOADS
        },
    ),
    (
        "guest_tso6=off",
        &Offloads {
            gets_large: [true, false],
            ..ALL_OFFLOADS
        },
    ),
    ("mrg_rxbuf=off", &ALL_OFFLOADS),
    ("ctrl_vq=off", &ALL_OFFLOADS),
    ("rx_queue_size=1024,ctrl_guest_offloads=off", &ALL_OFFLOADS),
];

/// Megabytes go through Linux's stack and the guest's, and what passes between them has the form that was agreed on. Each
/// checksum that the guest sends is right, or is what the device makes one of.
fn offloads(cell: &Cell, machine: &str, properties: &str, expected: &Offloads) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    let comma = if properties.is_empty() { "" } else { "," };
    namespace::plug(&mut qemu, &format!("{comma}{properties}"));
    qemu.capture("n0", &cell.file("wire.pcap"))?;
    let mut guest = cell.boot(qemu)?;
    guest.eventually(&format!("net0: address {}/24", namespace::GUEST))?;
    guest.expect_prompt()?;
    let pid = guest.process().pid();
    namespace::wait_for_address(pid)?;
    let mut random = fastrand::Rng::with_seed(7);
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(3_000_001)
        .collect();
    for host in [
        namespace::GUEST.to_string(),
        format!("{}%tap0", peer::GUEST_V6),
    ] {
        namespace::echo(pid, &host, &bytes, cell.directory())?;
        namespace::udp_echo(pid, &host, "an odd number of letters!")?;
    }
    guest.power_off()?;
    let segments = segments(&frames(&cell.file("wire.pcap"))?);
    judge(&segments, expected)
}

/// The guest's hardware address.
const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// A frame that stands for several is longer.
const LONGEST_FRAME: usize = 1514;

fn judge(segments: &[Segment], expected: &Offloads) -> Result<()> {
    let (sent, got): (Vec<&Segment>, Vec<&Segment>) =
        segments.iter().partition(|one| one.from == GUEST);
    for ipv6 in [false, true] {
        for (direction, those, large) in [
            ("sent", &sent, expected.sends_large),
            ("got", &got, expected.gets_large),
        ] {
            let those = those.iter().filter(|one| one.ipv6 == ipv6);
            let (all, long) = those.fold((0, 0), |(all, long), one| {
                (all + 1, long + usize::from(one.len > LONGEST_FRAME))
            });
            ensure!(all > 0, "nothing was {direction}, IPv6: {ipv6}");
            ensure!(
                (long > 0) == large[usize::from(ipv6)],
                "{long} frames of {all} that were {direction} stand for several, IPv6: {ipv6}"
            );
        }
    }
    for (direction, those, partial) in [
        ("sent", &sent, expected.sends_partial),
        ("got", &got, expected.gets_partial),
    ] {
        let count = |checksum| those.iter().filter(|one| one.checksum == checksum).count();
        ensure!(
            (count(Checksum::Partial) > 0) == partial,
            "{} checksums of {} that were {direction} are unfinished",
            count(Checksum::Partial),
            those.len()
        );
        let bad = those.iter().filter(|one| one.is_bad()).count();
        ensure!(bad == 0, "{bad} wrong checksums were {direction}");
    }
    Ok(())
}

/// The guest sends datagrams as fast as it can: where the device cuts them, many leave in one frame. Each that arrives has its
/// number, and none comes twice or early.
fn datagram_offload(cell: &Cell, machine: &str, properties: &str, large: bool) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    namespace::plug_with(&mut qemu, properties, "services=iperf3");
    qemu.capture("n0", &cell.file("wire.pcap"))?;
    let mut guest = cell.boot(qemu)?;
    guest.eventually(&format!("net0: address {}/24", namespace::GUEST))?;
    guest.expect_prompt()?;
    let pid = guest.process().pid();
    for length in ["16", "999", "1448"] {
        let arguments = [
            "-c",
            namespace::GUEST,
            "-u",
            "-R",
            "-b",
            "0",
            "-l",
            length,
            "-t",
            "1",
            "-J",
        ];
        let output = namespace::run(pid, "iperf3", &arguments)?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let stream = &report["end"]["streams"][0]["udp"];
        let number = |name: &str| stream[name].as_f64().with_context(|| format!("{report}"));
        let (packets, lost) = (number("packets")?, number("lost_packets")?);
        ensure!(
            packets > lost,
            "{length} bytes: nothing of {packets} arrived"
        );
        let early = number("out_of_order")?;
        ensure!(
            early == 0.0,
            "{length} bytes: {early} of {packets} out of order"
        );
    }
    guest.power_off()?;
    let segments = segments(&frames(&cell.file("wire.pcap"))?);
    let sent: Vec<_> = segments
        .iter()
        .filter(|one| one.from == GUEST && !one.tcp)
        .collect();
    let long = sent.iter().filter(|one| one.len > LONGEST_FRAME).count();
    let (all, bad) = (sent.len(), sent.iter().filter(|one| one.is_bad()).count());
    ensure!(all > 0 && bad == 0, "{bad} wrong checksums in {all} frames");
    ensure!(
        (long > 0) == large,
        "{long} frames of {all} stand for several"
    );
    Ok(())
}

/// The guest turns off what the device leaves to it, and on again, and the device does so.
fn offload_command(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    namespace::plug(&mut qemu, "");
    let mut guest = cell.boot(qemu)?;
    guest.eventually(&format!("net0: address {}/24", namespace::GUEST))?;
    guest.expect_prompt()?;
    let pid = guest.process().pid();
    namespace::wait_for_address(pid)?;
    let mut random = fastrand::Rng::with_seed(8);
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(1_000_001)
        .collect();
    for (name, commands, gets_large, gets_partial) in [
        ("as-agreed", &[][..], [true, true], true),
        ("no-tso4", &["tso4 off"], [false, true], true),
        ("nothing", &["tso6 off", "csum off"], [false; 2], false),
        ("all", &["csum on", "tso4 on", "tso6 on"], [true; 2], true),
    ] {
        for command in commands {
            guest.command(&format!("net offload {command}"), "net0: done")?;
        }
        let file = cell.file(&format!("{name}.pcap"));
        let dump = json!({ "qom-type": "filter-dump", "id": name, "netdev": "n0", "file": file });
        guest.process().qmp.execute("object-add", dump)?;
        for host in [
            namespace::GUEST.to_string(),
            format!("{}%tap0", peer::GUEST_V6),
        ] {
            namespace::echo(pid, &host, &bytes, cell.directory())?;
        }
        let remove = json!({ "id": name });
        guest.process().qmp.execute("object-del", remove)?;
        let expected = Offloads {
            gets_large,
            gets_partial,
            ..ALL_OFFLOADS
        };
        judge(&segments(&frames(&file)?), &expected).with_context(|| name)?;
    }
    guest.command("net offload tso4 off net1", "error: no card net1")?;
    guest.power_off()
}

/// A client that uses its port again and again, as those behind some address translators do: the guest, which closes first and
/// remembers each connection for ten seconds, keeps it waiting none of the times.
fn same_port(cell: &Cell, machine: &str) -> Result<()> {
    const CONNECTIONS: u32 = 20;
    const PORT: u16 = 40000;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    namespace::plug(&mut qemu, "");
    qemu.capture("n0", &cell.file("wire.pcap"))?;
    let mut guest = cell.boot(qemu)?;
    guest.eventually(&format!("net0: address {}/24", namespace::GUEST))?;
    guest.expect_prompt()?;
    let pid = guest.process().pid();
    // This machine's end of the last connection goes when the guest has acknowledged its end.
    let taken = || -> Result<bool> {
        let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/tcp"))?;
        Ok(sockets.contains(&format!(":{PORT:04X} ")))
    };
    let started = Instant::now();
    for _ in 0..CONNECTIONS {
        while taken()? && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut command = namespace::command(pid, "curl");
        let page = answer(
            command
                .args(curl_arguments())
                .args(["--local-port", &PORT.to_string()])
                .args(["--header", "Connection: close"])
                // So that it waits until the guest has closed.
                .arg("--ignore-content-length")
                .arg(format!("http://{}{STATUS}", namespace::GUEST)),
        )?;
        ensure!(
            page.status == 200,
            "the status page answers {}",
            page.status
        );
    }
    // Ten seconds for each would be more than any step may take.
    let took = started.elapsed();
    ensure!(took < PATIENCE, "{CONNECTIONS} connections took {took:?}");
    guest.power_off()
}
