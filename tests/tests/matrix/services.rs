//! The services that run only where they are asked for: a real iperf3, and what is sent to discard and comes from chargen.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, UdpSocket};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vringlet_tests::cell::{Booted, Cell, MEMORY, PATIENCE};
use vringlet_tests::net::clients::connect;
use vringlet_tests::net::namespace;
use vringlet_tests::qemu::Forward;

use crate::Spec;

const IPERF3: u16 = 5201;
const DISCARD: u16 = 9;
const CHARGEN: u16 = 19;

/// What iperf3 sends where it is not told: enough for many windows.
const MEGABYTES: u64 = 16;

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for machine in ["q35", "microvm"] {
        cells.push(
            Spec::new(format!("{machine}/services/iperf3/tap"), move |cell| {
                iperf3_on_tap(cell, machine)
            })
            .unless(no_iperf3_or_namespace),
        );
        cells.push(
            Spec::new(format!("{machine}/services/iperf3/user"), move |cell| {
                iperf3_on_user_net(cell, machine, MEMORY)
            })
            .unless(no_iperf3),
        );
    }
    cells.push(
        Spec::new("q35/services/iperf3/little-memory", |cell| {
            iperf3_on_user_net(cell, "q35", "16M")
        })
        .unless(no_iperf3),
    );
    cells.push(Spec::new("q35/services/discard-chargen", |cell| {
        discard_and_chargen(cell, "q35")
    }));
    cells
}

fn no_iperf3() -> Option<String> {
    match Command::new("iperf3").arg("--version").output() {
        Ok(output) if output.status.success() => None,
        _ => Some("no iperf3".to_string()),
    }
}

pub(crate) fn no_iperf3_or_namespace() -> Option<String> {
    no_iperf3().or_else(namespace::unavailable)
}

/// One run of iperf3, its output as JSON. One that is refused ends with another status, and has its reason in there.
fn run(mut command: Command, arguments: &[&str]) -> Result<Value> {
    let bound = PATIENCE.as_secs().to_string();
    let output = command
        .args(["--json", "--connect-timeout", "30000"])
        .args(["--snd-timeout", &format!("{bound}000")])
        .args(arguments)
        .output()
        .context("starting iperf3")?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("iperf3 {arguments:?}: {output:?}"))
}

fn number(value: &Value, path: &str) -> Result<u64> {
    let number = value.pointer(path).and_then(Value::as_u64);
    number.with_context(|| format!("no {path} in {value}"))
}

/// Both directions and both protocols, and what is refused. `client` is iperf3 with the way to the guest.
fn judge_iperf3(client: impl Fn() -> Command, streams: usize) -> Result<()> {
    let megabytes = format!("{MEGABYTES}M");
    let parallel = streams.to_string();
    // What the client has sent is what the guest has received, and the other way round.
    for arguments in [
        vec!["-n", &megabytes],
        vec!["-n", &megabytes, "-R"],
        vec!["-n", &megabytes, "-P", &parallel],
        vec!["-t", "1"],
        vec!["-t", "1", "-b", "8M"],
    ] {
        let json = run(client(), &arguments)?;
        let sent = number(&json, "/end/sum_sent/bytes")?;
        let received = number(&json, "/end/sum_received/bytes")?;
        ensure!(
            sent == received && sent > 0,
            "iperf3 {arguments:?}: {sent} bytes sent, {received} received: {json}"
        );
        ensure!(
            !arguments.contains(&"-n") || sent >= MEGABYTES << 20,
            "iperf3 {arguments:?}: {sent} bytes"
        );
        let reported = json["end"]["streams"].as_array().map_or(0, Vec::len);
        let wanted = if arguments.contains(&"-P") {
            streams
        } else {
            1
        };
        ensure!(reported == wanted, "{reported} streams: {json}");
    }
    // By the clock both end when they like: what was under way then only the sender counts.
    let json = run(client(), &["-t", "1", "-R", "-P", &parallel])?;
    let sent = number(&json, "/end/sum_sent/bytes")?;
    let received = number(&json, "/end/sum_received/bytes")?;
    ensure!(
        0 < received && received <= sent,
        "{sent} sent, {received} received: {json}"
    );

    // Datagrams that fit into a packet, and some that don't. Each came or is counted as lost.
    for arguments in [
        ["-b", "4M", "-l", "1000", "-n", "1M"].as_slice(),
        &["-b", "4M", "-l", "1000", "-n", "1M", "-R"],
        &["-b", "4M", "-l", "9000", "-n", "1M"],
        &["-b", "4M", "-l", "9000", "-n", "1M", "-R"],
        &["-b", "1M", "-l", "100", "-k", "500", "--udp-counters-64bit"],
        &[
            "-b",
            "1M",
            "-l",
            "100",
            "-k",
            "500",
            "--udp-counters-64bit",
            "-R",
        ],
        &["-b", "1M", "-l", "100", "-k", "500", "-P", "3"],
    ] {
        let json = run(client(), &[&["-u"], arguments].concat())?;
        let sent = number(&json, "/end/sum_sent/packets")?;
        let lost = number(&json, "/end/sum/lost_packets")?;
        let length: u64 = arguments[3].parse()?;
        let received = number(&json, "/end/sum_received/bytes")? / length;
        ensure!(
            number(&json, "/end/sum_sent/bytes")? == sent * length,
            "iperf3 -u {arguments:?}: {json}"
        );
        // Of those that were lost last nobody knows.
        ensure!(
            0 < received && received + lost <= sent,
            "iperf3 -u {arguments:?}: {sent} sent, {lost} lost, {received} received: {json}"
        );
        let jitter = json.pointer("/end/sum/jitter_ms").and_then(Value::as_f64);
        ensure!(
            jitter.is_some_and(|jitter| jitter > 0.0),
            "iperf3 -u {arguments:?}: no jitter: {json}"
        );
    }

    for (arguments, reason) in [
        (["--bidir"].as_slice(), "not implemented yet"),
        (&["-O", "1"], "bogus value for --omit"),
        (&["-M", "1000"], "MSS"),
        (&["-P", "17"], "parallel streams"),
        (&["-w", "100M"], "buffer size"),
        (&["-S", "16"], "TOS"),
    ] {
        let json = run(client(), arguments)?;
        let error = json["error"].as_str().unwrap_or_default();
        ensure!(error.contains(reason), "iperf3 {arguments:?}: {json}");
    }
    Ok(())
}

/// While one client is served, another one is told to come again.
fn judge_one_at_a_time(client: impl Fn() -> Command) -> Result<()> {
    let mut first = client()
        .args(["-t", "60", "-b", "1M", "--interval", "0.1", "--forceflush"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let judged = (|| {
        // Its first line about an interval says that its test runs.
        let mut lines = String::new();
        let mut byte = [0];
        let output = first.stdout.as_mut().context("no output")?;
        while !lines.contains(" sec ") && output.read(&mut byte)? == 1 {
            lines.push(char::from(byte[0]));
        }
        let json = run(client(), &["-t", "1"])?;
        let error = json["error"].as_str().unwrap_or_default();
        ensure!(error.contains("busy"), "a second test: {json}");
        Ok(())
    })();
    first.kill()?;
    first.wait()?;
    judged?;
    // One that was killed keeps nobody from the next test.
    let json = run(client(), &["-n", "1M"])?;
    ensure!(number(&json, "/end/sum_received/bytes")? > 0, "{json}");
    Ok(())
}

fn iperf3_on_tap(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    namespace::plug_with(&mut qemu, "", "services=iperf3");
    let mut guest = cell.boot(qemu)?;
    guest.eventually(&format!("net0: address {}/24", namespace::GUEST))?;
    guest.expect_prompt()?;
    let pid = guest.process().pid();
    let client = || {
        let mut command = namespace::command(pid, "iperf3");
        command.args(["-c", namespace::GUEST]);
        command
    };
    judge_iperf3(client, 8)?;
    judge_one_at_a_time(client)?;
    guest.power_off()
}

fn on_user_net(cell: &Cell, machine: &str, memory: &str, services: &str) -> Result<Booted> {
    let forward = |(protocol, guest)| Forward {
        protocol,
        host: 0,
        guest,
    };
    let forwards = [
        ("tcp", IPERF3),
        ("udp", IPERF3),
        ("tcp", DISCARD),
        ("udp", DISCARD),
        ("tcp", CHARGEN),
        ("udp", CHARGEN),
    ];
    let mut qemu = cell.qemu(&machine.parse()?, memory)?;
    qemu.user_net("n0", &forwards.map(forward));
    qemu.virtio("net", "dev0", "netdev=n0,mac=52:54:00:12:34:56");
    qemu.cmdline(&format!("services={services}"));
    let mut guest = cell.boot(qemu)?;
    guest.eventually("net0: address 10.0.2.15/24 gateway 10.0.2.2 (dhcp)")?;
    guest.expect_prompt()?;
    Ok(guest)
}

/// iperf3 wants the same port for TCP and UDP, and a forwarder of QEMU's has one for each: TCP alone.
fn iperf3_on_user_net(cell: &Cell, machine: &str, memory: &str) -> Result<()> {
    let mut guest = on_user_net(cell, machine, memory, "iperf3")?;
    let port = guest.process().qmp.forwarded_port("tcp", IPERF3)?;
    for arguments in [
        ["-n", "16M"].as_slice(),
        &["-n", "16M", "-R"],
        &["-n", "16M", "-P", "2"],
    ] {
        let mut command = Command::new("iperf3");
        command.args(["-c", "127.0.0.1", "-p", &port.to_string()]);
        let json = run(command, arguments)?;
        let sent = number(&json, "/end/sum_sent/bytes")?;
        let received = number(&json, "/end/sum_received/bytes")?;
        ensure!(
            sent == received && sent >= MEGABYTES << 20,
            "iperf3 {arguments:?}: {sent} bytes sent, {received} received: {json}"
        );
    }
    // Only what was asked for is there.
    let discard = guest.process().qmp.forwarded_port("tcp", DISCARD)?;
    let mut rest = Vec::new();
    ensure!(
        !matches!(connect(discard)?.read_to_end(&mut rest), Err(error) if would_block(&error)),
        "somebody listens on port {DISCARD}"
    );
    guest.power_off()
}

fn would_block(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut)
}

/// Three megabytes go away, and three megabytes of the pattern of RFC 864 come; a datagram gets a line of it.
fn discard_and_chargen(cell: &Cell, machine: &str) -> Result<()> {
    const BYTES: usize = 3 << 20;
    let mut guest = on_user_net(cell, machine, MEMORY, "discard,chargen")?;
    let qmp = &mut guest.process().qmp;
    let discard = qmp.forwarded_port("tcp", DISCARD)?;
    let chargen = qmp.forwarded_port("tcp", CHARGEN)?;
    let chargen_udp = qmp.forwarded_port("udp", CHARGEN)?;

    let mut stream = connect(discard)?;
    stream.write_all(&vec![0x55; BYTES])?;
    stream.shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    ensure!(rest.is_empty(), "discard answers {rest:?}");

    let line = |number: usize| -> Vec<u8> {
        let characters = (0..72).map(|column| b' ' + ((number + column) % 95) as u8);
        characters.chain(*b"\r\n").collect()
    };
    let wanted: Vec<u8> = (0..BYTES / 74).flat_map(line).collect();
    let mut came = vec![0; wanted.len()];
    connect(chargen)?.read_exact(&mut came)?;
    ensure!(came == wanted, "the characters are others");

    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect((Ipv4Addr::LOCALHOST, chargen_udp))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut answer = [0; 2048];
    for number in 0..3 {
        socket.send(b"?")?;
        let length = socket.recv(&mut answer)?;
        ensure!(answer[..length] == line(number), "{:?}", &answer[..length]);
    }
    guest.command("net sockets", "net0  udp    *:9 ")?;
    guest.power_off()
}
