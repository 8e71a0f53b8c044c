//! The services that carry bytes: iperf3, discard, chargen. The clients here keep to iperf3's protocol, or not.

use super::*;
use crate::net::stack::Place;
use crate::net::{chargen, discard, iperf};

const BUFFERS: Buffers = Buffers {
    receive: 8 * 1024,
    send: 8 * 1024,
};
const COOKIE: &[u8; 37] = b"abcdefghijklmnopqrstuvwxyz0123456789\0";
const OTHER: &[u8; 37] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789\0";

fn with_iperf() -> (World, &'static Stack) {
    let (world, one, two) = World::pair();
    world.spawn(iperf::serve(two, TestClock, BUFFERS));
    (world, one)
}

/// Connects and says which test this belongs to.
async fn enter(stack: &'static Stack, cookie: &[u8]) -> TcpStream {
    let stream = connect(stack, 5201).await;
    (&stream).write_all(cookie).await.unwrap();
    stream
}

async fn state(mut control: &TcpStream) -> i8 {
    let mut byte = [0];
    control.read_exact(&mut byte).await.unwrap();
    byte[0] as i8
}

async fn say(mut control: &TcpStream, state: u8) {
    control.write_all(&[state]).await.unwrap();
}

async fn write_json(mut control: &TcpStream, text: &str) {
    let length = (text.len() as u32).to_be_bytes();
    control.write_all(&length).await.unwrap();
    control.write_all(text.as_bytes()).await.unwrap();
}

async fn read_json(mut control: &TcpStream) -> serde_json::Value {
    let mut length = [0; 4];
    control.read_exact(&mut length).await.unwrap();
    let mut text = vec![0; u32::from_be_bytes(length) as usize];
    control.read_exact(&mut text).await.unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// The number of the error with which the server ends a test.
async fn error(mut control: &TcpStream) -> u32 {
    assert_eq!(state(control).await, -2);
    let mut numbers = [0; 8];
    control.read_exact(&mut numbers).await.unwrap();
    assert_eq!(numbers[4..], [0; 4]);
    u32::from_be_bytes(*numbers.first_chunk().unwrap())
}

/// A test up to where its streams are made.
async fn begin(stack: &'static Stack, parameters: &str) -> TcpStream {
    let control = enter(stack, COOKIE).await;
    assert_eq!(state(&control).await, 9);
    write_json(&control, parameters).await;
    assert_eq!(state(&control).await, 10);
    control
}

async fn running(control: &TcpStream) {
    assert_eq!(state(control).await, 1);
    assert_eq!(state(control).await, 2);
}

/// From the end of the test on; `sent` is what the client says of its streams.
async fn results(control: TcpStream, sent: &str) -> serde_json::Value {
    say(&control, 4).await;
    assert_eq!(state(&control).await, 13);
    write_json(&control, sent).await;
    let results = read_json(&control).await;
    assert_eq!(state(&control).await, 14);
    say(&control, 16).await;
    control.close();
    results
}

#[test]
fn what_is_on_its_way_at_a_tests_end_counts() {
    let (mut world, one) = with_iperf();
    let counted = world.run(async {
        let control = begin(one, r#"{"tcp":true,"parallel":2,"time":10}"#).await;
        let first = enter(one, COOKIE).await;
        // Somebody who comes in between belongs to no test.
        let stranger = enter(one, OTHER).await;
        assert_eq!(state(&stranger).await, -1);
        let second = enter(one, COOKIE).await;
        running(&control).await;
        let other = enter(one, OTHER).await;
        assert_eq!(state(&other).await, -1, "a second test at the same time");
        (&first).write_all(&[7; 100_000]).await.unwrap();
        (&second).write_all(&[7; 1000]).await.unwrap();
        let sent = r#"{"streams":[{"id":1,"bytes":100000},{"id":3,"bytes":1000}]}"#;
        results(control, sent).await
    });
    let streams = counted["streams"].as_array().unwrap();
    let counted: Vec<_> = streams
        .iter()
        .map(|stream| (stream["id"].as_u64(), stream["bytes"].as_u64()))
        .collect();
    assert_eq!(counted, [(Some(1), Some(100_000)), (Some(3), Some(1000))]);
    // And the next one.
    world.run(async {
        let control = begin(one, r#"{"tcp":true,"time":1}"#).await;
        let _stream = enter(one, COOKIE).await;
        running(&control).await;
        let counted = results(control, r#"{"streams":[{"id":1,"bytes":0}]}"#).await;
        assert_eq!(counted["streams"][0]["bytes"], 0);
    });
}

#[test]
fn the_server_sends_as_much_as_it_is_asked_for() {
    let (mut world, one) = with_iperf();
    let counted = world.run(async {
        let parameters = r#"{"tcp":true,"reverse":true,"num":50000,"len":1000}"#;
        let control = begin(one, parameters).await;
        let stream = enter(one, COOKIE).await;
        running(&control).await;
        let mut bytes = vec![0; 50_000];
        (&stream).read_exact(&mut bytes).await.unwrap();
        let more = within(
            TestClock,
            Duration::from_secs(5),
            (&stream).read(&mut bytes),
        )
        .await;
        assert!(more.is_none(), "more than that");
        results(control, r#"{"streams":[]}"#).await
    });
    assert_eq!(counted["streams"][0]["bytes"], 50_000);
}

/// A datagram as iperf3 sends it.
fn numbered(number: u32) -> Vec<u8> {
    let mut datagram = vec![0; 100];
    datagram[8..12].copy_from_slice(&number.to_be_bytes());
    datagram
}

#[test]
fn datagrams_are_counted_and_the_lost_ones_too() {
    let (mut world, one) = with_iperf();
    let counted = world.run(async {
        let control = begin(one, r#"{"udp":true,"parallel":1,"time":10,"len":100}"#).await;
        let server = endpoint("10.0.0.2", 5201).into();
        let socket = UdpSocket::bind(one, 4000, 16, 4096).unwrap();
        // No greeting.
        socket.send(&[0; 5], server).await.unwrap();
        socket.send(b"9876", server).await.unwrap();
        assert_eq!(socket.receive(|bytes, _| bytes.to_vec()).await, b"6789");
        running(&control).await;
        let stranger = UdpSocket::bind(one, 4001, 16, 4096).unwrap();
        stranger.send(&numbered(9), server).await.unwrap();
        for number in [1, 2, 4, 5] {
            socket.send(&numbered(number), server).await.unwrap();
        }
        results(control, r#"{"streams":[{"id":1,"bytes":500,"packets":5}]}"#).await
    });
    let stream = &counted["streams"][0];
    assert_eq!(
        [&stream["bytes"], &stream["packets"], &stream["errors"]],
        [400, 5, 1]
    );
}

#[test]
fn the_server_sends_datagrams_at_the_rate_that_it_is_asked_for() {
    let (mut world, one) = with_iperf();
    let counted = world.run(async {
        // Ten datagrams in a second.
        let parameters = r#"{"udp":true,"reverse":true,"time":10,"len":100,"bandwidth":8000}"#;
        let control = begin(one, parameters).await;
        let socket = UdpSocket::bind(one, 4000, 16, 4096).unwrap();
        let server = endpoint("10.0.0.2", 5201).into();
        socket.send(b"9876", server).await.unwrap();
        socket.receive(|_, _| ()).await;
        running(&control).await;
        let start = NOW.get();
        for number in 1..=20 {
            let datagram = socket.receive(|bytes, _| bytes.to_vec()).await;
            assert_eq!(
                (datagram.len(), datagram[8..12].to_vec()),
                numbered_as(number)
            );
        }
        let took = NOW.get() - start;
        assert!(
            took.abs_diff(Duration::from_millis(1900)) < Duration::from_millis(50),
            "{took:?}"
        );
        results(control, r#"{"streams":[]}"#).await
    });
    let packets = counted["streams"][0]["packets"].as_u64().unwrap();
    assert!((20..=21).contains(&packets), "{packets}");
}

fn numbered_as(number: u32) -> (usize, Vec<u8>) {
    (100, number.to_be_bytes().to_vec())
}

#[test]
fn clients_that_ask_for_too_much_or_talk_nonsense_are_told_so() {
    let (mut world, one) = with_iperf();
    let refused = |world: &mut World, parameters: &'static str| {
        world.run(async move {
            let control = enter(one, COOKIE).await;
            assert_eq!(state(&control).await, 9);
            write_json(&control, parameters).await;
            error(&control).await
        })
    };
    assert_eq!(
        refused(&mut world, r#"{"tcp":true,"bidirectional":true}"#),
        13
    );
    assert_eq!(refused(&mut world, "nonsense"), 114);
    world.run(async {
        let control = enter(one, COOKIE).await;
        assert_eq!(state(&control).await, 9);
        (&control)
            .write_all(&0x7fff_ffff_u32.to_be_bytes())
            .await
            .unwrap();
        assert_eq!(error(&control).await, 114, "a length of 2 GiB");
    });
    // What no client says.
    world.run(async {
        let control = begin(one, r#"{"tcp":true}"#).await;
        let _stream = enter(one, COOKIE).await;
        running(&control).await;
        say(&control, 77).await;
        assert_eq!(error(&control).await, 110);
    });
    // Half a cookie, half a test, and half the streams: each keeps others out for no longer than a step may take.
    let silent = world.run(enter(one, &COOKIE[..10]));
    let stuck = world.run(begin(one, r#"{"tcp":true,"parallel":2}"#));
    let before = NOW.get();
    assert_eq!(world.run(error(&stuck)), 204);
    assert!(NOW.get() - before <= Duration::from_secs(10));
    world.pass(10);
    let gone = world.run(async { (&silent).read(&mut [0]).await });
    assert_eq!(gone, Err(TcpError::Reset));
    world.run(begin(one, r#"{"tcp":true}"#));
}

#[test]
fn whatever_comes_is_discarded() {
    let (mut world, one, two) = World::pair();
    world.spawn(discard::tcp(two, TestClock, BUFFERS));
    world.spawn(discard::udp(two));
    world.run(async {
        let stream = connect(one, 9).await;
        (&stream).write_all(&[1; 200_000]).await.unwrap();
        stream.finish();
        assert_eq!(rest(&stream).await, "");
        let socket = UdpSocket::bind(one, 4000, 4, 1024).unwrap();
        for _ in 0..1000 {
            socket
                .send(b"x", endpoint("10.0.0.2", 9).into())
                .await
                .unwrap();
        }
    });
    world.pass(1);
    let sockets = two.sockets();
    let udp = sockets
        .iter()
        .find(|socket| socket.local == Place::Port(9) && socket.protocol == "udp");
    assert_eq!(
        udp.map(|socket| (socket.queued.0, socket.dropped)),
        Some((0, 0))
    );
}

#[test]
fn characters_are_generated_but_not_for_other_services() {
    let (mut world, one, two) = World::pair();
    world.spawn(chargen::tcp(two, TestClock));
    world.spawn(chargen::udp(two));
    world.run(async {
        let stream = connect(one, 19).await;
        let mut text = vec![0; 95 * 74 * 3];
        (&stream).read_exact(&mut text).await.unwrap();
        let lines: Vec<&[u8]> = text.chunks(74).collect();
        let printable: Vec<u8> = (b' '..=b'~').collect();
        assert_eq!(&lines[0][..72], &printable[..72]);
        assert_eq!(&lines[1][..72], &printable[1..73]);
        assert_eq!(&lines[94][..2], b"~ ");
        assert!(lines.iter().all(|line| line.ends_with(b"\r\n")));
        assert!(lines[..95] == lines[95..190] && lines[..95] == lines[190..]);
    });
    let answer = |world: &mut World, port| {
        world.run(async move {
            let socket = UdpSocket::bind(one, port, 4, 1024).unwrap();
            let server = endpoint("10.0.0.2", 19).into();
            socket.send(b"", server).await.unwrap();
            let answer = socket.receive(|bytes, _| bytes.len());
            within(TestClock, Duration::from_secs(5), answer).await
        })
    };
    assert_eq!(answer(&mut world, 4000), Some(74));
    assert_eq!(
        answer(&mut world, 7),
        None,
        "an echo service would answer for ever"
    );
}
