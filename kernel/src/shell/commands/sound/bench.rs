//! The benchmark: how long a device keeps the periods that it is given.

use core::time::Duration;

use vringlet::sound::Direction;

use super::tone::Tone;
use super::{TOUR_HZ, failed, layout, periods, stream};
use crate::devices::sound::Measured;
use crate::shell::{Args, Error, Output};

/// How long is measured if nothing is said, and at most, in seconds.
const SECONDS: u64 = 5;
const MAX_SECONDS: u64 = 600;

pub(super) async fn run(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let (card, stream, info) = stream(&mut args, Direction::Output)?;
    let layout = layout(&mut args, &info)?;
    let periods = periods(&mut args)?;
    let seconds = args.number_option("seconds")?.unwrap_or(SECONDS);
    let progress = args.progress();
    args.end()?;
    if !(1..=MAX_SECONDS).contains(&seconds) {
        return Err(Error::usage(format_args!("1 to {MAX_SECONDS} seconds")));
    }
    let no_tone = || Error::failed(format_args!("no tones in the format {}", layout.format));
    let mut tone = Tone::new(TOUR_HZ, layout).ok_or_else(no_tone)?;
    let frames = seconds * u64::from(layout.rate.hz());
    let progress = progress.of(frames * u64::from(layout.frame_bits()) / 8);
    let measured = card.measure(stream, &mut tone, frames, periods, |bytes| {
        progress.add(bytes)
    });
    let measured = measured.await.map_err(|error| failed(card, error))?;
    drop(progress);
    let period = period(&measured);
    let Measured {
        params,
        mut kept,
        played,
    } = measured;
    let late = late(&kept, period, params.periods());
    let [min, median, max] = spread(&mut kept).map(|time| time.as_micros());
    writeln!(
        out,
        "bench {layout}: period_us={} period_bytes={} periods={} measured={} kept_us_min={min} kept_us_median={median} \
         kept_us_max={max} late={late} xruns={} errors={}",
        period.as_micros(),
        params.period_bytes(),
        params.periods(),
        kept.len(),
        played.xruns,
        played.errors
    )?;
    Ok(())
}

/// How long a period sounds.
fn period(measured: &Measured) -> Duration {
    let (params, layout) = (measured.params, measured.params.layout());
    let bits_per_second = u64::from(layout.frame_bits()) * u64::from(layout.rate.hz());
    let nanos = u64::from(params.period_bytes()) * 8 * 1_000_000_000 / bits_per_second.max(1);
    Duration::from_nanos(nanos)
}

/// How many were kept for more than a period longer than the device needs for all that it has at a time.
fn late(kept: &[Duration], period: Duration, periods: u32) -> usize {
    let due = period.saturating_mul(periods.saturating_add(1));
    kept.iter().filter(|kept| **kept > due).count()
}

/// The shortest time, the one in the middle, and the longest. Sorts them.
fn spread(times: &mut [Duration]) -> [Duration; 3] {
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    [
        at(0),
        at(times.len() / 2),
        at(times.len().saturating_sub(1)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_sorted_and_late_ones_counted() {
        let millis = |list: [u64; 5]| list.map(Duration::from_millis);
        let mut kept = millis([10, 12, 9, 13, 30]);
        let period = Duration::from_micros(2500);
        // Due within 12.5 ms, for four periods and one.
        assert_eq!(late(&kept, period, 4), 2);
        let [min, median, max] = spread(&mut kept);
        assert_eq!([min, median, max].map(|it| it.as_millis()), [9, 12, 30]);
        assert_eq!(spread(&mut []), [Duration::ZERO; 3]);
    }
}
