//! Commands that show the PCI buses: lspci.

use alloc::boxed::Box;

use crate::platform::pci::{self, ConfigSpace, Function, Kind, capability};
use crate::shell::{Args, Command, Error, Output};

pub(in crate::shell) const COMMANDS: &[Command] = &[Command {
    name: "lspci",
    usage: &["lspci"],
    help: "shows the PCI functions with their BARs and capabilities",
    run: |args, out| Box::pin(lspci(args, out)),
}];

async fn lspci(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    args.end()?;
    if pci::functions().is_empty() {
        writeln!(
            out,
            "no PCI functions (configuration space by {})",
            pci::config::method()
        )?;
    }
    for function in pci::functions() {
        show(function, out)?;
    }
    Ok(())
}

fn show(function: &Function, out: Output<'_>) -> Result<(), Error> {
    let Function {
        address,
        vendor,
        device,
        ..
    } = function;
    let [class, subclass, interface] = function.class;
    write!(
        out,
        "{address} {vendor:04x}:{device:04x} class {class:02x}{subclass:02x}{interface:02x}"
    )?;
    match function.kind {
        Kind::Endpoint => write!(out, " {}", class_name(class))?,
        Kind::Bridge(bus) => write!(out, " bridge to bus {bus:02x}")?,
        Kind::Other => {}
    }
    match vringlet::transport::pci::device_id(*vendor, *device, function.subsystem) {
        Some(id) => writeln!(out, ", {id}")?,
        None => writeln!(out)?,
    }
    match function.interrupt_line() {
        Ok(line) => writeln!(out, "    interrupt line {line}")?,
        Err(pci::NoLine::NoPin) => {}
        Err(reason) => writeln!(out, "    no interrupt line: {reason}")?,
    }
    for bar in pci::bars(function) {
        writeln!(out, "    {bar}")?;
    }
    for capability in capability::list(&ConfigSpace, *address) {
        writeln!(out, "    {capability}")?;
    }
    Ok(())
}

fn class_name(class: u8) -> &'static str {
    match class {
        0x00 => "unclassified",
        0x01 => "storage",
        0x02 => "network",
        0x03 => "display",
        0x04 => "multimedia",
        0x05 => "memory",
        0x06 => "bridge",
        0x07 => "communication",
        0x08 => "system",
        0x09 => "input",
        0x0c => "serial bus",
        _ => "other",
    }
}
