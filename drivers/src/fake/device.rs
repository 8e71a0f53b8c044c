//! [`FakeDevice`]: what every virtio device has, around a [`DeviceModel`] that says what this one does.

use std::boxed::Box;
use std::collections::VecDeque;
use std::fmt;
use std::format;
use std::string::String;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use super::fault::Fault;
use super::memory::Memory;
use super::queue::{DeviceQueue, Request};
use super::random::Random;
use super::transport::FakeTransport;
use crate::device::{DeviceId, DeviceName, Location};
use crate::features::RingFeatures;
use crate::transport::{InterruptCauses, QueueAddresses, Status};

/// What a device of some type does.
pub trait DeviceModel: Send + 'static {
    /// Its type.
    fn id(&self) -> DeviceId;
    /// The feature bits of its type that it offers. Those of the ring are [`FakeDevice`]'s.
    fn features(&self) -> u64;
    /// The largest size of each of its queues.
    fn queue_sizes(&self) -> Vec<u16>;
    /// Its configuration.
    fn config(&self) -> Vec<u8>;
    /// The driver writes to its configuration.
    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        let _ = (offset, bytes);
    }
    /// The driver agreed on `features`.
    fn negotiated(&mut self, features: u64) {
        let _ = features;
    }
    /// The driver reset the device.
    fn reset(&mut self) {}
    /// There may be something to do on `queue`.
    fn process(&mut self, queue: u16, queues: &mut Queues<'_>);
}

/// When a device works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Before a notification returns.
    OnNotify,
    /// When [`FakeDevice::pump`], [`FakeDevice::pump_notified`] or [`FakeDevice::complete`] is called.
    Manual,
}

/// In which order a device returns the requests of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As it took them.
    InOrder,
    /// Shuffled by this seed.
    Shuffled(u64),
}

/// An interrupt that a device sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// The device configuration changed.
    Config,
    /// This queue has used buffers.
    Queue(u16),
}

/// What is done when a device interrupts.
type Handler = Box<dyn FnMut(Interrupt) + Send>;

/// A device, shared between its transport and the test. Clones are the same device.
pub struct FakeDevice<M> {
    core: Arc<Mutex<Core<M>>>,
    handler: Arc<Mutex<Option<Handler>>>,
}

impl<M> Clone for FakeDevice<M> {
    fn clone(&self) -> Self {
        Self {
            core: self.core.clone(),
            handler: self.handler.clone(),
        }
    }
}

impl<M> fmt::Debug for FakeDevice<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeDevice").finish_non_exhaustive()
    }
}

/// The model, and all that is not its business.
pub(super) struct Core<M> {
    pub(super) model: M,
    pub(super) common: Common,
}

/// The registers of a device, and how it behaves.
pub(super) struct Common {
    pub(super) name: DeviceName,
    memory: Memory,
    ring_features: u64,
    status: u8,
    /// How often the driver read it.
    status_reads: u64,
    driver_features: u64,
    pub(super) generation: u32,
    causes: u8,
    queues: Vec<QueueState>,
    pace: Pace,
    order: Order,
    random: Random,
    faults: Vec<Fault>,
    interrupts: Vec<Interrupt>,
    needs_reset: bool,
}

#[derive(Default)]
struct QueueState {
    /// What the driver wrote for it, once it is enabled.
    ring: Option<DeviceQueue>,
    /// Requests that the model is done with and the driver does not know of yet.
    done: VecDeque<(Request, u32)>,
    notified: bool,
    notifications: u64,
    needless: u64,
    interrupts: u64,
    asks_for_notifications: Option<bool>,
}

static NEXT_DEVICE: AtomicU64 = AtomicU64::new(0);

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: DeviceModel> FakeDevice<M> {
    /// A device that does what `model` says, on the memory of this thread. It offers INDIRECT_DESC, EVENT_IDX and
    /// VERSION_1 besides the model's features.
    pub fn new(model: M) -> Self {
        let name = DeviceName {
            id: model.id(),
            location: Location::Other(NEXT_DEVICE.fetch_add(1, Ordering::Relaxed)),
        };
        let ring = RingFeatures::INDIRECT_DESC | RingFeatures::EVENT_IDX | RingFeatures::VERSION_1;
        let mut queues = Vec::new();
        queues.resize_with(model.queue_sizes().len(), QueueState::default);
        let common = Common {
            name,
            memory: Memory::current(),
            ring_features: ring.bits(),
            status: 0,
            status_reads: 0,
            driver_features: 0,
            generation: 0,
            causes: 0,
            queues,
            pace: Pace::OnNotify,
            order: Order::InOrder,
            random: Random::new(0),
            faults: Vec::new(),
            interrupts: Vec::new(),
            needs_reset: false,
        };
        Self {
            core: Arc::new(Mutex::new(Core { model, common })),
            handler: Arc::new(Mutex::new(None)),
        }
    }

    /// A way to reach the device without a bus.
    pub fn transport(&self) -> FakeTransport<M> {
        FakeTransport::new(self.clone())
    }

    /// Its type and place.
    pub fn name(&self) -> DeviceName {
        self.with_core(|core| core.common.name)
    }

    /// The memory that it works on.
    pub fn memory(&self) -> Memory {
        self.with_core(|core| core.common.memory.clone())
    }

    /// Offers these features of ring and transport, and VERSION_1 only if it is among them.
    pub fn offer(&self, features: RingFeatures) {
        self.with_core(|core| core.common.ring_features = features.bits());
    }

    /// Sets when the device works.
    pub fn set_pace(&self, pace: Pace) {
        self.with_core(|core| core.common.pace = pace);
    }

    /// Sets in which order it returns requests.
    pub fn set_order(&self, order: Order) {
        self.with_core(|core| {
            core.common.order = order;
            if let Order::Shuffled(seed) = order {
                core.common.random = Random::new(seed);
            }
        });
    }

    /// Whether the device asks to be notified of new requests; it does unless this says otherwise.
    pub fn set_notifications(&self, queue: u16, wanted: bool) {
        self.with_core(|core| {
            if let Some(state) = core.common.queues.get_mut(usize::from(queue)) {
                state.asks_for_notifications = Some(wanted);
                if let Some(ring) = &mut state.ring {
                    ring.set_notifications(wanted);
                }
            }
        });
    }

    /// Makes the device misbehave.
    pub fn inject(&self, fault: Fault) {
        self.with_core(|core| core.common.inject(fault));
    }

    /// Ends all misbehaviour that lasts.
    pub fn heal(&self) {
        self.with_core(|core| core.common.faults.clear());
    }

    /// Calls `handler` at each interrupt, when the device is done with its work and not locked.
    pub fn on_interrupt(&self, handler: impl FnMut(Interrupt) + Send + 'static) {
        *lock(&self.handler) = Some(Box::new(handler));
    }

    /// Looks at the model, or changes it. The driver is not told.
    pub fn with<T>(&self, f: impl FnOnce(&mut M) -> T) -> T {
        self.with_core(|core| f(&mut core.model))
    }

    /// Changes the model in a way that changes the device configuration, and tells the driver.
    pub fn change_config<T>(&self, f: impl FnOnce(&mut M) -> T) -> T {
        self.with_core(|core| {
            let result = f(&mut core.model);
            core.common.config_changed();
            result
        })
    }

    /// Has the device look at all its queues and return all that it is done with.
    pub fn pump(&self) {
        self.with_core(|core| core.run(|_| true));
    }

    /// As [`Self::pump`] for those queues that were notified since: a device that sleeps otherwise. Says whether there
    /// were any.
    pub fn pump_notified(&self) -> bool {
        self.with_core(|core| {
            let any = core.common.queues.iter().any(|queue| queue.notified);
            core.run(|queue| queue.notified);
            any
        })
    }

    /// Has the device look at `queue` and return at most `limit` requests. Says how many it holds back.
    pub fn complete(&self, queue: u16, limit: usize) -> usize {
        self.with_core(|core| {
            core.process(queue);
            core.common.flush(queue, limit);
            let state = core.common.queues.get(usize::from(queue));
            state.map_or(0, |state| state.done.len())
        })
    }

    /// Has the device say at once that it used request `id` of `queue` and wrote `len` bytes, whether it has it or not.
    pub fn claim_used(&self, queue: u16, id: u32, len: u32) {
        self.with_core(|core| {
            let state = core.common.queues.get_mut(usize::from(queue));
            if let Some(ring) = state.and_then(|state| state.ring.as_mut()) {
                ring.lie();
                ring.push_raw(id, len);
            }
        });
    }

    /// Requests of `queue` that the device has seen and not returned.
    pub fn requests(&self, queue: u16) -> usize {
        self.with_queue(queue, |state| {
            state.ring.as_ref().map_or(0, DeviceQueue::requests)
        })
    }

    /// How often `queue` was notified.
    pub fn notifications(&self, queue: u16) -> u64 {
        self.with_queue(queue, |state| state.notifications)
    }

    /// How often `queue` was notified with nothing new in it.
    pub fn needless_notifications(&self, queue: u16) -> u64 {
        self.with_queue(queue, |state| state.needless)
    }

    /// How often `queue` interrupted.
    pub fn interrupts(&self, queue: u16) -> u64 {
        self.with_queue(queue, |state| state.interrupts)
    }

    fn with_queue<T: Default>(&self, queue: u16, f: impl FnOnce(&QueueState) -> T) -> T {
        self.with_core(|core| {
            let state = core.common.queues.get(usize::from(queue));
            state.map_or_else(T::default, f)
        })
    }

    /// The features that the driver accepted.
    pub fn driver_features(&self) -> u64 {
        self.with_core(|core| core.common.driver_features)
    }

    /// The device status.
    pub fn status(&self) -> Status {
        self.with_core(|core| Status::from_bits_retain(core.common.status))
    }

    /// How often the driver read the device status: what it does while it waits for the device.
    pub fn status_reads(&self) -> u64 {
        self.with_core(|core| core.common.status_reads)
    }

    /// Locks the device, then delivers the interrupts that came of it.
    pub(super) fn with_core<T>(&self, f: impl FnOnce(&mut Core<M>) -> T) -> T {
        let mut core = lock(&self.core);
        let result = f(&mut core);
        let interrupts = std::mem::take(&mut core.common.interrupts);
        drop(core);
        for interrupt in interrupts {
            if let Some(handler) = &mut *lock(&self.handler) {
                handler(interrupt);
            }
        }
        result
    }
}

impl<M: DeviceModel> Core<M> {
    /// Everything the device offers.
    pub(super) fn features(&self) -> u64 {
        self.model.features() | self.common.ring_features
    }

    pub(super) fn status(&mut self) -> u8 {
        self.common.status_reads += 1;
        self.common.status
    }

    /// The driver writes the device status (spec 2.1, 3.1.1).
    pub(super) fn set_status(&mut self, new: u8) {
        let common = &mut self.common;
        let old = common.status;
        if common.has(Fault::Gone) {
            return;
        }
        if new == 0 {
            if !common.has(Fault::ResetNeverEnds) {
                common.reset();
                self.model.reset();
            }
            return;
        }
        let old_status = Status::from_bits_retain(old);
        let status = Status::from_bits_retain(new);
        if old & !new & !Status::DEVICE_NEEDS_RESET.bits() != 0 {
            common.violation(format!("status bits cleared: {old:#x} to {new:#x}"));
        }
        for (bit, needs) in [
            (Status::DRIVER, Status::ACKNOWLEDGE),
            (Status::FEATURES_OK, Status::DRIVER),
            (Status::DRIVER_OK, Status::FEATURES_OK),
        ] {
            if status.contains(bit) && !status.contains(needs) {
                common.violation(format!("status {status:?} without {needs:?}"));
            }
        }
        let added = status - old_status;
        if added.contains(Status::DRIVER_OK) && old_status.contains(Status::FAILED) {
            common.violation("DRIVER_OK after FAILED without a reset");
        }
        common.status = new | (old & Status::DEVICE_NEEDS_RESET.bits());
        if added.contains(Status::FEATURES_OK) {
            self.agree_on_features();
        } else if added.contains(Status::DRIVER_OK) {
            if !old_status.contains(Status::FEATURES_OK) {
                common.violation("DRIVER_OK without having seen FEATURES_OK");
            }
            if common.has(Fault::NeedsReset) {
                common.needs_reset();
            }
        }
    }

    /// Spec 3.1.1 step 5: keep FEATURES_OK, or not.
    fn agree_on_features(&mut self) {
        let offered = self.features();
        let common = &mut self.common;
        let accepted = common.driver_features;
        let mut fine = !common.has(Fault::FeaturesRefused);
        if accepted & !offered != 0 {
            let unknown = accepted & !offered;
            common.violation(format!(
                "features accepted that are not offered: {unknown:#x}"
            ));
            fine = false;
        }
        let must = RingFeatures::VERSION_1 | RingFeatures::ACCESS_PLATFORM;
        if offered & must.bits() & !accepted != 0 {
            common.violation("VERSION_1 or ACCESS_PLATFORM offered and not accepted");
            fine = false;
        }
        if fine {
            self.model.negotiated(accepted);
        } else {
            common.status &= !Status::FEATURES_OK.bits();
        }
    }

    pub(super) fn set_driver_features(&mut self, features: u64) {
        let common = &mut self.common;
        if common.has_status(Status::FEATURES_OK) {
            common.violation("features changed after FEATURES_OK");
            return;
        }
        common.driver_features = features;
    }

    pub(super) fn queue_count(&self) -> u16 {
        self.common.queues.len() as u16
    }

    /// The largest size of a queue; 0 if there is none.
    pub(super) fn queue_max_size(&self, queue: u16) -> u16 {
        let lied = self.common.faults.iter().find_map(|fault| match *fault {
            Fault::QueueSize { queue: of, size } if of == queue => Some(size),
            _ => None,
        });
        let sizes = self.model.queue_sizes();
        let size = sizes.get(usize::from(queue)).copied().unwrap_or(0);
        lied.unwrap_or(size)
    }

    pub(super) fn queue_enabled(&self, queue: u16) -> bool {
        let state = self.common.queues.get(usize::from(queue));
        state.is_some_and(|state| state.ring.is_some())
    }

    /// `queue_notify_off` of a queue (PCI).
    pub(super) fn notify_offset(&self, queue: u16) -> u16 {
        let lied = self.common.faults.iter().find_map(|fault| match *fault {
            Fault::NotifyOffset(offset) => Some(offset),
            _ => None,
        });
        lied.unwrap_or(queue)
    }

    /// The driver turns a queue on.
    pub(super) fn enable_queue(&mut self, queue: u16, addresses: QueueAddresses) {
        let max = self.queue_max_size(queue);
        let common = &mut self.common;
        if !common.has_status(Status::FEATURES_OK) || common.has_status(Status::DRIVER_OK) {
            common.violation("queue set up before FEATURES_OK or after DRIVER_OK");
        }
        if addresses.size == 0 || addresses.size > max {
            let size = addresses.size;
            common.violation(format!(
                "queue {queue} of {size} descriptors, at most {max}"
            ));
            return;
        }
        let memory = common.memory.clone();
        let name = format!("{}: queue {queue}", common.name);
        let features = common.driver_features;
        let Some(state) = common.queues.get_mut(usize::from(queue)) else {
            common.violation(format!("there is no queue {queue}"));
            return;
        };
        if state.ring.is_some() {
            common.violation(format!("queue {queue} set up twice"));
            return;
        }
        let mut ring = DeviceQueue::new(memory, name, addresses, features);
        if state.asks_for_notifications == Some(false) {
            ring.set_notifications(false);
        }
        state.ring = Some(ring);
    }

    /// The driver turns a queue off again (MMIO).
    pub(super) fn disable_queue(&mut self, queue: u16) {
        if let Some(state) = self.common.queues.get_mut(usize::from(queue)) {
            state.ring = None;
        }
    }

    /// The driver says that there is something new on `queue`.
    pub(super) fn notify(&mut self, queue: u16) {
        let common = &mut self.common;
        if !common.has_status(Status::DRIVER_OK) {
            common.violation(format!("queue {queue} notified before DRIVER_OK"));
        }
        let Some(state) = common.queues.get_mut(usize::from(queue)) else {
            common.violation(format!("there is no queue {queue} to notify"));
            return;
        };
        let Some(ring) = &mut state.ring else {
            common.violation(format!("queue {queue} notified and not set up"));
            return;
        };
        state.notified = true;
        state.notifications += 1;
        if ring.available() == 0 {
            state.needless += 1;
        }
        if common.pace == Pace::OnNotify {
            self.run(|queue| queue.notified);
        }
    }

    /// Looks at the queues that `which` says and returns all that is done, of all queues.
    fn run(&mut self, which: impl Fn(&QueueState) -> bool) {
        for queue in 0..self.queue_count() {
            if self
                .common
                .queues
                .get(usize::from(queue))
                .is_some_and(&which)
            {
                self.process(queue);
            }
        }
        for queue in 0..self.queue_count() {
            self.common.flush(queue, usize::MAX);
        }
    }

    /// Has the model look at one queue until there is nothing new, then asks for notifications again.
    fn process(&mut self, queue: u16) {
        let Self { model, common } = self;
        loop {
            if !common.works() {
                return;
            }
            let Some(state) = common.queues.get_mut(usize::from(queue)) else {
                return;
            };
            state.notified = false;
            if state.ring.is_none() {
                return;
            }
            let before = common.available(queue);
            let taken = common.taken(queue);
            model.process(queue, &mut Queues { common });
            let idle = before > 0 && common.taken(queue) == taken;
            // Something may have come between looking and asking; what the model leaves on purpose is not that.
            if common.ask_for_notifications(queue) == 0 || idle {
                return;
            }
        }
    }

    pub(super) fn config_generation(&mut self) -> u32 {
        if self.common.has(Fault::ConfigNeverSettles) {
            self.common.generation = self.common.generation.wrapping_add(1);
        }
        self.common.generation
    }

    /// All bytes of the device configuration, for one access.
    pub(super) fn config(&self) -> Vec<u8> {
        self.model.config()
    }

    pub(super) fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        if !self.common.has_status(Status::FEATURES_OK) {
            self.common
                .violation("configuration written before FEATURES_OK");
        }
        self.model.write_config(offset, bytes);
    }

    pub(super) fn take_causes(&mut self) -> InterruptCauses {
        InterruptCauses::from_bits_truncate(std::mem::take(&mut self.common.causes))
    }

    /// Why the device interrupts, until [`Self::acknowledge`] (MMIO).
    pub(super) fn causes(&self) -> u8 {
        self.common.causes
    }

    pub(super) fn acknowledge(&mut self, causes: u8) {
        self.common.causes &= !causes;
    }
}

impl Common {
    pub(super) fn violation(&self, what: impl Into<String>) {
        self.memory
            .report(format!("{}: {}", self.name, what.into()));
    }

    pub(super) fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    fn has_status(&self, status: Status) -> bool {
        Status::from_bits_retain(self.status).contains(status)
    }

    /// Whether the device touches its queues at all.
    fn works(&self) -> bool {
        self.has_status(Status::DRIVER_OK) && !self.needs_reset && !self.has(Fault::Gone)
    }

    fn inject(&mut self, fault: Fault) {
        self.faults.push(fault);
        if fault == Fault::NeedsReset && self.has_status(Status::DRIVER_OK) {
            self.needs_reset();
        }
        if let Fault::Noise(seed) = fault {
            self.random = Random::new(seed);
        }
    }

    fn needs_reset(&mut self) {
        self.needs_reset = true;
        self.status |= Status::DEVICE_NEEDS_RESET.bits();
        self.causes |= InterruptCauses::CONFIG.bits();
        self.interrupts.push(Interrupt::Config);
    }

    fn config_changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.has_status(Status::DRIVER_OK) {
            self.causes |= InterruptCauses::CONFIG.bits();
            self.interrupts.push(Interrupt::Config);
        }
    }

    fn reset(&mut self) {
        self.status = 0;
        self.driver_features = 0;
        self.causes = 0;
        self.needs_reset = false;
        for queue in &mut self.queues {
            queue.ring = None;
            queue.done.clear();
            queue.notified = false;
        }
    }

    fn available(&mut self, queue: u16) -> u16 {
        let state = self.queues.get_mut(usize::from(queue));
        let ring = state.and_then(|state| state.ring.as_mut());
        ring.map_or(0, DeviceQueue::available)
    }

    fn taken(&self, queue: u16) -> u16 {
        let state = self.queues.get(usize::from(queue));
        let ring = state.and_then(|state| state.ring.as_ref());
        ring.map_or(0, DeviceQueue::taken)
    }

    /// Asks for notifications of `queue` and says how much there is in it then.
    fn ask_for_notifications(&mut self, queue: u16) -> u16 {
        let Some(state) = self.queues.get_mut(usize::from(queue)) else {
            return 0;
        };
        if let Some(ring) = &mut state.ring {
            ring.set_notifications(state.asks_for_notifications.unwrap_or(true));
        }
        self.available(queue)
    }

    /// Returns up to `limit` of the requests that the model is done with, and interrupts if the driver wants it.
    fn flush(&mut self, queue: u16, limit: usize) {
        for _ in 0..limit {
            let Some(state) = self.queues.get_mut(usize::from(queue)) else {
                return;
            };
            let next = match self.order {
                Order::InOrder => state.done.pop_front(),
                Order::Shuffled(_) => {
                    let position = self.random.below(state.done.len());
                    state.done.swap_remove_back(position)
                }
            };
            let Some((request, written)) = next else {
                break;
            };
            self.give_back(queue, request, written);
        }
        let Some(state) = self.queues.get_mut(usize::from(queue)) else {
            return;
        };
        if state
            .ring
            .as_mut()
            .is_some_and(DeviceQueue::interrupt_wanted)
        {
            state.interrupts += 1;
            self.causes |= InterruptCauses::QUEUE.bits();
            self.interrupts.push(Interrupt::Queue(queue));
        }
    }

    /// Returns one request, in the way that the faults say.
    fn give_back(&mut self, queue: u16, request: Request, written: u32) {
        let state = self.queues.get_mut(usize::from(queue));
        let Some(ring) = state.and_then(|state| state.ring.as_mut()) else {
            return;
        };
        let once = self.faults.iter().position(|fault| fault.is_once());
        let once = once.map(|position| self.faults.remove(position));
        let noise = self
            .faults
            .iter()
            .any(|fault| matches!(fault, Fault::Noise(_)));
        if noise {
            ring.make_noise(&mut self.random);
            return;
        }
        let head = u32::from(request.head());
        match once {
            None => ring.push(request, written),
            Some(Fault::UsedId(id)) => ring.push_raw(id, written),
            Some(Fault::UsedIdNotInFlight) => {
                let free = (0..ring.size()).find(|index| !ring.owns(*index));
                ring.push_raw(free.map_or(u32::MAX, u32::from), written);
            }
            Some(Fault::UsedTwice) => {
                ring.push(request, written);
                ring.push_raw(head, written);
            }
            Some(Fault::UsedLength(len)) => ring.push(request, len),
            Some(Fault::UsedIndexAhead(by)) => {
                ring.push(request, written);
                ring.set_used_index(ring.used_index().wrapping_add(by));
            }
            Some(Fault::UsedIndexBack(by)) => {
                ring.set_used_index(ring.used_index().wrapping_sub(by));
            }
            // The others do not come with a completion.
            Some(_) => {}
        }
    }
}

/// The queues of a device, for its model.
pub struct Queues<'a> {
    common: &'a mut Common,
}

impl Queues<'_> {
    /// Takes the next request of `queue`. A silent device keeps it to itself.
    pub fn pop(&mut self, queue: u16) -> Option<Request> {
        loop {
            let state = self.common.queues.get_mut(usize::from(queue))?;
            let request = state.ring.as_mut()?.pop()?;
            if !self.common.has(Fault::Silent) {
                return Some(request);
            }
        }
    }

    /// Gives a request of `queue` back, of whose writable bytes the first `written` were written.
    pub fn push(&mut self, queue: u16, request: Request, written: u32) {
        if let Some(state) = self.common.queues.get_mut(usize::from(queue)) {
            state.done.push_back((request, written));
        }
    }

    /// Tells the driver that the device configuration changed.
    pub fn config_changed(&mut self) {
        self.common.config_changed();
    }

    /// The features that were agreed on.
    pub fn features(&self) -> u64 {
        self.common.driver_features
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Memory {
        &self.common.memory
    }

    /// Notes that the driver broke a rule of the device type.
    pub fn violation(&self, what: impl Into<String>) {
        self.common.violation(what);
    }
}
