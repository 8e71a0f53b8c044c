//! The power is cut at every moment there is, with every loss there may be.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::vec::Vec;
use std::{format, vec};

use super::*;

const BYTES: usize = MIN_BYTES as usize;

/// The power is gone.
#[derive(Debug, PartialEq, Eq)]
struct PowerCut;

impl fmt::Display for PowerCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("power cut")
    }
}

/// Memory that keeps what was flushed.
struct Memory {
    now: Vec<u8>,
    flushed: Vec<u8>,
    /// Words that are not what was flushed.
    dirty: BTreeSet<usize>,
    /// Words changed and flushes made until the power is cut.
    left: usize,
}

#[derive(Clone)]
struct Simulated(Rc<RefCell<Memory>>);

impl Simulated {
    fn new(bytes: Vec<u8>, left: usize) -> Self {
        Self(Rc::new(RefCell::new(Memory {
            flushed: bytes.clone(),
            now: bytes,
            dirty: BTreeSet::new(),
            left,
        })))
    }

    fn dirty(&self) -> Vec<usize> {
        self.0.borrow().dirty.iter().copied().collect()
    }

    /// What is left if of the dirty words those were lost for which `lost` says so, by their place in the list.
    fn after_loss(&self, lost: impl Fn(usize) -> bool) -> Vec<u8> {
        let memory = self.0.borrow();
        let mut bytes = memory.now.clone();
        for (place, word) in memory.dirty.iter().enumerate() {
            if lost(place) {
                let range = word * WORD..(word + 1) * WORD;
                bytes[range.clone()].copy_from_slice(&memory.flushed[range]);
            }
        }
        bytes
    }
}

impl Memory {
    fn spend(&mut self) -> Result<(), PowerCut> {
        self.left = self.left.checked_sub(1).ok_or(PowerCut)?;
        Ok(())
    }
}

impl Medium for Simulated {
    type Error = PowerCut;

    fn size(&self) -> u64 {
        self.0.borrow().now.len() as u64
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), PowerCut> {
        let offset = offset as usize;
        bytes.copy_from_slice(&self.0.borrow().now[offset..offset + bytes.len()]);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), PowerCut> {
        let mut memory = self.0.borrow_mut();
        assert!(
            offset.is_multiple_of(8) && bytes.len().is_multiple_of(WORD),
            "torn words"
        );
        for (word, new) in (offset as usize / WORD..).zip(bytes.chunks(WORD)) {
            let range = word * WORD..(word + 1) * WORD;
            if memory.now[range.clone()] == *new {
                continue;
            }
            memory.spend()?;
            memory.now[range.clone()].copy_from_slice(new);
            if memory.flushed[range] == *new {
                memory.dirty.remove(&word);
            } else {
                memory.dirty.insert(word);
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), PowerCut> {
        let mut memory = self.0.borrow_mut();
        memory.spend()?;
        let memory = &mut *memory;
        memory.dirty.clear();
        memory.flushed.copy_from_slice(&memory.now);
        Ok(())
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("nothing here waits"),
    }
}

fn mix(seed: &mut u64) -> u64 {
    *seed = seed
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    *seed >> 33
}

fn record(number: usize, len: usize) -> Record {
    let bytes = (0..len).map(|i| (number * 31 + i * 7 + 1) as u8);
    Record {
        kind: NonZeroU16::new(number as u16 % 9 + 1).expect("not 0"),
        payload: bytes.collect(),
    }
}

/// A log that was opened, with what is in it.
type Opened = Result<(Log<Simulated>, Vec<Record>), Error<PowerCut>>;

fn open(bytes: Vec<u8>, left: usize) -> (Simulated, Opened) {
    let memory = Simulated::new(bytes, left);
    let mut records = Vec::new();
    let log = run(Log::open(memory.clone(), |record| records.push(record)));
    (memory, log.map(|log| (log, records)))
}

/// What is in the log if it opens.
fn records(bytes: Vec<u8>) -> Result<Vec<Record>, Error<PowerCut>> {
    open(bytes, usize::MAX).1.map(|(_, records)| records)
}

enum Step {
    Append(usize),
    /// Keep that many of the newest.
    Rewrite(usize),
}

/// What may be in the log.
struct Truth {
    formatted: bool,
    may_be: Vec<Vec<Record>>,
}

async fn scenario(
    memory: Simulated,
    steps: &[Step],
    truth: &RefCell<Truth>,
) -> Result<(), Error<PowerCut>> {
    let mut log = Log::format(memory, u64::MAX).await?;
    truth.borrow_mut().formatted = true;
    let mut now: Vec<Record> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let mut next = now.clone();
        match step {
            Step::Append(len) => next.push(record(number, *len)),
            Step::Rewrite(keep) => drop(next.drain(..next.len() - keep)),
        }
        truth.borrow_mut().may_be = vec![now, next.clone()];
        match step {
            Step::Append(len) => log.append(&record(number, *len)).await?,
            Step::Rewrite(_) => log.rewrite(&next).await?,
        }
        truth.borrow_mut().may_be = vec![next.clone()];
        now = next;
    }
    Ok(())
}

/// Cuts the power after every word written and at every flush, and has words lost in every combination if there are few,
/// else in many. Gives how many ruins were looked at.
fn cut_everywhere(start: &[u8], steps: &[Step]) -> usize {
    let mut seed = 1;
    let mut ruins = 0;
    for left in 0.. {
        let memory = Simulated::new(start.to_vec(), left);
        let truth = RefCell::new(Truth {
            formatted: false,
            may_be: vec![vec![]],
        });
        let finished = run(scenario(memory.clone(), steps, &truth));
        let truth = truth.into_inner();
        let dirty = memory.dirty().len();
        let mut check = |bytes: Vec<u8>, what: &dyn Fn() -> std::string::String| {
            ruins += 1;
            check_ruin(bytes, &truth, start, mix(&mut seed), what);
        };
        if dirty <= 8 {
            for lost in 0..1u32 << dirty {
                let bytes = memory.after_loss(|place| lost >> place & 1 == 1);
                check(bytes, &|| format!("cut {left}, lost {lost:#b}"));
            }
        } else {
            check(memory.after_loss(|_| true), &|| {
                format!("cut {left}, all lost")
            });
            check(memory.after_loss(|_| false), &|| {
                format!("cut {left}, none lost")
            });
            for word in [0, 1, dirty / 2, dirty - 1] {
                check(memory.after_loss(|place| place == word), &|| {
                    format!("cut {left}, lost {word} of {dirty}")
                });
                check(memory.after_loss(|place| place != word), &|| {
                    format!("cut {left}, lost all but {word} of {dirty}")
                });
            }
            for noise in 0..8 {
                let mut random = (left * 8 + noise) as u64;
                let lost: Vec<bool> = (0..dirty).map(|_| mix(&mut random) & 1 == 1).collect();
                check(memory.after_loss(|place| lost[place]), &|| {
                    format!("cut {left}, noise {noise}")
                });
            }
        }
        match finished {
            Ok(()) => break,
            Err(error) => assert_eq!(error, Error::Medium(PowerCut)),
        }
    }
    ruins
}

/// What is left after a power cut: it opens, holds what it may hold, goes on, and survives a second power cut while it is
/// being opened.
fn check_ruin(
    bytes: Vec<u8>,
    truth: &Truth,
    start: &[u8],
    mut seed: u64,
    what: &dyn Fn() -> std::string::String,
) {
    let contents = contents(&Simulated::new(bytes.clone(), 0)).expect("reading needs no power");
    if !truth.formatted && contents != Contents::Log {
        // Not even begun.
        assert_eq!(bytes, start, "{}", what());
        return;
    }
    let found = match records(bytes.clone()) {
        Ok(found) => found,
        Err(error) => panic!("{}: {error}", what()),
    };
    assert!(truth.may_be.contains(&found), "{}: {found:?}", what());

    // The power goes again while the log is being opened.
    let (memory, opened) = open(bytes, (mix(&mut seed) % 40) as usize);
    drop(opened);
    let pattern = mix(&mut seed);
    let again = memory.after_loss(|place| pattern >> (place % 31) & 1 == 1);
    let (memory, opened) = open(again, usize::MAX);
    let (mut log, again) = opened.unwrap_or_else(|error| panic!("{}, again: {error}", what()));
    assert_eq!(again, found, "{}, again", what());

    // It goes on: a shorter record than the one that may have been torn, and all of it is found.
    let mut expected = found;
    expected.push(record(77, 3));
    run(log.append(&record(77, 3))).unwrap_or_else(|error| panic!("{}: {error}", what()));
    let after = memory.after_loss(|_| true);
    assert_eq!(records(after).as_ref(), Ok(&expected), "{}", what());
}

const STEPS: &[Step] = &[
    Step::Append(5),
    Step::Append(0),
    Step::Append(40),
    Step::Append(16),
    Step::Rewrite(2),
    Step::Append(17),
    Step::Append(300),
    Step::Rewrite(3),
    Step::Append(8),
    Step::Rewrite(0),
    Step::Append(33),
    Step::Rewrite(1),
    Step::Append(1),
];

#[test]
fn no_acknowledged_record_is_lost_at_any_power_cut() {
    let ruins = cut_everywhere(&[0; BYTES], STEPS);
    assert!(ruins > 5000, "{ruins}");
}

#[test]
fn formatting_over_something_else_can_be_cut_too() {
    let mut seed = 7;
    let mut start: Vec<u8> = (0..BYTES).map(|_| mix(&mut seed) as u8).collect();
    // Little of it, so that it is quick, and all over the place; and an old log's headers, which must not be believed.
    start
        .chunks_mut(WORD)
        .enumerate()
        .filter(|(word, _)| word % 61 != 0)
        .for_each(|(_, word)| word.fill(0));
    let header = Header {
        generation: 5,
        area_len: MIN_AREA,
    };
    start[64..64 + HEADER_LEN].copy_from_slice(&header.encode());
    cut_everywhere(&start, &[Step::Append(9)]);
    // An old log is made anew.
    let old = Simulated::new(vec![0; BYTES], usize::MAX);
    let truth = RefCell::new(Truth {
        formatted: false,
        may_be: vec![],
    });
    run(scenario(old.clone(), STEPS, &truth)).expect("no power cut");
    let old = old.after_loss(|_| false);
    let mut ruins = 0;
    for left in 0.. {
        let memory = Simulated::new(old.clone(), left);
        let finished = run(Log::format(memory.clone(), u64::MAX)).is_ok();
        for pattern in [
            0,
            u64::MAX,
            0x5555_5555_5555_5555,
            mix(&mut seed),
            mix(&mut seed),
        ] {
            let ruin = memory.after_loss(|place| pattern >> (place % 64) & 1 == 1);
            let found = records(ruin).expect("it opens");
            assert!(found.is_empty() || truth.borrow().may_be.contains(&found));
            ruins += 1;
        }
        if finished {
            break;
        }
    }
    assert!(ruins > 50, "{ruins}");
}

#[test]
fn a_log_is_filled_to_the_last_byte() {
    let memory = Simulated::new(vec![0; BYTES], usize::MAX);
    let mut log = run(Log::format(memory.clone(), u64::MAX)).expect("enough memory");
    assert_eq!(log.area_len(), MIN_AREA);
    assert_eq!(
        run(log.append(&record(0, MAX_PAYLOAD + 1))),
        Err(Error::TooLong)
    );
    let mut expected = Vec::new();
    for number in 0.. {
        let room = log.room() as usize;
        let len = (room.saturating_sub(RECORD_HEADER)).min(MAX_PAYLOAD);
        match run(log.append(&record(number, len))) {
            Ok(()) => expected.push(record(number, len)),
            Err(error) => {
                assert_eq!(error, Error::Full);
                break;
            }
        }
    }
    assert_eq!(log.room(), 0);
    let bytes = memory.after_loss(|_| true);
    assert_eq!(records(bytes).as_ref(), Ok(&expected));
    // All of it fits into the other area, and a byte more does not.
    run(log.rewrite(&expected)).expect("as much room as before");
    assert_eq!((log.room(), log.generation()), (0, 2));
    expected.push(record(99, 0));
    assert_eq!(run(log.rewrite(&expected)), Err(Error::Full));
    expected.pop();
    assert_eq!(records(memory.after_loss(|_| true)).as_ref(), Ok(&expected));
    assert_eq!(log.records(), expected.len() as u64);
}

#[test]
fn after_a_failed_flush_the_log_is_opened_again_or_not_used() {
    let memory = Simulated::new(vec![0; BYTES], usize::MAX);
    let mut log = run(Log::format(memory.clone(), u64::MAX)).expect("enough memory");
    run(log.append(&record(1, 10))).expect("room");
    memory.0.borrow_mut().left = 3;
    assert_eq!(
        run(log.append(&record(2, 10))),
        Err(Error::Medium(PowerCut))
    );
    memory.0.borrow_mut().left = usize::MAX;
    assert_eq!(run(log.append(&record(3, 10))), Err(Error::Broken));
    assert_eq!(run(log.rewrite(&[])), Err(Error::Broken));
    let mut found = Vec::new();
    let log = run(Log::open(log.into_medium(), |record| found.push(record)));
    run(log.expect("it opens").append(&record(4, 10))).expect("room");
    found.push(record(4, 10));
    assert_eq!(records(memory.after_loss(|_| true)).as_ref(), Ok(&found));
}

#[test]
fn memory_without_a_log_is_left_alone() {
    let look = |bytes: &[u8]| {
        let memory = Simulated::new(bytes.to_vec(), 0);
        (
            contents(&memory).expect("reading needs no power"),
            records(bytes.to_vec()).err(),
        )
    };
    let mut bytes = vec![0; BYTES];
    assert_eq!(look(&bytes), (Contents::Zeros, Some(Error::NotALog)));
    for place in [0, 7, 8, BYTES / 2, BYTES - 1] {
        bytes[place] = 1;
        assert_eq!(look(&bytes), (Contents::Other, Some(Error::NotALog)));
        bytes[place] = 0;
    }
    assert_eq!(look(&bytes[..7]).0, Contents::Other);
    assert_eq!(look(&bytes[..BYTES - 1]).1, Some(Error::TooSmall));
    let small = Simulated::new(bytes[..BYTES - 8].to_vec(), usize::MAX);
    assert_eq!(
        run(Log::format(small, u64::MAX)).err(),
        Some(Error::TooSmall)
    );
}

/// A log that somebody spoilt: it opens with what is sure, or says that it is damaged and is not changed. Nothing else.
#[test]
fn a_damaged_log_is_told_from_a_torn_record() {
    let memory = Simulated::new(vec![0; BYTES], usize::MAX);
    let truth = RefCell::new(Truth {
        formatted: false,
        may_be: vec![],
    });
    let mut steps: Vec<Step> = (0..12).map(|len| Step::Append(len * 100)).collect();
    steps.push(Step::Append(MAX_PAYLOAD));
    run(scenario(memory.clone(), &steps, &truth)).expect("no power cut");
    let whole = memory.after_loss(|_| false);
    let sure = truth.into_inner().may_be.remove(0);
    let end = AREAS as usize
        + sure
            .iter()
            .map(|record| record.bytes() as usize)
            .sum::<usize>();
    let mut damaged = 0;
    for place in (0..BYTES).step_by(5) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        let (after, opened) = open(bytes.clone(), usize::MAX);
        match opened {
            Ok((_, found)) => {
                assert!(sure.starts_with(&found), "{place}: a record that never was");
                let torn = found.len() == sure.len() || place >= end - 2 * MAX_BYTES;
                assert!(torn, "{place}: {} records of {}", found.len(), sure.len());
            }
            Err(error) => {
                damaged += 1;
                assert!(
                    matches!(error, Error::Damaged(_) | Error::NoHeader | Error::NotALog),
                    "{place}: {error}"
                );
                assert_eq!(after.after_loss(|_| false), bytes, "{place}: changed");
            }
        }
    }
    assert!(damaged > 500, "{damaged}");
}

/// A record is torn whose payload looks like a record for just the place where it lies: nobody takes it for one when a
/// shorter record has been written before it.
#[test]
fn the_remains_of_a_torn_record_never_become_records() {
    let memory = Simulated::new(vec![0; BYTES], usize::MAX);
    let mut log = run(Log::format(memory.clone(), u64::MAX)).expect("enough memory");
    let short = record(1, 8);
    let forged = record(2, 24);
    let mut payload = vec![0xee; 8];
    payload.extend(forged.encode(log.generation(), short.bytes()));
    let torn = Record {
        kind: forged.kind,
        payload,
    };
    // All of it is written, nothing flushed, and the first word is lost.
    memory.0.borrow_mut().left = torn.bytes() as usize / WORD;
    assert_eq!(run(log.append(&torn)), Err(Error::Medium(PowerCut)));
    let (memory, opened) = open(memory.after_loss(|place| place == 0), usize::MAX);
    let (mut log, found) = opened.expect("it opens");
    assert_eq!(found, []);
    run(log.append(&short)).expect("room");
    assert_eq!(records(memory.after_loss(|_| true)), Ok(vec![short]));
}
