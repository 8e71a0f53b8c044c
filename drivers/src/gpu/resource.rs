//! [`Resources`]: the driver's account of the pictures that the device has, and of the memory lent for them.
//!
//! The rules are here: what may be sent when, and when memory may be freed. Memory is lent from the moment that
//! RESOURCE_ATTACH_BACKING is sent until the device says that it was refused, or that the backing was detached or the
//! resource ended, or until the device is reset. Anything else (no answer, an answer that is none) leaves it lent.

use alloc::vec;
use alloc::vec::Vec;

use super::damage::{Rect, Size};
use super::request::{Command, ResourceId};
use super::wire::{CURSOR_SIZE, CommandType};
use crate::device::DeviceName;
use crate::dma::{DmaContext, Lease};
use crate::error::Cause;

/// Of how many resources a device may keep the memory, or the name, though it was told to end them. One is a mishap that
/// costs a picture's memory; a device that makes a habit of it is reset, which ends its access and frees the memory. With
/// every change of a screen's size the driver would lend it more otherwise.
const MAX_KEPT: usize = 4;

/// All pictures, and where they are used.
#[derive(Debug)]
pub(super) struct Resources<D: DmaContext> {
    device: DeviceName,
    /// A few for each screen and pointer: searched from one end to the other.
    table: Vec<Resource<D>>,
    /// How many of them the device keeps though it was told to end them.
    kept: usize,
    scanouts: Vec<Scanout>,
}

#[derive(Debug)]
struct Resource<D: DmaContext> {
    id: ResourceId,
    size: Size,
    /// The device's memory for reading, as long as it may know where it is.
    lease: Option<Lease<D>>,
    /// The device said that it has made it.
    made: bool,
    /// The device said that it has taken the memory.
    backed: bool,
    /// Commands about it that the device has.
    in_flight: usize,
    /// Something was transferred.
    filled: bool,
    /// The device said that there is no such resource.
    refused: bool,
    /// The device did not end it when it was told to, or gave no answer that can be understood.
    kept: bool,
    /// The device would not detach the backing; ending the resource does the same.
    detach_refused: bool,
}

/// How a scanout is used, as the device confirmed it.
#[derive(Clone, Copy, Debug, Default)]
struct Scanout {
    shows: Option<ResourceId>,
    cursor: Option<ResourceId>,
    /// The device has a SET_SCANOUT for it. The next one waits: answers come in any order, so two would leave open which
    /// of them it shows.
    in_flight: bool,
}

/// What to do about a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send this. A [`Command::Retire`] isn't over when its RESOURCE_DETACH_BACKING is.
    Send(CommandType),
    /// Wait until commands before it are done.
    Wait,
    /// There is nothing to do.
    Skip,
}

/// How a command that was sent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The device did it.
    Done,
    /// The device did not do it: it says so, or never saw it.
    Refused,
    /// The device said nothing that can be understood.
    Unclear,
}

/// What a command that is sent concerns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject {
    pub(super) command: CommandType,
    pub(super) resource: Option<ResourceId>,
    pub(super) scanout: Option<u32>,
}

impl<D: DmaContext> Resources<D> {
    /// None yet, on a device with this many scanouts.
    pub(super) fn new(device: DeviceName, scanouts: u32) -> Self {
        Self {
            device,
            table: Vec::new(),
            kept: 0,
            scanouts: vec![Scanout::default(); scanouts as usize],
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.table.len()
    }

    /// For how many of them memory is lent.
    pub(super) fn count_backed(&self) -> usize {
        let backed = |resource: &&Resource<D>| resource.lease.is_some();
        self.table.iter().filter(backed).count()
    }

    /// Whether the device may go on: not if it keeps more than [`MAX_KEPT`] resources that it was told to end.
    pub(super) fn check_kept(&self) -> Result<(), Cause> {
        match self.kept {
            ..=MAX_KEPT => Ok(()),
            resources => Err(Cause::MemoryKept { resources }),
        }
    }

    /// Checks a command against what there is, and says how to go on with it. `in_flight` commands before it in the same
    /// request are not done yet.
    pub(super) fn step(&self, command: &Command<D>, in_flight: usize) -> Result<Step, Cause> {
        let send = |command| Ok(Step::Send(command));
        let wrong = |what| Err(Cause::InvalidParameter(what));
        match command {
            Command::DisplayInfo => send(CommandType::GetDisplayInfo),
            Command::Edid { scanout } => {
                self.scanout(*scanout)?;
                send(CommandType::GetEdid)
            }
            Command::Create { resource, .. } => match self.find(*resource) {
                Some(_) => wrong("a resource of that number is in use"),
                None => send(CommandType::ResourceCreate2d),
            },
            Command::Attach { resource, backing } => {
                let resource = self.get(*resource)?;
                let Some(backing) = backing else {
                    return wrong("the backing was sent before");
                };
                if resource.lease.is_some() {
                    return wrong("the resource has backing memory");
                }
                if backing.size != resource.size {
                    return wrong("backing memory of another size");
                }
                resource.once_made(CommandType::ResourceAttachBacking)
            }
            Command::SetScanout { scanout, resource } => {
                if self.scanout(*scanout)?.in_flight {
                    return Ok(Step::Wait);
                }
                let Some(resource) = resource else {
                    return send(CommandType::SetScanout);
                };
                self.get(*resource)?.once_made(CommandType::SetScanout)
            }
            Command::Transfer { resource, rect } => {
                let resource = self.get(*resource)?;
                resource.check(*rect)?;
                match resource.lease {
                    Some(_) => resource.once_backed(CommandType::TransferToHost2d),
                    None => wrong("the resource has no backing memory"),
                }
            }
            Command::Flush { resource, rect } => {
                let resource = self.get(*resource)?;
                resource.check(*rect)?;
                resource.once_made(CommandType::ResourceFlush)
            }
            Command::Retire {
                resource: id,
                if_unused,
            } => {
                let Some(resource) = self.find(*id) else {
                    return Ok(Step::Skip);
                };
                // What the device keeps it was told once: the request that found it so failed, and others need not.
                if resource.kept || *if_unused && self.is_used(*id) {
                    return Ok(Step::Skip);
                }
                if in_flight > 0 || resource.in_flight > 0 {
                    return Ok(Step::Wait);
                }
                if self.is_used(*id) {
                    return wrong("the resource is on a scanout");
                }
                match resource.lease {
                    Some(_) if !resource.detach_refused => send(CommandType::ResourceDetachBacking),
                    _ => send(CommandType::ResourceUnref),
                }
            }
        }
    }

    fn find(&self, id: ResourceId) -> Option<&Resource<D>> {
        self.table.iter().find(|it| it.id == id)
    }

    fn get(&self, id: ResourceId) -> Result<&Resource<D>, Cause> {
        let unknown = Cause::InvalidParameter("no such resource");
        self.find(id).ok_or(unknown)
    }

    fn scanout(&self, scanout: u32) -> Result<&Scanout, Cause> {
        let unknown = Cause::InvalidParameter("no such scanout");
        self.scanouts.get(scanout as usize).ok_or(unknown)
    }

    fn is_used(&self, id: ResourceId) -> bool {
        let id = Some(id);
        let mut scanouts = self.scanouts.iter();
        scanouts.any(|scanout| scanout.shows == id || scanout.cursor == id)
    }

    /// Width and height of a resource that there is.
    pub(super) fn size(&self, id: ResourceId) -> Size {
        let resource = self.find(id);
        resource.map_or(Size::default(), |resource| resource.size)
    }

    /// The memory behind a resource.
    pub(super) fn lease(&self, id: ResourceId) -> Option<Lease<D>> {
        self.find(id)?.lease.clone()
    }

    /// Takes down that a command goes to the device: for a new resource its size, for an attachment the memory.
    pub(super) fn begin(&mut self, subject: Subject, size: Option<Size>, lease: Option<&Lease<D>>) {
        if let Some(scanout) = self.set_by(subject) {
            scanout.in_flight = true;
        }
        let Some(id) = subject.resource else { return };
        if let (CommandType::ResourceCreate2d, Some(size)) = (subject.command, size) {
            self.table.push(Resource {
                id,
                size,
                lease: None,
                made: false,
                backed: false,
                in_flight: 0,
                filled: false,
                refused: false,
                kept: false,
                detach_refused: false,
            });
        }
        if let Some(resource) = self.table.iter_mut().find(|it| it.id == id) {
            resource.in_flight += 1;
            if subject.command == CommandType::ResourceAttachBacking {
                resource.lease = lease.cloned();
            }
        }
    }

    /// Takes down how a command ended that [`Self::begin`] was called for.
    pub(super) fn end(&mut self, subject: Subject, ending: Ending) {
        if let Some(scanout) = self.set_by(subject) {
            scanout.in_flight = false;
            if ending == Ending::Done {
                scanout.shows = subject.resource;
            }
        }
        let Some(id) = subject.resource else { return };
        let Some(resource) = self.table.iter_mut().find(|it| it.id == id) else {
            return;
        };
        resource.in_flight = resource.in_flight.saturating_sub(1);
        match (subject.command, ending) {
            (CommandType::ResourceCreate2d, Ending::Done) => resource.made = true,
            (CommandType::ResourceCreate2d, Ending::Refused) => resource.refused = true,
            (CommandType::ResourceAttachBacking, Ending::Done) => resource.backed = true,
            (CommandType::ResourceAttachBacking, Ending::Refused)
            | (CommandType::ResourceDetachBacking, Ending::Done) => {
                resource.lease = None;
                resource.backed = false;
            }
            (CommandType::ResourceDetachBacking, Ending::Refused) => resource.detach_refused = true,
            (CommandType::TransferToHost2d, Ending::Done) => resource.filled = true,
            (CommandType::ResourceUnref, Ending::Done) => {
                self.table.retain(|it| it.id != id);
                return;
            }
            (CommandType::ResourceUnref, Ending::Refused | Ending::Unclear)
            | (CommandType::ResourceDetachBacking, Ending::Unclear) => {
                self.kept += usize::from(!resource.kept);
                resource.kept = true;
            }
            _ => {}
        }
        // One that never was needs no ending.
        if resource.refused && resource.lease.is_none() && resource.in_flight == 0 {
            self.table.retain(|it| it.id != id);
        }
    }

    /// The scanout that a SET_SCANOUT is for.
    fn set_by(&mut self, subject: Subject) -> Option<&mut Scanout> {
        match subject.command {
            CommandType::SetScanout => self.scanouts.get_mut(subject.scanout? as usize),
            _ => None,
        }
    }

    /// The pointer of a scanout.
    pub(super) fn cursor(&self, scanout: u32) -> Result<Option<ResourceId>, Cause> {
        Ok(self.scanout(scanout)?.cursor)
    }

    /// Whether a scanout can have this pointer: the picture must be there already, since the cursor queue may overtake
    /// the other (spec 5.7.6.5).
    pub(super) fn check_cursor(&self, scanout: u32, id: ResourceId) -> Result<(), Cause> {
        self.scanout(scanout)?;
        let resource = self.get(id)?;
        if resource.size != CURSOR_SIZE {
            return Err(Cause::InvalidParameter("size of a cursor"));
        }
        if resource.in_flight > 0 || !resource.filled {
            return Err(Cause::Busy);
        }
        Ok(())
    }

    /// Takes down which pointer a scanout was given.
    pub(super) fn set_cursor(&mut self, scanout: u32, cursor: Option<ResourceId>) {
        if let Some(scanout) = self.scanouts.get_mut(scanout as usize) {
            scanout.cursor = cursor;
        }
    }

    /// The device was reset: it has no pictures, and reads no memory. It has this many scanouts now.
    pub(super) fn clear(&mut self, scanouts: usize) {
        self.table.clear();
        self.kept = 0;
        self.scanouts.clear();
        self.scanouts.resize(scanouts, Scanout::default());
    }
}

impl<D: DmaContext> Drop for Resources<D> {
    /// The device was not reset, so what it may read must stay.
    fn drop(&mut self) {
        let table = core::mem::take(&mut self.table);
        let leases = table.into_iter().filter_map(|resource| resource.lease);
        let mut count = 0;
        for lease in leases {
            core::mem::forget(lease);
            count += 1;
        }
        if count > 0 {
            log::warn!(
                "{}: memory of {count} pictures is leaked, because the device may read it",
                self.device
            );
        }
    }
}

impl<D: DmaContext> Resource<D> {
    /// A command that the device can only do once it said that it made this.
    fn once_made(&self, command: CommandType) -> Result<Step, Cause> {
        self.once(
            self.made,
            command,
            "the device did not say that it made the resource",
        )
    }

    /// A command that the device can only do once it said that it took the memory.
    fn once_backed(&self, command: CommandType) -> Result<Step, Cause> {
        self.once(
            self.backed,
            command,
            "the device did not say that it took the memory",
        )
    }

    /// A command that waits for another to be done: what comes after a picture that the device has no room for would be as
    /// many mistakes of ours. `never` is what is wrong if nothing is left to wait for.
    fn once(&self, done: bool, command: CommandType, never: &'static str) -> Result<Step, Cause> {
        match (done, self.in_flight) {
            (true, _) => Ok(Step::Send(command)),
            (false, 1..) => Ok(Step::Wait),
            (false, 0) => Err(Cause::InvalidParameter(never)),
        }
    }

    /// Whether `rect` is a part of it.
    fn check(&self, rect: Rect) -> Result<(), Cause> {
        match !rect.is_empty() && Rect::of(self.size).contains(rect) {
            true => Ok(()),
            false => Err(Cause::InvalidParameter("rectangle outside the resource")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DeviceId, Location};
    use crate::fake::FakeDma;
    use crate::gpu::framebuffer::Framebuffer;

    /// Nobody sends such requests: a screen gives a picture of that kind up, and a pointer can't be loaded twice.
    #[test]
    fn what_the_device_left_open_is_named() {
        let device = DeviceName {
            id: DeviceId::GPU,
            location: Location::Other(0),
        };
        let size = Size::new(8, 8);
        let frame = Framebuffer::new(&FakeDma::default(), size).expect("memory");
        let mut resources = Resources::new(device, 1);
        let resource = ResourceId::fresh();
        let rect = Rect::of(size);
        let flush = Command::Flush { resource, rect };
        let transfer = Command::Transfer { resource, rect };
        let subject = |command| Subject {
            command,
            resource: Some(resource),
            scanout: None,
        };
        let wrong = |what| Err(Cause::InvalidParameter(what));

        let create = subject(CommandType::ResourceCreate2d);
        resources.begin(create, Some(size), None);
        assert_eq!(resources.step(&flush, 0), Ok(Step::Wait));
        resources.end(create, Ending::Unclear);
        let made = "the device did not say that it made the resource";
        assert_eq!(resources.step(&flush, 0), wrong(made));

        let attach = subject(CommandType::ResourceAttachBacking);
        resources.begin(attach, None, Some(&frame.lease()));
        assert_eq!(resources.step(&transfer, 0), Ok(Step::Wait));
        resources.end(attach, Ending::Unclear);
        let backed = "the device did not say that it took the memory";
        assert_eq!(resources.step(&transfer, 0), wrong(backed));
        resources.clear(1);
    }
}
