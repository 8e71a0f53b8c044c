//! The control part of a driver, in other hands than its queues.

use std::thread;

use vringlet::asynchronous::Asynchronous;
use vringlet::blk::{self, Blk, CacheMode, Request};
use vringlet::fake::{FakeBlk, FakeDevice, FakeNic, FakeTransport, Memory};
use vringlet::net::{self, Event, Net};
use vringlet::{Buffer, Cause, DeviceId, Driver};

fn disk(sectors: usize) -> (FakeDevice<FakeBlk>, Blk<FakeTransport<FakeBlk>>) {
    let device = FakeDevice::new(FakeBlk::new(sectors));
    let disk = Blk::new(device.transport(), blk::Options::default());
    (device, disk.expect("an honest device"))
}

/// Reads a sector, and says what stood in the way.
fn read(blk: &mut impl Driver<Request = Request>, sector: u64) -> Result<(), Cause> {
    let buffer = Buffer::zeroed(512).expect("memory");
    let submitted = blk.submit(Request::read(sector, buffer));
    submitted.map_err(|rejected| rejected.error.cause)?;
    blk.kick();
    let finished = blk.poll().expect("an honest ring").expect("a fast device");
    finished.result.map_err(|error| error.cause)
}

#[test]
fn who_asks_the_device_does_not_wait_for_who_submits() {
    let memory = Memory::fresh();
    let (device, blk) = disk(8);
    device.change_config(|disk| disk.disk.resize(16 * 512, 0));
    let face = Asynchronous::new(blk);
    // Another thread would wait for this one for ever if the two had a lock in common.
    face.with(|_| {
        thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let control = face.control();
                let change = control.config_changed().expect("an honest device");
                let causes = control.take_interrupt_causes();
                (change.expect("a change").new, control.config(), causes)
            });
            let (new, config, _) = asked.join().expect("no panic");
            assert_eq!((new, config.capacity), (config, 16));
        });
    });
    drop(face);
    memory.assert_clean();
}

#[test]
fn what_the_control_part_reads_anew_holds_for_the_next_request() {
    let memory = Memory::fresh();
    let (device, mut blk) = disk(8);
    let control = blk.control().clone();
    let past = |capacity| {
        Err(Cause::OutOfRange {
            start: 8,
            count: 1,
            capacity,
        })
    };
    assert_eq!(read(&mut blk, 8), past(8));
    device.change_config(|disk| disk.disk.resize(16 * 512, 0));
    assert_eq!(read(&mut blk, 8), past(8), "nobody has looked yet");
    let looked = thread::spawn({
        let control = control.clone();
        move || control.config_changed().map(|change| change.is_some())
    });
    assert_eq!(looked.join().expect("no panic"), Ok(true));
    assert_eq!(read(&mut blk, 8), Ok(()));
    device.change_config(|disk| disk.disk.truncate(4 * 512));
    control.config_changed().expect("an honest device");
    assert_eq!(read(&mut blk, 8), past(4));
    // By the other way of submitting, too.
    let mut request = Some(Request::read(8, Buffer::zeroed(512).expect("memory")));
    device.change_config(|disk| disk.disk.resize(16 * 512, 0));
    control.config_changed().expect("an honest device");
    let accepted = blk.accept(&mut request, std::task::Waker::noop());
    accepted.expect("it is on the disk now");
    blk.kick();
    assert!(blk.poll().expect("an honest ring").is_some());
    drop(blk);
    memory.assert_clean();
}

#[test]
fn a_restart_is_seen_by_every_clone_of_the_control_part() {
    let memory = Memory::fresh();
    let (device, mut blk) = disk(8);
    let control = blk.control().clone();
    device.with(|disk| disk.disk.resize(32 * 512, 0));
    blk.restart().expect("an honest device");
    assert_eq!(control.config().capacity, 32);
    assert_eq!(read(&mut blk, 31), Ok(()));
    drop(blk);
    // The device was reset. What is known of it stays.
    assert_eq!(control.config().capacity, 32);
    assert_eq!(control.name().id, DeviceId::BLK);
    drop(control);
    memory.assert_clean();
}

#[test]
fn the_cache_mode_is_set_beside_requests_in_flight() {
    let memory = Memory::fresh();
    let (_device, mut blk) = disk(8);
    let control = blk.control().clone();
    let token = blk.submit(Request::read(0, Buffer::zeroed(512).expect("memory")));
    let token = token.expect("room");
    for mode in [CacheMode::WriteThrough, CacheMode::WriteBack] {
        assert_eq!(control.set_cache_mode(mode), Ok(mode));
        assert_eq!(blk.config().cache_mode, mode);
    }
    blk.kick();
    let finished = blk.poll().expect("an honest ring").expect("a fast device");
    assert_eq!(finished.token, token);
    assert_eq!(finished.result, Ok(()));
    drop((blk, control));
    memory.assert_clean();
}

#[test]
fn a_card_learns_what_another_task_read_of_its_configuration() {
    let memory = Memory::fresh();
    let card = FakeDevice::new(FakeNic::new());
    let mut net = Net::new(card.transport(), net::Options::default()).expect("an honest device");
    let control = net.control().clone();
    assert_eq!(net.take_event(), None);
    card.change_config(|nic| nic.link = false);
    assert_eq!(control.config_changed(), Ok(Some(())));
    assert!(!net.prepare_to_sleep(), "there is something to hear of");
    assert_eq!(net.take_event(), Some(Event::LinkChanged));
    let refused = net.transmit(64).map(drop);
    assert_eq!(refused.map_err(|error| error.cause), Err(Cause::LinkDown));
    // And it hears of a wish once, however often something else changes.
    card.change_config(|nic| {
        nic.link = true;
        nic.announce = true;
    });
    assert_eq!(control.config_changed(), Ok(Some(())));
    let events: Vec<Event> = std::iter::from_fn(|| net.take_event()).collect();
    assert_eq!(events, [Event::LinkChanged, Event::Announce]);
    drop(net);
    memory.assert_clean();
}
