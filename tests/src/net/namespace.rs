//! The guest on a tap device, with this machine's own network stack at the other end, in a network namespace that lives
//! as long as QEMU does.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cell::PATIENCE;
use crate::qemu::Qemu;

/// This machine's address in the namespace.
pub const HERE: &str = "10.7.6.1";
/// The guest's address there, which it is told by its command line.
pub const GUEST: &str = "10.7.6.15";

/// Makes the namespace and the device, then becomes the command that follows.
const ENTER: &str = "ip link set lo up && ip tuntap add dev tap0 mode tap && ip addr add 10.7.6.1/24 dev tap0 \
     && ip link set tap0 up && exec \"$@\"";

/// Why this machine can't have such a namespace, if it can't.
pub fn unavailable() -> Option<String> {
    if !Path::new("/dev/net/tun").exists() {
        return Some("no /dev/net/tun".to_string());
    }
    match Command::new("unshare")
        .args(["--net", "sh", "-c", ENTER, "sh", "true"])
        .output()
    {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "no namespace with a tap device: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

/// Puts the guest's network device on the tap device of a namespace of its own.
pub fn plug(qemu: &mut Qemu, properties: &str) {
    plug_with(qemu, properties, "");
}

/// The same, and the guest has these options besides.
pub fn plug_with(qemu: &mut Qemu, properties: &str, options: &str) {
    qemu.start_by(&["unshare", "--net", "sh", "-c", ENTER, "sh"]);
    qemu.arg("-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no");
    qemu.virtio(
        "net",
        "dev0",
        &format!("netdev=n0,mac=52:54:00:12:34:56{properties}"),
    );
    qemu.cmdline(&format!("ip={GUEST}/24,{HERE} {options}"));
}

/// A command that runs in the namespace of this QEMU.
pub fn command(pid: u32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--net", program]);
    command
}

/// Runs a command in the namespace; it must succeed.
pub fn run(pid: u32, program: &str, arguments: &[&str]) -> Result<Output> {
    let output = command(pid, program)
        .args(arguments)
        .output()
        .with_context(|| format!("starting {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stdout).trim(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output)
}

/// Waits until this machine's IPv6 address there may be used: at first it is asked whether somebody else has it.
pub fn wait_for_address(pid: u32) -> Result<()> {
    let started = Instant::now();
    let arguments = ["-6", "address", "show", "dev", "tap0", "tentative"];
    while !run(pid, "ip", &arguments)?.stdout.is_empty() {
        ensure!(started.elapsed() < PATIENCE, "no IPv6 address");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Sends `bytes` to the guest's TCP echo service at `host` while reading what comes back; both must be the same. `folder`
/// is for what passes between this process and those in the namespace.
pub fn echo(pid: u32, host: &str, bytes: &[u8], folder: &Path) -> Result<()> {
    let (there, back) = (folder.join("echo.there"), folder.join("echo.back"));
    std::fs::write(&there, bytes)?;
    // The shell is what every machine has that can connect from another namespace.
    let script =
        "exec 3<>\"/dev/tcp/$1/7\" && { cat \"$2\" >&3 & } && head -c \"$4\" <&3 >\"$3\" && wait";
    let mut shell = command(pid, "timeout");
    let output = shell
        .args([
            PATIENCE.as_secs().to_string().as_str(),
            "bash",
            "-c",
            script,
            "bash",
            host,
        ])
        .args([&there, &back])
        .arg(bytes.len().to_string())
        .output()
        .context("starting bash")?;
    ensure!(
        output.status.success(),
        "TCP echo of {host}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    ensure!(
        std::fs::read(&back)? == bytes,
        "the TCP echo of {host} differs from what was sent"
    );
    Ok(())
}

/// Sends a datagram to the guest's UDP echo service, and takes the answer.
pub fn udp_echo(pid: u32, host: &str, word: &str) -> Result<()> {
    let script = "exec 3<>\"/dev/udp/$1/7\" && printf %s \"$2\" >&3 && head -c \"${#2}\" <&3";
    let patience = PATIENCE.as_secs().to_string();
    let arguments = [&patience, "bash", "-c", script, "bash", host, word];
    let output = run(pid, "timeout", &arguments)?;
    ensure!(
        output.stdout == word.as_bytes(),
        "the UDP echo of {host} is {:?}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(())
}
