//! What executes the guest's instructions: the processor itself, by way of KVM, or QEMU's emulation, TCG.
//!
//! `ACCEL` and `CPU` say which, for all that starts a guest. What they leave open is found out by a trial: the guest itself,
//! without a device, which has to come up. That it is there to be had does not mean that KVM runs a guest.

use std::env::consts::ARCH;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::guest::{self, End};
use crate::qemu::{Machine, PROGRAM, Qemu, knows};

/// How long a trial guest may take where nobody asked for this accelerator. TCG needs a fraction of that; what takes longer is
/// itself emulated, or on a machine that has no time, and TCG serves as well then.
const QUICK: Duration = Duration::from_secs(2);
/// How long it may take where it is to be this accelerator: it bounds a hang and judges no speed.
const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(5);
/// The trial guest's last word. A guest that did not get as far as its shell does not say it.
const CAME_UP: u8 = 21;

const KVM_DEVICE: &str = "/dev/kvm";
/// All that this processor has; the other one is the same without a register that a host inside a virtual machine may not
/// let QEMU set.
const HOST: &str = "host";
const HOST_CPUS: [&str; 2] = [HOST, "host,-arch-capabilities"];

/// A kind of accelerator that QEMU has for x86_64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Linux's.
    Kvm,
    /// That of macOS.
    Hvf,
    /// That of Windows.
    Whpx,
    /// QEMU's emulation, which is everywhere.
    Tcg,
}

impl Kind {
    /// Those that need a processor of the guest's own architecture, the likeliest one first.
    const OF_THE_HOST: [Kind; 3] = [Kind::Kvm, Kind::Hvf, Kind::Whpx];

    /// Its name in QEMU's options.
    fn name(self) -> &'static str {
        match self {
            Kind::Kvm => "kvm",
            Kind::Hvf => "hvf",
            Kind::Whpx => "whpx",
            Kind::Tcg => "tcg",
        }
    }

    fn named(name: &str) -> Option<Kind> {
        [Kind::Kvm, Kind::Hvf, Kind::Whpx, Kind::Tcg]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    /// The processors to try, the best first. `None` is QEMU's default.
    fn processors(self) -> &'static [Option<&'static str>] {
        match self {
            Kind::Kvm => &[Some(HOST_CPUS[0]), Some(HOST_CPUS[1])],
            Kind::Hvf => &[Some(HOST)],
            Kind::Whpx | Kind::Tcg => &[None],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name().to_uppercase())
    }
}

/// What QEMU is told: `-accel` and `-cpu`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accelerator {
    kind: Kind,
    options: String,
    cpu: Option<String>,
}

impl Accelerator {
    /// QEMU's emulation of this processor, which is the same everywhere.
    pub fn tcg(cpu: &str) -> Self {
        Kind::Tcg.with(Some(cpu))
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The value of `-accel`, and of `ACCEL`.
    pub fn options(&self) -> &str {
        &self.options
    }

    /// The value of `-cpu`, and of `CPU`, where it is not QEMU's default.
    pub fn cpu(&self) -> Option<&str> {
        self.cpu.as_deref()
    }

    /// Tells QEMU.
    pub fn plug(&self, qemu: &mut Qemu) {
        qemu.arg("-accel", &self.options);
        if let Some(cpu) = &self.cpu {
            qemu.arg("-cpu", cpu);
        }
    }

    /// The same with more options after a comma, such as `kernel-irqchip=off`.
    pub fn with_options(&self, more: &str) -> Self {
        Accelerator {
            options: format!("{},{more}", self.options),
            ..self.clone()
        }
    }

    /// The same with more properties of the processor after a comma, such as `-x2apic`.
    pub fn with_cpu(&self, more: &str) -> Self {
        let cpu = self.cpu().unwrap_or("max");
        Accelerator {
            cpu: Some(format!("{cpu},{more}")),
            ..self.clone()
        }
    }
}

impl Kind {
    fn with(self, cpu: Option<&str>) -> Accelerator {
        Accelerator {
            kind: self,
            options: self.name().to_string(),
            cpu: cpu.map(str::to_string),
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = self
            .options
            .split_once(',')
            .map(|(_, more)| more.to_string());
        let cpu = self.cpu().map(|cpu| format!("CPU {cpu}"));
        match more.into_iter().chain(cpu).collect::<Vec<_>>().join(", ") {
            with if with.is_empty() => write!(f, "{}", self.kind),
            with => write!(f, "{} with {with}", self.kind),
        }
    }
}

/// What the user wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Without one, the best that works.
    accel: Option<(Kind, String)>,
    cpu: Option<String>,
}

/// The accelerator, and why it is that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// It.
    pub accelerator: Accelerator,
    why: Vec<String>,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.accelerator)?;
        match self.why.join("; ") {
            why if why.is_empty() => Ok(()),
            why => write!(f, " ({why})"),
        }
    }
}

impl Wish {
    /// `accel` is `auto`, `kvm`, `hvf`, `whpx` or `tcg`, all but the first with any options of QEMU's after a comma.
    pub fn new(accel: &str, cpu: Option<String>) -> Result<Self> {
        let name = accel.split(',').next().unwrap_or_default();
        let accel = match (accel, Kind::named(name)) {
            ("auto", _) => None,
            (_, Some(kind)) => Some((kind, accel.to_string())),
            (_, None) => bail!("ACCEL={accel} is none of auto, kvm, hvf, whpx, tcg"),
        };
        // Some systems' profiles set `CPU` to the machine's architecture, which is no processor that QEMU knows.
        let cpu = cpu.filter(|cpu| cpu != ARCH);
        Ok(Wish { accel, cpu })
    }

    /// Finds the accelerator for a guest on this machine type, by trial guests where the wish leaves something open.
    pub fn choose(&self, machine: &Machine, kernel: &Path) -> Result<Choice> {
        self.choose_by(obstacle, |accelerator, bound| {
            trial(accelerator, machine, kernel, bound)
        })
    }

    fn choose_by(
        &self,
        obstacle: impl Fn(Kind) -> Option<String>,
        mut trial: impl FnMut(&Accelerator, Duration) -> Result<Duration, Failure>,
    ) -> Result<Choice> {
        let cpu = self.cpu.as_deref();
        let Some((kind, options)) = &self.accel else {
            return self.choose_best(obstacle, trial);
        };
        if let Some(obstacle) = obstacle(*kind) {
            bail!("ACCEL={options}: {obstacle}");
        }
        let with = |cpu| Accelerator {
            options: options.clone(),
            ..kind.with(cpu)
        };
        // The user knows; and should it not work, QEMU says why.
        if cpu.is_some() || *kind == Kind::Tcg {
            return Ok(Choice {
                accelerator: with(cpu),
                why: Vec::new(),
            });
        }
        let mut why = Vec::new();
        for &cpu in kind.processors() {
            if let Some(choice) = attempt(with(cpu), PATIENCE, &mut trial, &mut why) {
                return Ok(choice);
            }
        }
        bail!("ACCEL={options}: {}", why.join("; "))
    }

    /// The first that a trial guest comes up under in no time, with the processor itself; else TCG.
    fn choose_best(
        &self,
        obstacle: impl Fn(Kind) -> Option<String>,
        mut trial: impl FnMut(&Accelerator, Duration) -> Result<Duration, Failure>,
    ) -> Result<Choice> {
        let mut why = Vec::new();
        for kind in Kind::OF_THE_HOST {
            match obstacle(kind) {
                // It is Linux's users who miss theirs.
                Some(_) if kind != Kind::Kvm => continue,
                Some(obstacle) => why.push(format!("not {kind}: {obstacle}")),
                None => {
                    let default = kind.processors().first().copied().flatten();
                    let accelerator = kind.with(self.cpu.as_deref().or(default));
                    if let Some(choice) = attempt(accelerator, QUICK, &mut trial, &mut why) {
                        return Ok(choice);
                    }
                    if self.cpu.is_none() && kind.processors().len() > 1 {
                        why.push(format!("`ACCEL={}` tries another CPU", kind.name()));
                    }
                }
            }
        }
        let cpu = self.cpu.as_deref();
        if let Some(cpu) = cpu.filter(|cpu| cpu.split(',').next() == Some(HOST)) {
            bail!("CPU={cpu} is nothing that TCG has; {}", why.join("; "));
        }
        Ok(Choice {
            accelerator: Kind::Tcg.with(cpu),
            why,
        })
    }
}

/// KVM for tests of the guest on it, or why QEMU can't have it here. Where it is the guest that does not come up, the tests
/// are to tell.
pub fn kvm(machine: &Machine, kernel: &Path) -> Result<Accelerator, String> {
    let mut why = Vec::new();
    why.extend(obstacle(Kind::Kvm));
    if why.is_empty() {
        for &cpu in Kind::Kvm.processors() {
            let accelerator = Kind::Kvm.with(cpu);
            match trial(&accelerator, machine, kernel, PATIENCE) {
                Err(failure) if failure.by_qemu => why.push(failure.against(&accelerator)),
                Ok(_) | Err(_) => return Ok(accelerator),
            }
        }
    }
    Err(why.join("; "))
}

/// Why a trial guest did not come up.
#[derive(Clone, Debug)]
struct Failure {
    reason: String,
    /// QEMU had something to say; else all that is known is that the guest did not get there.
    by_qemu: bool,
}

impl Failure {
    fn against(&self, accelerator: &Accelerator) -> String {
        format!("not {accelerator}: {}", self.reason)
    }
}

/// The choice if a trial guest comes up; the reason against it is noted if not.
fn attempt(
    accelerator: Accelerator,
    bound: Duration,
    trial: &mut impl FnMut(&Accelerator, Duration) -> Result<Duration, Failure>,
    why: &mut Vec<String>,
) -> Option<Choice> {
    match trial(&accelerator, bound) {
        Ok(took) => {
            why.insert(0, format!("a trial guest took {:.1} s", took.as_secs_f64()));
            Some(Choice {
                accelerator,
                why: std::mem::take(why),
            })
        }
        Err(failure) => {
            why.push(failure.against(&accelerator));
            None
        }
    }
}

/// Whether these options of the machine, or arguments of QEMU's, say what executes the guest's instructions.
pub fn is_named(machine: &str, arguments: &[String]) -> bool {
    let by_machine = |options: &str| options.split(',').any(|it| it.starts_with("accel="));
    let values = arguments.iter().skip(1).map(String::as_str).chain([""]);
    let by_argument =
        |(option, value): (&String, &str)| match option.replacen("--", "-", 1).as_str() {
            "-accel" | "-enable-kvm" => true,
            "-machine" | "-M" => by_machine(value),
            _ => false,
        };
    by_machine(machine) || arguments.iter().zip(values).any(by_argument)
}

/// Why there can't be such an accelerator here, as far as that is seen without a trial.
pub fn obstacle(kind: Kind) -> Option<String> {
    if kind == Kind::Tcg {
        return None;
    }
    let here = ARCH;
    if here != "x86_64" {
        return Some(format!("this machine's processor is {here}"));
    }
    match knows("-accel", kind.name()) {
        Ok(true) => {}
        Ok(false) => return Some("this QEMU was built without it".to_string()),
        Err(error) => return Some(format!("{PROGRAM}: {error}")),
    }
    if kind != Kind::Kvm {
        return None;
    }
    let opened = OpenOptions::new().read(true).write(true).open(KVM_DEVICE);
    opened.err().map(|error| not_opened(&error))
}

/// Why KVM's device could not be opened, and what helps.
fn not_opened(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => format!("there is no {KVM_DEVICE}"),
        ErrorKind::PermissionDenied => format!(
            "no permission for {KVM_DEVICE}, which the group kvm has: \
             `sudo usermod -aG kvm $USER`, then log in anew"
        ),
        _ => format!("{KVM_DEVICE}: {error}"),
    }
}

/// Runs the guest without a device; says how long that took, or why it did not come up.
fn trial(
    accelerator: &Accelerator,
    machine: &Machine,
    kernel: &Path,
    bound: Duration,
) -> Result<Duration, Failure> {
    let failed = |error: anyhow::Error| Failure {
        reason: format!("{error:#}"),
        by_qemu: true,
    };
    let mut child = start_trial(accelerator, machine, kernel).map_err(failed)?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|error| failed(error.into()))? {
            break Some(status);
        }
        if begun.elapsed() > bound {
            let killed = child.kill().and_then(|()| child.wait());
            killed.map_err(|error| failed(error.into()))?;
            break None;
        }
        std::thread::sleep(POLL);
    };
    let took = begun.elapsed();
    let mut said = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        // What can't be read was not said.
        let _ = stderr.read_to_end(&mut said);
    }
    let said = String::from_utf8_lossy(&said);
    let mut reason = match status.map(|status| End::new(status, "", &said)) {
        Some(End::DebugExit(CAME_UP)) => return Ok(took),
        Some(end) => format!("the trial guest died: {end}"),
        None => format!("the trial guest took more than {} s", bound.as_secs()),
    };
    if status.is_none() && !said.is_empty() {
        reason = format!("{reason}: {said}");
    }
    let reason = reason.replace(&format!("{PROGRAM}: "), "");
    Err(Failure {
        reason: reason.lines().next().unwrap_or_default().to_string(),
        by_qemu: !said.is_empty(),
    })
}

fn start_trial(accelerator: &Accelerator, machine: &Machine, kernel: &Path) -> Result<Child> {
    let mut qemu = Qemu::new(machine, kernel)?;
    accelerator.plug(&mut qemu);
    qemu.arg("-m", "128M");
    qemu.script(&format!("poweroff {CAME_UP}"));
    qemu.arg("-serial", "null");
    qemu.arg("-action", "reboot=shutdown");
    // QEMU may abort, and its memory is of no use to anyone.
    qemu.start_by(&["prlimit", "--core=0", "--"]);
    guest::command(&qemu)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {PROGRAM}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_millis(230);

    fn wish(accel: &str, cpu: Option<&str>) -> Wish {
        Wish::new(accel, cpu.map(str::to_string)).expect("a wish")
    }

    /// What is chosen where nothing stands in the way of these kinds, and a trial guest comes up on these processors.
    fn choose(wish: &Wish, kinds: &[Kind], cpus: &[&str]) -> Result<String> {
        let obstacle = |kind: Kind| {
            let there = kind == Kind::Tcg || kinds.contains(&kind);
            (!there).then(|| "it is not there".to_string())
        };
        let trial = |accelerator: &Accelerator, _| match accelerator.cpu() {
            Some(cpu) if !cpus.contains(&cpu) => Err(Failure {
                reason: "it died".to_string(),
                by_qemu: true,
            }),
            _ => Ok(TOOK),
        };
        let choice = wish.choose_by(obstacle, trial);
        choice.map(|choice| choice.to_string())
    }

    #[test]
    fn left_to_itself_it_is_the_best_that_comes_up() -> Result<()> {
        let auto = wish("auto", None);
        for (kinds, cpus, chosen) in [
            (
                &[Kind::Kvm][..],
                &[HOST][..],
                "KVM with CPU host (a trial guest took 0.2 s)",
            ),
            (
                &[Kind::Kvm],
                &[],
                "TCG (not KVM with CPU host: it died; `ACCEL=kvm` tries another CPU)",
            ),
            // What takes a closer look to get going is not taken without being asked for.
            (
                &[Kind::Kvm],
                &["host,-arch-capabilities"],
                "TCG (not KVM with CPU host: it died; `ACCEL=kvm` tries another CPU)",
            ),
            (&[], &[], "TCG (not KVM: it is not there)"),
            (
                &[Kind::Hvf],
                &[HOST],
                "HVF with CPU host (a trial guest took 0.2 s; not KVM: it is not there)",
            ),
            (
                &[Kind::Whpx],
                &[],
                "WHPX (a trial guest took 0.2 s; not KVM: it is not there)",
            ),
        ] {
            assert_eq!(choose(&auto, kinds, cpus)?, chosen);
        }
        Ok(())
    }

    #[test]
    fn the_users_processor_is_the_only_one_tried() -> Result<()> {
        let auto = wish("auto", Some("EPYC"));
        assert_eq!(
            choose(&auto, &[Kind::Kvm], &["EPYC"])?,
            "KVM with CPU EPYC (a trial guest took 0.2 s)"
        );
        assert_eq!(
            choose(&auto, &[Kind::Kvm], &[HOST])?,
            "TCG with CPU EPYC (not KVM with CPU EPYC: it died)"
        );
        for cpu in [HOST, "host,-x2apic"] {
            let error = choose(&wish("auto", Some(cpu)), &[], &[]).expect_err("TCG has none");
            assert_eq!(
                error.to_string(),
                format!("CPU={cpu} is nothing that TCG has; not KVM: it is not there")
            );
        }
        Ok(())
    }

    #[test]
    fn what_is_named_is_had_or_nothing() -> Result<()> {
        let kvm = wish("kvm,kernel-irqchip=split", None);
        assert_eq!(
            choose(&kvm, &[Kind::Kvm], &[HOST])?,
            "KVM with kernel-irqchip=split, CPU host (a trial guest took 0.2 s)"
        );
        assert_eq!(
            choose(&kvm, &[Kind::Kvm], &["host,-arch-capabilities"])?,
            "KVM with kernel-irqchip=split, CPU host,-arch-capabilities (a trial guest took 0.2 s; \
             not KVM with kernel-irqchip=split, CPU host: it died)"
        );
        let none = choose(&wish("kvm", None), &[Kind::Kvm], &[]).expect_err("none comes up");
        assert_eq!(
            none.to_string(),
            "ACCEL=kvm: not KVM with CPU host: it died; not KVM with CPU host,-arch-capabilities: it died"
        );
        let absent = choose(&kvm, &[], &[HOST]).expect_err("it is not there");
        assert_eq!(
            absent.to_string(),
            "ACCEL=kvm,kernel-irqchip=split: it is not there"
        );
        Ok(())
    }

    #[test]
    fn nothing_is_tried_where_nothing_is_open() -> Result<()> {
        let no_trial = |accelerator: &Accelerator, _| -> Result<Duration, Failure> {
            panic!("a trial of {accelerator}")
        };
        for (accel, cpu, chosen) in [
            ("tcg", None, "TCG"),
            (
                "tcg,thread=single",
                Some("max"),
                "TCG with thread=single, CPU max",
            ),
            ("kvm", Some("EPYC"), "KVM with CPU EPYC"),
        ] {
            let choice = wish(accel, cpu).choose_by(|_| None, no_trial)?;
            assert_eq!(choice.to_string(), chosen);
        }
        Ok(())
    }

    #[test]
    fn an_accelerator_in_qemus_own_words_is_seen() {
        for (machine, arguments, named) in [
            ("q35", "", false),
            ("q35,accel=kvm", "", true),
            ("q35", "-accel kvm", true),
            ("q35", "-s --enable-kvm", true),
            ("q35", "-M kernel-irqchip=off,accel=kvm", true),
            ("q35", "--machine accel=tcg -s", true),
            ("q35", "-machine vmport=off -device accel=x -M", false),
        ] {
            let words: Vec<_> = arguments.split_whitespace().map(String::from).collect();
            assert_eq!(is_named(machine, &words), named, "{machine} {arguments}");
        }
    }

    #[test]
    fn the_name_of_an_architecture_is_no_processor() {
        assert_eq!(wish("kvm", Some(ARCH)).cpu, None);
        let cpu = wish("kvm", Some("qemu64")).cpu;
        assert_eq!(cpu.as_deref(), Some("qemu64"));
    }

    #[test]
    fn what_there_is_none_of_is_refused() {
        for accel in ["", "xen", "auto,kernel-irqchip=on", "KVM"] {
            let error = Wish::new(accel, None).expect_err(accel).to_string();
            assert!(
                error.contains("none of auto, kvm, hvf, whpx, tcg"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_device_that_can_not_be_opened_is_explained() {
        let told = |kind: ErrorKind| not_opened(&kind.into());
        assert_eq!(told(ErrorKind::NotFound), "there is no /dev/kvm");
        let permission = told(ErrorKind::PermissionDenied);
        assert!(permission.contains("usermod -aG kvm"), "{permission}");
        assert!(told(ErrorKind::ResourceBusy).starts_with("/dev/kvm: "));
    }
}
