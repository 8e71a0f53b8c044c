//! What the kernel remembers from one boot to the next: how often it was booted, and what was typed at the prompt.
//!
//! It is kept in a [`log`] in persistent memory. Which device that is, the option `store=NAME` says; without it, the first
//! one that holds a log already; `store=none` is none. Memory that holds anything else is left alone: only when it is
//! named and all zero is it made a store by itself, else that takes the command `pmem format`.
//!
//! A line that was typed is persistent before its command runs. Without a store it is remembered until the machine goes
//! off.

pub mod log;

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::num::NonZeroU16;

use async_lock::Mutex;

use self::log::{Contents, Error, Log, MAX_PAYLOAD, Medium, Record, USUAL_BYTES};
use crate::devices::pmem::{self, Pmem};
use crate::platform::fw_cfg;
use crate::runtime::task;

/// How many lines are remembered.
const MAX_LINES: usize = 64;
/// Memory up to this size is searched for anything but zeros at boot, when it is named to be the store.
const MAX_SEARCHED: u64 = 256 << 20;

/// A record of the number of boots: le64.
const BOOT: NonZeroU16 = NonZeroU16::MIN;
/// A record of a line: UTF-8.
const LINE: NonZeroU16 = BOOT.saturating_add(1);

/// All that is remembered, and where.
struct Kept {
    boots: u64,
    /// Oldest first.
    lines: VecDeque<String>,
    device: Option<Device>,
}

struct Device {
    pmem: &'static Pmem,
    log: Log<&'static Pmem>,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept {
    boots: 0,
    lines: VecDeque::new(),
    device: None,
});

impl Medium for &'static Pmem {
    type Error = String;

    fn size(&self) -> u64 {
        self.config().size
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        let read = self.with_region(|region| region.read(offset, bytes));
        read.map_err(|cause| format!("{cause}"))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let written = self.with_region(|region| region.write(offset, bytes));
        written.map_err(|cause| format!("{cause}"))
    }

    async fn flush(&mut self) -> Result<(), String> {
        Pmem::flush(self).await.map_err(|error| format!("{error}"))
    }
}

/// Finds the store and counts this boot in it.
pub async fn init() {
    let named = fw_cfg::option("store");
    let pmem = match named.as_deref() {
        Some("none") => return,
        Some(name) => match pmem::find(name) {
            Some(pmem) => pmem,
            None => {
                ::log::warn!("store: there is no {name}");
                return;
            }
        },
        None => match pmem::all().into_iter().find(log::is_labelled) {
            Some(pmem) => pmem,
            None => return,
        },
    };
    let mut kept = KEPT.lock().await;
    match kept.open(pmem).await {
        Ok(()) => {
            kept.boots += 1;
            let record = kept.boot_record();
            kept.keep(record).await;
            let (boots, lines) = (kept.boots, kept.lines.len());
            ::log::info!(
                "store: {}: boot {boots}, {lines} lines of history",
                pmem.name
            );
        }
        Err(reason) => ::log::warn!("store: {}: {reason}", pmem.name),
    }
}

/// The lines typed before, oldest first.
pub async fn lines() -> Vec<String> {
    KEPT.lock().await.lines.iter().cloned().collect()
}

/// Remembers a line that was typed. When this returns it is persistent, if there is a store.
pub async fn remember(line: &str) {
    let mut kept = KEPT.lock().await;
    let repeated = kept.lines.back().is_some_and(|last| last == line);
    if line.trim().is_empty() || line.len() > MAX_PAYLOAD || repeated {
        return;
    }
    kept.remember(line.into());
    kept.keep(line_record(line)).await;
}

/// What there is to know of the store; `None` if there is none.
pub struct Status {
    /// The device's name.
    pub device: String,
    /// How often the kernel was booted with it.
    pub boots: u64,
    /// Lines of history.
    pub lines: usize,
    /// Records in the log.
    pub records: u64,
    /// How often the log was rewritten, and 1.
    pub generation: u64,
    /// Bytes left for records until the log is rewritten.
    pub room: u64,
    /// Bytes for records altogether.
    pub size: u64,
}

/// How the store is.
pub async fn status() -> Option<Status> {
    let kept = KEPT.lock().await;
    let Device { pmem, log } = kept.device.as_ref()?;
    Some(Status {
        device: pmem.name.clone(),
        boots: kept.boots,
        lines: kept.lines.len(),
        records: log.records(),
        generation: log.generation(),
        room: log.room(),
        size: log.area_len(),
    })
}

/// Makes the first `bytes` bytes of the device a store with what is remembered now, and uses it. What is in the memory is
/// only overwritten if it is a store, nothing, or if `force` says so. It is made to its end, even if the caller is dropped
/// before: half a store would be used by nobody, and kept from everybody.
///
/// # Errors
///
/// There is another store, the memory holds something else, or fails.
pub async fn format(pmem: &'static Pmem, bytes: Option<u64>, force: bool) -> Result<(), String> {
    let unclaimed = |made: Result<(), String>| {
        if let Err(reason) = made {
            ::log::warn!("store: {}: was not made: {reason}", pmem.name);
        }
    };
    task::begin(make(pmem, bytes, force), unclaimed).await
}

async fn make(pmem: &'static Pmem, bytes: Option<u64>, force: bool) -> Result<(), String> {
    let mut kept = KEPT.lock().await;
    if let Some(device) = kept
        .device
        .as_ref()
        .filter(|device| !core::ptr::eq(device.pmem, pmem))
    {
        return Err(format!("{} is the store", device.pmem.name));
    }
    if log::contents(&pmem)? == Contents::Other && !force {
        return Err("holds something else; `force` overwrites it".into());
    }
    kept.device = None;
    pmem.set_in_use(true);
    let made = Log::format(pmem, bytes.unwrap_or(USUAL_BYTES)).await;
    match made {
        Ok(log) => kept.device = Some(Device { pmem, log }),
        Err(error) => {
            pmem.set_in_use(false);
            return Err(format!("{error}"));
        }
    }
    kept.boots = kept.boots.max(1);
    kept.rewrite().await;
    Ok(())
}

fn line_record(line: &str) -> Record {
    Record {
        kind: LINE,
        payload: line.as_bytes().to_vec(),
    }
}

impl Kept {
    fn boot_record(&self) -> Record {
        Record {
            kind: BOOT,
            payload: self.boots.to_le_bytes().to_vec(),
        }
    }

    fn remember(&mut self, line: String) {
        self.lines.push_back(line);
        if self.lines.len() > MAX_LINES {
            self.lines.pop_front();
        }
    }

    /// Reads what an earlier kernel left, or makes a store of memory with nothing in it.
    async fn open(&mut self, pmem: &'static Pmem) -> Result<(), String> {
        let size = pmem.config().size;
        if size > MAX_SEARCHED && !log::is_labelled(&pmem) {
            return Err(
                "too large to see that nothing is in it; `pmem format` makes it a store".into(),
            );
        }
        let opened = match log::contents(&pmem)? {
            Contents::Other => {
                return Err("holds something else; `pmem format` makes it a store".into());
            }
            Contents::Zeros => Log::format(pmem, USUAL_BYTES).await,
            Contents::Log => Log::open(pmem, |record| self.replay(&record)).await,
        };
        let log = opened.map_err(|error| format!("{error}"))?;
        pmem.set_in_use(true);
        self.device = Some(Device { pmem, log });
        Ok(())
    }

    fn replay(&mut self, record: &Record) {
        match record.kind {
            BOOT => {
                if let Some(boots) = record.payload.first_chunk() {
                    self.boots = u64::from_le_bytes(*boots);
                }
            }
            LINE => {
                if let Ok(line) = core::str::from_utf8(&record.payload) {
                    self.remember(line.into());
                }
            }
            // Of a later kernel.
            _ => {}
        }
    }

    /// Makes a record persistent of something that is in `self` already.
    async fn keep(&mut self, record: Record) {
        let Some(device) = &mut self.device else {
            return;
        };
        match device.log.append(&record).await {
            Ok(()) => {}
            Err(Error::Full) => self.rewrite().await,
            Err(error) => self.give_up(error),
        }
    }

    /// Replaces all records by what is in `self`.
    async fn rewrite(&mut self) {
        let records = self.worth_keeping();
        if let Some(device) = &mut self.device
            && let Err(error) = device.log.rewrite(&records).await
        {
            self.give_up(error);
        }
    }

    /// The number of boots, and as many of the last lines as leave half of the log to those to come.
    fn worth_keeping(&self) -> Vec<Record> {
        let size = self
            .device
            .as_ref()
            .map_or(0, |device| device.log.area_len());
        let boots = self.boot_record();
        let mut left = (size / 2).saturating_sub(boots.bytes());
        let mut records: Vec<Record> = self
            .lines
            .iter()
            .rev()
            .map(|line| line_record(line))
            .map_while(|line| {
                left = left.checked_sub(line.bytes())?;
                Some(line)
            })
            .collect();
        records.push(boots);
        records.reverse();
        records
    }

    fn give_up(&mut self, error: Error<String>) {
        if let Some(device) = self.device.take() {
            let name = &device.pmem.name;
            ::log::error!("store: {name}: {error}; nothing is kept any more");
            device.pmem.set_in_use(false);
        }
    }
}
