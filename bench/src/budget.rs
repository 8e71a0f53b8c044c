//! What the guest may cost: `bench/budget.toml`.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use vringlet_tests::project_root;

use crate::count::{self, Plugin};
use crate::work::GROUPS;

const COUNTERS: [&str; 4] = ["instructions", "kicks", "interrupts", "exits"];

/// What a counter may exceed its budget by whatever the margin is, for each operation: the guest is interrupted now and then
/// for other reasons, and a hundredth of nothing is nothing.
const SLACK: f64 = 0.01;

/// How often [`record`] counts: the most is the budget. Whether the guest sleeps before the device is done is a matter of luck with
/// some devices, and what it costs is another matter then.
const RECORDED_RUNS: usize = 5;

/// Margin in per cent of what was never recorded.
const DEFAULT_MARGIN: f64 = 5.0;

const HEADER: &str = "\
# What the guest may cost for an operation of each kind. `make budget` counts, as CI does, and fails where it is more.
# `counter = [number, margin in per cent]`: what was counted, and how much more may be. `counter = number`: at most that, where how
# much it is depends on how fast the device is. `make budget RECORD=1` writes the most of what it counts in several runs, and
# leaves margins and limits alone. bench/README.md says how they were found.
";

/// What a counter may be for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Allowed {
    /// What was counted, and by how much that may be exceeded, in per cent.
    Counted(f64, f64),
    /// Any number up to this one.
    Limit(f64),
}

impl Allowed {
    fn number(self) -> f64 {
        match self {
            Self::Counted(number, _) | Self::Limit(number) => number,
        }
    }

    fn most(self) -> f64 {
        match self {
            Self::Counted(number, margin) => number * (1.0 + margin / 100.0) + SLACK,
            Self::Limit(limit) => limit + SLACK,
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counted(number, margin) => write!(f, "[{}, {margin}]", short(*number)),
            Self::Limit(limit) => write!(f, "{limit}"),
        }
    }
}

/// By the names of work and counters.
type Table = BTreeMap<String, BTreeMap<String, Allowed>>;

/// The budget.
#[derive(Default, Deserialize)]
struct Budget {
    /// What built the guest that it was recorded with.
    compiler: String,
    work: Table,
}

/// What was counted for an operation.
struct Counted {
    work: &'static str,
    values: [f64; COUNTERS.len()],
}

fn file() -> PathBuf {
    project_root().join("bench/budget.toml")
}

fn read() -> Result<Budget> {
    let file = file();
    let name = || file.display().to_string();
    let text = std::fs::read_to_string(&file).with_context(name)?;
    toml::from_str(&text).with_context(name)
}

/// The compiler that builds guests here, which the counts depend on.
fn compiler() -> Result<String> {
    let output = |command: &mut Command| -> Result<String> {
        let output = command.output().with_context(|| format!("{command:?}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let which = project_root().join("scripts/guest-cargo.sh");
    let toolchain = output(Command::new(which).arg("--which"))?;
    let rustc = match toolchain.as_str() {
        "debian" => "/usr/bin/rustc",
        _ => "rustc",
    };
    let version = output(Command::new(rustc).arg("--version"))?;
    let words: Vec<&str> = version.split(' ').take(2).collect();
    Ok(words.join(" "))
}

/// Counts all work.
fn count_all() -> Result<Vec<Counted>> {
    let plugin = Plugin::build()?;
    let mut all = Vec::new();
    for group in GROUPS {
        for (counts, work) in group.count(&plugin)?.iter().zip(group.work) {
            all.push(Counted {
                work: work.name,
                values: counts.for_each(work.operations),
            });
        }
    }
    Ok(all)
}

/// Counts, and compares with the budget.
pub(crate) fn check() -> Result<ExitCode> {
    if let Some(reason) = count::obstacle()? {
        println!("budget: not checked: {reason}");
        return Ok(ExitCode::SUCCESS);
    }
    let budget = read()?;
    let counted = count_all()?;
    let judged = judge(&budget, &counted)?;
    print!("{}", judged.table);
    if judged.grown.is_empty() {
        println!("budget: kept");
        return Ok(ExitCode::SUCCESS);
    }
    let compiler = compiler()?;
    if compiler != budget.compiler {
        // What another compiler makes of the same sources is nobody's slow-down.
        let recorded = &budget.compiler;
        println!(
            "\nbudget: exceeded, but recorded with {recorded}, and this guest was built by {compiler}: not a failure. \
             `make budget RECORD=1` records it anew.\n{}",
            judged.grown
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nbudget: exceeded, per operation:\n{}", judged.grown);
    println!("If that is worth it: `make budget RECORD=1`, and say why in the commit.");
    Ok(ExitCode::FAILURE)
}

/// What a comparison found.
struct Judged {
    /// All of it.
    table: String,
    /// What is more than it may be.
    grown: String,
}

fn judge(budget: &Budget, counted: &[Counted]) -> Result<Judged> {
    let names: Vec<&str> = counted.iter().map(|counted| counted.work).collect();
    let gone = budget
        .work
        .keys()
        .find(|name| !names.contains(&name.as_str()));
    ensure!(
        gone.is_none(),
        "{} is in the budget, and there is no such work",
        gone.map_or("", String::as_str)
    );
    let mut judged = Judged {
        table: format!("{:<36}", "per operation"),
        grown: String::new(),
    };
    for counter in COUNTERS {
        write!(judged.table, " {counter:>20}")?;
    }
    judged.table.push('\n');
    for Counted { work, values } in counted {
        let allowed = budget.work.get(*work);
        let allowed = allowed.with_context(|| format!("the budget does not have {work}"))?;
        write!(judged.table, "{work:<36}")?;
        for (counter, value) in COUNTERS.into_iter().zip(*values) {
            let known = allowed.get(counter);
            let known = *known.with_context(|| format!("the budget of {work} has no {counter}"))?;
            let change = match known {
                Allowed::Counted(0.0, _) | Allowed::Limit(_) => String::new(),
                Allowed::Counted(number, _) => {
                    format!("({:+.1} %)", (value / number - 1.0) * 100.0)
                }
            };
            write!(judged.table, " {:>9} {change:>10}", short(value))?;
            if value > known.most() {
                writeln!(
                    judged.grown,
                    "{work:<36} {counter:<12} {:>9}, budget {:>9}, at most {:>9} {change}",
                    short(value),
                    short(known.number()),
                    short(known.most())
                )?;
            }
        }
        judged.table.push('\n');
    }
    Ok(judged)
}

/// Four digits at least, and no more than that after the point.
fn short(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// Counts, and makes that the budget.
pub(crate) fn record() -> Result<ExitCode> {
    let known = if file().exists() {
        read()?
    } else {
        Budget::default()
    };
    let mut most = count_all()?;
    for _ in 1..RECORDED_RUNS {
        for (most, again) in most.iter_mut().zip(count_all()?) {
            for (most, again) in most.values.iter_mut().zip(again.values) {
                *most = most.max(again);
            }
        }
    }
    let text = text(&known, &most)?;
    std::fs::write(file(), text)?;
    println!("budget: recorded in bench/budget.toml");
    Ok(ExitCode::SUCCESS)
}

fn text(known: &Budget, counted: &[Counted]) -> Result<String> {
    let mut text = format!("{HEADER}\ncompiler = {:?}\n", compiler()?);
    for Counted { work, values } in counted {
        text += &format!("\n[work.{work:?}]\n");
        for (counter, value) in COUNTERS.into_iter().zip(values) {
            let known = known.work.get(*work).and_then(|it| it.get(counter));
            let allowed = match known {
                None => Allowed::Counted(*value, DEFAULT_MARGIN),
                Some(Allowed::Counted(_, margin)) => Allowed::Counted(*value, *margin),
                Some(Allowed::Limit(limit)) => Allowed::Limit(*limit),
            };
            text += &format!("{counter} = {allowed}\n");
        }
    }
    Ok(text)
}

/// Counts again and again, and says how far the numbers are apart: what the margins are made of.
pub(crate) fn repeat(times: u32) -> Result<ExitCode> {
    let mut seen: Vec<Vec<Counted>> = Vec::new();
    for _ in 0..times {
        seen.push(count_all()?);
    }
    println!(
        "{:<36} {:<12} {:>10} {:>10} {:>10} {:>8} {:>8}",
        "per operation", "counter", "least", "median", "most", "below", "above"
    );
    let first = seen.first().context("not once")?;
    for (index, Counted { work, .. }) in first.iter().enumerate() {
        for (place, counter) in COUNTERS.iter().enumerate() {
            let mut values: Vec<f64> = seen
                .iter()
                .filter_map(|all| all.get(index)?.values.get(place).copied())
                .collect();
            values.sort_by(f64::total_cmp);
            let (Some(least), Some(median), Some(most)) =
                (values.first(), values.get(values.len() / 2), values.last())
            else {
                continue;
            };
            let per_cent = |value: f64| match *median {
                0.0 => 0.0,
                median => (value / median - 1.0) * 100.0,
            };
            println!(
                "{work:<36} {counter:<12} {:>10} {:>10} {:>10} {:>+7.1}% {:>+7.1}%",
                short(*least),
                short(*median),
                short(*most),
                per_cent(*least),
                per_cent(*most)
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: &str = "compiler = \"x\"\n[work.work]\ninstructions = [1000, 2]\nkicks = [1.0, 1]\ninterrupts = [0.0, 1]\nexits = 4.5\n";

    fn judge(instructions: f64, kicks: f64, interrupts: f64, exits: f64) -> Result<String> {
        let budget: Budget = toml::from_str(BUDGET)?;
        let counted = Counted {
            work: "work",
            values: [instructions, kicks, interrupts, exits],
        };
        Ok(super::judge(&budget, &[counted])?.grown)
    }

    #[test]
    fn what_grows_by_more_than_its_margin_is_named() -> Result<()> {
        assert_eq!(judge(1000.0, 1.0, 0.0, 4.0)?, "");
        assert_eq!(judge(1019.0, 1.0, 0.005, 4.505)?, "");
        assert_eq!(judge(10.0, 0.0, 0.0, 0.0)?, "");
        let grown = judge(1021.0, 1.0, 0.0, 4.0)?;
        assert_eq!(grown.lines().count(), 1);
        assert!(grown.contains("instructions") && grown.contains("(+2.1 %)"));
        assert!(judge(1000.0, 1.03, 0.0, 4.0)?.contains("kicks"));
        assert!(judge(1000.0, 1.0, 0.02, 4.0)?.contains("interrupts"));
        assert!(judge(1000.0, 1.0, 0.0, 4.52)?.contains("exits"));
        Ok(())
    }

    #[test]
    fn the_budget_and_the_work_are_the_same() -> Result<()> {
        let counted = |work| Counted {
            work,
            values: [0.0; 4],
        };
        let budget: Budget = toml::from_str(BUDGET)?;
        let error = super::judge(&budget, &[counted("work"), counted("more")]).err();
        assert!(error.is_some_and(|it| it.to_string().contains("more")));
        let error = super::judge(&budget, &[]).err();
        assert!(error.is_some_and(|it| it.to_string().contains("work")));
        let recorded = read()?;
        let work = GROUPS.iter().flat_map(|group| group.work);
        let mut names: Vec<&str> = work.map(|work| work.name).collect();
        names.sort_unstable();
        assert_eq!(recorded.work.keys().collect::<Vec<_>>(), names);
        Ok(())
    }

    #[test]
    fn recording_keeps_margins() -> Result<()> {
        let budget: Budget = toml::from_str(BUDGET)?;
        let counted = Counted {
            work: "work",
            values: [1234.56, 2.0, 0.0, 40.0],
        };
        let again: Budget = toml::from_str(&text(&budget, &[counted])?)?;
        let work = again.work.get("work").context("the work")?;
        let instructions = work.get("instructions");
        assert_eq!(instructions, Some(&Allowed::Counted(1235.0, 2.0)));
        assert_eq!(work.get("exits"), Some(&Allowed::Limit(4.5)));
        Ok(())
    }
}
