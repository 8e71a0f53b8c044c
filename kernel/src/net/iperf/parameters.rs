//! What a client asks for. What this server would not do is refused, not passed over.

use alloc::string::String;
use core::time::Duration;

use serde::Deserialize;

use super::streams::{MIN_DATAGRAM_BYTES, UDP_HEADERS_BYTES};
use super::{Failure, MAX_STREAMS, MAX_TIME, code};

/// The longest text with parameters; it is iperf3's own limit.
pub(super) const MAX_BYTES: usize = 8 * 1024;
/// The longest UDP datagram.
const MAX_DATAGRAM_BYTES: usize = 65_507;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// What a test can't go beyond.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of a socket's buffer.
    pub(super) buffer: usize,
    /// The largest IP packet that can be sent.
    pub(super) packet: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parameters {
    pub(super) transport: Transport,
    /// This server sends, the client receives.
    pub(super) reverse: bool,
    pub(super) streams: usize,
    /// Bytes of a datagram.
    pub(super) length: usize,
    /// Bits in a second, on each stream; `None`: as many as can be.
    pub(super) rate: Option<u64>,
    /// Bytes of each stream after which no more are sent.
    pub(super) bytes: Option<u64>,
    /// Datagrams are numbered by eight bytes, not by four.
    pub(super) wide_numbers: bool,
    pub(super) time: Option<Duration>,
}

/// No number of iperf3's has a fraction or, short of a thousand terabytes, an exponent.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Asked {
    tcp: bool,
    udp: bool,
    omit: i64,
    time: i64,
    num: i64,
    blockcount: i64,
    #[serde(rename = "MSS")]
    segment_length: i64,
    parallel: i64,
    reverse: bool,
    bidirectional: bool,
    mptcp: bool,
    window: i64,
    len: i64,
    bandwidth: i64,
    fqrate: i64,
    burst: i64,
    #[serde(rename = "TOS")]
    service_type: i64,
    flowlabel: i64,
    congestion: Option<String>,
    get_server_output: i64,
    udp_counters_64bit: i64,
    repeating_payload: i64,
}

impl Parameters {
    pub(super) fn parse(text: &[u8], limits: Limits) -> Result<Self, Failure> {
        let refuse = |what, code| Err(Failure::Refused(what, code));
        let Ok(asked) = serde_json::from_slice::<Asked>(text) else {
            return refuse("parameters that are not understood", code::PARAMETERS);
        };
        let is_set = |number: i64| number != 0;
        let whole = |number: i64| u64::try_from(number).unwrap_or(0);
        let transport = match (asked.tcp, asked.udp) {
            (true, false) => Transport::Tcp,
            (false, true) => Transport::Udp,
            _ => return refuse("a protocol", code::PROTOCOL),
        };
        let reno = |name: &String| name == super::results::CONGESTION;
        let refusals = [
            (is_set(asked.omit), "omitted seconds", code::OMIT),
            (asked.mptcp, "multipath TCP", code::PROTOCOL),
            (
                asked.bidirectional,
                "both directions at once",
                code::NOT_IMPLEMENTED,
            ),
            (
                is_set(asked.get_server_output),
                "this side's output",
                code::NOT_IMPLEMENTED,
            ),
            (
                is_set(asked.segment_length),
                "a segment length",
                code::SEGMENT_LENGTH,
            ),
            (
                is_set(asked.service_type),
                "a type of service",
                code::SERVICE_TYPE,
            ),
            (is_set(asked.flowlabel), "a flow label", code::FLOW_LABEL),
            (
                !asked.congestion.as_ref().is_none_or(reno),
                "congestion control",
                code::CONGESTION,
            ),
            (
                whole(asked.window) > limits.buffer as u64,
                "a larger buffer",
                code::BUFFER,
            ),
            (
                asked.reverse && is_set(asked.fqrate),
                "pacing by the kernel",
                code::PACING,
            ),
            (
                asked.reverse && is_set(asked.burst),
                "bursts",
                code::NOT_IMPLEMENTED,
            ),
            (
                asked.reverse && is_set(asked.repeating_payload),
                "a repeating payload",
                code::NOT_IMPLEMENTED,
            ),
            (
                !(0..=MAX_TIME.as_secs()).contains(&(asked.time as u64)),
                "a time",
                code::TOO_LONG,
            ),
        ];
        if let Some((_, what, code)) = refusals.into_iter().find(|(asked, ..)| *asked) {
            return refuse(what, code);
        }
        let streams = match whole(asked.parallel).max(1) as usize {
            streams @ 1..=MAX_STREAMS => streams,
            _ => return refuse("more streams", code::TOO_MANY_STREAMS),
        };
        let length = whole(asked.len) as usize;
        if transport == Transport::Udp {
            let max = match asked.reverse {
                true => limits.packet.saturating_sub(UDP_HEADERS_BYTES),
                false => MAX_DATAGRAM_BYTES,
            };
            if !(MIN_DATAGRAM_BYTES..=max.min(limits.buffer)).contains(&length) {
                return refuse("a datagram length", code::DATAGRAM_LENGTH);
            }
        }
        let some = |number: i64| Some(whole(number)).filter(|number| *number > 0);
        let blocks = some(asked.blockcount).map(|blocks| blocks.saturating_mul(length as u64));
        Ok(Self {
            transport,
            reverse: asked.reverse,
            streams,
            length,
            rate: some(asked.bandwidth),
            bytes: some(asked.num).or(blocks),
            wide_numbers: is_set(asked.udp_counters_64bit),
            time: some(asked.time).map(Duration::from_secs),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        buffer: 65536,
        packet: 1500,
    };

    #[test]
    fn what_iperf3_sends_is_understood() {
        let text =
            br#"{"tcp":true,"omit":0,"time":10,"num":0,"blockcount":0,"parallel":2,"reverse":true,
            "len":131072,"pacing_timer":1000,"client_version":"3.12"}"#;
        let parameters = Parameters::parse(text, LIMITS).unwrap();
        assert_eq!(
            parameters,
            Parameters {
                transport: Transport::Tcp,
                reverse: true,
                streams: 2,
                length: 131_072,
                rate: None,
                bytes: None,
                wide_numbers: false,
                time: Some(Duration::from_secs(10)),
            }
        );
        let text =
            br#"{"udp":true,"num":1000000,"len":1448,"bandwidth":1048576,"udp_counters_64bit":1}"#;
        let parameters = Parameters::parse(text, LIMITS).unwrap();
        assert_eq!(parameters.bytes, Some(1_000_000));
        assert_eq!(parameters.rate, Some(1_048_576));
        assert!(parameters.wide_numbers && parameters.time.is_none());
        let text = br#"{"udp":true,"blockcount":7,"len":100}"#;
        assert_eq!(Parameters::parse(text, LIMITS).unwrap().bytes, Some(700));
    }

    #[test]
    fn what_is_not_done_is_refused_by_iperf3s_number() {
        for (text, code) in [
            (r#"{"tcp":true"#, 114),
            (r#"7"#, 114),
            (r#"{"tcp":1}"#, 114),
            (r#"{"tcp":true,"num":"all"}"#, 114),
            (r#"{"sctp":true}"#, 131),
            (r#"{"tcp":true,"udp":true,"len":100}"#, 131),
            (r#"{"tcp":true,"omit":3}"#, 12),
            (r#"{"tcp":true,"bidirectional":true}"#, 13),
            (r#"{"tcp":true,"parallel":17}"#, 6),
            (r#"{"tcp":true,"parallel":1e300}"#, 114),
            (r#"{"tcp":true,"time":86401}"#, 5),
            (r#"{"tcp":true,"time":-1}"#, 5),
            (r#"{"tcp":true,"MSS":536}"#, 123),
            (r#"{"tcp":true,"TOS":16}"#, 125),
            (r#"{"tcp":true,"congestion":"bbr"}"#, 134),
            (r#"{"tcp":true,"window":65537}"#, 141),
            (r#"{"tcp":true,"reverse":true,"fqrate":1000}"#, 140),
            (r#"{"udp":true,"len":15}"#, 20),
            (r#"{"udp":true,"len":65508}"#, 20),
            (r#"{"udp":true,"len":1473,"reverse":true}"#, 20),
        ] {
            match Parameters::parse(text.as_bytes(), LIMITS) {
                Err(Failure::Refused(_, refused)) => assert_eq!(refused, code, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
