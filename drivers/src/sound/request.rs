//! [`Request`]: what a sound device can be asked, and the frames on their way.

use alloc::string::String;
use alloc::vec::Vec;

use zerocopy::little_endian::U32;
use zerocopy::{Immutable, IntoBytes};

use super::config::Config;
use super::info::{self, ControlInfo, Items, Kind, StreamInfo, ValueType, access};
use super::pcm::Params;
use super::wire::{
    self, CTL_VALUE_LEN, ENUM_ITEM_LEN, HDR_LEN, ItemHdr, JackRemap, MAX_REQUEST_LEN, MAX_TLV_LEN,
    PcmSetParams, QueryInfo, RequestType, STATUS_LEN, stream_feature,
};
use crate::buffer::Buffer;
use crate::error::Cause;
use crate::queue::{Chain, Payload};

/// A control message or a transfer of frames, with its buffers.
#[derive(Debug)]
pub struct Request {
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Control(Command),
    Transfer(Transfer),
}

/// A control message.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) message: Message,
    /// What the device reads behind the message.
    data: Option<Buffer>,
    /// Where it writes its answer: status, then data.
    response: Buffer,
    /// How much of it there is.
    answered: usize,
    /// The driver sent it on its own: nobody waits for it.
    pub(super) internal: bool,
    /// What came of it, once the device is done with it.
    pub(super) result: Result<(), Cause>,
}

/// What a control message says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Message {
    Info(Kind, u32),
    JackRemap {
        jack: u32,
        association: u32,
        sequence: u32,
    },
    SetParams {
        stream: u32,
        params: Params,
    },
    /// Any other message to a stream.
    Stream(RequestType, u32),
    /// Any message to a control element.
    Element(RequestType, u32),
}

impl Message {
    pub(super) fn kind(&self) -> RequestType {
        match *self {
            Self::Info(kind, _) => kind.request(),
            Self::JackRemap { .. } => RequestType::JackRemap,
            Self::SetParams { .. } => RequestType::PcmSetParams,
            Self::Stream(kind, _) | Self::Element(kind, _) => kind,
        }
    }
}

/// Frames on their way to the device or from it.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) stream: u32,
    pub(super) buffer: Buffer,
    /// Bytes of frames: to be played, or once it is done those that were recorded.
    pub(super) len: usize,
    pub(super) output: bool,
    /// What came of it, once the device is done with it.
    pub(super) result: Result<(), Cause>,
}

/// What the device reads of a request first.
pub(super) struct Header {
    bytes: [u8; MAX_REQUEST_LEN],
    len: usize,
}

impl Header {
    fn new(message: &(impl IntoBytes + Immutable)) -> Self {
        let mut bytes = [0; MAX_REQUEST_LEN];
        let message = message.as_bytes();
        for (to, from) in bytes.iter_mut().zip(message) {
            *to = *from;
        }
        let len = message.len();
        Self { bytes, len }
    }

    /// A message that says what it is and to whom.
    pub(super) fn item(kind: RequestType, id: u32) -> Self {
        let code = U32::new(kind as u32);
        let id = U32::new(id);
        Self::new(&ItemHdr { code, id })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Command {
    fn new(message: Message, data: Option<Buffer>, answer_len: usize) -> Result<Self, Cause> {
        let response = Buffer::zeroed(HDR_LEN + answer_len).ok_or(Cause::NoMemory)?;
        Ok(Self {
            message,
            data,
            response,
            answered: 0,
            internal: false,
            result: Ok(()),
        })
    }

    /// A message to a stream that the driver sends on its own.
    pub(super) fn internal(kind: RequestType, stream: u32) -> Result<Self, Cause> {
        let control = Self::new(Message::Stream(kind, stream), None, 0)?;
        Ok(Self {
            internal: true,
            ..control
        })
    }

    pub(super) fn header(&self, streams: &[StreamInfo]) -> Header {
        let code = U32::new(self.message.kind() as u32);
        let item = |id| ItemHdr {
            code,
            id: U32::new(id),
        };
        match self.message {
            Message::Info(kind, count) => Header::new(&QueryInfo {
                code,
                start_id: U32::ZERO,
                count: U32::new(count),
                size: U32::new(kind.item_len() as u32),
            }),
            Message::JackRemap {
                jack,
                association,
                sequence,
            } => Header::new(&JackRemap {
                hdr: item(jack),
                association: U32::new(association),
                sequence: U32::new(sequence),
            }),
            Message::SetParams { stream, params } => {
                let info = streams.get(stream as usize);
                let offered = info.map_or(0, |info| info.features);
                let layout = params.layout();
                Header::new(&PcmSetParams {
                    hdr: item(stream),
                    buffer_bytes: U32::new(params.buffer_bytes()),
                    period_bytes: U32::new(params.period_bytes()),
                    features: U32::new(offered & stream_feature::EVT_XRUNS),
                    channels: layout.channels,
                    format: layout.format as u8,
                    rate: layout.rate as u8,
                    padding: 0,
                })
            }
            Message::Stream(kind, id) | Message::Element(kind, id) => Header::item(kind, id),
        }
    }

    /// Takes the device's word for how much it wrote (no more than there was room for), and judges the status.
    pub(super) fn judge(&mut self, written: Result<u32, Cause>) -> Result<(), Cause> {
        self.answered = 0;
        let len = written?;
        let code = self.response.first_chunk::<HDR_LEN>();
        let (Some(code), true) = (code, len as usize >= HDR_LEN) else {
            let need = HDR_LEN as u32;
            return Err(Cause::ShortResponse { len, need });
        };
        let code = u32::from_le_bytes(*code);
        wire::check_status(self.message.kind().name(), code)?;
        self.answered = len as usize - HDR_LEN;
        // Metadata is as long as it is; all else has a length that is known.
        let need = self.response.len() as u32;
        if self.message.kind() != RequestType::CtlTlvRead && len < need {
            return Err(Cause::ShortResponse { len, need });
        }
        Ok(())
    }

    /// What the device answered, the status aside.
    pub(super) fn answer(&self) -> &[u8] {
        let answer = self.response.get(HDR_LEN..HDR_LEN + self.answered);
        answer.unwrap_or_default()
    }

    /// What must be right before the device is asked, the states of streams aside.
    pub(super) fn check(&self, config: &Config, items: &Items) -> Result<(), Cause> {
        let no_such = |what| Err(Cause::InvalidParameter(what));
        match self.message {
            Message::Info(kind, count) if count != kind.count(config) => no_such("item count"),
            Message::Info(..) => Ok(()),
            Message::JackRemap { jack, .. } => match items.jacks.get(jack) {
                Some(jack) if jack.can_remap => Ok(()),
                Some(_) => Err(Cause::Unsupported),
                None => no_such("no such jack is known"),
            },
            Message::SetParams { stream, params } => match items.streams.get(stream) {
                Some(info) => info.check_params(&params),
                None => no_such("no such stream is known"),
            },
            Message::Stream(_, stream) => match items.streams.get(stream) {
                Some(_) => Ok(()),
                None => no_such("no such stream is known"),
            },
            Message::Element(request, control) => {
                let info = items.controls.get(control);
                let info = info.ok_or(Cause::InvalidParameter("no such control is known"))?;
                let needs = match request {
                    RequestType::CtlRead => access::READ,
                    RequestType::CtlWrite => access::WRITE,
                    RequestType::CtlTlvRead => access::TLV_READ,
                    RequestType::CtlTlvWrite => access::TLV_WRITE,
                    RequestType::CtlTlvCommand => access::TLV_COMMAND,
                    _ => 0,
                };
                match info.access & needs == needs {
                    true => Ok(()),
                    false => Err(Cause::Unsupported),
                }
            }
        }
    }
}

impl Transfer {
    /// Judges what the device wrote. Gives the latency that it reports, in bytes.
    pub(super) fn judge(
        &mut self,
        written: Result<u32, Cause>,
        mut footer: [u8; STATUS_LEN],
    ) -> Result<u32, Cause> {
        let asked = core::mem::take(&mut self.len);
        let len = written?;
        let need = STATUS_LEN as u32;
        let Some(frames) = len.checked_sub(need) else {
            return Err(Cause::ShortResponse { len, need });
        };
        let frames = match self.output {
            true => asked,
            // No more than the buffer has: the queue lent as much and the status.
            false => (frames as usize).min(self.buffer.len()),
        };
        if !self.output {
            self.find_status(frames, &mut footer);
        }
        let (code, latency) = wire::decode_status(footer);
        let command = if self.output { "output" } else { "input" };
        wire::check_status(command, code)?;
        self.len = frames;
        Ok(latency)
    }

    /// A full period has its status behind it, in the footer. Of one that is not full, because the stream ended, the status
    /// is the last of what the device says that it wrote: nothing behind that may be believed (spec 2.7.8.2).
    fn find_status(&self, frames: usize, footer: &mut [u8; STATUS_LEN]) {
        let end = *footer;
        let behind = self.buffer.get(frames..).unwrap_or_default();
        for (to, from) in footer.iter_mut().zip(behind.iter().chain(&end)) {
            *to = *from;
        }
    }
}

impl Request {
    fn control(message: Message, data: Option<Buffer>, answer_len: usize) -> Result<Self, Cause> {
        let body = Body::Control(Command::new(message, data, answer_len)?);
        Ok(Self { body })
    }

    /// Asks for all items of a kind, of which the device has `count` ([`Config`]). What it answers is kept
    /// ([`super::Sound::items`]).
    ///
    /// # Errors
    ///
    /// [`Cause::NoMemory`].
    pub fn info(kind: Kind, count: u32) -> Result<Self, Cause> {
        let len = (count as usize).checked_mul(kind.item_len());
        let len = len.ok_or(Cause::NoMemory)?;
        Self::control(Message::Info(kind, count), None, len)
    }

    /// Gives a jack another association and sequence.
    ///
    /// # Errors
    ///
    /// [`Cause::NoMemory`].
    pub fn remap_jack(jack: u32, association: u32, sequence: u32) -> Result<Self, Cause> {
        let message = Message::JackRemap {
            jack,
            association,
            sequence,
        };
        Self::control(message, None, 0)
    }

    /// Says what a stream shall carry.
    ///
    /// # Errors
    ///
    /// [`Cause::NoMemory`].
    pub fn set_params(stream: u32, params: Params) -> Result<Self, Cause> {
        Self::control(Message::SetParams { stream, params }, None, 0)
    }

    /// Has the device get ready for a stream, which can be filled then.
    ///
    /// # Errors
    ///
    /// [`Cause::NoMemory`].
    pub fn prepare(stream: u32) -> Result<Self, Cause> {
        Self::control(Message::Stream(RequestType::PcmPrepare, stream), None, 0)
    }

    /// Has a stream run.
    ///
    /// # Errors
    ///
    /// [`Cause::NoMemory`].
    pub fn start(stream: u32) -> Result<Self, Cause> {
        Self::control(Message::Stream(RequestType::PcmStart, stream), None, 0)
    }

    /// Has a stream stand still.
    ///
    /// # Errors
    ///
    /// [`Cause::NoMemory`].
    pub fn stop(stream: u32) -> Result<Self, Cause> {
        Self::control(Message::Stream(RequestType::PcmStop, stream), None, 0)
    }

    /// Ends a stream. The device gives back first what it has of it.
    ///
    /// # Errors
    ///
    /// [`Cause::NoMemory`].
    pub fn release(stream: u32) -> Result<Self, Cause> {
        Self::control(Message::Stream(RequestType::PcmRelease, stream), None, 0)
    }

    /// Plays the first `len` bytes of a buffer: a period, or less at the end of the stream.
    pub fn play(stream: u32, buffer: Buffer, len: usize) -> Self {
        let output = true;
        Self::transfer(stream, buffer, len, output)
    }

    /// Fills a buffer, which must be as long as a period, with what is heard.
    pub fn record(stream: u32, buffer: Buffer) -> Self {
        let (len, output) = (buffer.len(), false);
        Self::transfer(stream, buffer, len, output)
    }

    fn transfer(stream: u32, buffer: Buffer, len: usize, output: bool) -> Self {
        let body = Body::Transfer(Transfer {
            stream,
            buffer,
            len,
            output,
            result: Ok(()),
        });
        Self { body }
    }

    /// Asks what the values of an enumerated control element are called; [`Self::names`] has it when done.
    ///
    /// # Errors
    ///
    /// [`Cause::Unsupported`]: it isn't enumerated; [`Cause::BadResponse`]: it has more items than can be; or
    /// [`Cause::NoMemory`].
    pub fn enum_items(control: u32, info: &ControlInfo) -> Result<Self, Cause> {
        let ValueType::Enumerated { items } = info.value_type else {
            return Err(Cause::Unsupported);
        };
        // The number is the device's: what it can't mean, we need no memory for.
        let items = usize::try_from(items).ok().filter(|items| *items <= 4096);
        let len = items.ok_or(Cause::BadResponse {
            command: RequestType::CtlInfo.name(),
            what: "an element of thousands of items",
        })? * ENUM_ITEM_LEN;
        Self::control(
            Message::Element(RequestType::CtlEnumItems, control),
            None,
            len,
        )
    }

    /// Asks for the values of a control element; [`Self::answer`] has them when done, as the specification writes them
    /// (`union virtio_snd_ctl_value`).
    ///
    /// # Errors
    ///
    /// [`Cause::NoMemory`].
    pub fn read_control(control: u32) -> Result<Self, Cause> {
        let message = Message::Element(RequestType::CtlRead, control);
        Self::control(message, None, CTL_VALUE_LEN)
    }

    /// Gives a control element other values, as the specification writes them.
    ///
    /// # Errors
    ///
    /// The values don't have the length that [`ControlInfo::value_len`] says, or [`Cause::NoMemory`].
    pub fn write_control(control: u32, info: &ControlInfo, values: &[u8]) -> Result<Self, Cause> {
        if values.len() != info.value_len() {
            return Err(Cause::InvalidParameter("length of a control's values"));
        }
        let mut data = Buffer::zeroed(CTL_VALUE_LEN).ok_or(Cause::NoMemory)?;
        for (to, from) in data.iter_mut().zip(values) {
            *to = *from;
        }
        let message = Message::Element(RequestType::CtlWrite, control);
        Self::control(message, Some(data), 0)
    }

    /// Asks for a control element's metadata, of at most `len` bytes; [`Self::answer`] has it when done: type, length and
    /// value.
    ///
    /// # Errors
    ///
    /// [`Cause::NoMemory`].
    pub fn read_tlv(control: u32, len: usize) -> Result<Self, Cause> {
        let message = Message::Element(RequestType::CtlTlvRead, control);
        Self::control(message, None, len.min(MAX_TLV_LEN) + TLV_HDR_LEN)
    }

    /// Gives a control element other metadata of type `kind`.
    ///
    /// # Errors
    ///
    /// The value is longer than 64 KiB, or [`Cause::NoMemory`].
    pub fn write_tlv(control: u32, kind: u32, value: &[u32]) -> Result<Self, Cause> {
        Self::tlv(RequestType::CtlTlvWrite, control, kind, value)
    }

    /// Gives a control element a command that concerns its metadata.
    ///
    /// # Errors
    ///
    /// As [`Self::write_tlv`].
    pub fn tlv_command(control: u32, kind: u32, value: &[u32]) -> Result<Self, Cause> {
        Self::tlv(RequestType::CtlTlvCommand, control, kind, value)
    }

    fn tlv(request: RequestType, control: u32, kind: u32, value: &[u32]) -> Result<Self, Cause> {
        let len = size_of_val(value);
        if len > MAX_TLV_LEN {
            return Err(Cause::InvalidParameter("metadata of more than 64 KiB"));
        }
        let mut data = Vec::new();
        data.try_reserve_exact(TLV_HDR_LEN + len)
            .map_err(|_| Cause::NoMemory)?;
        for word in [kind, len as u32].iter().chain(value) {
            data.extend_from_slice(&word.to_le_bytes());
        }
        let message = Message::Element(request, control);
        Self::control(message, Some(Buffer::from(data)), 0)
    }

    /// What the device answered to a control message that is done.
    pub fn answer(&self) -> &[u8] {
        match &self.body {
            Body::Control(control) => control.answer(),
            Body::Transfer(_) => &[],
        }
    }

    /// What the device answered to [`Self::enum_items`].
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.answer().chunks_exact(ENUM_ITEM_LEN).map(info::text)
    }

    /// The buffer of a transfer, and how many of its bytes are frames.
    pub fn into_frames(self) -> Option<(Buffer, usize)> {
        match self.body {
            Body::Control(_) => None,
            Body::Transfer(transfer) => Some((transfer.buffer, transfer.len)),
        }
    }
}

/// Type and length of metadata (`struct virtio_snd_ctl_tlv`).
const TLV_HDR_LEN: usize = 8;

impl Payload for Command {
    fn segments<'a>(&'a mut self, chain: &mut Chain<'a>) {
        if let Some(data) = &self.data {
            chain.readable(data);
        }
        chain.writable(&mut self.response);
    }
}

impl Payload for Transfer {
    fn segments<'a>(&'a mut self, chain: &mut Chain<'a>) {
        match self.output {
            true => chain.readable_part(&self.buffer, 0..self.len),
            false => chain.writable(&mut self.buffer),
        }
    }
}
