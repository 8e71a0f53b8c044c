//! Commands of the session itself: help, echo, log, terminal, sleep, bg, strict.

use alloc::boxed::Box;
use alloc::string::String;
use core::sync::atomic::Ordering;
use core::time::Duration;

use log::LevelFilter;

use crate::platform::serial::terminal;
use crate::platform::time;
use crate::runtime::task;
use crate::shell::{self, Args, Command, Error, Ground, Output, STRICT};

pub(in crate::shell) const COMMANDS: &[Command] = &[
    Command {
        name: "help",
        usage: &["help [COMMAND]"],
        help: "lists the commands, or shows one",
        run: |args, out| Box::pin(help(args, out)),
    },
    Command {
        name: "echo",
        usage: &["echo TEXT"],
        help: "prints TEXT",
        run: |args, out| Box::pin(echo(args, out)),
    },
    Command {
        name: "log",
        usage: &["log off|error|warn|info|debug|trace"],
        help: "sets what is logged",
        run: |args, out| Box::pin(log(args, out)),
    },
    Command {
        name: "terminal",
        usage: &["terminal [none|plain|color]"],
        help: "says what shows the console, or is told: on a terminal long work shows how far it is, and errors may have \
               a color",
        run: |args, out| Box::pin(terminal(args, out)),
    },
    Command {
        name: "sleep",
        usage: &["sleep MILLISECONDS"],
        help: "waits",
        run: |args, out| Box::pin(sleep(args, out)),
    },
    Command {
        name: "bg",
        usage: &["bg COMMAND"],
        help: "runs COMMAND while others run; that it fails ends no script",
        run: |args, _| Box::pin(background(args)),
    },
    Command {
        name: "strict",
        usage: &["strict"],
        help: "lets the first failing command of a script end the guest",
        run: |args, out| Box::pin(strict(args, out)),
    },
];

async fn help(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let name = args.next_word();
    args.end()?;
    if let Some(name) = name {
        let command =
            shell::find(name).ok_or_else(|| Error::failed(format_args!("no command {name}")))?;
        for form in command.usage {
            writeln!(out, "{form}")?;
        }
        writeln!(out, "{}", command.help)?;
        return Ok(());
    }
    for command in shell::all() {
        writeln!(out, "{:<10} {}", command.name, command.help)?;
    }
    Ok(())
}

async fn echo(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    writeln!(out, "{}", args.rest())?;
    Ok(())
}

async fn log(mut args: Args<'_>, _: Output<'_>) -> Result<(), Error> {
    let level = args.word("LEVEL")?;
    args.end()?;
    let level = level
        .parse::<LevelFilter>()
        .map_err(|_| Error::usage(format_args!("no level {level}")))?;
    log::set_max_level(level);
    Ok(())
}

async fn terminal(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let word = args.next_word();
    args.end()?;
    if let Some(word) = word {
        let kind = word.parse();
        terminal::set(kind.map_err(|()| Error::usage(format_args!("no terminal is {word}")))?);
        return Ok(());
    }
    write!(out, "terminal: {}", terminal::kind())?;
    if let Some(columns) = terminal::columns() {
        write!(out, ", {columns} columns")?;
    }
    writeln!(out)?;
    Ok(())
}

async fn sleep(mut args: Args<'_>, _: Output<'_>) -> Result<(), Error> {
    let milliseconds = args.number("MILLISECONDS")?;
    args.end()?;
    time::after(Duration::from_millis(milliseconds)).await;
    Ok(())
}

async fn background(args: Args<'_>) -> Result<(), Error> {
    let line = String::from(args.text());
    task::spawn(async move {
        // It says itself why it failed.
        let _ = shell::run_line(&line, Ground::Back).await;
    });
    Ok(())
}

async fn strict(args: Args<'_>, _: Output<'_>) -> Result<(), Error> {
    args.end()?;
    STRICT.store(true, Ordering::Relaxed);
    Ok(())
}
