//! The shell: commands typed on the serial line or read from fw_cfg as a script, by people, tests and benchmarks alike.
//!
//! A command is a [`Command`] in one of the groups listed in `GROUPS`; a group is a file in `commands/`. To add one,
//! write an `async fn name(args: Args<'_>, out: Output<'_>) -> Result<(), Error>`, put it into the group's `COMMANDS`
//! with a name, a usage line and a sentence, and list a new group in `GROUPS`.

mod args;
mod commands;
mod complete;
mod dump;
pub mod editor;
mod progress;
pub mod words;

pub use args::{Args, Error, Ground};

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt::{self, Write};
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::apps::store;
use crate::platform::fw_cfg;
use crate::platform::power::{self, ExitCode};
use crate::platform::serial::{self, Beside, Console, Input, Typing, terminal};
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

/// All commands, in the order `help` lists them. One place in memory: a constant would be made anew, with all code of all
/// commands, in each crate that has a part of this module compiled into it.
static GROUPS: &[&[Command]] = &[
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
    commands::bench::COMMANDS,
    #[cfg(feature = "peers")]
    commands::peer::COMMANDS,
    commands::store::COMMANDS,
    commands::selftest::COMMANDS,
    commands::power::COMMANDS,
];

const PROMPT: &str = "vringlet> ";
/// The width of a terminal that has not said it.
const COLUMNS: usize = 80;

/// The first failing command of a script ends the guest.
static STRICT: AtomicBool = AtomicBool::new(false);

/// Runs the script from fw_cfg, if there is one, then the prompt, for ever.
///
/// The future is behind a pointer, so that its code, which is all that commands and completion call, is in this crate alone. What
/// awaits it elsewhere would have a copy.
pub fn run() -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(run_all())
}

async fn run_all() {
    if let Some(script) = fw_cfg::text("opt/vringlet/script") {
        run_script(&script).await;
    }
    STRICT.store(false, Ordering::Relaxed);
    run_prompt().await;
}

async fn run_script(script: &str) {
    for line in words::commands(script) {
        let _ = writeln!(Console, "> {line}");
        if run_line(line, Ground::Front).await.is_err() && STRICT.load(Ordering::Relaxed) {
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
    begin_line(&mut editor);
    loop {
        let byte = match input.typing().await {
            Typing::Byte(byte) => byte,
            Typing::Overwritten => {
                editor.show_again(&mut Console);
                continue;
            }
        };
        match editor.feed(byte, &mut Console) {
            Event::None => continue,
            Event::Complete => {
                complete(&mut editor, &mut input).await;
                continue;
            }
            Event::Column(column) => {
                terminal::set_columns(column);
                editor.set_columns(terminal::columns(), &mut Console);
                continue;
            }
            Event::Line(line) => {
                end_line();
                store::remember(&line).await;
                for command in words::commands(&line) {
                    let running = run_line(command, Ground::Front);
                    if interruptible(running, &mut input).await.is_err() {
                        break;
                    }
                }
            }
            Event::TooLong => {
                end_line();
                let most = editor::MAX_CHARACTERS;
                let problem = format_args!("a line has {most} characters at the most");
                say_error(&mut Console, problem);
            }
            Event::Cancelled => end_line(),
        }
        begin_line(&mut editor);
    }
}

fn begin_line(editor: &mut Editor) {
    if terminal::is_there() {
        serial::tell_terminal(terminal::MARK_PASTES);
        serial::tell_terminal(terminal::ASK_COLUMNS);
    }
    editor.show_again(&mut Console);
}

fn end_line() {
    if terminal::is_there() {
        serial::tell_terminal(terminal::MARK_NO_PASTES);
    }
}

/// Completes what is being typed, or shows what there is to choose from. Directories may be slow: Ctrl-C ends the wait.
async fn complete(editor: &mut Editor, input: &mut Input) {
    let before = editor.before_cursor();
    let Some(completion) = input.for_line(complete::complete(&before)).await else {
        return;
    };
    if let Some(text) = &completion.text {
        editor.replace(completion.replaced, text, &mut Console);
        return;
    }
    if completion.choices.is_empty() {
        let _ = Console.write_char(editor::BELL);
        return;
    }
    let columns = terminal::columns().unwrap_or(COLUMNS);
    let table = complete::table(&completion.choices, columns);
    let more = if completion.more {
        "... and more\n"
    } else {
        ""
    };
    let _ = write!(Console, "\n{table}{more}");
    editor.show_again(&mut Console);
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
async fn run_line(line: &str, ground: Ground) -> Result<(), ()> {
    // What the one before printed may still be on its way.
    serial::room().await;
    let (mut console, mut beside) = (Console, Beside::default());
    let out: Output<'_> = match ground {
        Ground::Front => &mut console,
        Ground::Back => &mut beside,
    };
    let result = execute(line, ground, out).await;
    result.map_err(|error| say_error(out, error))
}

fn say_error(out: Output<'_>, error: impl fmt::Display) {
    let style = terminal::style(log::Level::Error);
    let _ = writeln!(out, "{style}error:{style:#} {error}");
}

/// Runs one command line.
async fn execute(line: &str, ground: Ground, out: Output<'_>) -> Result<(), Error> {
    let words = words::split(line).map_err(Error::failed)?;
    let Some(name) = words.first() else {
        return Ok(());
    };
    let Some(command) = find(name) else {
        return Err(Error::failed(format_args!(
            "no command {name}; `help` lists them"
        )));
    };
    let result = (command.run)(Args::new(line, &words, ground), out).await;
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
