//! What both sides counted, as JSON.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::parameters::{Parameters, Transport};
use super::streams::Counters;
use super::{Failure, MAX_STREAMS, code};

/// The longest text with a client's results.
pub(super) const MAX_BYTES: usize = 64 * 1024;
/// The congestion control of TCP here.
pub(super) const CONGESTION: &str = "reno";

#[derive(Serialize)]
struct Results {
    cpu_util_total: f64,
    cpu_util_user: f64,
    cpu_util_system: f64,
    sender_has_retransmits: i8,
    #[serde(skip_serializing_if = "Option::is_none")]
    congestion_used: Option<&'static str>,
    streams: Vec<Stream>,
}

#[derive(Serialize)]
struct Stream {
    id: usize,
    bytes: u64,
    retransmits: i8,
    jitter: f64,
    errors: u64,
    omitted_errors: u64,
    packets: u64,
    omitted_packets: u64,
    start_time: f64,
    end_time: f64,
}

/// Retransmissions are not counted here.
const NOT_COUNTED: i8 = -1;

/// The number by which both sides know the stream that came so many streams after the first: iperf3 leaves out 2.
fn id(index: usize) -> usize {
    match index {
        0 => 1,
        index => index + 2,
    }
}

/// What this side counted in the time that the test took; the processor was idle for `idle` of it.
pub(super) fn of(
    parameters: &Parameters,
    counters: &[Counters],
    took: Duration,
    idle: Duration,
) -> String {
    let busy = took.saturating_sub(idle).as_secs_f64();
    let busy = match took.is_zero() {
        true => 0.0,
        false => 100.0 * busy / took.as_secs_f64(),
    };
    let stream = |(index, counters): (usize, &Counters)| Stream {
        id: id(index),
        bytes: counters.bytes(),
        retransmits: NOT_COUNTED,
        jitter: counters.jitter().as_secs_f64(),
        errors: counters.lost(),
        omitted_errors: 0,
        packets: counters.packets(),
        omitted_packets: 0,
        start_time: 0.0,
        end_time: took.as_secs_f64(),
    };
    let results = Results {
        cpu_util_total: busy,
        cpu_util_user: 0.0,
        cpu_util_system: busy,
        sender_has_retransmits: if parameters.reverse { 0 } else { NOT_COUNTED },
        congestion_used: (parameters.transport == Transport::Tcp).then_some(CONGESTION),
        streams: counters.iter().enumerate().map(stream).collect(),
    };
    // No key is anything but a name, and no number is infinite.
    serde_json::to_string(&results).unwrap_or_default()
}

/// What the client counted as sent.
#[derive(Deserialize)]
pub(super) struct Sent {
    streams: Vec<SentStream>,
}

#[derive(Deserialize)]
struct SentStream {
    id: f64,
    bytes: f64,
    #[serde(default)]
    packets: f64,
}

impl Sent {
    pub(super) fn parse(text: &[u8]) -> Result<Self, Failure> {
        let sent: Option<Self> = serde_json::from_slice(text).ok();
        sent.filter(|sent| sent.streams.len() <= MAX_STREAMS)
            .ok_or(Failure::Refused(
                "results that are not understood",
                code::RESULTS,
            ))
    }

    /// Whether all of it has come. Of datagrams the last one counts: those before it are here or lost.
    pub(super) fn arrived(&self, transport: Transport, counters: &[Counters]) -> bool {
        let is_here = |(index, counters): (usize, &Counters)| {
            let stream = self
                .streams
                .iter()
                .find(|stream| stream.id == id(index) as f64);
            stream.is_none_or(|stream| match transport {
                Transport::Tcp => counters.bytes() >= stream.bytes as u64,
                Transport::Udp => counters.packets() >= stream.packets as u64,
            })
        };
        counters.iter().enumerate().all(is_here)
    }
}
