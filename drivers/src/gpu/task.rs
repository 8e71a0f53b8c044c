//! [`Task`]: a request on its way; [`Sent`]: one of its commands, while the device has it.

use core::task::Waker;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::damage::Rect;
use super::framebuffer::PIXEL_LEN;
use super::request::{Command, Request};
use super::resource::{Ending, Resources, Subject};
use super::wire::{self, CommandType, CtrlHdr, response};
use crate::buffer::Buffer;
use crate::dma::{DmaContext, Lease};
use crate::error::{Cause, Error};
use crate::queue::{Chain, Payload};

/// A request that the driver has.
pub(super) struct Task<D: DmaContext> {
    pub(super) request: Request<D>,
    /// The next command to be sent.
    pub(super) next: usize,
    /// Commands that the device has.
    pub(super) in_flight: usize,
    /// In the list of those with commands left.
    pub(super) waiting: bool,
    pub(super) result: Result<(), Error>,
    /// Who is to be told when it is over.
    pub(super) waker: Option<Waker>,
    /// That was done.
    pub(super) told: bool,
}

impl<D: DmaContext> Task<D> {
    pub(super) fn new(request: Request<D>) -> Self {
        Self {
            request,
            next: 0,
            in_flight: 0,
            waiting: false,
            result: Ok(()),
            waker: None,
            told: false,
        }
    }

    /// Whether there are commands left to be sent.
    pub(super) fn has_more(&self) -> bool {
        self.result.is_ok() && self.next < self.request.commands.len()
    }

    /// The scanouts that commands left to be sent are about to set.
    pub(super) fn scanouts(&self) -> impl Iterator<Item = u32> {
        let left = self.request.commands.iter().skip(self.next);
        left.filter_map(|command| match command {
            Command::SetScanout { scanout, .. } => Some(*scanout),
            _ => None,
        })
    }

    /// Whether nothing of it is to be sent or with the device.
    pub(super) fn is_over(&self) -> bool {
        self.in_flight == 0 && !self.waiting
    }

    /// Takes note of an error; the first one counts.
    pub(super) fn fail(&mut self, error: Error) {
        self.result = self.result.and(Err(error));
    }
}

/// One command, while the device has it.
#[derive(Debug)]
pub(super) struct Sent<D: DmaContext> {
    /// The request that it is part of.
    pub(super) task: usize,
    pub(super) subject: Subject,
    pub(super) fence: Option<u64>,
    /// Pixels that it transfers or shows.
    pub(super) pixels: u64,
    /// Follows the command.
    entries: Option<Buffer>,
    /// Where the response goes, if it is longer than a header.
    pub(super) response: Option<Buffer>,
    /// Memory that the device reads for this command. Held here too, so that it stays even if the device says out of
    /// turn that it is done with it.
    lease: Option<Lease<D>>,
}

impl<D: DmaContext> Payload for Sent<D> {
    fn segments<'a>(&'a mut self, chain: &mut Chain<'a>) {
        if let Some(entries) = &self.entries {
            chain.readable(entries);
        }
        if let Some(response) = &mut self.response {
            chain.writable(response);
        }
    }
}

/// A command as the device reads it, without what follows it.
pub(super) struct Encoded {
    bytes: [u8; wire::MAX_COMMAND_LEN],
    len: usize,
}

impl Encoded {
    fn new(message: &(impl IntoBytes + Immutable)) -> Self {
        Self::copy(message.as_bytes())
    }

    fn copy(message: &[u8]) -> Self {
        let mut bytes = [0; wire::MAX_COMMAND_LEN];
        let len = message.len().min(bytes.len());
        if let (Some(to), Some(from)) = (bytes.get_mut(..len), message.get(..len)) {
            to.copy_from_slice(from);
        }
        Self { bytes, len }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

/// Whether the driver must know that the device is done with the memory, or with a picture.
fn is_fenced(command: CommandType) -> bool {
    matches!(
        command,
        CommandType::TransferToHost2d
            | CommandType::ResourceDetachBacking
            | CommandType::ResourceUnref
    )
}

impl<D: DmaContext> Sent<D> {
    /// Makes the message `kind` of a command, and takes it down in `resources`: from now on the device may act on it.
    pub(super) fn new(
        task: usize,
        command: &mut Command<D>,
        kind: CommandType,
        fence: u64,
        resources: &mut Resources<D>,
    ) -> Result<(Self, Encoded), Cause> {
        let fence = is_fenced(kind).then_some(fence);
        let response = match kind.response_len() {
            len if len > size_of::<CtrlHdr>() => Some(Buffer::zeroed(len).ok_or(Cause::NoMemory)?),
            _ => None,
        };
        let mut sent = Self {
            task,
            subject: Subject {
                command: kind,
                resource: None,
                scanout: None,
            },
            fence,
            pixels: 0,
            entries: None,
            response,
            lease: None,
        };
        let mut size = None;
        let encoded = sent.encode(command, resources, &mut size);
        resources.begin(sent.subject, size, sent.lease.as_ref());
        Ok((sent, encoded))
    }

    fn encode(
        &mut self,
        command: &mut Command<D>,
        resources: &Resources<D>,
        new_size: &mut Option<super::Size>,
    ) -> Encoded {
        let hdr = CtrlHdr::new(self.subject.command, self.fence);
        let padding = U32::ZERO;
        match command {
            Command::DisplayInfo => Encoded::new(&wire::GetDisplayInfo { hdr }),
            Command::Edid { scanout } => {
                self.subject.scanout = Some(*scanout);
                Encoded::new(&wire::GetEdid {
                    hdr,
                    scanout: U32::new(*scanout),
                    padding,
                })
            }
            Command::Create {
                resource,
                size,
                format,
            } => {
                self.subject.resource = Some(*resource);
                *new_size = Some(*size);
                Encoded::new(&wire::ResourceCreate2d {
                    hdr,
                    resource_id: U32::new(resource.get()),
                    format: U32::new(*format as u32),
                    width: U32::new(size.width),
                    height: U32::new(size.height),
                })
            }
            Command::Attach { resource, backing } => {
                self.subject.resource = Some(*resource);
                let mut count = 0;
                if let Some(backing) = backing.take() {
                    count = backing.count;
                    self.entries = Some(backing.entries);
                    self.lease = Some(backing.lease);
                }
                Encoded::new(&wire::ResourceAttachBacking {
                    hdr,
                    resource_id: U32::new(resource.get()),
                    nr_entries: U32::new(count),
                })
            }
            Command::SetScanout { scanout, resource } => {
                self.subject.scanout = Some(*scanout);
                self.subject.resource = *resource;
                let size = resource.map(|resource| resources.size(resource));
                Encoded::new(&wire::SetScanout {
                    hdr,
                    r: Rect::of(size.unwrap_or_default()).into(),
                    scanout_id: U32::new(*scanout),
                    resource_id: U32::new(resource.map_or(0, |resource| resource.get())),
                })
            }
            Command::Transfer { resource, rect } => {
                self.subject.resource = Some(*resource);
                self.lease = resources.lease(*resource);
                self.pixels = rect.area();
                let width = u64::from(resources.size(*resource).width);
                let pixel = u64::from(rect.y) * width + u64::from(rect.x);
                Encoded::new(&wire::TransferToHost2d {
                    hdr,
                    r: (*rect).into(),
                    offset: U64::new(pixel * PIXEL_LEN as u64),
                    resource_id: U32::new(resource.get()),
                    padding,
                })
            }
            Command::Flush { resource, rect } => {
                self.subject.resource = Some(*resource);
                self.pixels = rect.area();
                Encoded::new(&wire::ResourceFlush {
                    hdr,
                    r: (*rect).into(),
                    resource_id: U32::new(resource.get()),
                    padding,
                })
            }
            Command::Retire { resource, .. } => {
                self.subject.resource = Some(*resource);
                let resource_id = U32::new(resource.get());
                match self.subject.command {
                    CommandType::ResourceDetachBacking => {
                        Encoded::new(&wire::ResourceDetachBacking {
                            hdr,
                            resource_id,
                            padding,
                        })
                    }
                    _ => Encoded::new(&wire::ResourceUnref {
                        hdr,
                        resource_id,
                        padding,
                    }),
                }
            }
        }
    }

    /// Whether the device did the command. `header` is what it wrote where a response without data goes.
    pub(super) fn judge(&self, written: Result<u32, Cause>, header: &[u8]) -> Result<(), Cause> {
        let bytes = self.response.as_deref().unwrap_or(header);
        check_response(self.subject.command, self.fence, bytes, written?)
    }
}

/// Whether `bytes`, of which the device says that it wrote the first `written`, say that it did the command.
pub(super) fn check_response(
    command: CommandType,
    fence: Option<u64>,
    bytes: &[u8],
    written: u32,
) -> Result<(), Cause> {
    let need = |len: usize| {
        let need = len as u32;
        match written >= need {
            true => Ok(()),
            false => Err(Cause::ShortResponse { len: written, need }),
        }
    };
    need(size_of::<CtrlHdr>())?;
    let Ok((header, _)) = CtrlHdr::ref_from_prefix(bytes) else {
        return Err(Cause::NoStatus);
    };
    let code = header.type_.get();
    if let Some(name) = response::error_name(code) {
        return Err(Cause::Refused {
            command: command.name(),
            code,
            name,
        });
    }
    if code != command.response() {
        return Err(Cause::UnexpectedResponse {
            command: command.name(),
            code,
        });
    }
    if let Some(sent) = fence
        && header.fence() != Some(sent)
    {
        return Err(Cause::FenceMismatch {
            command: command.name(),
            sent,
            received: header.fence(),
        });
    }
    need(command.response_len())
}

/// What a result says about what the device did.
pub(super) fn ending(result: &Result<(), Cause>) -> Ending {
    match result {
        Ok(()) => Ending::Done,
        Err(Cause::Refused { .. }) => Ending::Refused,
        Err(_) => Ending::Unclear,
    }
}
