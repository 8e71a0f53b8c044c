//! The asynchronous face, over the block device and a RAM disk.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::slice::from_ref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};

use vringlet::asynchronous::Asynchronous;
use vringlet::authoring::queue::{Ready, Rejected};
use vringlet::blk::{Blk, Control, Options, Request};
use vringlet::fake::{
    FakeBlk, FakeDevice, FakeTransport, Fault, Interrupt, Memory, Order, Pace, Random,
};
use vringlet::features::RingFeatures;
use vringlet::{Buffer, Cause, Driver, Error, Finished, Report, Token};

type Disk = Asynchronous<Blk<FakeTransport<FakeBlk>>>;

/// Whether and how often somebody was woken.
#[derive(Default)]
struct Alarm {
    rung: AtomicBool,
    times: AtomicU64,
}

impl Alarm {
    fn take(&self) -> bool {
        self.rung.swap(false, Ordering::Relaxed)
    }

    fn times(&self) -> u64 {
        self.times.load(Ordering::Relaxed)
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Ordering::Relaxed);
        self.times.fetch_add(1, Ordering::Relaxed);
    }
}

/// A future with who is woken for it.
struct Task<'a, T> {
    future: Pin<Box<dyn Future<Output = T> + 'a>>,
    alarm: Arc<Alarm>,
}

impl<'a, T> Task<'a, T> {
    fn new(future: impl Future<Output = T> + 'a) -> Self {
        let alarm = Arc::new(Alarm::default());
        alarm.rung.store(true, Ordering::Relaxed);
        let future = Box::pin(future);
        Self { future, alarm }
    }

    fn poll(&mut self) -> Poll<T> {
        let waker = Waker::from(self.alarm.clone());
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    /// Polls if woken, as an executor does.
    fn run(&mut self) -> Poll<T> {
        match self.alarm.take() {
            true => self.poll(),
            false => Poll::Pending,
        }
    }
}

/// Runs tasks, the first of which is the owner and never ends, round after round as embassy's executor does. Whenever no
/// task is ready, `idle` is called, which must make one so.
fn run(mut tasks: Vec<Task<'_, ()>>, mut idle: impl FnMut()) {
    while tasks.len() > 1 {
        let ready: Vec<bool> = tasks.iter().map(|task| task.alarm.take()).collect();
        if !ready.contains(&true) {
            idle();
            let woken = tasks
                .iter()
                .any(|task| task.alarm.rung.load(Ordering::Relaxed));
            assert!(woken, "{} tasks sleep for ever", tasks.len() - 1);
        }
        let mut ready = ready.into_iter();
        tasks.retain_mut(|task| match ready.next() {
            Some(true) => task.poll().is_pending(),
            _ => true,
        });
    }
}

/// A disk and the interrupts that it sent.
struct Machine {
    device: FakeDevice<FakeBlk>,
    disk: Disk,
    interrupts: mpsc::Receiver<Interrupt>,
    /// Woken by an interrupt.
    interrupted: Arc<SharedWaker>,
}

/// The waker of the task that waits for interrupts.
#[derive(Default)]
struct SharedWaker(std::sync::Mutex<Option<Waker>>);

fn machine(model: FakeBlk, options: Options) -> Machine {
    let device = FakeDevice::new(model);
    let blk = Blk::new(device.transport(), options).expect("an honest device");
    let (sender, interrupts) = mpsc::channel();
    let interrupted = Arc::new(SharedWaker::default());
    let wakes = interrupted.clone();
    device.on_interrupt(move |interrupt| {
        sender.send(interrupt).expect("a receiver");
        if let Some(waker) = wakes.0.lock().expect("no panic").take() {
            waker.wake();
        }
    });
    Machine {
        device,
        disk: Asynchronous::new(blk),
        interrupts,
        interrupted,
    }
}

impl Machine {
    /// The owner's task, as a kernel would write it.
    async fn own(&self) {
        let look = |context: &mut Context<'_>| {
            *self.interrupted.0.lock().expect("no panic") = Some(context.waker().clone());
            match self.interrupts.try_iter().count() {
                0 => Poll::Pending,
                _ => Poll::Ready(()),
            }
        };
        let error = self.disk.serve(async || poll_fn(look).await).await;
        panic!("{error}");
    }

    fn process(&self) {
        self.disk.process().expect("an honest ring");
    }
}

fn buffer(len: usize) -> Buffer {
    Buffer::zeroed(len).expect("memory")
}

fn small_queue(queue_size: u16) -> Options {
    Options {
        queue_size,
        ..Options::default()
    }
}

#[test]
fn tasks_beyond_the_queue_s_size_all_get_their_own_data() {
    for (declined, pace) in [
        (RingFeatures::empty(), Pace::OnNotify),
        (RingFeatures::empty(), Pace::Manual),
        (RingFeatures::EVENT_IDX, Pace::Manual),
        (RingFeatures::INDIRECT_DESC, Pace::Manual),
        (RingFeatures::all(), Pace::OnNotify),
    ] {
        let memory = Memory::fresh();
        let declined = declined & (RingFeatures::EVENT_IDX | RingFeatures::INDIRECT_DESC);
        let mut model = FakeBlk::new(256);
        Random::new(1).fill(&mut model.disk);
        let expected = model.disk.clone();
        let options = Options {
            queue_size: 8,
            declined: declined.bits(),
        };
        let machine = machine(model, options);
        machine.device.set_pace(pace);
        machine.device.set_order(Order::Shuffled(5));
        let done = RefCell::new(0);
        let mut tasks = vec![Task::new(machine.own())];
        for task in 0..40u64 {
            let (disk, done, expected) = (&machine.disk, &done, &expected);
            tasks.push(Task::new(async move {
                let mut random = Random::new(task);
                for _ in 0..20 {
                    let sector = random.below(256);
                    let read = disk.read(sector as u64, buffer(512)).await.expect("done");
                    assert_eq!(*read, expected[sector * 512..][..512]);
                    *done.borrow_mut() += 1;
                }
            }));
        }
        run(tasks, || machine.device.pump());
        assert_eq!(done.into_inner(), 40 * 20);
        drop(machine);
        memory.assert_clean();
    }
}

#[test]
fn what_is_submitted_in_one_round_shares_a_kick() {
    let memory = Memory::fresh();
    let machine = machine(FakeBlk::new(64), Options::default());
    machine.device.set_pace(Pace::Manual);
    let mut owner = Task::new(machine.own());
    assert!(owner.run().is_pending());
    let mut reads: Vec<_> = (0..32)
        .map(|sector| Task::new(machine.disk.read(sector, buffer(512))))
        .collect();
    assert!(reads.iter_mut().all(|read| read.run().is_pending()));
    assert_eq!(machine.device.notifications(0), 0);
    assert_eq!(owner.alarm.times(), 1, "the owner is woken once for all");
    assert!(owner.run().is_pending());
    assert_eq!(machine.device.notifications(0), 1);
    machine.device.pump();
    assert_eq!(machine.device.interrupts(0), 1, "one for all");
    assert!(owner.run().is_pending());
    assert!(reads.iter_mut().all(|read| read.run().is_ready()));
    assert!(reads.iter().all(|read| read.alarm.times() == 1));
    drop((owner, reads));
    drop(machine);
    memory.assert_clean();
}

#[test]
fn each_task_is_woken_for_its_own_request_only() {
    let memory = Memory::fresh();
    let machine = machine(FakeBlk::new(8), Options::default());
    machine.device.set_pace(Pace::Manual);
    machine.device.set_order(Order::Shuffled(2));
    let mut reads: Vec<_> = (0..8)
        .map(|sector| Task::new(machine.disk.read(sector, buffer(512))))
        .collect();
    reads
        .iter_mut()
        .for_each(|read| assert!(read.run().is_pending()));
    machine.disk.kick();
    for done in 1..=8 {
        machine.device.complete(0, 1);
        machine.process();
        let woken = reads.iter().filter(|read| read.alarm.times() > 0).count();
        assert_eq!(woken, done);
    }
    assert!(reads.iter_mut().all(|read| read.run().is_ready()));
    drop(reads);
    drop(machine);
    memory.assert_clean();
}

#[test]
fn a_dropped_future_leaves_its_buffer_with_the_device_until_it_is_done() {
    let memory = Memory::fresh();
    let machine = machine(FakeBlk::new(8), small_queue(4));
    machine.device.set_pace(Pace::Manual);
    let mut reads: Vec<_> = (0..8)
        .map(|sector| Task::new(machine.disk.read(sector, buffer(512))))
        .collect();
    reads
        .iter_mut()
        .for_each(|read| assert!(read.run().is_pending()));
    machine.disk.kick();
    assert_eq!(memory.live().1, 4, "four are with the device, four wait");
    drop(reads.drain(1..3));
    assert_eq!(memory.live().1, 4, "the device still has the two");
    // One that waits for room is just taken back.
    reads.pop();
    let mut over = 0;
    for _ in 0..2 {
        machine.device.pump();
        machine.process();
        // What is done has its place until it is fetched; those that waited for room have it then.
        reads.retain_mut(|read| match read.run() {
            Poll::Ready(done) => {
                done.expect("an honest device");
                over += 1;
                false
            }
            Poll::Pending => true,
        });
        machine.disk.kick();
    }
    assert_eq!((over, reads.len()), (5, 0));
    machine.device.with(|disk| assert_eq!(disk.log.len(), 7));
    assert_eq!(memory.live().1, 0);
    drop(reads);
    drop(machine);
    memory.assert_clean();
}

#[test]
fn waiters_for_room_go_first_come_first_served() {
    let memory = Memory::fresh();
    let machine = machine(FakeBlk::new(64), small_queue(4));
    machine.device.set_pace(Pace::Manual);
    let order = Rc::new(RefCell::new(Vec::new()));
    let mut tasks: Vec<_> = (0..12u64)
        .map(|sector| {
            let (disk, order) = (&machine.disk, order.clone());
            Task::new(async move {
                disk.read(sector, buffer(512)).await.expect("done");
                order.borrow_mut().push(sector);
            })
        })
        .collect();
    tasks
        .iter_mut()
        .for_each(|task| assert!(task.run().is_pending()));
    machine.disk.kick();
    // A late one does not overtake, though there is room when it comes.
    machine.device.complete(0, 1);
    let (disk, late_order) = (&machine.disk, order.clone());
    let mut late = Task::new(async move {
        disk.read(63, buffer(512)).await.expect("done");
        late_order.borrow_mut().push(63);
    });
    assert!(late.run().is_pending());
    tasks.push(late);
    while !tasks.is_empty() {
        machine.process();
        tasks.retain_mut(|task| task.run().is_pending());
        machine.device.complete(0, 1);
    }
    let expected: Vec<u64> = (0..12).chain([63]).collect();
    assert_eq!(*order.borrow(), expected);
    drop(tasks);
    drop(machine);
    memory.assert_clean();
}

#[test]
fn a_request_that_cannot_succeed_fails_even_from_the_backlog() {
    let memory = Memory::fresh();
    let machine = machine(FakeBlk::new(8), small_queue(4));
    machine.device.set_pace(Pace::Manual);
    let mut reads: Vec<_> = (0..4)
        .map(|sector| Task::new(machine.disk.read(sector, buffer(512))))
        .collect();
    reads
        .iter_mut()
        .for_each(|read| assert!(read.run().is_pending()));
    let mut good = Task::new(machine.disk.read(0, buffer(512)));
    let mut bad = Task::new(machine.disk.read(8, buffer(512)));
    assert!(good.run().is_pending());
    assert!(bad.run().is_pending(), "it waits behind the other");
    machine.disk.kick();
    machine.device.pump();
    machine.process();
    assert!(reads.iter_mut().all(|read| read.run().is_ready()));
    machine.disk.kick();
    let Poll::Ready(Err(failed)) = bad.run() else {
        panic!("past the end");
    };
    assert!(matches!(failed.error.cause, Cause::OutOfRange { .. }));
    assert_eq!(failed.request.map(|buffer| buffer.len()), Some(512));
    machine.device.pump();
    machine.process();
    assert!(good.run().is_ready());
    drop((reads, bad, good));
    drop(machine);
    memory.assert_clean();
}

#[test]
fn a_device_that_breaks_the_ring_is_reset_and_every_task_gets_the_error() {
    let memory = Memory::fresh();
    for fault in [Fault::UsedId(9999), Fault::UsedIndexAhead(1000)] {
        let machine = machine(FakeBlk::new(8), small_queue(4));
        machine.device.set_pace(Pace::Manual);
        let mut reads: Vec<_> = (0..6)
            .map(|sector| Task::new(machine.disk.read(sector, buffer(512))))
            .collect();
        reads
            .iter_mut()
            .for_each(|read| assert!(read.run().is_pending()));
        machine.disk.kick();
        machine.device.inject(fault);
        machine.device.complete(0, 1);
        let error = machine.disk.process().expect_err("a lie");
        for read in &mut reads {
            let Poll::Ready(Err(failed)) = read.run() else {
                panic!("still waiting");
            };
            assert_eq!(failed.error, error);
            assert!(failed.request.is_some(), "the device was reset");
        }
        let mut late = Task::new(machine.disk.flush());
        assert_eq!(late.run(), Poll::Ready(Err(error)));
        drop((reads, late));
        assert_eq!(machine.disk.process(), Err(error));

        machine.device.heal();
        machine.device.set_pace(Pace::OnNotify);
        machine.disk.restart().expect("healed");
        let mut read = Task::new(machine.disk.read(0, buffer(512)));
        assert!(read.run().is_pending());
        machine.disk.kick();
        machine.process();
        assert!(matches!(read.run(), Poll::Ready(Ok(_))));
        drop(read);
        drop(machine);
        memory.take_violations();
        memory.assert_clean();
    }
}

#[test]
fn a_device_that_cannot_be_reset_keeps_the_buffers_but_nobody_waits() {
    let memory = Memory::fresh();
    let machine = machine(FakeBlk::new(8), Options::default());
    machine.device.set_pace(Pace::Manual);
    let mut read = Task::new(machine.disk.read(0, buffer(512)));
    assert!(read.run().is_pending());
    machine.disk.kick();
    machine.device.inject(Fault::ResetNeverEnds);
    machine.device.inject(Fault::UsedId(77));
    machine.device.pump();
    machine.disk.process().expect_err("a lie");
    let Poll::Ready(Err(failed)) = read.run() else {
        panic!("still waiting");
    };
    assert!(failed.request.is_none());
    assert_eq!(memory.live().1, 1, "the device may write to it");
    drop(read);
    // The rest is leaked on purpose.
    drop(machine);
    assert_eq!(memory.live().1, 1);
}

#[test]
fn an_owner_is_woken_for_what_it_waits_for() {
    let memory = Memory::fresh();
    let machine = machine(FakeBlk::new(8), Options::default());
    machine.device.set_pace(Pace::Manual);
    let disk = &machine.disk;
    let mut stopped = Task::new(disk.stopped());
    assert!(stopped.run().is_pending());

    let mut submitted = Task::new(disk.submitted());
    assert!(submitted.run().is_pending());
    let mut read = Task::new(disk.read(0, buffer(512)));
    assert!(read.run().is_pending());
    assert!(submitted.alarm.take(), "there is something to kick for");
    assert!(submitted.poll().is_ready());
    disk.kick();
    assert!(Task::new(disk.submitted()).run().is_pending(), "no more");
    assert!(Task::new(disk.busy()).run().is_ready(), "it has the read");
    machine.device.pump();
    machine.process();
    assert!(matches!(read.run(), Poll::Ready(Ok(_))));

    let mut busy = Task::new(disk.busy());
    assert!(busy.run().is_pending());
    let mut late = Task::new(disk.read(0, buffer(512)));
    assert!(late.run().is_pending());
    assert!(busy.alarm.take());
    assert!(busy.poll().is_ready());

    assert!(stopped.run().is_pending(), "nothing is wrong so far");
    let error = disk.with(|driver| driver.error(Cause::NeedsReset));
    disk.stop(error);
    assert!(stopped.alarm.take());
    assert_eq!(stopped.poll(), Poll::Ready(error));
    assert_eq!(Task::new(disk.stopped()).run(), Poll::Ready(error));
    disk.restart().expect("an honest device");
    assert!(Task::new(disk.stopped()).run().is_pending());
    let restarted = disk.restart();
    assert_eq!(restarted, Ok(()), "one that works is left alone");
    drop((read, late, stopped, submitted, busy));
    drop(machine);
    memory.assert_clean();
}

#[test]
fn who_serves_a_device_that_breaks_the_rules_is_told() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(FakeBlk::new(8));
    let disk = Asynchronous::new(Blk::new(device.transport(), Options::default()).expect("honest"));
    device.inject(Fault::UsedId(99));
    let mut owner = Task::new(disk.serve(async || ()));
    let mut read = Task::new(disk.read(0, buffer(512)));
    assert!(read.run().is_pending());
    let Poll::Ready(error) = owner.run() else {
        panic!("it goes on");
    };
    assert_eq!(error.cause, Cause::BadUsedId { id: 99 });
    assert!(matches!(read.run(), Poll::Ready(Err(failed)) if failed.error == error));
    drop((owner, read));
    drop(disk);
    memory.assert_clean();
}

#[test]
fn what_was_done_before_the_device_was_stopped_is_done() {
    let memory = Memory::fresh();
    let machine = machine(FakeBlk::new(8), Options::default());
    machine.device.set_pace(Pace::Manual);
    machine.device.with(|disk| disk.disk[512..1024].fill(5));
    let start = |sector| {
        let mut read = Task::new(machine.disk.read(sector, buffer(512)));
        assert!(read.run().is_pending());
        read
    };
    let (mut done, forgotten, mut lost, forgotten_too) = (start(1), start(1), start(2), start(2));
    machine.disk.kick();
    machine.device.complete(0, 2);
    machine.process();
    let error = machine.disk.with(|driver| driver.error(Cause::NeedsReset));
    machine.disk.stop(error);
    machine.disk.restart().expect("an honest device");
    // Nobody asks for these.
    drop((forgotten, forgotten_too));
    let Poll::Ready(Ok(block)) = done.run() else {
        panic!("it was read");
    };
    assert_eq!(*block, [5; 512]);
    assert!(matches!(lost.run(), Poll::Ready(Err(failed)) if failed.error == error));
    // The places of the old session are free in the new one.
    let mut read = Task::new(machine.disk.read(1, buffer(512)));
    assert!(read.run().is_pending());
    machine.disk.kick();
    machine.device.pump();
    machine.process();
    assert!(matches!(read.run(), Poll::Ready(Ok(block)) if *block == [5; 512]));
    drop((done, lost, read));
    drop(machine);
    memory.assert_clean();
}

#[test]
fn each_operation_of_a_disk_does_what_it_says() {
    let memory = Memory::fresh();
    let machine = machine(FakeBlk::new(8), Options::default());
    let disk = &machine.disk;
    let mut owner = Task::new(machine.own());
    let mut work = Task::new(async {
        let block = disk.write(3, Buffer::from(vec![7; 512])).await;
        disk.write(4, block.expect("on the disk"))
            .await
            .expect("on the disk");
        disk.flush().await.expect("it has a cache");
        let zeroed = disk.write_zeroes(from_ref(&(4..5)), false).await;
        assert_eq!(zeroed, Ok(()));
        let block = disk.read(3, buffer(512)).await.expect("on the disk");
        assert_eq!(*block, [7; 512]);
        let block = disk.read(4, buffer(512)).await.expect("on the disk");
        assert_eq!(*block, [0; 512]);
        assert_eq!(disk.discard(from_ref(&(6..8))).await, Ok(()));
        assert_eq!(disk.get_id().await.expect("it has one"), b"fake");
        // What can't be said, and what isn't there.
        let cause = |result: Result<(), Error>| result.expect_err("not possible").cause;
        let backwards = std::ops::Range { start: 2, end: 1 };
        let bad = Cause::InvalidParameter("range of sectors");
        assert_eq!(cause(disk.discard(from_ref(&backwards)).await), bad);
        assert_eq!(
            cause(disk.write_zeroes(from_ref(&backwards), true).await),
            bad
        );
        let past = Cause::OutOfRange {
            start: 7,
            count: 2,
            capacity: 8,
        };
        assert_eq!(cause(disk.discard(from_ref(&(7..9))).await), past);
        assert_eq!(
            cause(disk.write_zeroes(from_ref(&(7..9)), true).await),
            past
        );
    });
    let done = (0..100).any(|_| {
        let done = work.run().is_ready();
        assert!(owner.run().is_pending());
        done
    });
    assert!(done);
    drop((owner, work));
    let blk = machine.disk.into_inner();
    assert_eq!(blk.report().counters[1], ("bytes_written", 1024));
    drop(blk);
    memory.assert_clean();
}

/// A disk like other devices: new sessions ask for no interrupts, and there may be news that are no completions.
struct Odd {
    blk: Blk<FakeTransport<FakeBlk>>,
    news: usize,
}

impl Odd {
    fn new(mut blk: Blk<FakeTransport<FakeBlk>>, news: usize) -> Self {
        blk.disable_interrupts();
        Self { blk, news }
    }
}

impl Driver for Odd {
    type Request = Request;
    type Control = Control<FakeTransport<FakeBlk>>;

    fn control(&self) -> &Self::Control {
        self.blk.control()
    }
    fn report(&self) -> Report {
        self.blk.report()
    }
    fn submit(&mut self, request: Request) -> Result<Token, Rejected<Request>> {
        self.blk.submit(request)
    }
    fn kick(&mut self) {
        self.blk.kick();
    }
    fn waker(&mut self, token: Token) -> Option<&mut Option<Waker>> {
        self.blk.waker(token)
    }
    fn complete(&mut self) -> Result<Option<Ready>, Error> {
        self.blk.complete()
    }
    fn take(&mut self, token: Token) -> Option<Finished<Request>> {
        self.blk.take(token)
    }
    fn enable_interrupts(&mut self) -> bool {
        let any = self.news > 0;
        self.news = self.news.saturating_sub(1);
        self.blk.enable_interrupts() || any
    }
    fn disable_interrupts(&mut self) {
        self.blk.disable_interrupts();
    }
    fn queue_size(&self) -> u16 {
        self.blk.queue_size()
    }
    fn error(&self, cause: Cause) -> Error {
        self.blk.error(cause)
    }
    fn reset(&mut self) -> Result<Vec<(Token, Request)>, Error> {
        self.blk.reset()
    }
    fn restart(&mut self) -> Result<(), Error> {
        self.blk.restart()?;
        self.blk.disable_interrupts();
        Ok(())
    }
}

#[test]
fn who_serves_a_device_with_news_without_end_lets_others_run() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(FakeBlk::new(8));
    let blk = Blk::new(device.transport(), Options::default()).expect("an honest device");
    let disk = Asynchronous::new(Odd::new(blk, 100));
    let interrupted = Cell::new(true);
    let interrupt = |_: &mut Context<'_>| match interrupted.take() {
        true => Poll::Ready(()),
        false => Poll::Pending,
    };
    let mut owner = Task::new(disk.serve(async || poll_fn(interrupt).await));
    let mut polls = 0;
    loop {
        assert!(owner.poll().is_pending());
        polls += 1;
        // It comes back by itself.
        if !owner.alarm.take() {
            break;
        }
    }
    assert!(polls > 10, "{polls}");
    assert_eq!(disk.with(|odd| odd.news), 0, "and forgets nothing");
    drop(owner);
    drop(disk);
    memory.assert_clean();
}

#[test]
fn interrupts_come_after_a_restart_whatever_the_driver_begins_with() {
    for ring in [
        RingFeatures::VERSION_1,
        RingFeatures::VERSION_1 | RingFeatures::EVENT_IDX,
    ] {
        let memory = Memory::fresh();
        let device = FakeDevice::new(FakeBlk::new(8));
        device.offer(ring);
        let blk = Blk::new(device.transport(), Options::default()).expect("an honest device");
        let disk = Asynchronous::new(Odd::new(blk, 0));
        for session in 1..=3 {
            // Nobody asks again before the first request is done.
            let mut read = Task::new(disk.perform(Request::read(0, buffer(512))));
            assert!(read.run().is_pending());
            disk.kick();
            assert_eq!(device.interrupts(0), session);
            disk.process().expect("an honest ring");
            assert!(matches!(read.run(), Poll::Ready(Ok(_))));
            drop(read);
            disk.stop(disk.with(|driver| driver.error(Cause::NeedsReset)));
            disk.restart().expect("an honest device");
        }
        drop(disk);
        memory.assert_clean();
    }
}

#[test]
fn a_future_polled_by_another_task_wakes_that_one() {
    let memory = Memory::fresh();
    let machine = machine(FakeBlk::new(8), Options::default());
    machine.device.set_pace(Pace::Manual);
    let mut read = Task::new(machine.disk.perform(Request::read(0, buffer(512))));
    assert!(read.run().is_pending());
    let first = std::mem::take(&mut read.alarm);
    assert!(read.poll().is_pending());
    machine.disk.kick();
    machine.device.pump();
    machine.process();
    assert_eq!((first.times(), read.alarm.times()), (0, 1));
    assert!(read.run().is_ready());
    assert!(read.poll().is_pending(), "over, and no panic");
    drop(read);
    drop(machine);
    memory.assert_clean();
}

/// Tasks come, wait, and are dropped at random, against a device that answers in any order, a few at a time.
#[test]
fn random_cancelling_loses_nobody_and_nothing() {
    for seed in 0..50 {
        let memory = Memory::fresh();
        let mut random = Random::new(seed);
        let declined = RingFeatures::from_bits_truncate(random.next() & (3 << 28));
        let options = Options {
            queue_size: 16,
            declined: declined.bits(),
        };
        let mut model = FakeBlk::new(64);
        for (index, byte) in model.disk.iter_mut().enumerate() {
            *byte = (index / 512) as u8;
        }
        let machine = machine(model, options);
        machine.device.set_pace(Pace::Manual);
        machine.device.set_order(Order::Shuffled(seed));
        let mut owner = Task::new(machine.own());
        let mut reads: Vec<Task<'_, ()>> = Vec::new();
        for _ in 0..400 {
            match random.below(8) {
                0..3 => {
                    let (sector, disk) = (random.below(64) as u64, &machine.disk);
                    let segments = 1 + random.below(3);
                    reads.push(Task::new(async move {
                        let buffers: Vec<_> =
                            (0..segments).map(|_| buffer(512 / segments)).collect();
                        let fits = 512 % segments == 0 && sector < 64;
                        let result = disk.perform(Request::read(sector, buffers)).await;
                        match result {
                            Ok(request) => {
                                for buffer in request.data().buffers() {
                                    assert!(buffer.iter().all(|byte| *byte == sector as u8));
                                }
                            }
                            Err(_) => assert!(!fits),
                        }
                    }));
                }
                3 if !reads.is_empty() => {
                    reads.swap_remove(random.below(reads.len()));
                }
                4 => {
                    machine.device.complete(0, random.below(6));
                }
                5 => drop(owner.run()),
                _ => reads.retain_mut(|read| read.run().is_pending()),
            }
        }
        let mut rounds = 0;
        while !reads.is_empty() {
            let _ = owner.run();
            reads.retain_mut(|read| read.run().is_pending());
            machine.device.pump();
            rounds += 1;
            assert!(
                rounds < 1000,
                "seed {seed}: {} tasks sleep for ever",
                reads.len()
            );
        }
        let _ = owner.run();
        machine.device.pump();
        let _ = owner.run();
        assert_eq!(machine.disk.with(|blk| blk.in_flight()), 0);
        assert_eq!(memory.live().1, 0);
        drop((owner, reads));
        drop(machine);
        memory.assert_clean();
    }
}

#[test]
fn the_driver_can_be_asked_and_taken_back() {
    let memory = Memory::fresh();
    let machine = machine(FakeBlk::new(8), Options::default());
    assert_eq!(machine.disk.with(|blk| blk.config().capacity), 8);
    let mut blk = machine.disk.into_inner();
    blk.submit(Request::flush()).expect("room");
    drop(blk);
    memory.assert_clean();
}

#[test]
fn turns_taken_only_while_there_is_something_to_do_serve_those_that_wait_for_room_too() {
    let memory = Memory::fresh();
    let machine = machine(FakeBlk::new(16), small_queue(4));
    let mut reads: Vec<_> = (0..12)
        .map(|sector| Task::new(machine.disk.read(sector, buffer(512))))
        .collect();
    // As a kernel does at the end of each round of its executor. The device is done at once with all that it has, so that
    // again and again nothing is with it while some requests wait for room.
    for _ in 0..12 {
        reads.retain_mut(|read| match read.run() {
            Poll::Ready(done) => {
                done.expect("an honest device");
                false
            }
            Poll::Pending => true,
        });
        if !machine.disk.is_idle() {
            machine.disk.turn().expect("an honest device");
        }
    }
    assert!(reads.is_empty(), "{} sleep for ever", reads.len());
    assert!(machine.disk.is_idle());
    drop(reads);
    // One that is taken back while it waits is nothing to do either.
    machine.device.set_pace(Pace::Manual);
    let mut reads: Vec<_> = (0..5)
        .map(|sector| Task::new(machine.disk.read(sector, buffer(512))))
        .collect();
    reads
        .iter_mut()
        .for_each(|read| assert!(read.run().is_pending()));
    assert_eq!(machine.disk.unfinished(), 5);
    reads.pop();
    assert_eq!(machine.disk.unfinished(), 4);
    machine.disk.kick();
    machine.device.pump();
    machine.process();
    assert!(machine.disk.is_idle());
    drop(reads);
    drop(machine);
    memory.assert_clean();
}

#[test]
fn who_is_about_to_sleep_has_told_the_device_of_everything_and_will_be_interrupted() {
    let memory = Memory::fresh();
    // Two requests at a time, each of a chain of three descriptors.
    let options = Options {
        queue_size: 8,
        declined: RingFeatures::INDIRECT_DESC.bits(),
    };
    let machine = machine(FakeBlk::new(8), options);
    let (device, disk) = (&machine.device, &machine.disk);
    device.set_pace(Pace::Manual);
    disk.with(Driver::disable_interrupts);
    let mut reads: Vec<_> = (0..3)
        .map(|sector| Task::new(disk.perform(Request::read(sector, buffer(512)))))
        .collect();
    for read in &mut reads {
        assert!(read.run().is_pending());
    }
    let kicked = device.notifications(0);
    assert!(disk.prepare_to_sleep());
    assert_eq!(device.notifications(0), kicked + 1);
    assert_eq!((device.complete(0, 0), device.interrupts(0)), (2, 0));
    assert_eq!(device.complete(0, 1), 1);
    assert_eq!(device.interrupts(0), 1);
    // What is done already forbids the sleep, and what waited for room goes on its way when it was taken.
    assert!(!disk.prepare_to_sleep());
    assert_eq!(disk.turn(), Ok(false));
    assert_eq!(device.complete(0, 0), 2);
    assert!(disk.prepare_to_sleep());
    assert_eq!(device.complete(0, 2), 0);
    // The last of them ends the turn.
    assert_eq!(disk.turn(), Ok(false));
    assert!(disk.is_idle());
    for read in &mut reads {
        assert!(matches!(read.run(), Poll::Ready(Ok(_))));
    }
    // With room for it, too.
    let mut read = Task::new(disk.perform(Request::read(3, buffer(512))));
    assert!(read.run().is_pending());
    assert!(disk.prepare_to_sleep());
    assert_eq!(device.complete(0, 1), 0);
    assert_eq!(disk.turn(), Ok(false));
    assert!(matches!(read.run(), Poll::Ready(Ok(_))));
    drop((reads, read));
    drop(machine);
    memory.assert_clean();
}
