//! [`Screen`]: what one scanout shows.

use alloc::vec::Vec;
use core::mem;

use super::damage::{Damage, Rect, Size};
use super::framebuffer::Framebuffer;
use super::request::{Backing, Command, Outcome, Request, ResourceId};
use super::wire::Format;
use crate::dma::DmaContext;
use crate::error::Cause;

/// How many framebuffers a screen has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Buffering {
    /// One: what is drawn while the device copies may show too early. Sends what was drawn, once.
    #[default]
    Single,
    /// Two, drawn on and shown by turns, so that nobody sees half a picture. Sends what was drawn twice, once for each.
    Double,
}

/// What one scanout shows: drawn on with [`Self::canvas`], sent with [`Self::present`].
///
/// Nothing in it touches the device: it makes [`Request`]s, which are for [`crate::driver::Driver::submit`] or one of the
/// faces. Dropped without [`Self::close`], its pictures stay with the device, and their memory with the driver, until the
/// device is reset.
#[derive(Debug)]
pub struct Screen<D: DmaContext> {
    scanout: u32,
    buffering: Buffering,
    size: Size,
    /// What is drawn on.
    dma: D,
    back: Surface<D>,
    /// The other one, with double buffering.
    front: Option<Surface<D>>,
    /// Pictures that are not needed any more, and which the device may have.
    old: Vec<ResourceId>,
    /// What the scanout shows, as far as known.
    shown: Option<ResourceId>,
    sent: Option<Sent>,
    outcome: Outcome,
}

/// A framebuffer and the device's copy of it.
#[derive(Debug)]
struct Surface<D: DmaContext> {
    resource: ResourceId,
    frame: Framebuffer<D>,
    /// The device has it.
    made: bool,
    /// What was drawn on the other surface and is not on this one yet.
    behind: Damage,
    /// What is on it for that reason and not in the device's copy.
    stale: Damage,
}

/// The last request, as long as it isn't known how it ended.
#[derive(Debug)]
struct Sent {
    resource: ResourceId,
    damage: Damage,
    old: Vec<ResourceId>,
}

impl<D: DmaContext> Surface<D> {
    fn new(dma: &D, size: Size) -> Result<Self, Cause> {
        Ok(Self {
            resource: ResourceId::fresh(),
            frame: Framebuffer::new(dma, size)?,
            made: false,
            behind: Damage::default(),
            stale: Damage::default(),
        })
    }
}

/// More pictures than this that are not needed any more are ended before another one is sent.
const MAX_OLD: usize = 4;

/// The surfaces of a screen: what is drawn on first, and the other if there is one.
type Surfaces<D> = (Surface<D>, Option<Surface<D>>);

fn surfaces<D: DmaContext>(
    dma: &D,
    size: Size,
    buffering: Buffering,
) -> Result<Surfaces<D>, Cause> {
    let back = Surface::new(dma, size)?;
    let mut front = match buffering {
        Buffering::Single => None,
        Buffering::Double => Some(Surface::new(dma, size)?),
    };
    if let Some(front) = &mut front {
        // Nothing was drawn on it that someone waits to see.
        front.stale = front.frame.damage_mut().take();
    }
    Ok((back, front))
}

impl<D: DmaContext> Screen<D> {
    /// A black screen for a scanout of the device that `dma` is of ([`Gpu::dma`](super::Gpu::dma)), sent with the first
    /// [`Self::present`].
    ///
    /// # Errors
    ///
    /// No memory, or an impossible size.
    pub fn new(dma: &D, scanout: u32, size: Size, buffering: Buffering) -> Result<Self, Cause> {
        let (back, front) = surfaces(dma, size, buffering)?;
        Ok(Self {
            dma: dma.clone(),
            scanout,
            buffering,
            size,
            back,
            front,
            old: Vec::new(),
            shown: None,
            sent: None,
            outcome: Outcome::new(),
        })
    }

    /// Which scanout it is for.
    pub fn scanout(&self) -> u32 {
        self.scanout
    }

    /// Width and height.
    pub fn size(&self) -> Size {
        self.size
    }

    /// What to draw on; it shows all that was drawn so far.
    pub fn canvas(&mut self) -> &mut Framebuffer<D> {
        self.catch_up();
        &mut self.back.frame
    }

    /// Copies to the surface that is drawn on what was drawn on the other.
    fn catch_up(&mut self) {
        if let Some(front) = &self.front {
            let behind = self.back.behind.take();
            for rect in behind.rects() {
                self.back.frame.copy_from(&front.frame, *rect);
            }
            self.back.stale.add_all(&behind);
        }
    }

    /// The request that shows what was drawn: only what was drawn is transferred and flushed. `None` if there is nothing
    /// to send.
    ///
    /// If the request fails, is dropped or comes back undone, the next one sends what it should have sent.
    ///
    /// # Errors
    ///
    /// [`Cause::Busy`] while the request before is not over, [`Cause::NoMemory`].
    pub fn present(&mut self) -> Result<Option<Request<D>>, Cause> {
        self.settle()?;
        self.catch_up();
        let (scanout, shown) = (self.scanout, self.shown);
        let surface = &mut self.back;
        if surface.frame.damage().is_empty() && self.old.is_empty() {
            return Ok(None);
        }
        let resource = surface.resource;
        // Before anything is taken that would have to go back.
        let backing = match surface.made {
            true => None,
            false => Some(Backing::of(&surface.frame)?),
        };
        let drawn = surface.frame.damage_mut().take();
        let mut damage = surface.stale.take();
        damage.add_all(&drawn);
        let rects = damage.rects().iter().copied();
        let old = mem::take(&mut self.old);
        let retire = |if_unused| {
            old.iter().map(move |resource| Command::Retire {
                resource: *resource,
                if_unused,
            })
        };
        // Each rectangle twice, each old picture twice, and what a new one needs.
        let mut commands = Vec::with_capacity(2 * (rects.len() + old.len()) + 3);
        // They go behind the picture that takes their place. But if that failed again and again, those that no scanout
        // shows go first, so that there are never more and more of them on a device which refuses what follows.
        if old.len() > MAX_OLD {
            commands.extend(retire(true));
        }
        if backing.is_some() {
            commands.push(Command::Create {
                resource,
                size: self.size,
                format: Format::B8G8R8X8,
            });
            commands.push(Command::Attach { resource, backing });
        }
        commands.extend(
            rects
                .clone()
                .map(|rect| Command::Transfer { resource, rect }),
        );
        if shown != Some(resource) {
            commands.push(Command::SetScanout {
                scanout,
                resource: Some(resource),
            });
        }
        commands.extend(rects.map(|rect| Command::Flush { resource, rect }));
        commands.extend(retire(false));

        if let Some(front) = &mut self.front {
            front.behind.add_all(&drawn);
            mem::swap(front, &mut self.back);
        }
        let mut request = Request::new(commands);
        request.promise(&self.outcome);
        self.sent = Some(Sent {
            resource,
            damage,
            old,
        });
        Ok(Some(request))
    }

    /// Takes notice of how the last request ended.
    fn settle(&mut self) -> Result<(), Cause> {
        let Some(sent) = self.sent.take() else {
            return Ok(());
        };
        let Some(done) = self.outcome.get() else {
            self.sent = Some(sent);
            return Err(Cause::Busy);
        };
        if done {
            self.shown = Some(sent.resource);
        } else {
            self.old.extend(sent.old);
            // What the scanout shows now isn't known, so it will be told again.
            self.shown = None;
        }
        let mut surfaces = [&mut self.back].into_iter().chain(&mut self.front);
        // It is none of them after a change of size.
        let Some(surface) = surfaces.find(|surface| surface.resource == sent.resource) else {
            return Ok(());
        };
        if done {
            surface.made = true;
            return Ok(());
        }
        if !surface.made {
            // Perhaps it was made and perhaps not. Another name is free for sure.
            self.old
                .push(mem::replace(&mut surface.resource, ResourceId::fresh()));
        }
        surface.stale.add_all(&sent.damage);
        drop(surfaces);
        // Whatever is sent next, this is to be seen.
        self.back.frame.damage_mut().add_all(&sent.damage);
        Ok(())
    }

    /// Whether the last request is over, so that another can be made.
    pub fn is_ready(&self) -> bool {
        self.sent.is_none() || self.outcome.get().is_some()
    }

    /// Begins a black picture of another size. The scanout shows the old one until the next [`Self::present`] is done,
    /// which also gives back its memory.
    ///
    /// # Errors
    ///
    /// No memory, or an impossible size; the screen is as it was.
    pub fn resize(&mut self, size: Size) -> Result<(), Cause> {
        let (back, front) = surfaces(&self.dma, size, self.buffering)?;
        self.old.push(self.back.resource);
        self.old
            .extend(self.front.as_ref().map(|front| front.resource));
        (self.back, self.front) = (back, front);
        self.size = size;
        Ok(())
    }

    /// Sends everything again with the next [`Self::present`], and makes the pictures anew: after a reset of the device,
    /// which lost them.
    ///
    /// # Errors
    ///
    /// [`Cause::Busy`] while a request made before the reset is not over.
    pub fn restore(&mut self) -> Result<(), Cause> {
        self.settle()?;
        self.old.clear();
        self.shown = None;
        let all = Rect::of(self.size);
        for surface in [&mut self.back].into_iter().chain(&mut self.front) {
            surface.resource = ResourceId::fresh();
            surface.made = false;
            surface.stale.add(all);
        }
        self.back.frame.damage_mut().add(all);
        Ok(())
    }

    /// The request that turns the scanout off and gives back the memory.
    pub fn close(self) -> Request<D> {
        let mut commands = alloc::vec![Command::SetScanout {
            scanout: self.scanout,
            resource: None,
        }];
        let surfaces = [self.back].into_iter().chain(self.front);
        let sent = self.sent.into_iter().flat_map(|sent| sent.old);
        let all = surfaces.map(|surface| surface.resource);
        let all = all.chain(self.old).chain(sent);
        let if_unused = false;
        commands.extend(all.map(|resource| Command::Retire {
            resource,
            if_unused,
        }));
        Request::new(commands)
    }
}
