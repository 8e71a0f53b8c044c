//! HTTP as others speak it: clients of every kind at the guest's server, and servers of every kind for its client.

use std::fmt::Debug;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use vringlet_tests::cell::{Cell, PATIENCE};
use vringlet_tests::disk::sha256;
use vringlet_tests::net::WEB;
use vringlet_tests::net::clients::{STATUS, connect, curl, curl_arguments, status};

use super::net::on_user_net;
use crate::Spec;

pub(crate) fn cells() -> Vec<Spec> {
    vec![
        Spec::new("q35/web/requests", requests),
        Spec::new("q35/web/curl", curls),
        Spec::new("q35/web/closing", closing),
        Spec::new("q35/web/fetch", fetch),
    ]
}

/// The ends of a first request's head that leave the connection to a second request.
const STAYS: &str = "\r\n\r\nGET /status.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
/// Those that do not.
const ENDS: &str = "\r\nConnection: close\r\n\r\n";

/// What clients write, byte by byte as they do.
fn requests(cell: &Cell) -> Result<()> {
    let mut guest = on_user_net(cell, "q35")?;
    let port = guest.process().qmp.forwarded_port("tcp", WEB)?;
    let get = |target: &str, lines: &str, end: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: x{lines}{end}")
    };
    let long = |length| format!("\r\nCookie: a={}", "c".repeat(length));
    let many = |count: usize| "\r\na: b".repeat(count);
    let post = "POST /status.json HTTP/1.1\r\nHost: x\r\n";
    for (name, request, expected) in [
        ("keep-alive", get(STATUS, "", STAYS), &[200, 200][..]),
        (
            "upgrade",
            get(STATUS, "\r\nConnection: Upgrade\r\nUpgrade: h2c", STAYS),
            &[200, 200],
        ),
        ("close", get(STATUS, "", ENDS), &[200]),
        (
            "close in a list",
            get(STATUS, "\r\nConnection: close, TE", "\r\n\r\n"),
            &[200],
        ),
        (
            "close in capitals",
            get(STATUS, "\r\nCONNECTION: Close", "\r\n\r\n"),
            &[200],
        ),
        ("HTTP/1.0", "GET / HTTP/1.0\r\n\r\n".into(), &[200]),
        (
            "HTTP/1.0 kept",
            format!("GET / HTTP/1.0\r\nConnection: keep-alive{STAYS}"),
            &[200, 200],
        ),
        (
            "a head of 8,000 bytes",
            get(STATUS, &long(7900), ENDS),
            &[200],
        ),
        (
            "a head of 32,000 bytes",
            get(STATUS, &long(31_900), ENDS),
            &[200],
        ),
        (
            "a head of 40,000 bytes",
            get(STATUS, &long(39_900), ENDS),
            &[431],
        ),
        (
            "a head of a million bytes",
            get(STATUS, &long(1_000_000), ENDS),
            &[431],
        ),
        ("150 lines", get(STATUS, &many(150), ENDS), &[200]),
        ("300 lines", get(STATUS, &many(300), ENDS), &[431]),
        (
            "a long target",
            get(&format!("/?{}", "a".repeat(8000)), "", ENDS),
            &[200],
        ),
        (
            "too long a target",
            get(&format!("/?{}", "a".repeat(9000)), "", ENDS),
            &[414],
        ),
        (
            "absolute-form",
            get("http://x/status.json", "", ENDS),
            &[200],
        ),
        ("an escape", get("/status%2ejson", "", ENDS), &[200]),
        ("a broken escape", get("/status%2", "", ENDS), &[400]),
        (
            "empty lines first",
            format!("\r\n\r\n{}", get(STATUS, "", ENDS)),
            &[200],
        ),
        (
            "line feeds",
            "GET /status.json HTTP/1.1\nHost: x\nConnection: close\n\n".into(),
            &[200],
        ),
        ("no host", "GET / HTTP/1.1\r\n\r\n".into(), &[400]),
        ("two hosts", get("/", "\r\nHost: y", ENDS), &[400]),
        ("a folded line", get("/", "\r\nX: a\r\n b", ENDS), &[400]),
        (
            "an unknown method",
            "BREW / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(),
            &[501],
        ),
        (
            "another version",
            "GET / HTTP/2.0\r\nHost: x\r\n\r\n".into(),
            &[505],
        ),
        ("TLS", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0".into(), &[400]),
        (
            "a body",
            format!(
                "{post}Content-Length: 5\r\n\r\nhello{}",
                get(STATUS, "", ENDS)
            ),
            &[405, 200],
        ),
        (
            "a body in chunks",
            format!(
                "{post}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n{}",
                get(STATUS, "", ENDS)
            ),
            &[405, 200],
        ),
        (
            "two lengths",
            format!(
                "{post}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello{}",
                get(STATUS, "", ENDS)
            ),
            &[400],
        ),
        (
            "a length and chunks",
            format!(
                "{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{}",
                get(STATUS, "", ENDS)
            ),
            &[400],
        ),
        // Were the body waited for, it would be 408.
        (
            "a question",
            format!("{post}Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"),
            &[405],
        ),
        (
            "another question",
            format!("{post}Expect: tea\r\n\r\n"),
            &[417],
        ),
        ("half a request", "GET / HTTP/1.1\r\nHost: ".into(), &[408]),
    ] {
        let answers = ask(port, request.as_bytes()).context(name)?;
        let found = statuses(&answers).with_context(|| format!("{name}: {}", brief(&answers)))?;
        ensure!(
            found == expected,
            "{name}: {found:?} instead of {expected:?}"
        );
    }
    guest.power_off()
}

/// Sends this and reads until the guest closes.
fn ask(port: u16, request: &[u8]) -> Result<String> {
    let stream = connect(port)?;
    std::thread::scope(|scope| {
        // The guest may well end the connection before it has read all of it.
        let writer = scope.spawn(|| (&stream).write_all(request));
        let mut answers = Vec::new();
        (&stream).read_to_end(&mut answers).context("reading")?;
        let _ = writer.join();
        Ok(String::from_utf8(answers)?)
    })
}

/// The statuses of several answers, in order. Each must have the length that it says.
fn statuses(mut answers: &str) -> Result<Vec<u16>> {
    let mut statuses = Vec::new();
    while !answers.is_empty() {
        let (head, rest) = answers.split_once("\r\n\r\n").context("half a head")?;
        let length = head
            .split("\r\nContent-Length: ")
            .nth(1)
            .context("no length")?;
        let length: usize = length.lines().next().unwrap_or_default().parse()?;
        let status = head
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3));
        statuses.push(status.context("no status")?.parse()?);
        answers = rest.get(length..).context("half a body")?;
    }
    Ok(statuses)
}

/// The beginning of what may be long.
fn brief(value: &impl Debug) -> String {
    format!("{value:?}").chars().take(120).collect()
}

/// What curl makes of the guest's answers.
fn curls(cell: &Cell) -> Result<()> {
    let mut guest = on_user_net(cell, "q35")?;
    let port = guest.process().qmp.forwarded_port("tcp", WEB)?;
    let page = format!("http://127.0.0.1:{port}/");
    let cookie = |length| format!("Cookie: a={}", "c".repeat(length));
    let upload = cell.file("upload");
    std::fs::write(&upload, vec![b'x'; 3_000_000])?;
    let upload = upload.to_str().context("a path")?;
    for (options, expected) in [
        (&["--http1.0"][..], 200),
        (&["--head"], 200),
        (&["--header", &cookie(20_000)], 200),
        (&["--header", &cookie(40_000)], 431),
        (&["--request-target", "http://elsewhere/status.json"], 200),
        (
            &["--request-target", &format!("/{}", "a".repeat(9000))],
            414,
        ),
        (&["--header", "Connection: close, TE"], 200),
        (&["--request", "OPTIONS", "--request-target", "*"], 204),
        (&["--data", "x=1"], 405),
        (
            &["--form", "x=1", "--header", "Transfer-Encoding: chunked"],
            405,
        ),
        // curl asks before it sends as much as this.
        (&["--data-binary", &format!("@{upload}")], 405),
        (
            &[
                "--data-binary",
                &format!("@{upload}"),
                "--header",
                "Expect:",
            ],
            405,
        ),
        (&["--upload-file", upload], 404),
        (&["--request", "BREW"], 501),
    ] {
        let answer = curl(&page, options).with_context(|| brief(&options))?;
        ensure!(
            answer.status == expected,
            "{} instead of {expected}: {}",
            answer.status,
            brief(&options)
        );
    }
    let allow = curl(&page, &["--request", "PUT", "--include"])?;
    ensure!(
        allow.body.contains("Allow: GET, HEAD, OPTIONS"),
        "what is allowed? {}",
        allow.body
    );
    // Two requests over one connection: the second makes none.
    let output = Command::new("curl")
        .args(&curl_arguments()[..4])
        .args(["--write-out", "%{http_code} %{num_connects}\n"])
        .args(["--output", "/dev/null", &page, "--output", "/dev/null"])
        .arg(format!("{page}status.json"))
        .output()
        .context("starting curl")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text == "200 1\n200 0\n", "two requests: {text:?}");
    guest.power_off()
}

/// Asking often leaves connections that are closing; the answers do not get longer by them.
fn closing(cell: &Cell) -> Result<()> {
    let mut guest = on_user_net(cell, "q35")?;
    let port = guest.process().qmp.forwarded_port("tcp", WEB)?;
    let sockets = || -> Result<String> {
        let status = status(port)?;
        let interfaces = status["interfaces"].as_array().context("no interfaces")?;
        let net0 = interfaces
            .iter()
            .find(|interface| interface["name"] == "net0");
        Ok(net0.context("no net0")?["sockets"].to_string())
    };
    let before = sockets()?.matches("protocol").count();
    for _ in 0..40 {
        ask(port, b"GET / HTTP/1.0\r\n\r\n")?;
    }
    let after = sockets()?;
    ensure!(
        after.matches("protocol").count() <= before,
        "there were {before}: {after}"
    );
    guest.power_off()
}

/// What a server does when it has said all.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// It keeps the connection.
    Keep,
    /// It ends it.
    Close,
    /// It breaks it.
    Reset,
}

/// Servers as they are; each must be taken as it means it.
fn fetch(cell: &Cell) -> Result<()> {
    let ok = |rest: &str| format!("HTTP/1.1 200 OK\r\n{rest}");
    let whole = ok("Content-Length: 5\r\n\r\nhello");
    let cut = ok("Content-Length: 500\r\n\r\nhello");
    let chunks = ok("Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n");
    let hello = format!("status=200 bytes=5 sha256={}", sha256(b"hello"));
    let nothing = format!("bytes=0 sha256={}", sha256(b""));
    let large = format!("X-Large: {}\r\n", "v".repeat(200));
    let cases = [
        (whole.clone(), Then::Keep, hello.clone()),
        (whole.clone(), Then::Reset, hello.clone()),
        (chunks, Then::Keep, hello.clone()),
        (
            "HTTP/1.1 204 No Content\r\n\r\n".into(),
            Then::Keep,
            format!("status=204 {nothing}"),
        ),
        (
            "HTTP/1.1 304 Not Modified\r\n\r\n".into(),
            Then::Keep,
            format!("status=304 {nothing}"),
        ),
        (
            format!("HTTP/1.1 100 Continue\r\n\r\n{whole}"),
            Then::Keep,
            hello.clone(),
        ),
        (
            format!("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n{whole}"),
            Then::Keep,
            hello.clone(),
        ),
        (
            ok(&format!(
                "{}Content-Length: 5\r\n\r\nhello",
                large.repeat(100)
            )),
            Then::Keep,
            hello.clone(),
        ),
        (
            ok(&format!(
                "{}Content-Length: 5\r\n\r\nhello",
                "X: v\r\n".repeat(80)
            )),
            Then::Keep,
            hello.clone(),
        ),
        (
            ok("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
            Then::Keep,
            hello.clone(),
        ),
        (
            ok("Server: caf\u{e9}\r\nX: a\r\n b\r\nContent-Length: 5\r\n\r\nhello"),
            Then::Keep,
            hello.clone(),
        ),
        (
            "HTTP/1.0 200 OK\nContent-Length: 5\n\nhello".into(),
            Then::Keep,
            hello.clone(),
        ),
        (
            "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello".into(),
            Then::Keep,
            hello.clone(),
        ),
        ("HTTP/1.0 200 OK\r\n\r\nhello".into(), Then::Close, hello),
        (
            "HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n".into(),
            Then::Keep,
            "not followed: location=\"/there\"".into(),
        ),
        (
            cut.clone(),
            Then::Close,
            "error: the response ended after 5 of 500 bytes".into(),
        ),
        // QEMU's network hands a reset on as one, or as an end in order, as it comes.
        (cut, Then::Reset, " after 5 of 500 bytes".into()),
        (
            ok(&large.repeat(400)),
            Then::Keep,
            "error: the response has more than 256 header lines".into(),
        ),
        (
            ok(&format!("X: {}", "v".repeat(70_000))),
            Then::Keep,
            "error: the response has more than 65536 bytes in its head".into(),
        ),
        (
            ok("Transfer-Encoding: gzip, chunked\r\n\r\n"),
            Then::Keep,
            "error: the response is not HTTP: a Transfer-Encoding other than chunked".into(),
        ),
    ];
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let answers = cases.clone();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for (client, (answer, then, _)) in listener.incoming().flatten().zip(answers) {
            // What goes wrong is the cell's failure, seen in what the guest prints.
            kept.push(serve(client, port, &answer, then));
        }
        // The connections are kept for as long as the cell may take.
        std::thread::sleep(PATIENCE);
    });
    let mut guest = on_user_net(cell, "q35")?;
    for (answer, then, expected) in cases {
        guest
            .command(&format!("fetch http://10.0.2.2:{port}/x"), &expected)
            .with_context(|| brief(&(then, answer)))?;
        guest.expect_prompt()?;
    }
    guest.power_off()
}

/// Answers one client. The connection is what is returned, if it is kept.
fn serve(mut client: TcpStream, port: u16, answer: &str, then: Then) -> Result<TcpStream> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut byte = [0];
    // A connection that is closed with something unread in it is reset.
    let end: &[u8] = match then {
        Then::Reset => b"\r\n\r",
        _ => b"\r\n\r\n",
    };
    while !request.ends_with(end) {
        ensure!(request.len() < 10_000, "the request has no end");
        client.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    let request = String::from_utf8(request)?;
    if !request.contains(&format!("\r\nHost: 10.0.2.2:{port}\r\n")) {
        write!(client, "HTTP/1.1 421 Misdirected Request\r\n\r\n")?;
        bail!("whom does this ask? {request}");
    }
    client.write_all(answer.as_bytes())?;
    match then {
        Then::Keep => Ok(client),
        Then::Close | Then::Reset => bail!("it is over"),
    }
}
