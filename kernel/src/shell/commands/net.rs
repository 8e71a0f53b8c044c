//! Commands for the network: net.

use alloc::boxed::Box;

use smoltcp::wire::EthernetAddress;
use vringlet::net::{Command as CardCommand, MacAddress, ReceiveMode};

use crate::devices::net::{self, Card};
use crate::shell::{Args, Command, Error, Output};

pub(in crate::shell) const COMMANDS: &[Command] = &[Command {
    name: "net",
    usage: &[
        "net",
        "net promisc on|off [card=NAME]",
        "net allmulti on|off [card=NAME]",
        "net mac XX:XX:XX:XX:XX:XX [card=NAME]",
        "net vlan add|del ID [card=NAME]",
    ],
    help: "shows the network cards, or sets what one of them receives",
    run: |args, out| Box::pin(run(args, out)),
}];

async fn run(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let named = args.option("card");
    let Some(what) = args.next_word() else {
        return net::all().into_iter().try_for_each(|card| show(card, out));
    };
    let command = match what {
        "promisc" => CardCommand::Receive(ReceiveMode::Promiscuous, on_or_off(&mut args)?),
        "allmulti" => CardCommand::Receive(ReceiveMode::AllMulticast, on_or_off(&mut args)?),
        "mac" => CardCommand::MacAddress(mac(args.word("address")?)?),
        "vlan" => vlan(&mut args)?,
        other => return Err(Error::usage(format_args!("`{other}` is nothing to set"))),
    };
    args.end()?;
    let Some(card) = net::find(named) else {
        return Err(Error::failed(match named {
            Some(_) => "no network card of this name",
            None => "no network card",
        }));
    };
    card.command(command).await.map_err(Error::failed)
}

fn show(card: &Card, out: Output<'_>) -> Result<(), Error> {
    let (mac, mtu, link, receive, transmit) = card.with(|driver| {
        let stats = (driver.receive_stats(), driver.transmit_stats());
        (driver.mac(), driver.mtu(), driver.link(), stats.0, stats.1)
    });
    writeln!(out, "{}: mac {mac}, mtu {mtu}, {link}", card.name())?;
    writeln!(
        out,
        "  received: packets={} bytes={} dropped={} no_buffer={}",
        receive.packets,
        receive.bytes,
        receive.dropped(),
        receive.no_buffer
    )?;
    writeln!(
        out,
        "  sent: packets={} bytes={} dropped={}",
        transmit.packets,
        transmit.bytes,
        transmit.dropped()
    )?;
    Ok(())
}

fn on_or_off(args: &mut Args<'_>) -> Result<bool, Error> {
    match args.word("on or off")? {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(Error::usage(format_args!(
            "`{other}` is neither on nor off"
        ))),
    }
}

fn vlan(args: &mut Args<'_>) -> Result<CardCommand<'static>, Error> {
    let what = args.word("add or del")?;
    let id = u16::try_from(args.number("id")?).map_err(|_| Error::usage("no such VLAN id"))?;
    match what {
        "add" => Ok(CardCommand::VlanAdd(id)),
        "del" => Ok(CardCommand::VlanDelete(id)),
        other => Err(Error::usage(format_args!(
            "`{other}` is neither add nor del"
        ))),
    }
}

fn mac(word: &str) -> Result<MacAddress, Error> {
    let address: EthernetAddress = word
        .parse()
        .map_err(|()| Error::usage(format_args!("`{word}` is no MAC address")))?;
    Ok(MacAddress(address.0))
}
