//! Bus numbers and memory addresses for functions that the firmware gave none.
//!
//! SeaBIOS and OVMF do all of this; the firmware of microvm (qboot) does nothing. What a function has already is left
//! as it is. Behind a bridge, memory comes out of the bridge's 32-bit window, which any memory BAR may be in; a BAR too
//! large for it, and I/O ports, which modern virtio has no use for, are left without address, and a log line says so.

use alloc::vec::Vec;
use core::ops::Range;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use super::bar::{self, Bar, Space};
use super::{Function, Kind, command, header, scan};

const FOUR_GIB: u64 = 1 << 32;
const PAGE: u64 = 4096;
/// A bridge's memory window begins and ends on one of these.
const BRIDGE_UNIT: u64 = 1 << 20;
/// Memory base and limit, and their prefetchable twins, in a bridge's header.
const MEMORY_WINDOW: u8 = 0x20;
const PREFETCHABLE_WINDOW: u8 = 0x24;
/// A window that is closed: its base is above its limit.
const CLOSED: u32 = 0x0000_fff0;

/// What there is to give out.
pub(super) struct Resources {
    /// The highest bus number that configuration space reaches.
    pub(super) last_bus: u8,
    /// The address ranges that are handed to PCI.
    pub(super) windows: Vec<Range<u64>>,
}

/// Completes what the firmware left undone on the functions found; returns them as they are then. `resources` is asked
/// for only if something is missing.
pub(super) fn complete<C: ConfigurationAccess>(
    config: &mut C,
    mut functions: Vec<Function>,
    resources: impl Fn() -> Resources,
) -> Vec<Function> {
    if functions
        .iter()
        .any(|function| function.kind == Kind::Bridge(0))
    {
        let roots = super::root_buses(&functions);
        let last_bus = resources().last_bus;
        let behind = roots.iter().skip(1).map(|next| next - 1).chain([last_bus]);
        for (&root, limit) in roots.iter().zip(behind) {
            let used = functions.iter().flat_map(|function| {
                let behind = match function.kind {
                    Kind::Bridge(bus) => bus,
                    _ => 0,
                };
                [function.address.bus, behind]
            });
            let last = used.filter(|bus| (root..=limit).contains(bus)).max();
            let mut numbering = Numbering {
                config,
                last: last.unwrap_or(root),
                limit,
            };
            numbering.bus(root, None);
        }
        functions = scan::all(config, &roots);
    }
    let mut assignment = Assignment {
        config,
        functions: &functions,
    };
    if functions
        .iter()
        .any(|function| assignment.lacks_memory(function))
    {
        let mut memory = assignment.free_memory(resources().windows);
        assignment.behind(None, &mut memory);
    }
    functions
}

/// Gives bus numbers out, depth first, from those between a root bus and the next.
struct Numbering<'a, C> {
    config: &'a mut C,
    /// The last number given out.
    last: u8,
    limit: u8,
}

impl<C: ConfigurationAccess> Numbering<'_, C> {
    fn bus(&mut self, bus: u8, parent: Option<DeviceFunction>) {
        for device in 0..32 {
            for function in 0..8 {
                let address = DeviceFunction {
                    bus,
                    device,
                    function,
                };
                let Some(bridge) = scan::look(self.config, address, parent) else {
                    continue;
                };
                if bridge.kind != Kind::Bridge(0) {
                    continue;
                }
                // Every bridge uses a number up, so this ends whatever the bridges say.
                let Some(secondary) = self
                    .last
                    .checked_add(1)
                    .filter(|number| *number <= self.limit)
                else {
                    log::warn!("pci: no bus number left for the bridge {address}");
                    return;
                };
                self.last = secondary;
                self.set(address, secondary, self.limit);
                self.bus(secondary, Some(address));
                self.set(address, secondary, self.last);
            }
        }
    }

    fn set(&mut self, bridge: DeviceFunction, secondary: u8, subordinate: u8) {
        let latency = self.config.read_word(bridge, header::BUS_NUMBERS) & 0xff00_0000;
        let numbers = u32::from_le_bytes([bridge.bus, secondary, subordinate, 0]);
        self.config
            .write_word(bridge, header::BUS_NUMBERS, latency | numbers);
    }
}

/// Gives addresses out. It follows the tree that the walk found (each function has one parent), not the bus numbers
/// that bridges claim.
struct Assignment<'a, C> {
    config: &'a mut C,
    functions: &'a [Function],
}

impl<'a, C: ConfigurationAccess> Assignment<'a, C> {
    fn children(
        &self,
        parent: Option<DeviceFunction>,
    ) -> impl Iterator<Item = &'a Function> + use<'a, C> {
        self.functions
            .iter()
            .filter(move |function| function.parent == parent)
    }

    fn decodes_memory(&self, function: &Function) -> bool {
        self.config.read_word(function.address, header::COMMAND) & command::MEMORY != 0
    }

    fn memory_bars(&mut self, function: &Function) -> Vec<Bar> {
        let mut bars = bar::read(self.config, function);
        bars.retain(|bar| bar.space != Space::Io);
        bars
    }

    /// Whether there is a memory BAR without address. A function that decodes memory was set up by the firmware.
    fn lacks_memory(&mut self, function: &Function) -> bool {
        !self.decodes_memory(function)
            && self
                .memory_bars(function)
                .iter()
                .any(|bar| bar.address == 0)
    }

    /// The windows above everything that is in use already.
    fn free_memory(&mut self, mut windows: Vec<Range<u64>>) -> Memory {
        if windows.is_empty() {
            log::warn!("pci: nothing names addresses for PCI; functions without address stay so");
        }
        for function in self.functions {
            for bar in self.memory_bars(function) {
                let end = bar.address.saturating_add(bar.size);
                for window in windows
                    .iter_mut()
                    .filter(|window| window.contains(&bar.address))
                {
                    window.start = window.start.max(end).min(window.end);
                }
            }
        }
        Memory { windows }
    }

    /// Gives addresses to everything behind a bridge (or on the root bus) that decodes no memory yet.
    fn behind(&mut self, parent: Option<DeviceFunction>, memory: &mut Memory) {
        for function in self.children(parent) {
            if function.kind == Kind::Other || self.decodes_memory(function) {
                continue;
            }
            let complete = self.set_bars(function, memory);
            let is_bridge = matches!(function.kind, Kind::Bridge(_));
            if is_bridge {
                self.open_bridge(function, memory);
            }
            if complete {
                // A bridge passes on what its devices send only as bus master; a device is made one by its driver.
                let bus_master = if is_bridge { command::BUS_MASTER } else { 0 };
                let command = self.config.read_word(function.address, header::COMMAND) & 0xffff;
                let command = command | command::MEMORY | bus_master;
                self.config
                    .write_word(function.address, header::COMMAND, command);
            }
        }
    }

    /// Returns whether every memory BAR has an address now, so that decoding may be turned on.
    fn set_bars(&mut self, function: &Function, memory: &mut Memory) -> bool {
        let mut complete = true;
        for bar in self
            .memory_bars(function)
            .into_iter()
            .filter(|bar| bar.address == 0)
        {
            let wide = matches!(bar.space, Space::Memory { wide: true, .. });
            match memory.take(bar.size, bar.size, wide) {
                Some(address) => bar::set(self.config, function, &bar, address),
                None => {
                    complete = false;
                    log::warn!(
                        "pci: no addresses left for BAR{} of {}: {:#x} bytes",
                        bar.index,
                        function.address,
                        bar.size
                    );
                }
            }
        }
        complete
    }

    /// Opens a bridge's window wide enough for what is behind it, and assigns that.
    fn open_bridge(&mut self, bridge: &Function, memory: &mut Memory) {
        self.config
            .write_word(bridge.address, MEMORY_WINDOW, CLOSED);
        self.config
            .write_word(bridge.address, PREFETCHABLE_WINDOW, CLOSED);
        let bytes = self.demand(bridge).next_multiple_of(BRIDGE_UNIT);
        let Some(start) = memory.take(bytes, bytes.next_power_of_two(), false) else {
            log::warn!(
                "pci: no addresses left for what is behind the bridge {}",
                bridge.address
            );
            return;
        };
        let last = start + bytes - 1;
        // Both registers hold address bits 20..32 in their upper 12 bits.
        let window = (last as u32 & 0xfff0_0000) | (start as u32 >> 16 & 0xfff0);
        self.config
            .write_word(bridge.address, MEMORY_WINDOW, window);
        let mut inside = Memory {
            windows: alloc::vec![start..start + bytes],
        };
        self.behind(Some(bridge.address), &mut inside);
    }

    /// An upper bound for what is needed behind a bridge, alignment included: at least one unit, for a device plugged in
    /// later.
    fn demand(&mut self, bridge: &Function) -> u64 {
        let mut sum = 0_u64;
        for function in self.children(Some(bridge.address)) {
            for bar in self.memory_bars(function) {
                // Twice the size leaves room to align, in whatever order the BARs come.
                sum = sum.saturating_add(bar.size.max(PAGE).saturating_mul(2));
            }
            if matches!(function.kind, Kind::Bridge(_)) {
                // Rounding up to a power of two doubles it at most, aligning it doubles that.
                sum = sum.saturating_add(self.demand(function).saturating_mul(4));
            }
        }
        // More than the 32-bit space could ever give is refused as a whole when it is asked for.
        sum.clamp(BRIDGE_UNIT, FOUR_GIB)
    }
}

/// Address ranges to be given out.
struct Memory {
    windows: Vec<Range<u64>>,
}

impl Memory {
    /// Takes `size` bytes at a multiple of `align` (a power of two, at least a page so that no two devices share one).
    fn take(&mut self, size: u64, align: u64, above_four_gib: bool) -> Option<u64> {
        let align = align.max(PAGE);
        self.windows.iter_mut().find_map(|window| {
            let start = window.start.checked_next_multiple_of(align)?;
            let end = start.checked_add(size)?;
            let reachable = above_four_gib || end <= FOUR_GIB;
            if end > window.end || !reachable || start == 0 {
                return None;
            }
            window.start = end;
            Some(start)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_aligned_and_used_once() {
        let mut memory = Memory {
            windows: alloc::vec![0xc000_1000..0xc010_0000, 0x1_0000_0000..0x2_0000_0000],
        };
        assert_eq!(memory.take(0x100, 0x100, false), Some(0xc000_1000));
        assert_eq!(memory.take(0x100, 0x100, false), Some(0xc000_2000));
        assert_eq!(memory.take(0x4000, 0x4000, true), Some(0xc000_4000));
        // Too large for the low window: only where 64 bits are wide enough.
        assert_eq!(memory.take(0x10_0000, 0x10_0000, false), None);
        assert_eq!(memory.take(0x10_0000, 0x10_0000, true), Some(0x1_0000_0000));
        assert_eq!(memory.take(u64::MAX, 1 << 63, true), None);
    }

    fn at(bus: u8, device: u8) -> DeviceFunction {
        DeviceFunction {
            bus,
            device,
            function: 0,
        }
    }

    fn resources() -> Resources {
        Resources {
            last_bus: 255,
            windows: alloc::vec![0xc000_0000..0xe000_0000, 0xc0_0000_0000..0x100_0000_0000],
        }
    }

    fn run(machine: &mut FakeConfig) -> Vec<Function> {
        let found = scan::all(machine, &[]);
        complete(machine, found, resources)
    }

    #[test]
    fn what_the_firmware_left_is_assigned_behind_bridges_too() {
        let mut machine = FakeConfig::new();
        machine.endpoint(at(0, 1), &[(1, 0x1000), (4, 0x4000)]);
        machine.bridge(at(0, 2), 0);
        machine.endpoint(at(1, 0), &[(1, 0x1000), (4, 0x20_0000)]);
        machine.bridge(at(1, 1), 0);
        machine.endpoint(at(2, 0), &[(0, 0x10_0000)]);
        let functions = run(&mut machine);
        assert_eq!(functions.len(), 5);
        assert_eq!(machine.buses(at(0, 2)), [0, 1, 2]);
        assert_eq!(machine.buses(at(1, 1)), [1, 2, 2]);

        // Every BAR is aligned, inside the window of each bridge above it, and overlaps no other.
        let mut taken: Vec<Range<u64>> = Vec::new();
        for function in &functions {
            for bar in bar::read(&mut machine, function) {
                let range = bar.address..bar.address + bar.size;
                assert!(
                    bar.address.is_multiple_of(bar.size) && bar.address >= 0xc000_0000,
                    "{bar}"
                );
                assert!(
                    taken
                        .iter()
                        .all(|other| range.end <= other.start || other.end <= range.start),
                    "{bar}"
                );
                let mut parent = function.parent;
                while let Some(bridge) = parent {
                    let window = machine.window(bridge);
                    assert!(
                        window.start <= range.start && range.end <= window.end,
                        "{bar} in {window:x?}"
                    );
                    parent = functions
                        .iter()
                        .find(|function| function.address == bridge)
                        .unwrap()
                        .parent;
                }
                taken.push(range);
            }
            assert_ne!(
                machine.read_word(function.address, header::COMMAND) & command::MEMORY,
                0
            );
        }
        assert_eq!(taken.len(), 5);
    }

    /// A host bridge beside the first for each of `roots`, and behind each of all these two bridges and an endpoint, as
    /// firmware leaves them that does nothing.
    fn root_buses(roots: &[u8]) -> FakeConfig {
        let mut machine = FakeConfig::new();
        for device in 0..=roots.len() as u8 {
            machine.endpoint(at(0, device), &[]);
            machine.force(at(0, device), header::CLASS, 0x0600_0000);
        }
        for &root in [0].iter().chain(roots) {
            machine.bridge(at(root, 10), 0);
            machine.bridge(at(root, 11), 0);
            machine.endpoint(at(root + 2, 0), &[(1, 0x1000), (4, 0x4000)]);
            machine.hide(root + 2, at(root, 11));
        }
        machine
    }

    #[test]
    fn each_root_bus_has_numbers_of_its_own() {
        // By name, by what answers, and with a name for what is not there.
        for named in [&[0x80, 0x20][..], &[0x80], &[], &[0x40, 0x80]] {
            let mut machine = root_buses(&[0x20, 0x80]);
            let found = scan::all(&machine, named);
            assert_eq!(found.len(), 9, "{named:x?}");
            let functions = complete(&mut machine, found, resources);
            assert_eq!(functions.len(), 12, "{named:x?}");
            for root in [0, 0x20, 0x80] {
                assert_eq!(machine.buses(at(root, 10)), [root, root + 1, root + 1]);
                assert_eq!(machine.buses(at(root, 11)), [root, root + 2, root + 2]);
            }
            for function in &functions {
                for bar in bar::read(&mut machine, function) {
                    assert_ne!(bar.address, 0, "{}", function.address);
                }
            }
        }
    }

    #[test]
    fn a_root_bus_without_a_host_bridge_is_not_looked_for() {
        let mut machine = root_buses(&[]);
        machine.endpoint(at(0x80, 0), &[]);
        let found = scan::all(&machine, &[]);
        assert!(found.iter().all(|function| function.address.bus == 0));
    }

    #[test]
    fn a_root_bus_takes_no_numbers_of_the_next() {
        let mut machine = FakeConfig::new();
        for device in 0..2 {
            machine.endpoint(at(0, device), &[]);
            machine.force(at(0, device), header::CLASS, 0x0600_0000);
        }
        for root in [0, 2] {
            machine.bridge(at(root, 10), 0);
            machine.bridge(at(root, 11), 0);
        }
        let found = scan::all(&machine, &[2]);
        complete(&mut machine, found, resources);
        // One number is left for two bridges.
        assert_eq!(machine.buses(at(0, 10)), [0, 1, 1]);
        assert_eq!(machine.buses(at(0, 11)), [0, 0, 0]);
        assert_eq!(machine.buses(at(2, 10)), [2, 3, 3]);
        assert_eq!(machine.buses(at(2, 11)), [2, 4, 4]);
    }

    #[test]
    fn what_the_firmware_did_is_left_alone() {
        let mut machine = FakeConfig::new();
        machine.endpoint(at(0, 1), &[(1, 0x1000)]);
        machine.write_word(at(0, 1), 0x14, 0xfebc_0000);
        machine.write_word(at(0, 1), header::COMMAND, command::MEMORY);
        let found = scan::all(&machine, &[]);
        let functions = complete(&mut machine, found, || panic!("nothing is missing"));
        assert_eq!(machine.read_word(at(0, 1), 0x14), 0xfebc_0000);
        assert_eq!(functions.len(), 1);
    }

    #[test]
    fn bridges_that_lead_back_or_nowhere_end_the_walk() {
        let mut machine = FakeConfig::new();
        machine.bridge(at(0, 0), 0);
        machine.bridge(at(0, 1), 1);
        machine.bridge(at(1, 0), 1);
        machine.bridge(at(1, 1), 2);
        machine.bridge(at(2, 0), 1);
        machine.bridge(at(2, 1), 200);
        // All of them on one bus lead to the same next bus, seven buses deep.
        for bus in 10..17 {
            (0..32).for_each(|device| machine.bridge(at(bus, device), u32::from(bus) + 1));
        }
        machine.bridge(at(0, 2), 10);
        assert!(run(&mut machine).len() > 200);
    }

    #[test]
    fn bridges_that_keep_no_bus_number_end_the_numbering() {
        let mut machine = FakeConfig::new();
        // The same stubborn bridge wherever one looks.
        machine.everywhere = Some(0);
        run(&mut machine);
    }

    #[test]
    fn any_configuration_space_is_survived() {
        let mut state = 1_u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 32) as u32
        };
        for _ in 0..200 {
            let mut machine = FakeConfig::new();
            for bus in 0..4 {
                for device in 0..8 {
                    let registers = core::array::from_fn(|_| random());
                    let writable = core::array::from_fn(|_| random());
                    machine.insert(at(bus, device), registers, writable);
                    // A header type that is looked into, and a bus number near by, more often than chance would.
                    machine.force(at(bus, device), header::HEADER_TYPE, (random() & 1) << 16);
                    machine.force(at(bus, device), header::BUS_NUMBERS, (random() & 7) << 8);
                }
            }
            for function in run(&mut machine) {
                for capability in super::super::capability::list(&machine, function.address) {
                    assert!(!std::format!("{capability}").is_empty());
                }
            }
        }
    }

    /// Configuration space in memory.
    struct FakeConfig {
        functions: std::collections::HashMap<(u8, u8, u8), Registers>,
        /// A bridge to this bus at every address, which keeps nothing that is written.
        everywhere: Option<u8>,
        /// Buses, each with the bridge to it.
        hidden: Vec<(u8, DeviceFunction)>,
    }

    struct Registers {
        values: [u32; 64],
        /// Bits that a write changes.
        writable: [u32; 64],
    }

    impl FakeConfig {
        fn new() -> Self {
            Self {
                functions: std::collections::HashMap::new(),
                everywhere: None,
                hidden: Vec::new(),
            }
        }

        fn insert(&mut self, at: DeviceFunction, values: [u32; 64], writable: [u32; 64]) {
            self.functions.insert(
                (at.bus, at.device, at.function),
                Registers { values, writable },
            );
        }

        fn force(&mut self, at: DeviceFunction, register: u8, value: u32) {
            self.functions
                .get_mut(&(at.bus, at.device, at.function))
                .unwrap()
                .values[usize::from(register) / 4] = value;
        }

        /// An endpoint with memory BARs (index, size), none of which has an address; those of index 4 are 64 bits wide.
        fn endpoint(&mut self, at: DeviceFunction, bars: &[(usize, u32)]) {
            let (mut values, mut writable) = ([0; 64], [0; 64]);
            values[0] = 0x1041_1af4;
            writable[1] = 0xffff;
            for &(index, size) in bars {
                writable[4 + index] = !(size - 1);
                if index == 4 {
                    values[4 + index] = 0b1100;
                    writable[5 + index] = u32::MAX;
                }
            }
            self.insert(at, values, writable);
        }

        fn bridge(&mut self, at: DeviceFunction, secondary: u32) {
            let (mut values, mut writable) = ([0; 64], [0; 64]);
            values[0] = 0x000c_1b36;
            values[3] = 1 << 16;
            values[6] = secondary << 8;
            writable[1] = 0xffff;
            writable[6] = u32::MAX;
            writable[8] = 0xfff0_fff0;
            writable[9] = 0xfff0_fff0;
            self.insert(at, values, writable);
        }

        /// Nothing on a bus answers before a bridge leads there.
        fn hide(&mut self, bus: u8, bridge: DeviceFunction) {
            self.hidden.push((bus, bridge));
        }

        fn buses(&self, bridge: DeviceFunction) -> [u8; 3] {
            *self
                .read_word(bridge, header::BUS_NUMBERS)
                .to_le_bytes()
                .first_chunk()
                .unwrap()
        }

        fn window(&self, bridge: DeviceFunction) -> Range<u64> {
            let window = self.read_word(bridge, MEMORY_WINDOW);
            u64::from(window & 0xfff0) << 16..u64::from(window & 0xfff0_0000) + BRIDGE_UNIT
        }
    }

    impl ConfigurationAccess for FakeConfig {
        fn read_word(&self, at: DeviceFunction, register: u8) -> u32 {
            if let Some(bus) = self.everywhere {
                return match register {
                    0 => 0x000c_1b36,
                    header::HEADER_TYPE => 1 << 16,
                    header::BUS_NUMBERS => u32::from(bus) << 8,
                    _ => 0,
                };
            }
            let bridge = self.hidden.iter().find(|(bus, _)| *bus == at.bus);
            if let Some((bus, bridge)) = bridge
                && self.buses(*bridge)[1] != *bus
            {
                return u32::MAX;
            }
            let found = self.functions.get(&(at.bus, at.device, at.function));
            found.map_or(u32::MAX, |found| found.values[usize::from(register) / 4])
        }

        fn write_word(&mut self, at: DeviceFunction, register: u8, data: u32) {
            if let Some(found) = self.functions.get_mut(&(at.bus, at.device, at.function)) {
                let (index, writable) = (
                    usize::from(register) / 4,
                    found.writable[usize::from(register) / 4],
                );
                found.values[index] = found.values[index] & !writable | data & writable;
            }
        }

        #[allow(unsafe_code)]
        unsafe fn unsafe_clone(&self) -> Self {
            unreachable!("nothing here clones it")
        }
    }
}
