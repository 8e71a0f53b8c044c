//! [`FakeSound`]: virtio-sound (spec 5.14), with everything that is played on it in plain memory.

use std::collections::VecDeque;
use std::format;
use std::vec::Vec;

use super::device::{DeviceModel, Queues};
use super::queue::Request;
use crate::device::DeviceId;

const F_CTLS: u64 = 1;

const CONTROL: u16 = 0;
const EVENT: u16 = 1;
const TX: u16 = 2;
const RX: u16 = 3;

const JACK_INFO: u32 = 1;
const JACK_REMAP: u32 = 2;
const PCM_INFO: u32 = 0x100;
const SET_PARAMS: u32 = 0x101;
const PREPARE: u32 = 0x102;
const RELEASE: u32 = 0x103;
const START: u32 = 0x104;
const STOP: u32 = 0x105;
const CHMAP_INFO: u32 = 0x200;
const CTL_INFO: u32 = 0x300;
const CTL_ENUM_ITEMS: u32 = 0x301;
const CTL_READ: u32 = 0x302;
const CTL_WRITE: u32 = 0x303;
const TLV_READ: u32 = 0x304;
const TLV_WRITE: u32 = 0x305;
const TLV_COMMAND: u32 = 0x306;

const OK: u32 = 0x8000;
const BAD_MSG: u32 = 0x8001;
const NOT_SUPP: u32 = 0x8002;

const HDR: usize = 4;
const STATUS: usize = 8;
const CTL_VALUE: usize = 512;
const ENUM_ITEM: usize = 64;

/// The specification has no format, rate or stream feature from these bits on.
const FORMATS: u32 = 25;
const RATES: u32 = 16;

/// Bits of a sample of each format.
const SAMPLE_BITS: [u32; FORMATS as usize] = [
    4, 8, 8, 8, 8, 16, 16, 24, 24, 24, 24, 24, 24, 32, 32, 32, 32, 32, 32, 32, 64, 8, 16, 32, 32,
];

/// Where a stream is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FakeState {
    /// It was never given parameters.
    #[default]
    Unset,
    /// It has parameters.
    Set,
    /// PREPARE was done.
    Prepared,
    /// START was done.
    Running,
    /// STOP was done.
    Stopped,
}

/// A stream. What it offers is written down as the device says it, possible or not.
#[derive(Debug)]
pub struct FakeStream {
    /// 0: output, 1: input.
    pub direction: u8,
    /// Bits of what it can do.
    pub features: u32,
    /// Bits of the formats.
    pub formats: u64,
    /// Bits of the rates.
    pub rates: u64,
    /// The fewest and the most channels.
    pub channels: (u8, u8),
    /// Where it is in its life.
    pub state: FakeState,
    /// All that was played on it.
    pub played: Vec<u8>,
    /// Bytes recorded from it; the next one is [`FakeStream::sample`] of that number.
    pub recorded: usize,
    /// How many periods may elapse before the driver must wait.
    pub credit: usize,
    /// Bytes of its last period when it is released while it records.
    pub rest: usize,
    /// The latency that it reports.
    pub latency: u32,
    /// Status of the next transfer, if it is not to be OK; 0xffff_ffff for none written.
    pub next_status: Option<u32>,
    /// Bytes of a period, bits of a frame.
    params: (usize, u32),
    /// A short period was played, so no other may follow.
    over: bool,
    waiting: VecDeque<Request>,
}

impl FakeStream {
    /// A stream as QEMU's.
    pub fn new(direction: u8) -> Self {
        Self {
            direction,
            features: 0,
            // S8, U8, S16, U16, S32, U32, FLOAT.
            formats: 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 17 | 1 << 18 | 1 << 19,
            rates: 0x3fff,
            channels: (1, 2),
            state: FakeState::Unset,
            played: Vec::new(),
            recorded: 0,
            credit: usize::MAX,
            rest: 0,
            latency: 0,
            next_status: None,
            params: (0, 0),
            over: false,
            waiting: VecDeque::new(),
        }
    }

    /// What is recorded: byte number `index`.
    pub fn sample(index: usize) -> u8 {
        (index % 251) as u8
    }

    /// Periods that it has.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

/// A control element.
#[derive(Clone, Debug)]
pub struct FakeControl {
    /// `struct virtio_snd_ctl_info`.
    pub info: Vec<u8>,
    /// `union virtio_snd_ctl_value`.
    pub value: Vec<u8>,
    /// The names of its values.
    pub items: Vec<&'static str>,
    /// `struct virtio_snd_ctl_tlv`.
    pub tlv: Vec<u8>,
}

/// A sound device. Its fields say what it offers and hold what it did; change them before the driver is made, or by
/// [`FakeDevice::with`](super::FakeDevice::with).
#[derive(Debug)]
pub struct FakeSound {
    /// Feature bits of the device type that it offers.
    pub features: u64,
    /// Its streams.
    pub streams: Vec<FakeStream>,
    /// `struct virtio_snd_jack_info` of each jack.
    pub jacks: Vec<Vec<u8>>,
    /// `struct virtio_snd_chmap_info` of each channel map.
    pub chmaps: Vec<Vec<u8>>,
    /// Its control elements.
    pub controls: Vec<FakeControl>,
    /// How many items it says that it has, if that is not the truth: jacks, streams, chmaps, controls.
    pub counts: Option<[u32; 4]>,
    /// The largest size of its queues.
    pub queue_size: u16,
    /// Requests that it answers with NOT_SUPP.
    pub refused: Vec<u32>,
    /// The next request of this type is not done, and answered so.
    pub answers: Vec<(u32, u32)>,
    /// The next request of this type is done, and said to have so many bytes of answer.
    pub lengths: Vec<(u32, u32)>,
    /// Types and streams of all requests that concern streams.
    pub log: Vec<(u32, u32)>,
    /// How many periods of its stream the device had at each START.
    pub started_with: Vec<usize>,
    /// The last association and sequence of a jack.
    pub remapped: Option<(u32, u32, u32)>,
    /// Streams that were not released when the device was reset.
    pub unreleased: usize,
    /// Whether it goes on with those, as QEMU does: returns what it has of them to the next driver, which never gave it.
    pub remembers: bool,
    events: VecDeque<[u8; 8]>,
    negotiated: u64,
}

impl Default for FakeSound {
    fn default() -> Self {
        Self::new()
    }
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    u32::from_le_bytes(bytes.unwrap_or_default())
}

impl FakeSound {
    /// A device as QEMU's: an output stream, an input stream, nothing else.
    pub fn new() -> Self {
        Self {
            features: 0,
            streams: Vec::from([FakeStream::new(0), FakeStream::new(1)]),
            jacks: Vec::new(),
            chmaps: Vec::new(),
            controls: Vec::new(),
            counts: None,
            queue_size: 64,
            refused: Vec::new(),
            answers: Vec::new(),
            lengths: Vec::new(),
            log: Vec::new(),
            started_with: Vec::new(),
            remapped: None,
            unreleased: 0,
            remembers: false,
            events: VecDeque::new(),
            negotiated: 0,
        }
    }

    /// Lets the driver know something, with the next [`FakeDevice::pump`](super::FakeDevice::pump).
    pub fn tell(&mut self, code: u32, data: u32) {
        let mut event = [0; 8];
        event[..4].copy_from_slice(&code.to_le_bytes());
        event[4..].copy_from_slice(&data.to_le_bytes());
        self.events.push_back(event);
    }

    /// Does a request of the control queue; gives the status and what follows it.
    fn control(&mut self, request: &Request, queues: &mut Queues<'_>) -> (u32, Vec<u8>) {
        let bytes = request.read_all();
        let (kind, id) = (le32(&bytes, 0), le32(&bytes, 4));
        let answer_len = request.writable_len().saturating_sub(HDR);
        let lens = match kind {
            JACK_INFO | PCM_INFO | CHMAP_INFO | CTL_INFO | JACK_REMAP => (16, None),
            SET_PARAMS => (24, Some(0)),
            PREPARE | RELEASE | START | STOP => (8, Some(0)),
            CTL_ENUM_ITEMS => (8, None),
            CTL_READ => (8, Some(CTL_VALUE)),
            CTL_WRITE => (8 + CTL_VALUE, Some(0)),
            TLV_READ => (8, None),
            TLV_WRITE | TLV_COMMAND => (16 + le32(&bytes, 12) as usize, Some(0)),
            _ => (0, None),
        };
        if bytes.len() != lens.0 || lens.1.is_some_and(|len| len != answer_len) {
            let len = bytes.len();
            queues.violation(format!(
                "request {kind:#x} of {len} bytes, {answer_len} for the answer"
            ));
            return (BAD_MSG, Vec::new());
        }
        if kind >= CTL_INFO && self.negotiated & F_CTLS == 0 {
            queues.violation("request for controls without CTLS");
        }
        if (SET_PARAMS..=STOP).contains(&kind) {
            self.log.push((kind, id));
        }
        if self.refused.contains(&kind) {
            return (NOT_SUPP, Vec::new());
        }
        if let Some(at) = self.answers.iter().position(|(of, _)| *of == kind) {
            return (self.answers.remove(at).1, Vec::new());
        }
        match kind {
            JACK_INFO | PCM_INFO | CHMAP_INFO | CTL_INFO => {
                self.info(kind, &bytes, answer_len, queues)
            }
            JACK_REMAP => {
                self.remapped = Some((id, le32(&bytes, 8), le32(&bytes, 12)));
                (OK, Vec::new())
            }
            SET_PARAMS..=STOP => (self.stream_command(kind, id, &bytes, queues), Vec::new()),
            _ => self.element(kind, id, &bytes, answer_len, queues),
        }
    }

    fn info(
        &self,
        kind: u32,
        bytes: &[u8],
        answer_len: usize,
        queues: &Queues<'_>,
    ) -> (u32, Vec<u8>) {
        let (items, size): (Vec<Vec<u8>>, _) = match kind {
            JACK_INFO => (self.jacks.clone(), 24),
            PCM_INFO => (self.streams.iter().map(stream_info).collect(), 32),
            CHMAP_INFO => (self.chmaps.clone(), 24),
            _ => (self.controls.iter().map(|it| it.info.clone()).collect(), 92),
        };
        let (start, count) = (le32(bytes, 4) as usize, le32(bytes, 8) as usize);
        if start + count > items.len() && self.counts.is_none() {
            queues.violation(format!("items {start} and {count} more of {}", items.len()));
        }
        if le32(bytes, 12) != size || answer_len != count * size as usize {
            queues.violation(format!(
                "{count} items of {size} bytes asked for as {}, in {answer_len}",
                le32(bytes, 12)
            ));
        }
        let items = items.into_iter().skip(start).take(count);
        (OK, items.flatten().collect())
    }

    fn stream_command(&mut self, kind: u32, id: u32, bytes: &[u8], queues: &mut Queues<'_>) -> u32 {
        use FakeState::{Prepared, Running, Set, Stopped, Unset};
        let Some(stream) = self.streams.get_mut(id as usize) else {
            queues.violation(format!("there is no stream {id}"));
            return BAD_MSG;
        };
        let next = match (stream.state, kind) {
            (Unset | Set | Prepared, SET_PARAMS) => Set,
            (Set | Prepared, PREPARE) => Prepared,
            (Prepared | Stopped, START) => Running,
            (Running, STOP) => Stopped,
            (Prepared | Stopped, RELEASE) => Set,
            (state, _) => {
                queues.violation(format!("command {kind:#x} for a stream that is {state:?}"));
                return BAD_MSG;
            }
        };
        if matches!(kind, SET_PARAMS | PREPARE) && !stream.waiting.is_empty() {
            queues.violation(format!("command {kind:#x} for a stream with periods"));
        }
        if kind == SET_PARAMS && !stream.set_params(bytes, queues) {
            return BAD_MSG;
        }
        stream.state = next;
        match kind {
            PREPARE => stream.over = false,
            START => self.started_with.push(stream.waiting.len()),
            STOP => stream.over = false,
            RELEASE => stream.release(queues),
            _ => {}
        }
        OK
    }

    fn element(
        &mut self,
        kind: u32,
        id: u32,
        bytes: &[u8],
        answer_len: usize,
        queues: &Queues<'_>,
    ) -> (u32, Vec<u8>) {
        let Some(control) = self.controls.get_mut(id as usize) else {
            queues.violation(format!("there is no control {id}"));
            return (BAD_MSG, Vec::new());
        };
        let access = le32(&control.info, 12);
        let needs = match kind {
            CTL_READ => 0,
            CTL_WRITE => 1,
            TLV_READ => 4,
            TLV_WRITE => 5,
            TLV_COMMAND => 6,
            _ => {
                let mut names = Vec::new();
                for name in &control.items {
                    let mut item = [0; ENUM_ITEM];
                    item[..name.len()].copy_from_slice(name.as_bytes());
                    names.extend(item);
                }
                if answer_len != names.len() {
                    queues.violation(format!("items of {} bytes in {answer_len}", names.len()));
                }
                return (OK, names);
            }
        };
        if access & 1 << needs == 0 {
            queues.violation(format!(
                "request {kind:#x} for a control without that right"
            ));
            return (BAD_MSG, Vec::new());
        }
        match kind {
            CTL_READ => (OK, control.value.clone()),
            TLV_READ => {
                let len = control.tlv.len().min(answer_len);
                (OK, control.tlv[..len].to_vec())
            }
            CTL_WRITE => {
                control.value = bytes[8..].to_vec();
                (OK, Vec::new())
            }
            _ => {
                control.tlv = bytes[8..].to_vec();
                (OK, Vec::new())
            }
        }
    }

    /// Takes a transfer from the driver.
    fn transfer(&mut self, queue: u16, request: Request, queues: &mut Queues<'_>) {
        let mut header = [0; 4];
        request.read(0, &mut header);
        let id = u32::from_le_bytes(header);
        let (readable, writable) = (request.readable_len(), request.writable_len());
        let direction = u8::from(queue == RX);
        let problem = match self.streams.get_mut(id as usize) {
            Some(stream) if stream.direction == direction => {
                let problem = stream.check_transfer(readable, writable);
                if problem.is_none() {
                    stream.waiting.push_back(request);
                    return;
                }
                problem
            }
            _ => Some("no such stream, or one of the other direction"),
        };
        let problem = problem.unwrap_or_default();
        queues.violation(format!(
            "stream {id}: {problem}: {readable} bytes to read and {writable} to write"
        ));
        let mut status = [0; STATUS];
        status[..4].copy_from_slice(&BAD_MSG.to_le_bytes());
        request.write(writable.saturating_sub(STATUS), &status);
        queues.push(queue, request, writable as u32);
    }

    /// Plays and records on all running streams as far as they may.
    fn elapse(&mut self, queues: &mut Queues<'_>) {
        for stream in &mut self.streams {
            while stream.state == FakeState::Running
                && stream.credit > 0
                && let Some(request) = stream.waiting.pop_front()
            {
                stream.credit -= usize::from(stream.credit != usize::MAX);
                stream.finish(request, usize::MAX, queues);
            }
        }
    }
}

fn stream_info(stream: &FakeStream) -> Vec<u8> {
    let mut info = Vec::new();
    info.extend(0u32.to_le_bytes());
    info.extend(stream.features.to_le_bytes());
    info.extend(stream.formats.to_le_bytes());
    info.extend(stream.rates.to_le_bytes());
    info.extend([stream.direction, stream.channels.0, stream.channels.1]);
    info.extend([0; 5]);
    info
}

impl FakeStream {
    /// What the driver must keep to (spec 5.14.6.6.3.2).
    fn set_params(&mut self, bytes: &[u8], queues: &Queues<'_>) -> bool {
        let (buffer, period, features) = (le32(bytes, 8), le32(bytes, 12), le32(bytes, 16));
        let (channels, format, rate, padding) = (bytes[20], bytes[21], bytes[22], bytes[23]);
        let (format, rate) = (u32::from(format), u32::from(rate));
        let offered = |bits: u64, bit: u32| bit < 64 && bits & 1 << bit != 0;
        let (least, most) = self.channels;
        let bits = SAMPLE_BITS.get(format as usize).copied();
        let bits = bits.unwrap_or(0) * u32::from(channels);
        let problem = if period == 0 || !buffer.is_multiple_of(period) {
            "period_bytes is no divider of buffer_bytes"
        } else if format >= FORMATS || !offered(self.formats, format) {
            "a format that is not offered"
        } else if rate >= RATES || !offered(self.rates, rate) {
            "a rate that is not offered"
        } else if !(least..=most).contains(&channels) {
            "channels that are not offered"
        } else if features & !self.features != 0 || features & 3 != 0 {
            "features that are not offered, or shared memory"
        } else if padding != 0 {
            "padding that is not zero"
        } else if !(period * 8).is_multiple_of(bits) {
            "a period of no whole frames"
        } else {
            self.params = (period as usize, bits);
            return true;
        };
        queues.violation(format!("SET_PARAMS with {problem}"));
        false
    }

    fn check_transfer(&mut self, readable: usize, writable: usize) -> Option<&'static str> {
        use FakeState::{Prepared, Running, Stopped};
        if !matches!(self.state, Prepared | Running | Stopped) {
            return Some("a transfer for a stream that is not prepared");
        }
        let (period, frame_bits) = self.params;
        if self.direction == 1 {
            return match (readable, writable) {
                (4, len) if len == period + STATUS => None,
                _ => Some("a recording of another length than a period"),
            };
        }
        let len = readable.saturating_sub(4);
        if writable != STATUS {
            Some("something to write for an output stream but the status")
        } else if len == 0 || len > period {
            Some("frames of another length than a period")
        } else if !(len as u32 * 8).is_multiple_of(frame_bits) {
            Some("a part of a frame")
        } else if self.over {
            Some("frames behind the end of the stream")
        } else {
            self.over = len < period;
            None
        }
    }

    /// Plays a period, or records at most `limit` bytes of one, and gives it back.
    fn finish(&mut self, request: Request, limit: usize, queues: &mut Queues<'_>) {
        let mut at = 0;
        if self.direction == 0 {
            let bytes = request.read_all();
            if limit > 0 {
                self.played.extend(&bytes[4..]);
            }
        } else {
            at = (request.writable_len() - STATUS).min(limit);
            let bytes: Vec<_> = (0..at).map(|i| Self::sample(self.recorded + i)).collect();
            request.write(0, &bytes);
            self.recorded += at;
        }
        let code = self.next_status.take().unwrap_or(OK);
        if code != u32::MAX {
            let mut status = [0; STATUS];
            status[..4].copy_from_slice(&code.to_le_bytes());
            status[4..].copy_from_slice(&self.latency.to_le_bytes());
            request.write(at, &status);
        }
        let queue = if self.direction == 0 { TX } else { RX };
        queues.push(queue, request, (at + STATUS) as u32);
    }

    /// Gives back everything. As QEMU, it puts the status right behind what was recorded.
    fn release(&mut self, queues: &mut Queues<'_>) {
        let mut rest = std::mem::take(&mut self.rest);
        while let Some(request) = self.waiting.pop_front() {
            self.finish(request, std::mem::take(&mut rest), queues);
        }
    }
}

impl DeviceModel for FakeSound {
    fn id(&self) -> DeviceId {
        DeviceId::SOUND
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        Vec::from([self.queue_size; 4])
    }

    fn config(&self) -> Vec<u8> {
        let lens = [
            self.jacks.len(),
            self.streams.len(),
            self.chmaps.len(),
            self.controls.len(),
        ];
        let counts = self.counts.unwrap_or(lens.map(|len| len as u32));
        // What is behind `chmaps` is there with CTLS only.
        let fields = if self.features & F_CTLS != 0 { 4 } else { 3 };
        let fields = counts.iter().take(fields);
        fields.flat_map(|count| count.to_le_bytes()).collect()
    }

    fn negotiated(&mut self, features: u64) {
        self.negotiated = features;
    }

    fn reset(&mut self) {
        let rests =
            |stream: &&FakeStream| !matches!(stream.state, FakeState::Unset | FakeState::Set);
        self.unreleased += self.streams.iter().filter(rests).count();
        self.events.clear();
        for stream in &mut self.streams {
            if !self.remembers {
                stream.state = FakeState::Unset;
                stream.waiting.clear();
            }
        }
    }

    fn process(&mut self, queue: u16, queues: &mut Queues<'_>) {
        match queue {
            CONTROL => {
                while let Some(request) = queues.pop(CONTROL) {
                    // What was queued before belongs to the stream as it is before the command.
                    for queue in [TX, RX] {
                        self.take_transfers(queue, queues);
                    }
                    self.elapse(queues);
                    let kind = le32(&request.read_all(), 0);
                    let (status, data) = self.control(&request, queues);
                    request.write(0, &status.to_le_bytes());
                    let mut written = (HDR + request.write(HDR, &data)) as u32;
                    if let Some(at) = self.lengths.iter().position(|(of, _)| *of == kind) {
                        written = self.lengths.remove(at).1;
                    }
                    queues.push(CONTROL, request, written);
                }
            }
            EVENT => {
                while let Some(event) = self.events.pop_front() {
                    let Some(request) = queues.pop(EVENT) else {
                        self.events.push_front(event);
                        break;
                    };
                    if request.readable_len() > 0 || request.writable_len() < event.len() {
                        queues.violation("event buffer to be read, or too short");
                    }
                    let written = request.write(0, &event);
                    queues.push(EVENT, request, written as u32);
                }
            }
            _ => self.take_transfers(queue, queues),
        }
        self.elapse(queues);
    }
}

impl FakeSound {
    fn take_transfers(&mut self, queue: u16, queues: &mut Queues<'_>) {
        while let Some(request) = queues.pop(queue) {
            self.transfer(queue, request, queues);
        }
    }
}
