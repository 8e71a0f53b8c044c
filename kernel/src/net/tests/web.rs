//! The web server and the client, over the same wire.

use super::*;
use crate::net::fetch::{FetchError, Response};

/// The statuses of several answers, in order. Each must have the length that it says.
fn statuses(mut answers: &str) -> Vec<u16> {
    let mut statuses = Vec::new();
    while !answers.is_empty() {
        let (head, rest) = answers.split_once("\r\n\r\n").expect("a whole head");
        let length = head.split("Content-Length: ").nth(1);
        let length = length.map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
        statuses.push(
            head.strip_prefix("HTTP/1.1 ").unwrap()[..3]
                .parse()
                .unwrap(),
        );
        answers = rest.get(length..).expect("a whole body");
    }
    statuses
}

#[test]
fn the_page_and_its_data_are_served() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    let page = world.run(talk(one, "GET / HTTP/1.0\r\n\r\n"));
    assert!(
        page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("text/html; charset=utf-8"),
        "{page}"
    );
    assert!(page.contains("\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"));
    assert!(page.contains("<title>Vringlet") && page.ends_with("</html>\n"));
    assert_eq!(statuses(&page), [200]);
    let data = world.run(talk(one, "GET /status.json HTTP/1.0\r\n\r\n"));
    assert!(
        data.contains("application/json") && data.ends_with("\r\n\r\n{\"answer\":42}"),
        "{data}"
    );
    let head = world.run(talk(one, "HEAD /status.json HTTP/1.0\r\n\r\n"));
    assert!(
        head.contains("Content-Length: 13\r\n") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    for (request, status) in [
        ("GET /nothing", "404"),
        ("HEAD /nothing", "404"),
        ("POST /nothing", "404"),
        ("BREW /", "501"),
        ("get /", "501"),
    ] {
        let answer = world.run(talk(one, &std::format!("{request} HTTP/1.0\r\n\r\n")));
        assert_eq!(&answer[9..12], status, "{request}: {answer}");
        assert_eq!(answer.ends_with("\r\n\r\n"), request.starts_with("HEAD"));
    }
    for (request, status) in [
        ("POST /", "405"),
        ("DELETE /status.json", "405"),
        ("OPTIONS *", "204"),
    ] {
        let answer = world.run(talk(one, &std::format!("{request} HTTP/1.0\r\n\r\n")));
        assert_eq!(&answer[9..12], status, "{request}: {answer}");
        assert!(
            answer.contains("\r\nAllow: GET, HEAD, OPTIONS\r\n"),
            "{answer}"
        );
        assert_eq!(
            answer.contains("Content-Length"),
            status == "405",
            "{answer}"
        );
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_on_one_connection() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    let answers = world.run(talk(
        one,
        "GET /status.json HTTP/1.1\r\nHost: a\r\n\r\nHEAD /b HTTP/1.1\r\nHost: a\r\n\r\n\r\nGET http://a/ HTTP/1.1\nHost: a\nConnection: TE, close\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ));
    // A HEAD's length is that of no body.
    let answers = answers.replacen("Content-Length: 28\r\n", "", 1);
    assert_eq!(statuses(&answers), [200, 404, 200]);
    assert_eq!(answers.matches("Connection: keep-alive").count(), 2);
    assert!(answers.ends_with("</html>\n"), "nothing is behind the last");
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    for request in [
        "\r\nGET /status.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "PUT / HTTP/1.0\nContent-Length: 5\n\nhello",
    ] {
        let answer = world.run(async {
            let stream = connect(one, 80).await;
            for byte in request.bytes() {
                (&stream).write_all(&[byte]).await.unwrap();
                TestClock.after(Duration::from_millis(50)).await;
            }
            rest(&stream).await
        });
        let status = if request.contains("PUT") { 405 } else { 200 };
        assert_eq!(statuses(&answer), [status]);
    }
}

#[test]
fn a_client_that_ends_its_side_gets_all_its_answers() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    let request = "GET /status.json HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut half = |request: &str| {
        world.run(async {
            let stream = connect(one, 80).await;
            (&stream).write_all(request.as_bytes()).await.unwrap();
            stream.finish();
            rest(&stream).await
        })
    };
    assert_eq!(statuses(&half(&request.repeat(3))), [200, 200, 200]);
    let cut = request.len() * 3 / 2;
    assert_eq!(statuses(&half(&request.repeat(2)[..cut])), [200, 400]);
    assert_eq!(half("\r\n"), "");
}

#[test]
fn malformed_requests_are_told_so_and_closed() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    let more = "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n";
    for (request, status) in [
        ("GET\r\n\r\n", 400),
        ("\u{1}\u{2}\u{3}", 400),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/3.0\r\n\r\n", 505),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
            400,
        ),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n", 417),
    ] {
        let answers = world.run(talk(one, &std::format!("{request}{more}")));
        assert_eq!(statuses(&answers), [status], "{request:?}");
        assert!(answers.contains("Connection: close\r\n"), "{answers}");
    }
}

#[test]
fn a_head_is_taken_up_to_a_limit_and_refused_by_its_name() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    let cookie = |length| {
        let cookie = "c".repeat(length);
        std::format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n")
    };
    let lines = |count| {
        let lines = "a: b\r\n".repeat(count);
        std::format!("GET / HTTP/1.1\r\nHost: x\r\n{lines}Connection: close\r\n\r\n")
    };
    let target = |length| {
        let target = "a".repeat(length);
        std::format!("GET /?{target} HTTP/1.0\r\n\r\n")
    };
    for (request, status) in [
        (cookie(2_100), 200),
        (cookie(7_900), 200),
        (cookie(32_600), 200),
        (cookie(33_000), 431),
        // The client is still sending when it is refused.
        (cookie(300_000), 431),
        (lines(250), 200),
        (lines(20_000), 431),
        (target(8_000), 200),
        (target(9_000), 414),
        (target(300_000), 414),
    ] {
        let answer = world.run(talk(one, &request));
        assert_eq!(statuses(&answer), [status], "{} bytes", request.len());
    }
}

#[test]
fn long_heads_share_what_room_there_is() {
    let (mut world, one, two) = World::pair();
    let web = serve_http(&world, two);
    let cookie = "c".repeat(30_000);
    let head = std::format!("GET /status.json HTTP/1.1\r\nHost: x\r\nCookie: {cookie}");
    let whole = std::format!("{head}\r\nConnection: close\r\n\r\n");
    let (refused, short) = world.run(async {
        let mut waiting = Vec::new();
        for _ in 0..8 {
            let stream = connect(one, 80).await;
            (&stream).write_all(head.as_bytes()).await.unwrap();
            waiting.push(stream);
        }
        TestClock.after(Duration::from_millis(500)).await;
        let refused = talk(one, &whole).await;
        (
            refused,
            talk(one, "GET /status.json HTTP/1.0\r\n\r\n").await,
        )
    });
    assert_eq!(statuses(&refused), [503]);
    assert_eq!(statuses(&short), [200]);
    let stats = web.stats();
    assert_eq!((stats.requests, stats.refused, stats.cut), (1, 1, 0));
    // Those who never ended theirs are told so, and there is room again: however often.
    for _ in 0..3 {
        world.pass(10);
        let served = world.run(talk(one, &whole));
        assert_eq!(statuses(&served), [200]);
    }
    let stats = web.stats();
    assert_eq!((stats.requests, stats.cut), (4, 0));
}

#[test]
fn the_next_request_is_found_behind_a_body_that_nobody_wants() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    let long = "x".repeat(70_000);
    let last = "GET /status.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let with = |method: &str, lines: &str, body: &str| {
        std::format!("{method} / HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n{body}{last}")
    };
    let chunk = std::format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len());
    for (request, expected) in [
        (with("GET", "Content-Length: 5", "hello"), &[200, 200][..]),
        (
            with("POST", "Content-Length: 60000", &long[..60_000]),
            &[405, 200],
        ),
        (
            with(
                "PUT",
                "Transfer-Encoding: chunked",
                "5\r\nhello\r\n0\r\nX: y\r\n\r\n",
            ),
            &[405, 200],
        ),
        // Too long, or not known to come: it is answered, and nothing behind it.
        (with("POST", "Content-Length: 70000", &long), &[405]),
        (with("POST", "Transfer-Encoding: chunked", &chunk), &[405]),
        (
            with("POST", "Content-Length: 5\r\nExpect: 100-continue", "hello"),
            &[405],
        ),
        (with("GET", "Expect: 100-continue", ""), &[200, 200]),
    ] {
        let answers = world.run(talk(one, &request));
        assert_eq!(statuses(&answers), expected, "{}", &request[..80]);
    }
}

#[test]
fn who_asks_whether_to_send_a_body_is_answered_at_once() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    let before = NOW.get();
    let request = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    let answer = world.run(async {
        let stream = connect(one, 80).await;
        (&stream).write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        (&stream).read_exact(&mut answer).await.unwrap();
        answer
    });
    assert_eq!(&answer, b"HTTP/1.1 405");
    assert!(NOW.get() - before < Duration::from_secs(1));
}

#[test]
fn a_request_that_comes_too_slowly_is_told_so() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    for begin in [
        "GET / HTTP/1.1\r\nHost: ",
        "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhell",
    ] {
        let before = NOW.get();
        assert_eq!(statuses(&world.run(talk(one, begin))), [408]);
        assert!(NOW.get() - before < Duration::from_secs(6));
    }
}

#[test]
fn a_connection_is_kept_for_a_while_and_its_last_answer_says_so() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    let answers = world.run(async {
        let stream = connect(one, 80).await;
        let mut answers = String::new();
        let mut chunk = [0; 512];
        loop {
            let request = "GET /status.json HTTP/1.1\r\nHost: x\r\n\r\n";
            (&stream).write_all(request.as_bytes()).await.unwrap();
            let length = (&stream).read(&mut chunk).await.unwrap();
            let answer = core::str::from_utf8(&chunk[..length]).unwrap();
            answers.push_str(answer);
            if answer.contains("Connection: close") {
                assert_eq!((&stream).read(&mut chunk).await, Ok(0));
                return answers;
            }
            TestClock.after(Duration::from_secs(9)).await;
        }
    });
    // At 0, 9, ... 99 and 108 seconds.
    assert_eq!(statuses(&answers), [200; 13]);
}

#[test]
fn slow_clients_are_dropped_without_harm_to_the_others() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    world.run(async {
        // As many as are served at once: one that says nothing, the others a byte a second.
        let mut slow = Vec::new();
        for _ in 0..64 {
            slow.push(connect(one, 80).await);
        }
        let dribble = async {
            for second in 0.. {
                let mut alive = 0;
                for stream in slow.iter().skip(1) {
                    alive += usize::from((&mut &*stream).write(b"G").await.is_ok());
                }
                if alive == 0 {
                    return second;
                }
                TestClock.after(Duration::from_secs(1)).await;
            }
            unreachable!()
        };
        let other = talk(one, "GET /status.json HTTP/1.0\r\n\r\n");
        let (dropped, answer, silence) = embassy_futures::join::join3(
            within(TestClock, Duration::from_secs(30), dribble),
            within(TestClock, Duration::from_secs(20), other),
            within(TestClock, Duration::from_secs(20), rest(&slow[0])),
        )
        .await;
        assert!(dropped.is_some(), "all are dropped in the end");
        assert!(
            answer
                .expect("it waits, but not for ever")
                .ends_with("{\"answer\":42}")
        );
        assert_eq!(
            silence.as_deref(),
            Some(""),
            "who says nothing is not answered"
        );
    });
}

#[test]
fn who_reads_a_little_now_and_then_is_cut_off_and_counted() {
    let (mut world, one, two) = World::pair();
    let web = serve_http(&world, two);
    world.run(async {
        let stream = connect(one, 80).await;
        let requests = "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20);
        (&stream).write_all(requests.as_bytes()).await.unwrap();
        let mut piece = [0; 200];
        for _ in 0..119 {
            let read = (&mut &stream).read(&mut piece).await;
            assert!(matches!(read, Ok(1..)), "{read:?}");
            TestClock.after(Duration::from_secs(1)).await;
        }
        assert_eq!(web.stats().cut, 0);
        TestClock.after(Duration::from_secs(2)).await;
        assert_eq!(web.stats().cut, 1);
    });
}

#[test]
fn an_idle_connection_is_kept_while_no_other_client_waits() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    let answer = |seconds| async move {
        let stream = connect(one, 80).await;
        TestClock.after(Duration::from_secs(seconds)).await;
        // It may be reset already; then there is no answer.
        let _ = (&stream)
            .write_all(b"GET /status.json HTTP/1.0\r\n\r\n")
            .await;
        rest(&stream).await
    };
    assert!(world.run(answer(45)).ends_with("{\"answer\":42}"));
    assert_eq!(world.run(answer(62)), "");
}

#[test]
fn a_burst_of_connections_is_queued_and_each_is_served() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    world.pass(1);
    let answers = world.run(async {
        let burst: Vec<_> = (0..128)
            .map(|_| talk(one, "GET /status.json HTTP/1.0\r\n\r\n"))
            .collect();
        futures_util::future::join_all(burst).await
    });
    assert!(
        answers
            .iter()
            .all(|answer| answer.ends_with("{\"answer\":42}"))
    );
}

#[test]
fn connections_that_are_closing_are_told_from_others() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    let there = |stack: &Stack| {
        let sockets = stack.sockets();
        let closing = sockets.iter().filter(|socket| socket.closing).count();
        (sockets.len() - closing, closing)
    };
    world.pass(1);
    let before = there(two);
    for _ in 0..20 {
        world.run(async {
            let stream = connect(one, 80).await;
            let request = b"GET / HTTP/1.0\r\n\r\n";
            (&stream).write_all(request).await.unwrap();
            rest(&stream).await;
            // Only an end in order leaves something at the other end.
            stream.close();
        });
    }
    world.pass(1);
    assert_eq!(there(two), (before.0, 20));
    let open = world.run(connect(one, 80));
    assert_eq!(there(two), (before.0 + 1, 20));
    drop(open);
    world.pass(30);
    assert_eq!(there(two), (before.0, 0));
}

/// What a server does after its answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Keep,
    Close,
    Reset,
}

/// Fetches from a server that says this, whatever it is asked, a piece a second. The response, the body, what the
/// server was asked, and how long it took.
fn ask(
    pieces: &[&str],
    then: Then,
) -> (
    core::result::Result<Response, FetchError>,
    String,
    String,
    Duration,
) {
    let (mut world, one, two) = World::pair();
    let pieces: Vec<String> = pieces.iter().map(ToString::to_string).collect();
    let request = Rc::new(RefCell::new(String::new()));
    let asked = request.clone();
    world.spawn(async move {
        let listener = Listener::new(two, 18080, SMALL, 1);
        let stream = poll_fn(|context| listener.poll_accept(context)).await;
        let mut chunk = [0; 1024];
        let length = (&stream).read(&mut chunk).await.unwrap();
        asked
            .borrow_mut()
            .push_str(core::str::from_utf8(&chunk[..length]).unwrap());
        for (index, piece) in pieces.iter().enumerate() {
            TestClock
                .after(Duration::from_secs(u64::from(index > 0)))
                .await;
            (&stream).write_all(piece.as_bytes()).await.unwrap();
        }
        if then == Then::Keep {
            TestClock.after(Duration::from_secs(1000)).await;
        }
        // So that it is not lost with the connection.
        TestClock.after(Duration::from_millis(300)).await;
        match then {
            Then::Reset => drop(stream),
            _ => stream.close(),
        }
    });
    world.pass(1);
    let before = NOW.get();
    let url: Url = "http://10.0.0.2:18080/a?b".parse().unwrap();
    let mut body = Vec::new();
    let response = world.run(fetch(
        one,
        TestClock,
        url.target.address,
        &url,
        |piece: &[u8]| body.extend_from_slice(piece),
    ));
    let request = request.borrow().clone();
    (
        response,
        String::from_utf8(body).unwrap(),
        request,
        NOW.get() - before,
    )
}

#[test]
fn a_fetch_is_over_when_its_response_is() {
    for (pieces, status, body) in [
        (
            &["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"][..],
            200,
            "hello",
        ),
        (
            &["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more"],
            200,
            "hello",
        ),
        (
            &["HTTP/1.1 200 OK\r\nContent-Le", "ngth: 5\r\n\r\nhe", "llo"],
            200,
            "hello",
        ),
        (&["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], 200, ""),
        (&["HTTP/1.1 204 No Content\r\n\r\n"], 204, ""),
        (
            &["HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"],
            304,
            "",
        ),
        (
            &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
            200,
            "hello",
        ),
        (
            &[
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=\"b\"\r",
                "\nhe\r\n3",
                "\r\nllo\r\n0\r\nX: y\r\n",
                "\r\n",
            ],
            200,
            "hello",
        ),
        (
            &["HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"],
            200,
            "hello",
        ),
        (
            &[
                "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n",
                "HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\nhello",
            ],
            404,
            "hello",
        ),
    ] {
        for then in [Then::Keep, Then::Close, Then::Reset] {
            let (response, received, _, took) = ask(pieces, then);
            let response = response.unwrap_or_else(|error| panic!("{pieces:?} {then:?}: {error}"));
            assert_eq!(
                (response.status, &received[..]),
                (status, body),
                "{pieces:?}"
            );
            assert_eq!(response.bytes, body.len() as u64);
            assert!(
                took < Duration::from_secs(pieces.len() as u64),
                "{pieces:?} {then:?}"
            );
        }
    }
    // Where nothing else says where the body ends, the connection's end does, and a reset is none.
    let untold = &["HTTP/1.0 200 OK\r\n\r\nhello"];
    assert_eq!(
        ask(untold, Then::Close).0.map(|response| response.bytes),
        Ok(5)
    );
    let error = ask(untold, Then::Reset).0.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the response was reset after 5 bytes of its body"
    );
}

#[test]
fn a_fetch_says_what_was_wrong() {
    let chunked =
        |rest: &str| std::format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{rest}");
    let interim = "HTTP/1.1 103 Early Hints\r\n\r\n";
    for (answer, then, error) in [
        (
            String::new(),
            Then::Close,
            "the server ended the connection without an answer",
        ),
        (String::new(), Then::Reset, "the connection was reset"),
        (
            String::new(),
            Then::Keep,
            "the server sent nothing for 60 s",
        ),
        (
            "HTTP/1.1 200 OK\r\nX".into(),
            Then::Close,
            "the response is not HTTP: its head has no end",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello".into(),
            Then::Close,
            "the response ended after 5 of 500 bytes",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello".into(),
            Then::Reset,
            "the response was reset after 5 of 500 bytes",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello".into(),
            Then::Keep,
            "the server sent nothing for 60 s",
        ),
        (
            chunked("5\r\nhello\r\n"),
            Then::Close,
            "the response ended after 5 bytes of its body",
        ),
        (
            chunked("5\r\nhello\r\n\r\n"),
            Then::Close,
            "the response is not HTTP: a chunk's size is no number",
        ),
        (
            chunked(&std::format!("5;{}", "x".repeat(5000))),
            Then::Keep,
            "the response is not HTTP: the line of a chunk's size has more than 4096 bytes",
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\n\r\n".into(),
            Then::Keep,
            "the response is not HTTP: another protocol",
        ),
        (
            interim.repeat(16),
            Then::Close,
            "the server ended the connection without an answer",
        ),
        (
            interim.repeat(17),
            Then::Keep,
            "the response has more than 16 interim responses",
        ),
        (
            "220 mail.example.org ESMTP\r\n".into(),
            Then::Keep,
            "the response is not HTTP: invalid HTTP version",
        ),
        (
            std::format!("HTTP/1.1 200 OK\r\n{}", "X: y\r\n".repeat(300)),
            Then::Keep,
            "the response has more than 256 header lines",
        ),
        (
            std::format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(70_000)),
            Then::Keep,
            "the response has more than 65536 bytes in its head",
        ),
    ] {
        let result = ask(&[&answer], then).0;
        let text = result.as_ref().map_err(ToString::to_string);
        assert_eq!(text.err().as_deref(), Some(error), "{then:?}");
    }
}

#[test]
fn a_fetch_asks_as_http_1_1_has_it_and_shows_where_it_is_sent() {
    let moved = "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n";
    let (response, _, request, _) = ask(&[moved], Then::Keep);
    assert!(
        request.starts_with("GET /a?b HTTP/1.1\r\nHost: 10.0.0.2:18080\r\n"),
        "{request}"
    );
    assert!(request.contains("\r\nConnection: close\r\n"), "{request}");
    let response = response.unwrap();
    assert_eq!(response.location.as_deref(), Some("/elsewhere"));
    assert_eq!((response.status, response.bytes), (302, 0));
}

#[test]
fn a_slow_server_is_waited_for_as_long_as_it_sends_something() {
    let (mut world, one, two) = World::pair();
    world.spawn(async move {
        let listener = Listener::new(two, 81, SMALL, 1);
        let stream = poll_fn(|context| listener.poll_accept(context)).await;
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" {
            TestClock.after(Duration::from_secs(50)).await;
            (&stream).write_all(&[*byte]).await.unwrap();
        }
        stream.close();
    });
    world.pass(1);
    let url: Url = "http://10.0.0.2:81/".parse().unwrap();
    let response = world.run(fetch(
        one,
        TestClock,
        url.target.address,
        &url,
        |_: &[u8]| {},
    ));
    assert_eq!(response.map(|response| response.bytes), Ok(5));
}

#[test]
fn an_answer_that_came_together_with_a_reset_is_read() {
    let (mut world, _, two) = World::pair();
    let know = Pinger::new(two, TestClock, address("10.0.0.1"), 99);
    world.run(know.ask(0, Duration::from_secs(3)));
    let mut connecting = pin!(TcpStream::connect(two, endpoint("10.0.0.1", 81), SMALL));
    let mut context = Context::from_waker(Waker::noop());
    assert!(connecting.as_mut().poll(&mut context).is_pending());
    let syn = in_place_of_one(&mut world, Vec::new());
    let (_, next, ..) = syn.iter().find_map(|frame| read_segment(frame)).unwrap();
    let sockets = two.sockets();
    let socket = sockets
        .iter()
        .find(|socket| socket.state == Some(State::SynSent));
    let local = socket.unwrap().local.to_string();
    let (_, port) = local.rsplit_once(':').unwrap();
    let answer = |control, seq, payload| {
        segment_to(port.parse().unwrap(), 81, control, seq, Some(next), payload)
    };
    in_place_of_one(
        &mut world,
        vec![
            answer(TcpControl::Syn, 1000, b""),
            answer(TcpControl::Psh, 1001, b"hello"),
            answer(TcpControl::Rst, 1006, b""),
        ],
    );
    world.run(async {
        let stream = connecting.await.unwrap();
        let mut bytes = [0; 10];
        assert_eq!((&stream).read(&mut bytes).await, Ok(5));
        assert_eq!(&bytes[..5], b"hello");
        assert_eq!((&stream).read(&mut bytes).await, Err(TcpError::Reset));
    });
}
