//! The QEMU command line: the one place that knows how the guest is started.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// The program that is started.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// Where `make run`'s guest can be asked for what it shows, under the project's root.
pub const SCREENSHOT_SOCKET: &str = "target/screen.qmp";

/// The id of the graphics adapter of `make run`'s guest.
pub const GPU: &str = "gpu0";

/// The longest path of a socket: the system takes 107 bytes, and QEMU may append to it.
const SOCKET_PATH_BYTES: usize = 100;

/// A machine type, and how virtio devices are plugged into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    options: String,
    bus: Bus,
}

/// What a virtio device sits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// A PCI function.
    Pci,
    /// A virtio-mmio slot.
    Mmio,
}

impl Machine {
    /// Where this machine's virtio devices sit.
    pub fn bus(&self) -> Bus {
        self.bus
    }
}

impl FromStr for Machine {
    type Err = anyhow::Error;

    /// Takes `q35`, `pc` or `microvm`, with any further machine options after a comma.
    fn from_str(text: &str) -> Result<Self> {
        let mut options = text.split(',');
        let bus = match options.next() {
            Some("q35" | "pc") => Bus::Pci,
            Some("microvm") if options.clone().any(|option| option == "pcie=on") => Bus::Pci,
            Some("microvm") => Bus::Mmio,
            _ => bail!("machine type {text:?} is none of q35, pc, microvm, microvm,pcie=on"),
        };
        Ok(Machine {
            options: text.to_string(),
            bus,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.options)
    }
}

/// A QEMU command line under construction.
#[derive(Clone, Debug)]
pub struct Qemu {
    machine: Machine,
    prefix: Vec<String>,
    args: Vec<String>,
}

impl Qemu {
    /// A guest with no device but the serial port, the debug exit and what the machine type itself has.
    pub fn new(machine: &Machine, kernel: &Path) -> Result<Self> {
        let mut qemu = Qemu {
            machine: machine.clone(),
            prefix: Vec::new(),
            args: Vec::new(),
        };
        qemu.arg("-machine", &machine.options);
        qemu.args.push("-nodefaults".into());
        qemu.args.push("-no-user-config".into());
        qemu.arg("-display", "none");
        qemu.arg("-kernel", utf8(kernel)?);
        qemu.arg("-device", "isa-debug-exit,iobase=0xf4,iosize=4");
        if machine.bus == Bus::Mmio {
            // virtio 1.x in the slots; QEMU's default there is the legacy interface.
            qemu.arg("-global", "virtio-mmio.force-legacy=false");
        }
        Ok(qemu)
    }

    /// Adds an option with its value.
    pub fn arg(&mut self, option: &str, value: &str) {
        self.args.push(option.into());
        self.args.push(value.into());
    }

    /// Adds arguments as they are.
    pub fn args(&mut self, more: impl IntoIterator<Item = String>) {
        self.args.extend(more);
    }

    /// Makes the guest's memory, of this size, one that other processes can map: the daemons of vhost-user must.
    pub fn share_memory(&mut self, size: &str) {
        self.arg(
            "-object",
            &format!("memory-backend-memfd,id=shared,share=on,size={size}"),
        );
        // A second option of this name adds to the first.
        self.arg("-machine", "memory-backend=shared");
    }

    /// The machine it is for.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The shell commands that the guest runs after boot; none when empty.
    pub fn script(&mut self, script: &str) {
        self.fw_cfg("opt/vringlet/script", script);
    }

    /// The guest's command line; none when empty.
    pub fn cmdline(&mut self, cmdline: &str) {
        self.fw_cfg("opt/vringlet/cmdline", cmdline);
    }

    fn fw_cfg(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.arg("-fw_cfg", &format!("name={name},string={}", escape(text)));
        }
    }

    /// Adds a virtio device: `kind` is `blk`, `net`, ... and `properties` (`drive=d0,serial=x`) may be empty.
    pub fn virtio(&mut self, kind: &str, id: &str, properties: &str) {
        let suffix = match self.machine.bus {
            Bus::Pci => "pci",
            Bus::Mmio => "device",
        };
        let comma = if properties.is_empty() { "" } else { "," };
        self.arg(
            "-device",
            &format!("virtio-{kind}-{suffix},id={id}{comma}{properties}"),
        );
    }

    /// Adds a block back end named `id` for the image at `path`.
    pub fn drive(&mut self, id: &str, path: &Path, image: Image) -> Result<()> {
        let driver = match image.format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        };
        let protocol = if is_block_device(path) {
            "host_device"
        } else {
            "file"
        };
        // `file.filename` and not `file`: a name with a colon would be taken for a protocol.
        self.arg(
            "-drive",
            &format!(
                "if=none,id={id},driver={driver},read-only={},discard=unmap,file.driver={protocol},file.filename={}",
                if image.read_only { "on" } else { "off" },
                escape(utf8(path)?),
            ),
        );
        Ok(())
    }

    /// Adds a persistent memory, a device named `id`, that is the file at `path`, all of it. The machine needs room for it:
    /// `-m` with `maxmem`.
    pub fn persistent_memory(&mut self, id: &str, path: &Path, properties: &str) -> Result<()> {
        let size = path
            .metadata()
            .with_context(|| format!("the size of {}", path.display()))?
            .len();
        let file = escape(utf8(path)?);
        self.arg(
            "-object",
            &format!("memory-backend-file,id=mem-{id},share=on,mem-path={file},size={size}"),
        );
        let comma = if properties.is_empty() { "" } else { "," };
        self.virtio("pmem", id, &format!("memdev=mem-{id}{comma}{properties}"));
        Ok(())
    }

    /// Adds a user-mode network back end named `id` that forwards each of `ports` to the guest.
    pub fn user_net(&mut self, id: &str, ports: &[Forward]) {
        let mut value = format!("user,id={id}");
        for forward in ports {
            value += &format!(
                ",hostfwd={}:127.0.0.1:{}-:{}",
                forward.protocol, forward.host, forward.guest
            );
        }
        self.arg("-netdev", &value);
    }

    /// Records every frame of the network back end `netdev` in a pcap file.
    pub fn capture(&mut self, netdev: &str, file: &Path) -> Result<()> {
        let value = format!(
            "filter-dump,id=dump-{netdev},netdev={netdev},file={}",
            escape(utf8(file)?)
        );
        self.arg("-object", &value);
        Ok(())
    }

    /// Logs what the guest does wrong, as far as QEMU can tell, into a file.
    pub fn log_guest_errors(&mut self, file: &Path) -> Result<()> {
        self.arg("-d", "guest_errors,unimp");
        self.arg("-D", utf8(file)?);
        Ok(())
    }

    /// Puts the serial port on QEMU's standard streams.
    pub fn serial_on_stdio(&mut self) {
        self.arg("-chardev", "stdio,id=serial,signal=off");
        self.arg("-serial", "chardev:serial");
    }

    /// Shares the terminal between the serial port and QEMU's monitor: Ctrl-A X quits, Ctrl-A C switches.
    pub fn serial_on_terminal(&mut self) {
        self.arg("-chardev", "stdio,id=serial,signal=off,mux=on");
        self.arg("-serial", "chardev:serial");
        self.arg("-mon", "chardev=serial,mode=readline");
    }

    /// Shows the guest's displays in a window of this kind (`gtk`, `sdl`).
    pub fn window(&mut self, kind: &str) {
        self.arg("-display", kind);
    }

    /// Shows the guest's displays to VNC clients at this socket. Says whether a socket can have that path.
    pub fn vnc(&mut self, socket: &Path) -> Result<bool> {
        let path = utf8(socket)?;
        let fits = path.len() <= SOCKET_PATH_BYTES;
        if fits {
            self.arg("-vnc", &format!("unix:{}", escape(path)));
        }
        Ok(fits)
    }

    /// Opens one more control socket, for whoever comes. Says whether a socket can have that path.
    pub fn control(&mut self, socket: &Path) -> Result<bool> {
        let path = utf8(socket)?;
        let fits = path.len() <= SOCKET_PATH_BYTES;
        if fits {
            let path = escape(path);
            self.arg("-qmp", &format!("unix:{path},server=on,wait=off"));
        }
        Ok(fits)
    }

    /// Starts QEMU by this command, which must end in replacing itself by the arguments that follow.
    pub fn start_by(&mut self, prefix: &[&str]) {
        self.prefix = prefix.iter().map(|word| word.to_string()).collect();
    }

    /// What QEMU is started by; mostly nothing.
    pub fn prefix(&self) -> &[String] {
        &self.prefix
    }

    /// The arguments so far.
    pub fn arguments(&self) -> &[String] {
        &self.args
    }
}

impl fmt::Display for Qemu {
    /// The command line in a form that can be pasted into a shell.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = [PROGRAM.to_string()];
        let words = self.prefix.iter().chain(&program).chain(&self.args);
        let quoted: Vec<_> = words
            .map(|word| shlex::try_quote(word).unwrap_or(word.into()))
            .collect();
        f.write_str(&quoted.join(" "))
    }
}

/// How an image file is attached.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// What is in the file.
    pub format: Format,
    /// Whether the guest may write to it.
    pub read_only: bool,
}

impl Image {
    /// The disk's bytes, writable.
    pub const RAW: Image = Image {
        format: Format::Raw,
        read_only: false,
    };
}

/// The format of an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes and nothing else.
    Raw,
    /// QEMU's own format.
    Qcow2,
}

/// A port of this machine that leads to a port of the guest.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The port here; 0 lets the system choose a free one (ask with `Qmp::forwarded_port`).
    pub host: u16,
    /// The port there.
    pub guest: u16,
}

/// Whether QEMU lists this among what the option can have: `-display help`, `-audiodev help`.
pub fn knows(option: &str, name: &str) -> std::io::Result<bool> {
    let help = Command::new(PROGRAM).args([option, "help"]).output()?;
    let known = String::from_utf8_lossy(&help.stdout);
    Ok(known.lines().any(|line| line.trim() == name))
}

/// Text as the value of a QEMU option, where a comma separates options unless doubled.
pub fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

/// A path as text: QEMU's options are lists in text.
pub fn utf8(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    path.metadata()
        .is_ok_and(|metadata| metadata.file_type().is_block_device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_know_their_bus() -> Result<()> {
        for (text, bus) in [
            ("q35", Bus::Pci),
            ("pc", Bus::Pci),
            ("microvm", Bus::Mmio),
            ("microvm,pcie=on", Bus::Pci),
            ("microvm,rtc=on,pcie=on", Bus::Pci),
            ("microvm,pcie=off", Bus::Mmio),
        ] {
            assert_eq!(text.parse::<Machine>()?.bus(), bus, "{text}");
        }
        assert!("isapc".parse::<Machine>().is_err());
        assert!("".parse::<Machine>().is_err());
        Ok(())
    }

    #[test]
    fn commas_in_paths_and_scripts_are_doubled() -> Result<()> {
        let mut qemu = Qemu::new(&"q35".parse()?, Path::new("guest.elf"))?;
        qemu.drive("d0", Path::new("/a,b c:d.img"), Image::RAW)?;
        qemu.script("echo a,b");
        let line = qemu.arguments().join("\n");
        assert!(line.contains("file.filename=/a,,b c:d.img"), "{line}");
        assert!(line.contains("string=echo a,,b"), "{line}");
        Ok(())
    }

    #[test]
    fn devices_follow_the_machine() -> Result<()> {
        for (machine, model) in [
            ("pc", "virtio-blk-pci,id=b"),
            ("microvm", "virtio-blk-device,id=b"),
        ] {
            let mut qemu = Qemu::new(&machine.parse()?, Path::new("guest.elf"))?;
            qemu.virtio("blk", "b", "");
            assert!(qemu.arguments().iter().any(|arg| arg == model), "{qemu}");
        }
        Ok(())
    }
}
