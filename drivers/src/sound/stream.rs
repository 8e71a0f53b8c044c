//! The driver's account of a stream: its state (spec 5.14.6.6.1), what is with the device, and what went wrong.

use core::fmt;

use super::pcm::Params;
use super::wire::RequestType;
use crate::error::Cause;

/// Where a stream is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// The device doesn't know what it shall carry.
    #[default]
    Unset,
    /// It knows.
    Set,
    /// It is ready.
    Prepared,
    /// Frames flow.
    Running,
    /// They don't any more.
    Stopped,
    /// The device would not release it: only a reset helps.
    Lost,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Unset => "unset",
            Self::Set => "set",
            Self::Prepared => "prepared",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Lost => "lost",
        }
    }

    /// Where a command leads from here; `None` if the specification does not allow it.
    const fn after(self, command: RequestType) -> Option<Self> {
        use RequestType as R;
        match (self, command) {
            (Self::Unset | Self::Set | Self::Prepared, R::PcmSetParams) => Some(Self::Set),
            (Self::Set | Self::Prepared, R::PcmPrepare) => Some(Self::Prepared),
            (Self::Prepared | Self::Stopped, R::PcmStart) => Some(Self::Running),
            (Self::Running, R::PcmStop) => Some(Self::Stopped),
            (Self::Prepared | Self::Stopped, R::PcmRelease) => Some(Self::Set),
            _ => None,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What became of a stream so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamStats {
    /// Periods that came back.
    pub periods: u64,
    /// Bytes of frames in them.
    pub bytes: u64,
    /// How often it ran out of periods while it ran: the next one came too late, and there is a gap in what is heard.
    pub xruns: u64,
    /// How often the device said that it ran dry or over.
    pub xrun_events: u64,
    /// Periods that the device failed to play or record.
    pub errors: u64,
    /// The last latency that the device reported, in bytes.
    pub latency_bytes: u32,
    /// The largest.
    pub latency_bytes_max: u32,
}

/// A stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) state: State,
    /// The command that the device has.
    pending: Option<RequestType>,
    params: Option<Params>,
    /// What the pending SET_PARAMS says.
    new_params: Option<Params>,
    pub(super) in_flight: u32,
    /// Periods were with the device since it was started.
    flows: bool,
    /// Whose it is, if anybody's.
    claim: Option<u64>,
    /// It is to be stopped and released.
    pub(super) ending: bool,
    pub(super) stats: StreamStats,
}

impl Stream {
    /// Whether a command is allowed now.
    pub(super) fn check(&self, command: RequestType) -> Result<(), Cause> {
        if self.pending.is_some() {
            return Err(Cause::Busy);
        }
        if self.state.after(command).is_none() {
            return Err(Cause::WrongState {
                command: command.name(),
                state: self.state.name(),
            });
        }
        // What is queued was meant for the stream as it was.
        let anew = matches!(command, RequestType::PcmSetParams | RequestType::PcmPrepare);
        if anew && self.in_flight > 0 {
            return Err(Cause::Busy);
        }
        Ok(())
    }

    /// The device has a command that was checked.
    pub(super) fn begin(&mut self, command: RequestType, params: Option<Params>) {
        self.pending = Some(command);
        self.new_params = params;
    }

    /// How that command ended. A failed one changes nothing, but when the stream is being ended: then what could be done
    /// was.
    pub(super) fn end(&mut self, command: RequestType, done: bool) {
        self.pending = None;
        let new_params = self.new_params.take();
        if done {
            self.state = self.state.after(command).unwrap_or(self.state);
            match command {
                RequestType::PcmSetParams => self.params = new_params,
                RequestType::PcmStart => self.flows = self.in_flight > 0,
                _ => {}
            }
        } else if self.ending {
            self.state = match command {
                RequestType::PcmStop => State::Stopped,
                RequestType::PcmRelease => State::Lost,
                _ => self.state,
            };
        }
    }

    /// The next command on the way to the end, if there is one and the device has none.
    pub(super) fn next_to_end(&self) -> Option<RequestType> {
        if !self.ending || self.pending.is_some() {
            return None;
        }
        match self.state {
            State::Running => Some(RequestType::PcmStop),
            State::Prepared | State::Stopped => Some(RequestType::PcmRelease),
            State::Unset | State::Set | State::Lost => None,
        }
    }

    /// Whether the device has nothing of it, or will never give it back.
    pub(super) fn is_idle(&self) -> bool {
        let idle = matches!(self.state, State::Unset | State::Set | State::Lost);
        idle && self.pending.is_none()
    }

    /// Periods for which it needs room in its queue.
    pub(super) fn periods_held(&self) -> u32 {
        match self.is_idle() && self.state != State::Lost {
            true => 0,
            false => self.params.map_or(0, |params| params.periods()),
        }
    }

    pub(super) fn params(&self) -> Option<Params> {
        self.params
    }

    /// Whether a transfer of `len` bytes in a buffer of `capacity` is allowed now, and counts it if so. `dry` says that the
    /// device is done with all that it was given.
    pub(super) fn transfer(&mut self, len: usize, output: bool, dry: bool) -> Result<(), Cause> {
        let command = if output {
            "transfer to"
        } else {
            "transfer from"
        };
        let state = self.state.name();
        let wrong = Cause::WrongState { command, state };
        let ready = matches!(
            self.state,
            State::Prepared | State::Running | State::Stopped
        );
        let released = self.pending == Some(RequestType::PcmRelease);
        let (Some(params), true) = (self.params, ready && !released) else {
            return Err(wrong);
        };
        let period = params.period_bytes() as usize;
        match len {
            0 => return Err(Cause::EmptyRequest),
            len if len > period || (!output && len != period) => {
                return Err(Cause::InvalidParameter(
                    "frames of another length than a period",
                ));
            }
            _ => {}
        }
        if self.in_flight >= params.periods() {
            return Err(Cause::Busy);
        }
        if self.state == State::Running {
            let dry = dry || self.in_flight == 0;
            self.stats.xruns += u64::from(self.flows && dry);
            self.flows = true;
        }
        self.in_flight += 1;
        Ok(())
    }

    /// A transfer came back: `result` has the latency that the device reported.
    pub(super) fn transferred(&mut self, bytes: usize, result: Result<u32, Cause>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        match result {
            Ok(latency) => {
                self.stats.periods += 1;
                self.stats.bytes += bytes as u64;
                self.stats.latency_bytes = latency;
                self.stats.latency_bytes_max = self.stats.latency_bytes_max.max(latency);
            }
            Err(_) => self.stats.errors += 1,
        }
    }

    /// A transfer was counted and not taken.
    pub(super) fn not_transferred(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Makes it somebody's, if it is nobody's.
    pub(super) fn claim(&mut self, claim: u64) -> Result<(), Cause> {
        if self.claim.is_some() || !self.is_idle() || self.in_flight > 0 {
            return Err(Cause::Busy);
        }
        if self.state == State::Lost {
            return Err(Cause::WrongState {
                command: "use",
                state: self.state.name(),
            });
        }
        self.claim = Some(claim);
        Ok(())
    }

    pub(super) fn is_claimed_as(&self, claim: u64) -> bool {
        self.claim == Some(claim)
    }

    /// Makes it nobody's, if the device has nothing of it.
    pub(super) fn settle(&mut self) {
        if self.ending && self.is_idle() {
            self.ending = false;
            self.claim = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_states_follow_one_another_as_the_specification_says() {
        use RequestType as R;
        const COMMANDS: [R; 5] = [
            R::PcmSetParams,
            R::PcmPrepare,
            R::PcmStart,
            R::PcmStop,
            R::PcmRelease,
        ];
        // Spec 5.14.6.6.1, "Possible valid transitions", by the command that led here.
        let allowed: [(State, &[R]); 6] = [
            (State::Unset, &[R::PcmSetParams]),
            (State::Set, &[R::PcmSetParams, R::PcmPrepare]),
            (
                State::Prepared,
                &[R::PcmSetParams, R::PcmPrepare, R::PcmStart, R::PcmRelease],
            ),
            (State::Running, &[R::PcmStop]),
            (State::Stopped, &[R::PcmStart, R::PcmRelease]),
            (State::Lost, &[]),
        ];
        for (state, commands) in allowed {
            for command in COMMANDS {
                let stream = Stream {
                    state,
                    ..Stream::default()
                };
                let expected = commands.contains(&command);
                assert_eq!(stream.check(command).is_ok(), expected, "{state} {command}");
            }
        }
    }
}
