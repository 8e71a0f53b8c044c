//! What the machine is and does at this moment, as JSON: the data of the status page.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

use spin::Mutex;
use vringlet::features::FeatureNames;
use vringlet::net::MacAddress;
use vringlet::{QueueReport, Report};

use super::json::{Json, key};

use crate::devices::Device;
use crate::net::stack::{Place, Stack, Summary};
use crate::platform::memory::{self, PAGE_BYTES};
use crate::platform::{acpi, arch, interrupts, serial, time};
use crate::runtime::task;
use crate::{devices, net};

/// The moments of the boot that were worth noting.
static MARKS: Mutex<Vec<Mark>> = Mutex::new(Vec::new());

/// A step of the boot and when it was done.
struct Mark {
    step: &'static str,
    micros: u64,
}

/// Notes that a step of the boot is done.
pub fn mark(step: &'static str) {
    let micros = time::now().as_micros();
    MARKS.lock().push(Mark { step, micros });
}

/// How long the boot took: when its last step was done, in microseconds since the kernel's start.
pub fn boot_micros() -> u64 {
    MARKS.lock().last().map_or(0, |mark| mark.micros)
}

/// All of it.
pub fn json() -> String {
    /// How long the last one was: the next one will need as much, or little more.
    static BYTES: AtomicUsize = AtomicUsize::new(0);
    let (asleep, sleeps) = task::idle();
    let text = Json::of_object(BYTES.load(Ordering::Relaxed), |json| {
        key!(json, "version").name(env!("CARGO_PKG_VERSION"));
        key!(json, "processor").object(|json| {
            key!(json, "name").text(&arch::cpu::features().name);
            key!(json, "count").number(acpi::info().processors.max(1) as u64);
        });
        key!(json, "uptime_micros").number(time::now().as_micros());
        let asleep = u64::try_from(asleep.as_micros()).unwrap_or(u64::MAX);
        key!(json, "asleep_micros").number(asleep);
        key!(json, "sleeps").number(sleeps);
        key!(json, "boot").array(|json| {
            for mark in MARKS.lock().iter() {
                json.object(|json| {
                    key!(json, "step").name(mark.step);
                    key!(json, "micros").number(mark.micros);
                });
            }
        });
        key!(json, "memory").object(memory);
        // Bytes on the serial port that were not in time.
        key!(json, "console").object(|json| {
            key!(json, "lost_input").number(serial::lost_input());
            key!(json, "lost_output").number(serial::lost_output());
        });
        key!(json, "devices").array(|json| {
            for device in devices::all() {
                json.object(|json| self::device(json, device));
            }
        });
        key!(json, "interfaces").array(|json| {
            for stack in net::stacks().into_iter().chain(net::loopback()) {
                json.object(|json| interface(json, stack));
            }
        });
        key!(json, "web").object(web);
        key!(json, "interrupts").array(|json| {
            for (vector, name, count) in interrupts::vectors() {
                json.object(|json| {
                    key!(json, "vector").number(vector.into());
                    key!(json, "name").text(name);
                    key!(json, "count").number(count);
                });
            }
        });
    });
    BYTES.store(text.len() + text.len() / 16, Ordering::Relaxed);
    text
}

/// What became of requests to the web servers.
fn web(json: &mut Json) {
    let stats = net::web_stats();
    key!(json, "requests").number(stats.requests);
    key!(json, "refused").number(stats.refused);
    key!(json, "cut").number(stats.cut);
}

/// All in KiB.
fn memory(json: &mut Json) {
    let frames_kib = |frames: usize| (frames * PAGE_BYTES / 1024) as u64;
    let kib = |bytes: usize| (bytes / 1024) as u64;
    let (free, total) = memory::frames::usage();
    let (heap_used, heap_total) = memory::heap::usage();
    let (dma, _) = memory::dma::usage();
    key!(json, "free").number(frames_kib(free));
    key!(json, "total").number(frames_kib(total));
    key!(json, "heap_used").number(kib(heap_used));
    key!(json, "heap_total").number(kib(heap_total));
    key!(json, "dma").number(frames_kib(dma));
}

fn device(json: &mut Json, device: &'static Device) {
    key!(json, "name").text(&device.name);
    key!(json, "place").display(device.place);
    key!(json, "interrupts").display(device.mode());
    let driver = match &device.driver {
        Err(error) => {
            key!(json, "error").text(error);
            return;
        }
        Ok(driver) => driver,
    };
    let report = driver.report();
    key!(json, "summary").text(&driver.summary());
    let negotiated = report.negotiated;
    key!(json, "offered");
    feature_names(json, &report, negotiated.offered, report.offered());
    key!(json, "accepted");
    feature_names(json, &report, negotiated.accepted, report.accepted());
    key!(json, "config_changes").number(report.config_changes);
    key!(json, "counters").object(|json| {
        for (name, count) in &report.counters {
            json.key(name).number(*count);
        }
    });
    key!(json, "queues").array(|json| {
        for queue in &report.queues {
            json.object(|json| self::queue(json, queue));
        }
    });
}

/// The names of feature bits. They are many, and stay the same for as long as the device runs: made once.
fn feature_names(json: &mut Json, report: &Report, bits: u64, names: FeatureNames) {
    /// By the names of a device type's own bits, and by the bits.
    static MADE: Mutex<Vec<(usize, u64, String)>> = Mutex::new(Vec::new());
    let table = report.feature_names.as_ptr().addr();
    let mut made = MADE.lock();
    let known = made
        .iter()
        .find(|known| (known.0, known.1) == (table, bits));
    if let Some((_, _, text)) = known {
        json.raw(text);
        return;
    }
    let text = format!("[\"{}\"],", names.to_string().replace(' ', "\",\""));
    json.raw(&text);
    // There are two for each device, and no more unless one is started again with others.
    if made.len() < MAX_MADE {
        made.push((table, bits, text));
    }
}

/// So many lists of features are remembered.
const MAX_MADE: usize = 64;

fn queue(json: &mut Json, queue: &QueueReport) {
    key!(json, "name").name(queue.name);
    key!(json, "index").number(queue.index.into());
    key!(json, "size").number(queue.size.into());
    key!(json, "in_flight").number(queue.in_flight.into());
    key!(json, "submitted").number(queue.stats.submitted);
    key!(json, "completed").number(queue.stats.completed);
    key!(json, "kicks").number(queue.stats.kicks);
    key!(json, "kicks_saved").number(queue.stats.kicks_saved);
    key!(json, "interrupts").number(queue.stats.interrupts);
    key!(json, "violations").number(queue.stats.violations);
}

fn interface(json: &mut Json, stack: &Stack) {
    let Summary {
        name,
        link,
        mac,
        mtu,
        addresses,
        lease,
        gateways,
        drops,
    } = stack.summary();
    key!(json, "name").text(&name);
    key!(json, "link").boolean(link);
    match mac {
        Some(mac) => key!(json, "mac").display(MacAddress(mac.0)),
        None => key!(json, "mac").null(),
    }
    key!(json, "mtu").number(mtu as u64);
    key!(json, "addresses").array(|json| display_all(json, &addresses));
    key!(json, "gateways").array(|json| display_all(json, &gateways));
    match lease {
        Some(lease) => key!(json, "lease").object(|json| {
            match lease.server {
                Some(server) => key!(json, "server").display(server),
                None => key!(json, "server").null(),
            }
            key!(json, "dns").array(|json| display_all(json, &lease.dns));
            match lease.duration {
                Some(duration) => key!(json, "seconds").number(duration.secs()),
                None => key!(json, "seconds").null(),
            }
            key!(json, "renewals").number(lease.renewals.into());
        }),
        None => key!(json, "lease").null(),
    }
    key!(json, "malformed").number(drops.malformed);
    key!(json, "foreign").number(drops.foreign);
    key!(json, "unheard").number(drops.unheard);
    key!(json, "unassembled").number(drops.unassembled);
    key!(json, "unsent").number(drops.unsent);
    // Connections that we ended are only counted: whoever asks often leaves many of them.
    let mut closing = 0;
    key!(json, "sockets").array(|json| {
        for socket in stack.sockets() {
            if socket.closing {
                closing += 1;
                continue;
            }
            json.object(|json| {
                key!(json, "protocol").name(socket.protocol);
                place(key!(json, "local"), socket.local);
                place(key!(json, "remote"), socket.remote);
                match socket.state {
                    Some(state) => key!(json, "state").display(state),
                    None => key!(json, "state").name(""),
                }
                key!(json, "dropped").number(socket.dropped);
            });
        }
    });
    key!(json, "closing").number(closing);
}

/// As its `Display` shows it, by fewer calls: most sockets have none or a port alone.
fn place(json: &mut Json, place: Place) {
    match place {
        Place::None => json.name(""),
        Place::Port(port) => json.port(port),
        Place::Endpoint(endpoint) => json.display(endpoint),
    }
}

fn display_all(json: &mut Json, values: &[impl fmt::Display]) {
    for value in values {
        json.display(value);
    }
}
