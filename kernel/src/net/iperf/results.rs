//! What both sides counted, as JSON.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::Deserialize;

use super::parameters::{Parameters, Transport};
use super::streams::Counters;
use super::{Failure, MAX_STREAMS, code};

/// The longest text with a client's results.
pub(super) const MAX_BYTES: usize = 64 * 1024;
/// The congestion control of TCP here.
pub(super) const CONGESTION: &str = "reno";

/// Retransmissions are not counted here.
const NOT_COUNTED: i8 = -1;

/// The number by which both sides know the stream that came so many streams after the first: iperf3 leaves out 2.
fn id(index: usize) -> u64 {
    match index {
        0 => 1,
        index => index as u64 + 2,
    }
}

/// What this side counted in the time that the test took; the processor was idle for `idle` of it.
pub(super) fn of(
    parameters: &Parameters,
    counters: &[Counters],
    took: Duration,
    idle: Duration,
) -> String {
    let busy = took.saturating_sub(idle).as_nanos();
    let percent = Decimal(busy * 100 * NANOS / took.as_nanos().max(1));
    let retransmits = if parameters.reverse { 0 } else { NOT_COUNTED };
    let mut text = format!(
        "{{\"cpu_util_total\":{percent},\"cpu_util_user\":0,\"cpu_util_system\":{percent},\
         \"sender_has_retransmits\":{retransmits},"
    );
    if parameters.transport == Transport::Tcp {
        text += &format!("\"congestion_used\":\"{CONGESTION}\",");
    }
    text += "\"streams\":[";
    for (index, counters) in counters.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        text += &format!(
            "{comma}{{\"id\":{},\"bytes\":{},\"retransmits\":{NOT_COUNTED},\"jitter\":{},\"errors\":{},\
             \"omitted_errors\":0,\"packets\":{},\"omitted_packets\":0,\"start_time\":0,\"end_time\":{}}}",
            id(index),
            counters.bytes(),
            Decimal(counters.jitter().as_nanos()),
            counters.lost(),
            counters.packets(),
            Decimal(took.as_nanos()),
        );
    }
    text + "]}"
}

const NANOS: u128 = 1_000_000_000;

/// A number in billionths: nothing else here needs floating point.
struct Decimal(u128);

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.0 / NANOS, self.0 % NANOS)
    }
}

/// What the client counted as sent.
#[derive(Deserialize)]
pub(super) struct Sent {
    streams: Vec<SentStream>,
}

#[derive(Deserialize)]
struct SentStream {
    id: u64,
    bytes: u64,
    #[serde(default)]
    packets: u64,
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
            let stream = self.streams.iter().find(|stream| stream.id == id(index));
            stream.is_none_or(|stream| match transport {
                Transport::Tcp => counters.bytes() >= stream.bytes,
                Transport::Udp => counters.packets() >= stream.packets,
            })
        };
        counters.iter().enumerate().all(is_here)
    }
}
