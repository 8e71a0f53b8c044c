//! What the guest costs.
//!
//! `vringlet-bench budget` (`make budget`) counts what the guest does for each piece of work in [`work`], and fails if it is more
//! than `bench/budget.toml` allows. `vringlet-bench record` (`make budget RECORD=1`) writes what it counts into that file.
//!
//! `vringlet-bench compare` (`make bench`) has this kernel, a Linux guest and others do the work in [`compare`] in turn, and writes
//! `bench/RESULTS.md`. `vringlet-bench compare quick` does less of it, and writes to `target/bench`; with a word more, it does only
//! what has that in its title. `vringlet-bench publish FILE` makes `bench/RESULTS.md` of a `results.json` that is there already.

mod budget;
mod compare;
mod count;
mod echo;
mod plot;
mod report;
mod side;
mod work;

use std::process::ExitCode;

use anyhow::{Result, bail};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["budget"] => budget::check(),
        ["record"] => budget::record(),
        ["compare"] => compare::run(false, ""),
        ["compare", "quick"] => compare::run(true, ""),
        ["compare", "quick", only] => compare::run(true, only),
        ["publish", file] => report::publish(file),
        ["repeat", times] => budget::repeat(times.parse()?),
        _ => bail!(
            "usage: vringlet-bench budget|record|repeat TIMES|compare [quick [WORD]]|publish FILE"
        ),
    }
}
