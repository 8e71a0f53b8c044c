//! The shell: commands typed on the serial line or read from fw_cfg as a script, by people, tests and benchmarks alike.
//!
//! A command is a [`Command`] in one of the groups listed in `GROUPS`; a group is a file in `commands/`. To add one,
//! write an `async fn name(args: Args<'_>, out: Output<'_>) -> Result<(), Error>`, put it into the group's `COMMANDS`
//! with a name, a usage line and a sentence, and list a new group in `GROUPS`.

mod args;
mod commands;
mod dump;
pub mod editor;
pub mod words;

pub use args::{Args, Error};

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt::Write;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::apps::store;
use crate::platform::fw_cfg;
use crate::platform::power::{self, ExitCode};
use crate::platform::serial::{self, Console, Input, Typing};
use editor::{Editor, Event};

/// Where a command writes what it has to say.
pub type Output<'a> = &'a mut (dyn Write + 'a);

/// What a command's `run` returns.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + 'a>>;

/// One command.
pub struct Command {
    /// The word that calls it.
    pub name: &'static str,
    /// Its arguments, as `help` and a wrong argument show them; one line per form.
    pub usage: &'static [&'static str],
    /// What it does, in a sentence.
    pub help: &'static str,
    /// Runs it: `|args, out| Box::pin(name(args, out))`.
    pub run: for<'a> fn(Args<'a>, Output<'a>) -> Running<'a>,
}

/// All commands, in the order `help` lists them.
const GROUPS: &[&[Command]] = &[
    commands::session::COMMANDS,
    commands::machine::COMMANDS,
    commands::pci::COMMANDS,
    commands::virtio::COMMANDS,
    commands::blk::COMMANDS,
    commands::pmem::COMMANDS,
    commands::files::COMMANDS,
    commands::rng::COMMANDS,
    commands::screen::COMMANDS,
    commands::sound::COMMANDS,
    commands::net::COMMANDS,
    commands::store::COMMANDS,
    commands::selftest::COMMANDS,
    commands::power::COMMANDS,
];

const PROMPT: &str = "vringlet> ";

/// The first failing command of a script ends the guest.
static STRICT: AtomicBool = AtomicBool::new(false);

/// Runs the script from fw_cfg, if there is one, then the prompt, for ever.
pub async fn run() {
    if let Some(script) = fw_cfg::text("opt/vringlet/script") {
        run_script(&script).await;
    }
    STRICT.store(false, Ordering::Relaxed);
    run_prompt().await;
}

async fn run_script(script: &str) {
    for line in words::commands(script) {
        let _ = writeln!(Console, "> {line}");
        if run_line(line).await.is_err() && STRICT.load(Ordering::Relaxed) {
            let _shutdown = commands::power::prepare_shutdown().await;
            power::exit_with(ExitCode::FailedScript as u32);
            let reason = power::off();
            log::error!("script failed; {reason}");
            power::halt();
        }
    }
}

async fn run_prompt() {
    let mut input = Input::open();
    let mut editor = Editor::new(PROMPT);
    for line in store::lines().await {
        editor.remember(line);
    }
    let _ = write!(Console, "{PROMPT}");
    loop {
        let byte = match input.typing().await {
            Typing::Byte(byte) => byte,
            Typing::Overwritten => {
                editor.show_again(&mut Console);
                continue;
            }
        };
        let event = editor.feed(byte, &mut Console);
        if let Event::Line(line) = &event {
            store::remember(line).await;
            for command in words::commands(line) {
                if interruptible(run_line(command), &mut input).await.is_err() {
                    break;
                }
            }
        }
        if !matches!(event, Event::None) {
            let _ = write!(Console, "{PROMPT}");
        }
    }
}

/// Runs a command until it is done or Ctrl-C is typed.
async fn interruptible(
    command: impl Future<Output = Result<(), ()>>,
    input: &mut Input,
) -> Result<(), ()> {
    use embassy_futures::select::{Either, select};
    match select(command, input.break_off()).await {
        Either::First(result) => result,
        Either::Second(()) => {
            let _ = writeln!(Console, "^C");
            Err(())
        }
    }
}

/// Runs one command and prints its error, if it fails.
async fn run_line(line: &str) -> Result<(), ()> {
    // What the one before printed may still be on its way.
    serial::room().await;
    let result = execute(line, &mut Console).await;
    result.map_err(|error| {
        let _ = writeln!(Console, "error: {error}");
    })
}

/// Runs one command line.
pub async fn execute(line: &str, out: Output<'_>) -> Result<(), Error> {
    let words = words::split(line).map_err(Error::failed)?;
    let Some(name) = words.first() else {
        return Ok(());
    };
    let Some(command) = find(name) else {
        return Err(Error::failed(format_args!(
            "no command {name}; `help` lists them"
        )));
    };
    let result = (command.run)(Args::new(line, &words), out).await;
    result.map_err(|error| match error {
        Error::Usage(problem) => Error::Failed(usage(command, &problem)),
        failed => failed,
    })
}

fn find(name: &str) -> Option<&'static Command> {
    all().find(|command| command.name == name)
}

fn all() -> impl Iterator<Item = &'static Command> {
    GROUPS.iter().copied().flatten()
}

fn usage(command: &Command, problem: &str) -> String {
    let forms = command.usage.join(" | ");
    match problem {
        "" => alloc::format!("usage: {forms}"),
        problem => alloc::format!("{problem}; usage: {forms}"),
    }
}
