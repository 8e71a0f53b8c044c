//! What came of a comparison, as Markdown, JSON and pictures; and what of it the README says.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use vringlet_tests::project_root;
use vringlet_tests::qemu;

use crate::compare::{Did, Measure, Outcome, Table};
use crate::plot;
use crate::side::{CPU, Guests, Side};

/// More programs than this that want to run, without ours, and times are no good.
const QUIET: f64 = 0.5;

/// When and on what a comparison was made.
#[derive(Serialize, Deserialize)]
pub(crate) struct Conditions {
    date: String,
    commit: String,
    processor: String,
    cores: usize,
    qemu: String,
    linux: String,
    cpu: String,
    quick: bool,
    /// How many programs wanted to run in the minute before.
    load: f64,
}

fn first_line(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(project_root())
        .output()
        .with_context(|| format!("starting {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_string())
}

impl Conditions {
    /// What they are now.
    pub(crate) fn now(quick: bool, guests: &Guests) -> Result<Self> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split_once(": "));
        let loadavg = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = loadavg.split(' ').next().and_then(|it| it.parse().ok());
        Ok(Self {
            date: first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"])?,
            commit: first_line("git", &["describe", "--always", "--dirty"])?,
            processor: model.map_or("unknown", |(_, model)| model).to_string(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            qemu: first_line(qemu::PROGRAM, &["--version"])?,
            linux: guests.release.clone(),
            cpu: CPU.to_string(),
            quick,
            load: load.unwrap_or(0.0),
        })
    }
}

/// Where the results of this kind are.
fn folder(quick: bool) -> PathBuf {
    project_root().join(if quick { "target/bench" } else { "bench" })
}

/// What `results.json` has.
#[derive(Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) conditions: Conditions,
    pub(crate) tables: Vec<Table>,
}

/// Writes what is in this `results.json` as the results of the project.
pub(crate) fn publish(file: &str) -> Result<ExitCode> {
    let text = std::fs::read_to_string(file).with_context(|| file.to_string())?;
    write(false, &serde_json::from_str(&text)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes all of it.
pub(crate) fn write(quick: bool, results: &Results) -> Result<()> {
    let Results { conditions, tables } = results;
    let folder = folder(quick);
    let plots = folder.join("plots");
    std::fs::create_dir_all(&plots)?;
    let json = serde_json::to_string_pretty(results)?;
    std::fs::write(folder.join("results.json"), json + "\n")?;
    let mut text = markdown(conditions, tables);
    for table in tables {
        let file = |title: &str| format!("{}.svg", title.to_ascii_lowercase().replace(' ', "-"));
        for (row, svg) in plot::latencies(table) {
            let name = file(&format!("{} {row} latency", table.title));
            std::fs::write(plots.join(&name), svg)?;
            writeln!(
                text,
                "\n![{}, {row}: how long requests took](plots/{name})",
                table.title
            )?;
        }
        let Some(svg) = plot::by_depth(table) else {
            continue;
        };
        let name = file(&table.title);
        std::fs::write(plots.join(&name), svg)?;
        writeln!(
            text,
            "\n![{}: operations in a second at each depth](plots/{name})",
            table.title
        )?;
    }
    std::fs::write(folder.join("RESULTS.md"), text)?;
    if !quick {
        let readme = std::fs::read_to_string(readme())?;
        let (before, _, after) = in_readme(&readme)?;
        let block = block(conditions, tables);
        std::fs::write(self::readme(), format!("{before}{block}{after}"))?;
    }
    println!("bench: {}", folder.join("RESULTS.md").display());
    Ok(())
}

fn readme() -> PathBuf {
    project_root().join("README.md")
}

/// Between these the README has what [`block`] makes.
const BLOCK: [&str; 2] = ["<!-- Written by `make bench`. -->\n", "<!-- End. -->\n"];

/// What is before the block in the README, the block, and what is after it.
fn in_readme(text: &str) -> Result<(&str, &str, &str)> {
    let [first, last] = BLOCK;
    let start = text.find(first).map(|at| at + first.len());
    let end = text.find(last);
    let (Some(start), Some(end)) = (start, end) else {
        bail!("the README has no place for the results");
    };
    let part = |range| {
        text.get(range)
            .context("the README's marks are in the wrong order")
    };
    Ok((part(0..start)?, part(start..end)?, part(end..text.len())?))
}

/// What the README says: how many instructions an operation takes, and how much faster this kernel is.
fn block(conditions: &Conditions, tables: &[Table]) -> String {
    let Conditions {
        date, quick, load, ..
    } = conditions;
    let mut text = format!("As measured on {date}");
    if *quick {
        text += " by `QUICK=1`";
    }
    let quiet = *load <= QUIET;
    if !quiet {
        text += ", while other programs were running, so that rates are left out";
    }
    text += ":\n\n| work | guest instructions for an operation: here | Linux | virtio-drivers |";
    text += if quiet {
        " rate beside Linux | beside virtio-drivers |"
    } else {
        ""
    };
    text += "\n|---|---:|---:|---:|";
    text += if quiet { "---:|---:|\n" } else { "\n" };
    for table in tables {
        for row in &table.rows {
            text += &format!("| {}: {} |", table.title, row.name);
            for side in [Side::Ours, Side::Linux, Side::Stock] {
                let counts = row.sides.get(side.name()).and_then(|did| did.counts);
                let [instructions, ..] = counts.map_or([None; 4], |counts| counts.map(Some));
                text += &match instructions {
                    Some(many @ 1e6..) => format!(" {:.1} M |", many / 1e6),
                    Some(few) => format!(" {few:.0} |"),
                    None => " - |".into(),
                };
            }
            for side in [Side::Linux, Side::Stock] {
                if !quiet {
                    continue;
                }
                let ratio = ratio(row, side, table.measure);
                text += &ratio.map_or(" - |".into(), |ratio| format!(" {ratio:.1} x |"));
            }
            text.push('\n');
        }
    }
    text
}

fn markdown(conditions: &Conditions, tables: &[Table]) -> String {
    let Conditions {
        date,
        commit,
        processor,
        cores,
        qemu,
        linux,
        cpu,
        quick,
        load,
    } = conditions;
    let mut text = format!(
        "# Beside others\n\nWritten by `make bench{}` on {date}, at {commit}: {processor}, {cores} cores; {qemu}; TCG, `-cpu {cpu}`, 1 processor. \
         The Linux guest is Debian's {linux}.\n\n",
        if *quick { " QUICK=1" } else { "" },
    );
    if *load > QUIET {
        text += &format!(
            "**Other programs were running** (load average {load} before the first run): of the times, only ratios mean anything, and \
             less than they do on a quiet machine.\n\n"
        );
    }
    text += "Each side did the work in turn (A B B A). A rate is the median, with the least and the most. A ratio is that of this kernel's \
             rate to the other's, the geometric mean over the rounds; more than 1 is faster. [README.md](README.md) says who they are.\n";
    for table in tables {
        text += &section(table);
    }
    text
}

fn section(table: &Table) -> String {
    let sides: Vec<Side> = Side::ALL
        .into_iter()
        .filter(|side| {
            table
                .rows
                .iter()
                .any(|row| row.sides.contains_key(side.name()))
        })
        .collect();
    let unit = match table.measure {
        Measure::Rate => "thousands a second",
        Measure::Boot => "ms",
    };
    let mut text = format!("\n## {}\n\n{}\n\n| {unit} |", table.title, table.note);
    for side in &sides {
        text += &format!(" {} |", side.name());
        if *side != Side::Ours {
            text += " ratio |";
        }
    }
    text += "\n|---|";
    text += &"---:|".repeat(2 * sides.len() - 1);
    text.push('\n');
    for row in &table.rows {
        text += &format!("| {} |", row.name);
        for side in &sides {
            let did = row.sides.get(side.name());
            text += &format!(
                " {} |",
                did.map_or("-".into(), |did| spread(did, table.measure))
            );
            if *side != Side::Ours {
                let ratio = ratio(row, *side, table.measure);
                text += &format!(" {} |", ratio.map_or("-".into(), |it| format!("{it:.2}")));
            }
        }
        text.push('\n');
    }
    text += "\nFor an operation: guest instructions / kicks / interrupts / exits.\n\n| |";
    for side in &sides {
        text += &format!(" {} |", side.name());
    }
    text += "\n|---|";
    text += &"---:|".repeat(sides.len());
    text.push('\n');
    for row in &table.rows {
        text += &format!("| {} |", row.name);
        for side in &sides {
            let counts = row.sides.get(side.name()).and_then(|did| did.counts);
            let counts = counts.map_or("-".into(), |counts| {
                let [instructions, rest @ ..] = counts;
                let rest = rest.map(|count| match table.measure {
                    Measure::Rate => format!("{count:.2}"),
                    Measure::Boot => format!("{count:.0}"),
                });
                format!("{instructions:.0} / {}", rest.join(" / "))
            });
            text += &format!(" {counts} |");
        }
        text.push('\n');
    }
    text
}

/// The median of what there is of them.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (Some(upper), 0) => (upper + sorted.get(middle.wrapping_sub(1)).unwrap_or(upper)) / 2.0,
        (Some(only), _) => *only,
        (None, _) => 0.0,
    }
}

fn spread(did: &Did, measure: Measure) -> String {
    let of = |value: f64| match measure {
        Measure::Rate => significant(value / 1e3),
        Measure::Boot => format!("{value:.0}"),
    };
    let least = did.samples.iter().copied().fold(f64::INFINITY, f64::min);
    let most = did.samples.iter().copied().fold(0.0, f64::max);
    format!("{} [{}-{}]", of(median(&did.samples)), of(least), of(most))
}

fn significant(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// How much faster this kernel is than `side`.
fn ratio(row: &Outcome, side: Side, measure: Measure) -> Option<f64> {
    let ours = &row.sides.get(Side::Ours.name())?.samples;
    let theirs = &row.sides.get(side.name())?.samples;
    let pairs: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .map(|(ours, theirs)| match measure {
            Measure::Rate => ours / theirs,
            Measure::Boot => theirs / ours,
        })
        .collect();
    let logs: f64 = pairs.iter().map(|ratio| ratio.ln()).sum();
    (!pairs.is_empty()).then(|| (logs / pairs.len() as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn did(samples: &[f64]) -> Did {
        Did {
            samples: samples.to_vec(),
            counts: Some([912.4, 1.0, 0.5, 3.0]),
            ..Did::default()
        }
    }

    #[test]
    fn the_readme_says_what_was_measured() -> Result<()> {
        let results = std::fs::read_to_string(folder(false).join("results.json"))?;
        let results: Results = serde_json::from_str(&results)?;
        let readme = std::fs::read_to_string(readme())?;
        let (_, said, _) = in_readme(&readme)?;
        assert_eq!(said, block(&results.conditions, &results.tables));
        let text = std::fs::read_to_string(folder(false).join("RESULTS.md"))?;
        assert!(text.starts_with(&markdown(&results.conditions, &results.tables)));
        Ok(())
    }

    #[test]
    fn medians_and_ratios_are_those_of_the_samples() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
        let sides = [
            ("vringlet".into(), did(&[2000.0, 8000.0])),
            ("Linux".into(), did(&[1000.0, 1000.0])),
        ];
        let row = Outcome {
            name: "work".into(),
            sides: sides.into(),
        };
        let rate = ratio(&row, Side::Linux, Measure::Rate);
        assert!(rate.is_some_and(|it| (it - 4.0).abs() < 1e-9));
        let boot = ratio(&row, Side::Linux, Measure::Boot);
        assert!(boot.is_some_and(|it| (it - 0.25).abs() < 1e-9));
        assert_eq!(ratio(&row, Side::Stock, Measure::Rate), None);
        let table = Table {
            title: "Title".into(),
            note: "Note.".into(),
            measure: Measure::Rate,
            rows: vec![row],
        };
        let text = section(&table);
        assert!(
            text.contains("| work | 5.00 [2.00-8.00] | 1.00 [1.00-1.00] | 4.00 |"),
            "{text}"
        );
        assert!(
            text.contains("| work | 912 / 1.00 / 0.50 / 3.00 | 912 / 1.00 / 0.50 / 3.00 |"),
            "{text}"
        );
    }
}
