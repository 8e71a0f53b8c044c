//! [`Cursor`]: a picture for the pointer that the host draws over a scanout.

use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::Gpu;
use super::damage::{Rect, Size};
use super::framebuffer::Framebuffer;
use super::request::{Backing, Command, Request, ResourceId};
use super::task::check_response;
use super::wire::{self, CURSOR_SIZE, CommandType, CtrlHdr, Format};
use crate::dma::DmaContext;
use crate::error::{Cause, Result};
use crate::queue::{Chain, Payload};
use crate::transport::Transport;

/// A picture for the pointer, 64 by 64 pixels with alpha. Sent once ([`Self::load`]), then used with
/// [`super::Gpu::set_cursor`] as often as wanted; for another picture make another.
#[derive(Debug)]
pub struct Cursor<D: DmaContext> {
    resource: ResourceId,
    frame: Framebuffer<D>,
    hot: (u32, u32),
}

impl<D: DmaContext> Cursor<D> {
    /// A cursor of `pixels` (0xAARRGGBB, row after row), `size` at most 64 by 64; the rest is clear. The pixel `hot`
    /// (column, row) is the one that points. It is for the device that `dma` is of ([`Gpu::dma`]).
    ///
    /// # Errors
    ///
    /// Too large, not as many pixels as the size says, a hot spot outside, or no memory.
    pub fn new(dma: &D, size: Size, pixels: &[u32], hot: (u32, u32)) -> Result<Self, Cause> {
        let rect = Rect::of(size);
        if rect.is_empty() || !Rect::of(CURSOR_SIZE).contains(rect) {
            return Err(Cause::InvalidParameter("size of a cursor"));
        }
        if pixels.len() as u64 != size.area() {
            return Err(Cause::InvalidParameter("number of a cursor's pixels"));
        }
        if hot.0 >= size.width || hot.1 >= size.height {
            return Err(Cause::InvalidParameter("hot spot of a cursor"));
        }
        let mut frame = Framebuffer::new(dma, CURSOR_SIZE)?;
        frame.draw(rect, pixels);
        Ok(Self {
            resource: ResourceId::fresh(),
            frame,
            hot,
        })
    }

    /// The request that gives the picture to the device. Only once it is done can the cursor be used.
    ///
    /// # Errors
    ///
    /// [`Cause::NoMemory`].
    pub fn load(&self) -> Result<Request<D>, Cause> {
        let resource = self.resource;
        let backing = Some(Backing::of(&self.frame)?);
        Ok(Request::new(alloc::vec![
            Command::Create {
                resource,
                size: CURSOR_SIZE,
                format: Format::B8G8R8A8,
            },
            Command::Attach { resource, backing },
            Command::Transfer {
                resource,
                rect: Rect::of(CURSOR_SIZE),
            },
        ]))
    }

    /// The request that takes the picture and its memory back. It fails while a scanout has this cursor.
    pub fn unload(self) -> Request<D> {
        let resource = self.resource;
        Request::new(alloc::vec![Command::Retire {
            resource,
            if_unused: false,
        }])
    }

    /// Its name.
    pub fn resource(&self) -> ResourceId {
        self.resource
    }

    /// The pixel that points: column and row.
    pub fn hot_spot(&self) -> (u32, u32) {
        self.hot
    }
}

/// On the cursor queue all is in the command itself.
impl Payload for CommandType {
    fn segments<'a>(&'a mut self, _: &mut Chain<'a>) {}
}

/// The pointer's commands have a queue of their own, and nobody waits for them.
impl<T: Transport> Gpu<T> {
    /// Gives a scanout the pointer `cursor`, whose load request is done, with its hot spot at (`x`, `y`).
    ///
    /// # Errors
    ///
    /// [`Cause::Busy`] if the picture is not there yet; no such scanout; the cursor queue is full.
    pub fn set_cursor(
        &mut self,
        scanout: u32,
        cursor: &Cursor<T::Dma>,
        x: u32,
        y: u32,
    ) -> Result<()> {
        let resource = cursor.resource();
        self.poll_cursor()?;
        let checked = self.resources.check_cursor(scanout, resource);
        checked.map_err(|cause| self.device.cursor.error(cause))?;
        let (hot_x, hot_y) = cursor.hot_spot();
        let command = CommandType::UpdateCursor;
        let message = cursor_message(command, scanout, (x, y), Some(resource), (hot_x, hot_y));
        self.send_cursor(command, &message)?;
        self.resources.set_cursor(scanout, Some(resource));
        self.counters.cursor_updates += 1;
        Ok(())
    }

    /// Moves a scanout's pointer, if it has one.
    ///
    /// # Errors
    ///
    /// No such scanout; the cursor queue is full.
    pub fn move_cursor(&mut self, scanout: u32, x: u32, y: u32) -> Result<()> {
        self.poll_cursor()?;
        let Some(resource) = self.cursor_of(scanout)? else {
            return Ok(());
        };
        let command = CommandType::MoveCursor;
        let message = cursor_message(command, scanout, (x, y), Some(resource), (0, 0));
        self.send_cursor(command, &message)?;
        self.counters.cursor_moves += 1;
        Ok(())
    }

    /// Takes a scanout's pointer away.
    ///
    /// # Errors
    ///
    /// No such scanout; the cursor queue is full.
    pub fn hide_cursor(&mut self, scanout: u32) -> Result<()> {
        self.poll_cursor()?;
        if self.cursor_of(scanout)?.is_none() {
            return Ok(());
        }
        let command = CommandType::UpdateCursor;
        let message = cursor_message(command, scanout, (0, 0), None, (0, 0));
        self.send_cursor(command, &message)?;
        self.resources.set_cursor(scanout, None);
        self.counters.cursor_updates += 1;
        Ok(())
    }

    /// Whether a scanout has a pointer.
    pub fn has_cursor(&self, scanout: u32) -> bool {
        matches!(self.resources.cursor(scanout), Ok(Some(_)))
    }

    fn cursor_of(&self, scanout: u32) -> Result<Option<ResourceId>> {
        let cursor = self.resources.cursor(scanout);
        cursor.map_err(|cause| self.device.cursor.error(cause))
    }

    fn send_cursor(&mut self, command: CommandType, message: &wire::UpdateCursor) -> Result<()> {
        let queue = &mut self.device.cursor;
        queue
            .submit(message.as_bytes(), command)
            .map_err(|rejected| rejected.error)?;
        queue.kick();
        Ok(())
    }

    /// Takes back what the device is done with on the cursor queue: no more than it had when this began.
    pub(super) fn poll_cursor(&mut self) -> Result<()> {
        let mut header = [0; size_of::<CtrlHdr>()];
        while let Some(completion) = self.device.cursor.poll(&mut header)? {
            let command = completion.payload;
            let result = match completion.written {
                // QEMU answers nothing on this queue.
                Ok(0) => Ok(()),
                Ok(written) => check_response(command, None, &header, written),
                Err(cause) => Err(cause),
            };
            if let Err(cause) = result {
                self.counters.cursor_errors += 1;
                log::warn!("{}", self.device.cursor.error(cause));
            }
        }
        Ok(())
    }
}

fn cursor_message(
    command: CommandType,
    scanout: u32,
    (x, y): (u32, u32),
    resource: Option<ResourceId>,
    (hot_x, hot_y): (u32, u32),
) -> wire::UpdateCursor {
    wire::UpdateCursor {
        hdr: CtrlHdr::new(command, None),
        pos: wire::CursorPos {
            scanout_id: U32::new(scanout),
            x: U32::new(x),
            y: U32::new(y),
            padding: U32::ZERO,
        },
        resource_id: U32::new(resource.map_or(0, ResourceId::get)),
        hot_x: U32::new(hot_x),
        hot_y: U32::new(hot_y),
        padding: U32::ZERO,
    }
}
