//! What the device says about its streams, jacks, channel maps and control elements, checked.

use alloc::string::String;
use alloc::vec::Vec;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::config::Config;
use super::pcm::{Direction, Format, Layout, Params, Rate};
use super::wire::{
    self, CTL_VALUE_LEN, RawChmapInfo, RawCtlInfo, RawJackInfo, RawPcmInfo, RequestType,
};
use crate::error::Cause;

/// What is known of one kind of items.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Inventory<T> {
    /// The device was not asked yet.
    #[default]
    Unknown,
    /// It was asked, and would not or could not say.
    Refused(Cause),
    /// What it said.
    Known(Vec<T>),
}

impl<T> Inventory<T> {
    /// What is known: nothing, if the device did not say.
    pub fn items(&self) -> &[T] {
        match self {
            Self::Known(items) => items,
            Self::Unknown | Self::Refused(_) => &[],
        }
    }

    pub(super) fn get(&self, id: u32) -> Option<&T> {
        self.items().get(id as usize)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        match self {
            Self::Known(items) => items.get_mut(id as usize),
            Self::Unknown | Self::Refused(_) => None,
        }
    }
}

/// All that a device has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Items {
    /// Its streams.
    pub streams: Inventory<StreamInfo>,
    /// Its jacks.
    pub jacks: Inventory<JackInfo>,
    /// Its channel maps.
    pub chmaps: Inventory<ChannelMap>,
    /// Its control elements.
    pub controls: Inventory<ControlInfo>,
}

/// A kind of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PCM streams.
    Streams,
    /// Jacks.
    Jacks,
    /// Channel maps.
    Chmaps,
    /// Control elements.
    Controls,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Streams, Self::Jacks, Self::Chmaps, Self::Controls];

    /// The request for them.
    pub const fn request(self) -> RequestType {
        match self {
            Self::Streams => RequestType::PcmInfo,
            Self::Jacks => RequestType::JackInfo,
            Self::Chmaps => RequestType::ChmapInfo,
            Self::Controls => RequestType::CtlInfo,
        }
    }

    /// How many of them the device has.
    pub const fn count(self, config: &Config) -> u32 {
        match self {
            Self::Streams => config.streams,
            Self::Jacks => config.jacks,
            Self::Chmaps => config.chmaps,
            Self::Controls => config.controls,
        }
    }

    /// Bytes of one of them.
    pub(super) const fn item_len(self) -> usize {
        match self {
            Self::Streams => size_of::<RawPcmInfo>(),
            Self::Jacks => size_of::<RawJackInfo>(),
            Self::Chmaps => size_of::<RawChmapInfo>(),
            Self::Controls => size_of::<RawCtlInfo>(),
        }
    }
}

impl Items {
    /// Whether the device was asked for these.
    pub(super) fn are_asked(&self, kind: Kind) -> bool {
        match kind {
            Kind::Streams => self.streams != Inventory::Unknown,
            Kind::Jacks => self.jacks != Inventory::Unknown,
            Kind::Chmaps => self.chmaps != Inventory::Unknown,
            Kind::Controls => self.controls != Inventory::Unknown,
        }
    }

    /// Takes down what the device answered when asked for all items of a kind; `bytes` are the items.
    pub(super) fn take(&mut self, kind: Kind, answer: Result<&[u8], Cause>) -> Result<(), Cause> {
        match kind {
            Kind::Streams => fill(&mut self.streams, answer, StreamInfo::check),
            Kind::Jacks => fill(&mut self.jacks, answer, |raw| Ok(JackInfo::new(raw))),
            Kind::Chmaps => fill(&mut self.chmaps, answer, ChannelMap::check),
            Kind::Controls => fill(&mut self.controls, answer, ControlInfo::check),
        }
    }
}

fn fill<R, T>(
    inventory: &mut Inventory<T>,
    answer: Result<&[u8], Cause>,
    check: impl Fn(&R) -> Result<T, Cause>,
) -> Result<(), Cause>
where
    R: FromBytes + Immutable + KnownLayout + Unaligned,
{
    let items = answer.and_then(|bytes| {
        let raw = bytes.chunks_exact(size_of::<R>());
        let raw = raw.filter_map(|bytes| R::ref_from_bytes(bytes).ok());
        raw.map(check).collect()
    });
    match items {
        Ok(items) => *inventory = Inventory::Known(items),
        Err(cause) => {
            *inventory = Inventory::Refused(cause);
            return Err(cause);
        }
    }
    Ok(())
}

fn bad(request: RequestType, what: &'static str) -> Cause {
    let command = request.name();
    Cause::BadResponse { command, what }
}

/// What a stream can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// The function group that it belongs to, a link to other items.
    pub group: u32,
    /// Which way it flows.
    pub direction: Direction,
    /// Bits of [`wire::stream_feature`].
    pub features: u32,
    /// A bit for each [`Format`].
    pub formats: u64,
    /// A bit for each [`Rate`].
    pub rates: u64,
    /// The fewest channels.
    pub channels_min: u8,
    /// The most channels.
    pub channels_max: u8,
}

impl StreamInfo {
    fn check(raw: &RawPcmInfo) -> Result<Self, Cause> {
        let bad = |what| bad(RequestType::PcmInfo, what);
        let direction = Direction::from_number(raw.direction);
        let info = Self {
            group: raw.hda_fn_nid.get(),
            direction: direction.ok_or(bad("a stream of no direction"))?,
            features: raw.features.get(),
            formats: raw.formats.get(),
            rates: raw.rates.get(),
            channels_min: raw.channels_min,
            channels_max: raw.channels_max,
        };
        match info.channels_min {
            min if (1..=info.channels_max).contains(&min) => Ok(info),
            _ => Err(bad("a stream of no channels")),
        }
    }

    /// The formats that it takes, of those that the specification knows.
    pub fn formats(&self) -> impl Iterator<Item = Format> {
        let all = Format::ALL.iter().copied();
        all.filter(|format| self.formats & format.bit() != 0)
    }

    /// The rates that it takes, of those that the specification knows.
    pub fn rates(&self) -> impl Iterator<Item = Rate> {
        let all = Rate::ALL.iter().copied();
        all.filter(|rate| self.rates & rate.bit() != 0)
    }

    /// Whether it can carry frames of this layout.
    pub fn takes(&self, layout: Layout) -> bool {
        self.formats & layout.format.bit() != 0
            && self.rates & layout.rate.bit() != 0
            && (self.channels_min..=self.channels_max).contains(&layout.channels)
    }

    /// What the driver must not ask for, if the device does not offer it (spec 5.14.6.6.3.2).
    pub(super) fn check_params(&self, params: &Params) -> Result<(), Cause> {
        match self.takes(params.layout()) {
            true => Ok(()),
            false => Err(Cause::InvalidParameter(
                "format, rate or channels that the stream does not offer",
            )),
        }
    }
}

/// A jack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JackInfo {
    /// The function group that it belongs to.
    pub group: u32,
    /// It can be given another association and sequence.
    pub can_remap: bool,
    /// The pin's default configuration, as High Definition Audio has it (7.3.3.31).
    pub default_config: u32,
    /// The pin's capabilities, as High Definition Audio has them (7.3.4.9).
    pub capabilities: u32,
    /// Something is plugged in.
    pub connected: bool,
}

impl JackInfo {
    /// VIRTIO_SND_JACK_F_REMAP.
    const F_REMAP: u32 = 1 << 0;

    fn new(raw: &RawJackInfo) -> Self {
        Self {
            group: raw.hda_fn_nid.get(),
            can_remap: raw.features.get() & Self::F_REMAP != 0,
            default_config: raw.hda_reg_defconf.get(),
            capabilities: raw.hda_reg_caps.get(),
            connected: raw.connected != 0,
        }
    }
}

/// Where the channels of streams of one direction in one function group are heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelMap {
    /// The function group.
    pub group: u32,
    /// The direction.
    pub direction: Direction,
    channels: u8,
    positions: [u8; wire::CHMAP_MAX_SIZE],
}

/// Names of `VIRTIO_SND_CHMAP_...`, in their order.
const POSITIONS: &[&str] = &[
    "NONE", "NA", "MONO", "FL", "FR", "RL", "RR", "FC", "LFE", "SL", "SR", "RC", "FLC", "FRC",
    "RLC", "RRC", "FLW", "FRW", "FLH", "FCH", "FRH", "TC", "TFL", "TFR", "TFC", "TRL", "TRR",
    "TRC", "TFLC", "TFRC", "TSL", "TSR", "LLFE", "RLFE", "BC", "BLC", "BRC",
];

impl ChannelMap {
    fn check(raw: &RawChmapInfo) -> Result<Self, Cause> {
        let bad = |what| bad(RequestType::ChmapInfo, what);
        let direction = Direction::from_number(raw.direction);
        if usize::from(raw.channels) > wire::CHMAP_MAX_SIZE {
            return Err(bad("a channel map of too many channels"));
        }
        Ok(Self {
            group: raw.hda_fn_nid.get(),
            direction: direction.ok_or(bad("a channel map of no direction"))?,
            channels: raw.channels,
            positions: raw.positions,
        })
    }

    /// The positions of the channels by number (VIRTIO_SND_CHMAP_...).
    pub fn positions(&self) -> &[u8] {
        let channels = usize::from(self.channels);
        self.positions.get(..channels).unwrap_or_default()
    }

    /// The positions by the specification's names; `?` is one that it does not know.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let positions = self.positions().iter();
        positions.map(|position| {
            POSITIONS
                .get(usize::from(*position))
                .copied()
                .unwrap_or("?")
        })
    }
}

/// What a control element does to the sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The device does not say.
    Undefined,
    /// It makes louder or softer.
    Volume(Direction),
    /// It silences.
    Mute(Direction),
    /// It amplifies.
    Gain(Direction),
}

impl Role {
    /// The lowest bit is the direction, the others are the role.
    fn from_number(number: u32) -> Option<Self> {
        let direction = match number & 1 {
            0 => Direction::Output,
            _ => Direction::Input,
        };
        Some(match (number, number >> 1) {
            (0, _) => Self::Undefined,
            (_, 1) => Self::Volume(direction),
            (_, 2) => Self::Mute(direction),
            (_, 3) => Self::Gain(direction),
            _ => return None,
        })
    }
}

/// What the values of a control element are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// 0 or 1.
    Boolean,
    /// A number of 32 bits.
    Integer {
        /// The least.
        min: i32,
        /// The greatest.
        max: i32,
        /// The distance between two; 0 if it varies.
        step: u32,
    },
    /// A number of 64 bits.
    Integer64 {
        /// The least.
        min: i64,
        /// The greatest.
        max: i64,
        /// The distance between two; 0 if it varies.
        step: u64,
    },
    /// One of so many, which have names.
    Enumerated {
        /// How many.
        items: u32,
    },
    /// Bytes.
    Bytes,
    /// The state of a digital audio interface, 176 bytes.
    Iec958,
}

impl ValueType {
    /// Bytes of one value, and how many there may be.
    const fn extent(self) -> (usize, u32) {
        match self {
            Self::Boolean | Self::Integer { .. } | Self::Enumerated { .. } => (4, 128),
            Self::Integer64 { .. } => (8, 64),
            Self::Bytes => (1, 512),
            Self::Iec958 => (176, 1),
        }
    }
}

/// What may be done with a control element (VIRTIO_SND_CTL_ACCESS_...), as masks.
pub mod access {
    /// Its value can be read.
    pub const READ: u32 = 1 << 0;
    /// Its value can be written.
    pub const WRITE: u32 = 1 << 1;
    /// Its value changes without notice.
    pub const VOLATILE: u32 = 1 << 2;
    /// It does nothing.
    pub const INACTIVE: u32 = 1 << 3;
    /// Its metadata can be read.
    pub const TLV_READ: u32 = 1 << 4;
    /// Its metadata can be written.
    pub const TLV_WRITE: u32 = 1 << 5;
    /// It takes commands that concern its metadata.
    pub const TLV_COMMAND: u32 = 1 << 6;
}

/// A control element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlInfo {
    /// The function group that it belongs to.
    pub group: u32,
    /// What it does.
    pub role: Role,
    /// What its values are.
    pub value_type: ValueType,
    /// Bits of [`access`].
    pub access: u32,
    /// How many values it has.
    pub count: u32,
    /// Tells elements of the same name apart.
    pub index: u32,
    /// Its name.
    pub name: String,
}

impl ControlInfo {
    fn check(raw: &RawCtlInfo) -> Result<Self, Cause> {
        let bad = |what| bad(RequestType::CtlInfo, what);
        let (words, _) = <[U32; 3]>::ref_from_prefix(&raw.value).map_err(|_| bad("no value"))?;
        let longs = <[U64; 3]>::ref_from_bytes(&raw.value).map_err(|_| bad("no value"))?;
        let value_type = match raw.kind.get() {
            0 => ValueType::Boolean,
            1 => ValueType::Integer {
                min: words[0].get() as i32,
                max: words[1].get() as i32,
                step: words[2].get(),
            },
            2 => ValueType::Integer64 {
                min: longs[0].get() as i64,
                max: longs[1].get() as i64,
                step: longs[2].get(),
            },
            3 => ValueType::Enumerated {
                items: words[0].get(),
            },
            4 => ValueType::Bytes,
            5 => ValueType::Iec958,
            _ => return Err(bad("a control element of no type")),
        };
        let (_, most) = value_type.extent();
        let count = raw.count.get();
        if !(1..=most).contains(&count) {
            return Err(bad("a control element of too many values or none"));
        }
        let role = Role::from_number(raw.role.get());
        Ok(Self {
            group: raw.hda_fn_nid.get(),
            role: role.ok_or(bad("a control element of no role"))?,
            value_type,
            access: raw.access.get(),
            count,
            index: raw.index.get(),
            name: text(&raw.name),
        })
    }

    /// Bytes of all its values.
    pub fn value_len(&self) -> usize {
        let (len, _) = self.value_type.extent();
        (len * self.count as usize).min(CTL_VALUE_LEN)
    }
}

/// A string that a zero ends; what is no ASCII is shown as `?`.
pub(super) fn text(bytes: &[u8]) -> String {
    let bytes = bytes.iter().copied().take_while(|byte| *byte != 0);
    let shown = bytes.map(|byte| match byte {
        b' '..=b'~' => char::from(byte),
        _ => '?',
    });
    shown.collect()
}
