//! What the device tells on its own.

use alloc::collections::VecDeque;

use zerocopy::FromBytes;

use super::info::Items;
use super::stream::Stream;
use super::wire::{self, EVENT_LEN, RawCtlEvent, RawEvent};

/// Something that the device told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something was plugged into a jack.
    JackConnected(u32),
    /// Or pulled out.
    JackDisconnected(u32),
    /// A period of a stream in shared memory is over. This driver has no such streams.
    PeriodElapsed(u32),
    /// A stream ran dry or over.
    Xrun(u32),
    /// A control element changed.
    ControlChanged {
        /// Which.
        control: u32,
        /// Bit 0: its value; 1: what it is; 2: its metadata.
        what: u16,
    },
}

impl Event {
    pub(super) fn decode(bytes: [u8; EVENT_LEN]) -> Option<Self> {
        let event = RawEvent::read_from_bytes(&bytes).ok()?;
        let data = event.data.get();
        Some(match event.code.get() {
            wire::event::JACK_CONNECTED => Self::JackConnected(data),
            wire::event::JACK_DISCONNECTED => Self::JackDisconnected(data),
            wire::event::PCM_PERIOD_ELAPSED => Self::PeriodElapsed(data),
            wire::event::PCM_XRUN => Self::Xrun(data),
            wire::event::CTL_NOTIFY => {
                let event = RawCtlEvent::read_from_bytes(&data.to_le_bytes()).ok()?;
                Self::ControlChanged {
                    control: event.control_id.get().into(),
                    what: event.mask.get(),
                }
            }
            _ => return None,
        })
    }

    /// Makes it part of what the driver knows. Whether it concerns something that there is.
    fn apply(self, items: &mut Items, streams: &mut [Stream]) -> bool {
        let mut plugged = |jack, connected| {
            let found = items.jacks.get_mut(jack);
            found.map(|jack| jack.connected = connected).is_some()
        };
        match self {
            Self::JackConnected(jack) => plugged(jack, true),
            Self::JackDisconnected(jack) => plugged(jack, false),
            Self::PeriodElapsed(_) => false,
            Self::Xrun(stream) => {
                let found = streams.get_mut(stream as usize);
                found.map(|it| it.stats.xrun_events += 1).is_some()
            }
            Self::ControlChanged { control, .. } => items.controls.get(control).is_some(),
        }
    }
}

/// Events that nobody took yet.
#[derive(Debug, Default)]
pub(super) struct Events {
    waiting: VecDeque<Event>,
    /// How many there were.
    pub(super) taken: u64,
    /// How many made no sense.
    pub(super) bad: u64,
    /// How many nobody took in time.
    pub(super) lost: u64,
}

/// Events kept for whom they concern; what comes then pushes out the oldest.
const MAX_WAITING: usize = 64;

impl Events {
    /// Takes an event from the device; `None` if it is none.
    pub(super) fn add(&mut self, event: Option<Event>, items: &mut Items, streams: &mut [Stream]) {
        self.taken += 1;
        let Some(event) = event.filter(|event| event.apply(items, streams)) else {
            self.bad += 1;
            return;
        };
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.pop_front();
            self.lost += 1;
        }
        self.waiting.push_back(event);
    }

    pub(super) fn take(&mut self) -> Option<Event> {
        self.waiting.pop_front()
    }
}
