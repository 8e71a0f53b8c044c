//! Network cards: what the guest told the device, as QEMU sees it, and what the device asks of the guest.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etherparse::{SlicedPacket, TransportSlice};
use serde_json::{Value, json};
use vringlet_tests::cell::{Booted, Cell, MEMORY, PATIENCE};
use vringlet_tests::guest::End;
use vringlet_tests::net::FORWARDS;
use vringlet_tests::net::capture::frames;
use vringlet_tests::net::peer::{self, Peer};

use crate::Spec;

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for machine in ["q35", "microvm"] {
        cells.push(Spec::new(format!("{machine}/card/filters"), move |cell| {
            filters(cell, machine)
        }));
        cells.push(Spec::new(format!("{machine}/card/announce"), move |cell| {
            announce(cell, machine)
        }));
        for properties in ["", "mrg_rxbuf=off"] {
            let name = match properties {
                "" => format!("{machine}/card/jumbo-frames"),
                properties => format!("{machine}/card/jumbo-frames/{properties}"),
            };
            cells.push(Spec::new(name, move |cell| {
                jumbo_frames(cell, machine, properties)
            }));
        }
    }
    cells.push(Spec::new("q35/card/refusals", refusals));
    cells.push(Spec::new("q35/card/tx=timer", late_frames));
    cells
}

const MAC: &str = "52:54:00:12:34:56";

/// A guest with a user-mode network; what goes over the wire is kept.
fn on_user_net(cell: &Cell, machine: &str, properties: &str) -> Result<Booted> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.user_net("n0", FORWARDS);
    qemu.capture("n0", &cell.file("wire.pcap"))?;
    qemu.virtio("net", "dev0", &format!("netdev=n0,mac={MAC}{properties}"));
    let mut guest = cell.boot(qemu)?;
    guest.expect("net0: address 10.0.2.15/24 gateway 10.0.2.2 (dhcp)")?;
    Ok(guest)
}

/// What QEMU filters by.
fn filter(guest: &mut Booted) -> Result<Value> {
    let filters = guest
        .process()
        .qmp
        .execute("query-rx-filter", json!({ "name": "dev0" }))?;
    filters.get(0).cloned().context("no filter of dev0")
}

/// Has the guest obey, then looks at one field of QEMU's filter.
fn after(guest: &mut Booted, command: &str, field: &str) -> Result<Value> {
    guest.command(command, "net0: done")?;
    let filter = filter(guest)?;
    filter
        .get(field)
        .cloned()
        .with_context(|| format!("no {field} in {filter}"))
}

fn filters(cell: &Cell, machine: &str) -> Result<()> {
    let mut guest = on_user_net(cell, machine, "")?;
    let at_first = filter(&mut guest)?;
    ensure!(
        at_first["promiscuous"] == json!(false) && at_first["multicast"] == json!("all"),
        "at first the filter is {at_first}"
    );
    let vlans = |vlans: &Value, id: u16| {
        let vlans = vlans.as_array().map(Vec::as_slice).unwrap_or_default();
        vlans.contains(&json!(id))
    };
    for (command, field, expected) in [
        ("net promisc on", "promiscuous", json!(true)),
        ("net promisc off", "promiscuous", json!(false)),
        ("net allmulti off", "multicast", json!("normal")),
        ("net allmulti on", "multicast", json!("all")),
    ] {
        let is = after(&mut guest, command, field)?;
        ensure!(is == expected, "after `{command}` {field} is {is}");
    }
    let without = after(&mut guest, "net vlan del 7", "vlan-table")?;
    ensure!(
        !vlans(&without, 7) && vlans(&without, 8),
        "VLAN 7 is still let in"
    );
    let with = after(&mut guest, "net vlan add 7", "vlan-table")?;
    ensure!(vlans(&with, 7), "VLAN 7 is not let in");

    let new = "52:54:00:99:88:77";
    let is = after(&mut guest, &format!("net mac {new}"), "main-mac")?;
    ensure!(is == json!(new), "the card's address is {is}");
    // Another client, so another lease.
    guest.expect("net0: address 10.0.2.16/24 gateway 10.0.2.2 (dhcp)")?;
    guest.command("ping 10.0.2.2 2", "2 sent, 2 received")?;
    guest.power_off()?;
    let sent_under = |mac: [u8; 6]| {
        let from = move |frame: &Vec<u8>| frame.get(6..12) == Some(&mac[..]);
        frames(&cell.file("wire.pcap")).map(|frames| frames.iter().rposition(from))
    };
    let old = sent_under([0x52, 0x54, 0, 0x12, 0x34, 0x56])?;
    let new = sent_under([0x52, 0x54, 0, 0x99, 0x88, 0x77])?;
    ensure!(
        old.is_some() && new > old,
        "last frame under the old address: {old:?}, under the new one: {new:?}"
    );
    Ok(())
}

/// After a migration QEMU asks the guest to say where it is: each of its addresses, once per wish.
fn announce(cell: &Cell, machine: &str) -> Result<()> {
    const WISHES: usize = 3;
    let mut guest = on_user_net(cell, machine, "")?;
    let before = announcements(cell)?;
    for wish in 1..=WISHES {
        guest.process().qmp.execute(
            "announce-self",
            json!({ "initial": 50, "max": 50, "rounds": 1, "step": 10 }),
        )?;
        let deadline = Instant::now() + PATIENCE;
        while announcements(cell)? < before + wish {
            ensure!(
                Instant::now() < deadline,
                "{wish} wishes, {} announcements",
                announcements(cell)? - before
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    guest.power_off()
}

/// ARP requests by which the guest tells its own address.
fn announcements(cell: &Cell) -> Result<usize> {
    let is_announcement = |frame: &Vec<u8>| {
        let arp = frame.get(12..14) == Some(&[0x08, 0x06]);
        let sender = frame.get(28..32);
        let target = frame.get(38..42);
        arp && sender == Some(&[10, 0, 2, 15]) && sender == target
    };
    let frames = frames(&cell.file("wire.pcap"))?;
    Ok(frames.iter().filter(|frame| is_announcement(frame)).count())
}

/// An MTU of 9000, which the device names: frames in one buffer, in several, and none that is longer.
fn jumbo_frames(cell: &Cell, machine: &str, properties: &str) -> Result<()> {
    let wire = Peer::new()?;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    wire.plug(&mut qemu, "n0")?;
    qemu.arg("-global", "virtio-net-device.host_mtu=9000");
    if let Some((name, value)) = properties.split_once('=') {
        qemu.arg("-global", &format!("virtio-net-device.{name}={value}"));
    }
    qemu.cmdline(&format!("ip={}/24,{}", peer::GUEST, wire.address()));
    let mut guest = cell.boot(qemu)?;
    guest.expect("mtu 9000")?;
    guest.expect_prompt()?;
    wire.resolve()?;
    let bytes: Vec<u8> = (0..9000 - 28)
        .map(|index| (index * 11 + index / 256) as u8)
        .collect();
    for (sequence, length) in [0, 2000, 2022, 2023, 4096, 8000, bytes.len()]
        .into_iter()
        .enumerate()
    {
        wire.ping(sequence as u16, &bytes[..length])?;
    }
    guest.power_off()
}

/// Commands that can't be sent, or that the card has no feature for, say so and do nothing.
fn refusals(cell: &Cell) -> Result<()> {
    let mut guest = on_user_net(cell, "q35", ",ctrl_vlan=off,ctrl_mac_addr=off")?;
    let before = filter(&mut guest)?;
    for command in [
        "net vlan add 7",
        "net mac 52:54:00:00:00:01",
        "net mac 01:00:5e:00:00:01",
        "net mac 52:54:00:00:00",
        "net promisc perhaps",
        "net allmulti",
        "net promisc on net7",
    ] {
        guest.command(command, "error: ")?;
    }
    let after = filter(&mut guest)?;
    ensure!(before == after, "the filter was {before} and is {after}");
    guest.power_off()
}

/// A card that sends what it was given much later: what the guest sent right before `poweroff` leaves all the same. Here that
/// is the end of a connection.
fn late_frames(cell: &Cell) -> Result<()> {
    /// In nanoseconds. Without waiting for the card, the guest switches off in a few milliseconds.
    const DELAY: u32 = 300_000_000;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let request = BufReader::new(&client).lines().map_while(Result::ok);
            request.take_while(|line| !line.is_empty()).for_each(drop);
            // A client that goes away early is the cell's failure, seen in what the guest prints.
            let _ = (&client).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhere");
        }
    });
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.user_net("n0", &[]);
    qemu.capture("n0", &cell.file("wire.pcap"))?;
    qemu.virtio(
        "net",
        "dev0",
        &format!("netdev=n0,mac={MAC},tx=timer,x-txtimer={DELAY}"),
    );
    qemu.cmdline("ip=10.0.2.15/24,10.0.2.2");
    qemu.script(&format!("strict; fetch http://10.0.2.2:{port}/; poweroff"));
    let mut guest = cell.boot(qemu)?;
    guest.expect("status=200 bytes=4")?;
    guest.ends_with(&End::PowerOff)?;
    let frames = frames(&cell.file("wire.pcap"))?;
    ensure!(
        frames.iter().any(|frame| ends_connection(frame, port)),
        "the end of the connection never left the card"
    );
    Ok(())
}

/// Whether the sender of the frame says that it sends nothing more to `port`.
fn ends_connection(frame: &[u8], port: u16) -> bool {
    let packet = SlicedPacket::from_ethernet(frame).ok();
    let Some(TransportSlice::Tcp(tcp)) = packet.and_then(|packet| packet.transport) else {
        return false;
    };
    tcp.destination_port() == port && tcp.fin()
}
