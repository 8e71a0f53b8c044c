//! [`FakeGpu`]: virtio-gpu in 2D (spec 5.7), with everything that it shows in plain memory.

use std::collections::BTreeMap;
use std::format;
use std::vec::Vec;

use crate::dma::Direction;

use super::device::{DeviceModel, Queues};
use super::memory::Memory;
use super::queue::Request;
use crate::device::DeviceId;

const F_EDID: u64 = 1 << 1;

const CONTROL: u16 = 0;

const GET_DISPLAY_INFO: u32 = 0x100;
const CREATE_2D: u32 = 0x101;
const UNREF: u32 = 0x102;
const SET_SCANOUT: u32 = 0x103;
const FLUSH: u32 = 0x104;
const TRANSFER: u32 = 0x105;
const ATTACH: u32 = 0x106;
const DETACH: u32 = 0x107;
const GET_EDID: u32 = 0x10a;
const UPDATE_CURSOR: u32 = 0x300;
const MOVE_CURSOR: u32 = 0x301;

const OK_NODATA: u32 = 0x1100;
const OK_DISPLAY_INFO: u32 = 0x1101;
const OK_EDID: u32 = 0x1104;
const ERR_UNSPEC: u32 = 0x1200;
const ERR_OUT_OF_MEMORY: u32 = 0x1201;
const ERR_INVALID_SCANOUT_ID: u32 = 0x1202;
const ERR_INVALID_RESOURCE_ID: u32 = 0x1203;
const ERR_INVALID_PARAMETER: u32 = 0x1205;

const FLAG_FENCE: u32 = 1;
const HEADER: usize = 24;
const MAX_SCANOUTS: usize = 16;
const EVENT_DISPLAY: u32 = 1;
const EVENTS_CLEAR: usize = 4;
const CURSOR: (u32, u32) = (64, 64);

/// A rectangle: x, y, width, height.
pub type FakeRect = (u32, u32, u32, u32);

/// How a device answers wrongly, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// It does what it should and answers this type.
    Type(u32),
    /// It does nothing and answers this error.
    Error(u32),
    /// It does what it should and says that it wrote so many bytes.
    Length(u32),
    /// It does what it should and does not set the fence flag.
    NoFence,
    /// It does what it should and answers with another fence.
    OtherFence,
    /// It says that the EDID has so many bytes.
    EdidSize(u32),
}

/// A graphics adapter. Its fields say what it offers and hold what it did; change them before the driver is made, or by
/// [`FakeDevice::with`](super::FakeDevice::with).
#[derive(Clone, Debug)]
pub struct FakeGpu {
    /// Feature bits of the device type that it offers.
    pub features: u64,
    /// How many scanouts it says that it has.
    pub scanouts: u32,
    /// The display at each scanout: whether it is there, where, and how large.
    pub modes: [(bool, FakeRect); MAX_SCANOUTS],
    /// What each monitor says about itself.
    pub edid: Vec<u8>,
    /// The largest size of the two queues.
    pub queue_sizes: (u16, u16),
    /// Bytes that all pictures together may have.
    pub max_hostmem: u64,
    /// Whether commands of the cursor queue are answered. QEMU does not.
    pub answers_cursor: bool,
    /// The next command of this type is answered so.
    pub lies: Vec<(u32, Lie)>,
    /// The types of all commands so far.
    pub log: Vec<u32>,
    /// All rectangles that were transferred and flushed, by resource.
    pub transferred: Vec<(u32, FakeRect)>,
    /// As above.
    pub flushed: Vec<(u32, FakeRect)>,
    /// Bytes that were read from pictures in guest memory.
    pub bytes_read: u64,
    events: u32,
    negotiated: u64,
    resources: BTreeMap<u32, Resource>,
    screens: [Option<Screen>; MAX_SCANOUTS],
    cursors: [Option<FakeCursor>; MAX_SCANOUTS],
}

#[derive(Clone, Debug)]
struct Resource {
    width: u32,
    height: u32,
    pixels: Vec<u32>,
    /// Address and length of each piece of the memory behind it.
    backing: Option<Vec<(u64, u32)>>,
    filled: bool,
}

/// What a scanout shows.
#[derive(Clone, Debug)]
struct Screen {
    resource: u32,
    rect: FakeRect,
    /// As last flushed.
    pixels: Vec<u32>,
}

/// A pointer on a scanout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeCursor {
    /// Where its hot spot is.
    pub at: (u32, u32),
    /// Which pixel of it that is.
    pub hot: (u32, u32),
    /// 64 by 64.
    pub pixels: Vec<u32>,
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    u32::from_le_bytes(bytes.unwrap_or_default())
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

fn rect(bytes: &[u8], at: usize) -> FakeRect {
    let field = |index: usize| le32(bytes, at + 4 * index);
    (field(0), field(1), field(2), field(3))
}

impl Resource {
    fn contains(&self, (x, y, width, height): FakeRect) -> bool {
        let inside = |start: u32, len: u32, end: u32| {
            len > 0 && u64::from(start) + u64::from(len) <= u64::from(end)
        };
        inside(x, width, self.width) && inside(y, height, self.height)
    }

    /// The pixels of a row of a rectangle that is inside.
    fn row(&self, (x, _, width, _): FakeRect, y: u32) -> std::ops::Range<usize> {
        let start = y as usize * self.width as usize + x as usize;
        start..start + width as usize
    }

    /// Reads from the memory behind it, from `offset` on, as it is described to be in a row.
    fn read_backing(&self, memory: &Memory, offset: u64, bytes: &mut [u8]) -> bool {
        let (mut skip, mut done) = (offset, 0);
        for (address, len) in self.backing.iter().flatten() {
            let len = u64::from(*len);
            if skip >= len {
                skip -= len;
                continue;
            }
            let part = (bytes.len() - done).min((len - skip) as usize);
            if part > 0 && !memory.read(address + skip, &mut bytes[done..done + part]) {
                return false;
            }
            done += part;
            skip = 0;
        }
        done == bytes.len()
    }
}

impl Default for FakeGpu {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeGpu {
    /// An adapter as QEMU's: one display of 1280 by 800, no answers on the cursor queue.
    pub fn new() -> Self {
        let mut modes = [(false, (0, 0, 0, 0)); MAX_SCANOUTS];
        modes[0] = (true, (0, 0, 1280, 800));
        Self {
            features: F_EDID,
            scanouts: 1,
            modes,
            edid: Vec::new(),
            queue_sizes: (64, 16),
            max_hostmem: 256 << 20,
            answers_cursor: false,
            lies: Vec::new(),
            log: Vec::new(),
            transferred: Vec::new(),
            flushed: Vec::new(),
            bytes_read: 0,
            events: 0,
            negotiated: 0,
            resources: BTreeMap::new(),
            screens: Default::default(),
            cursors: Default::default(),
        }
    }

    /// Changes the arrangement of displays. Through
    /// [`FakeDevice::change_config`](super::FakeDevice::change_config), so that the driver is told.
    pub fn set_mode(&mut self, scanout: usize, enabled: bool, rect: FakeRect) {
        self.modes[scanout] = (enabled, rect);
        self.events |= EVENT_DISPLAY;
    }

    /// Width, height and pixels of what a scanout shows.
    pub fn screen(&self, scanout: usize) -> Option<(u32, u32, Vec<u32>)> {
        let screen = self.screens.get(scanout)?.as_ref()?;
        let (_, _, width, height) = screen.rect;
        Some((width, height, screen.pixels.clone()))
    }

    /// The pointer of a scanout.
    pub fn cursor(&self, scanout: usize) -> Option<FakeCursor> {
        self.cursors.get(scanout)?.clone()
    }

    /// How many pictures there are, and behind how many of them is guest memory.
    pub fn resources(&self) -> (usize, usize) {
        let backed = |resource: &&Resource| resource.backing.is_some();
        let backed = self.resources.values().filter(backed).count();
        (self.resources.len(), backed)
    }

    /// All memory that the driver said could be read must be there, as long as it did not take it back.
    fn check_backing(&self, queues: &Queues<'_>) {
        let pieces = self.resources.values().flat_map(|r| r.backing.iter());
        for (address, len) in pieces.flatten() {
            queues
                .memory()
                .check(*address, *len as usize, Direction::ToDevice);
        }
    }

    /// The length of a command of this type; `None` if it is none that this device has.
    fn command_len(kind: u32, on_control: bool) -> Option<usize> {
        Some(match (kind, on_control) {
            (GET_DISPLAY_INFO, true) => 24,
            (UNREF | DETACH | GET_EDID, true) => 32,
            // The entries follow.
            (ATTACH, true) => 32,
            (CREATE_2D, true) => 40,
            (SET_SCANOUT | FLUSH, true) => 48,
            (TRANSFER, true) => 56,
            (UPDATE_CURSOR | MOVE_CURSOR, false) => 56,
            _ => return None,
        })
    }

    /// What must hold for every command.
    fn check_command(&self, bytes: &[u8], on_control: bool, queues: &Queues<'_>) -> bool {
        let kind = le32(bytes, 0);
        let Some(len) = Self::command_len(kind, on_control) else {
            queues.violation(format!("command {kind:#x} on the wrong queue, or none"));
            return false;
        };
        let entries = match kind {
            ATTACH => 16 * le32(bytes, 28) as usize,
            _ => 0,
        };
        if bytes.len() != len + entries {
            queues.violation(format!("command {kind:#x} of {} bytes", bytes.len()));
            return false;
        }
        if le32(bytes, 4) & !FLAG_FENCE != 0 || le64(bytes, 16) != 0 {
            queues.violation(format!("command {kind:#x} with flags or fields of 3D"));
        }
        let padding = match kind {
            UNREF | DETACH | GET_EDID => Some(28),
            FLUSH => Some(44),
            TRANSFER | UPDATE_CURSOR | MOVE_CURSOR => Some(52),
            _ => None,
        };
        if padding.is_some_and(|at| le32(bytes, at) != 0) {
            queues.violation(format!("command {kind:#x} with padding that is not zero"));
        }
        true
    }

    /// Does a command of the control queue; gives the type of the answer and what follows its header.
    fn control(&mut self, bytes: &[u8], queues: &Queues<'_>) -> (u32, Vec<u8>) {
        let answer = match le32(bytes, 0) {
            GET_DISPLAY_INFO => return (OK_DISPLAY_INFO, self.display_info()),
            GET_EDID => return self.get_edid(le32(bytes, 24), queues),
            CREATE_2D => self.create(bytes, queues),
            UNREF => self.unref(le32(bytes, 24), queues),
            SET_SCANOUT => self.set_scanout(rect(bytes, 24), le32(bytes, 40), le32(bytes, 44)),
            FLUSH => self.flush(rect(bytes, 24), le32(bytes, 40), queues),
            TRANSFER => self.transfer(
                rect(bytes, 24),
                le64(bytes, 40),
                le32(bytes, 48),
                queues.memory(),
            ),
            ATTACH => self.attach(bytes, queues),
            _ => self.detach(le32(bytes, 24), queues),
        };
        (answer.err().unwrap_or(OK_NODATA), Vec::new())
    }

    fn display_info(&self) -> Vec<u8> {
        let mut data = Vec::new();
        for (enabled, (x, y, width, height)) in self.modes {
            for field in [x, y, width, height, u32::from(enabled), 0] {
                data.extend(field.to_le_bytes());
            }
        }
        data
    }

    fn get_edid(&self, scanout: u32, queues: &Queues<'_>) -> (u32, Vec<u8>) {
        if self.negotiated & F_EDID == 0 {
            queues.violation("GET_EDID without the feature");
            return (ERR_UNSPEC, Vec::new());
        }
        if scanout >= self.scanouts {
            return (ERR_INVALID_SCANOUT_ID, Vec::new());
        }
        let mut data = std::vec![0; 8 + 1024];
        data[..4].copy_from_slice(&(self.edid.len() as u32).to_le_bytes());
        data[8..8 + self.edid.len()].copy_from_slice(&self.edid);
        (OK_EDID, data)
    }

    fn create(&mut self, bytes: &[u8], queues: &Queues<'_>) -> Result<(), u32> {
        let (id, format) = (le32(bytes, 24), le32(bytes, 28));
        let (width, height) = (le32(bytes, 32), le32(bytes, 36));
        if id == 0 || self.resources.contains_key(&id) {
            queues.violation(format!("resource {id} made, which is 0 or in use"));
            return Err(ERR_INVALID_RESOURCE_ID);
        }
        if ![1, 2, 3, 4, 67, 68, 121, 134].contains(&format) {
            return Err(ERR_INVALID_PARAMETER);
        }
        if width == 0 || height == 0 {
            queues.violation("resource without pixels");
            return Err(ERR_INVALID_PARAMETER);
        }
        let in_use: u64 = self
            .resources
            .values()
            .map(|r| r.pixels.len() as u64 * 4)
            .sum();
        let wanted = u64::from(width) * u64::from(height) * 4;
        if in_use + wanted > self.max_hostmem {
            return Err(ERR_OUT_OF_MEMORY);
        }
        let resource = Resource {
            width,
            height,
            // So that a pixel which was never transferred is seen.
            pixels: std::vec![0xdead_beef; (wanted / 4) as usize],
            backing: None,
            filled: false,
        };
        self.resources.insert(id, resource);
        Ok(())
    }

    fn unref(&mut self, id: u32, queues: &Queues<'_>) -> Result<(), u32> {
        if !self.resources.contains_key(&id) {
            return Err(ERR_INVALID_RESOURCE_ID);
        }
        if self.screens.iter().flatten().any(|s| s.resource == id) {
            queues.violation(format!("resource {id} ended while it is shown"));
        }
        self.resources.remove(&id);
        Ok(())
    }

    fn set_scanout(&mut self, rect: FakeRect, scanout: u32, id: u32) -> Result<(), u32> {
        if scanout >= self.scanouts {
            return Err(ERR_INVALID_SCANOUT_ID);
        }
        let screen = match id {
            0 => None,
            id => {
                let resource = self.resources.get(&id).ok_or(ERR_INVALID_RESOURCE_ID)?;
                if !resource.contains(rect) || rect.2 < 16 || rect.3 < 16 {
                    return Err(ERR_INVALID_PARAMETER);
                }
                Some(Screen {
                    resource: id,
                    rect,
                    pixels: (rect.1..rect.1 + rect.3)
                        .flat_map(|y| resource.pixels[resource.row(rect, y)].iter().copied())
                        .collect(),
                })
            }
        };
        if let Some(place) = self.screens.get_mut(scanout as usize) {
            *place = screen;
        }
        Ok(())
    }

    fn flush(&mut self, rect: FakeRect, id: u32, queues: &Queues<'_>) -> Result<(), u32> {
        let resource = self.resources.get(&id).ok_or(ERR_INVALID_RESOURCE_ID)?;
        if !resource.contains(rect) {
            queues.violation(format!("flush of {rect:?} outside resource {id}"));
            return Err(ERR_INVALID_PARAMETER);
        }
        self.flushed.push((id, rect));
        let shown = self.screens.iter_mut().flatten();
        for screen in shown.filter(|screen| screen.resource == id) {
            // This driver's scanouts show whole resources.
            for y in rect.1..rect.1 + rect.3 {
                let row = resource.row(rect, y);
                screen.pixels[row.clone()].copy_from_slice(&resource.pixels[row]);
            }
        }
        Ok(())
    }

    fn transfer(
        &mut self,
        rect: FakeRect,
        offset: u64,
        id: u32,
        memory: &Memory,
    ) -> Result<(), u32> {
        let mut resource = self.resources.remove(&id).ok_or(ERR_INVALID_RESOURCE_ID)?;
        let result = if !resource.contains(rect) || resource.backing.is_none() {
            Err(ERR_INVALID_PARAMETER)
        } else {
            let stride = u64::from(resource.width) * 4;
            let mut bytes = std::vec![0; rect.2 as usize * 4];
            (rect.1..rect.1 + rect.3).try_for_each(|y| {
                let at = offset + stride * u64::from(y - rect.1);
                if !resource.read_backing(memory, at, &mut bytes) {
                    memory.report(format!("transfer of {rect:?} from outside the backing"));
                    return Err(ERR_INVALID_PARAMETER);
                }
                let row = resource.row(rect, y);
                for (to, from) in resource.pixels[row].iter_mut().zip(bytes.chunks_exact(4)) {
                    *to = le32(from, 0);
                }
                self.bytes_read += bytes.len() as u64;
                Ok(())
            })
        };
        if result.is_ok() {
            resource.filled = true;
            self.transferred.push((id, rect));
        }
        self.resources.insert(id, resource);
        result
    }

    fn attach(&mut self, bytes: &[u8], queues: &Queues<'_>) -> Result<(), u32> {
        let id = le32(bytes, 24);
        let resource = self.resources.get_mut(&id).ok_or(ERR_INVALID_RESOURCE_ID)?;
        if resource.backing.is_some() {
            queues.violation(format!("resource {id} is backed twice"));
            return Err(ERR_UNSPEC);
        }
        let mut pieces = Vec::new();
        let mut total = 0;
        for entry in bytes[32..].chunks_exact(16) {
            let (address, len) = (le64(entry, 0), le32(entry, 8));
            if le32(entry, 12) != 0 || len == 0 {
                queues.violation("memory entry with padding or without bytes");
            }
            let reads = Direction::ToDevice;
            queues.memory().check(address, len as usize, reads);
            total += u64::from(len);
            pieces.push((address, len));
        }
        if total < resource.pixels.len() as u64 * 4 {
            queues.violation(format!("resource {id} is backed by {total} bytes"));
        }
        resource.backing = Some(pieces);
        Ok(())
    }

    fn detach(&mut self, id: u32, queues: &Queues<'_>) -> Result<(), u32> {
        let resource = self.resources.get_mut(&id).ok_or(ERR_INVALID_RESOURCE_ID)?;
        if resource.backing.take().is_none() {
            queues.violation(format!("resource {id} has no backing to detach"));
            return Err(ERR_UNSPEC);
        }
        Ok(())
    }

    /// Does a command of the cursor queue.
    fn move_or_update(&mut self, bytes: &[u8], queues: &Queues<'_>) -> u32 {
        let (scanout, at) = (le32(bytes, 24), (le32(bytes, 28), le32(bytes, 32)));
        let id = le32(bytes, 40);
        if scanout >= self.scanouts {
            queues.violation(format!("cursor on scanout {scanout}"));
            return ERR_INVALID_SCANOUT_ID;
        }
        let Some(cursor) = self.cursors.get_mut(scanout as usize) else {
            return ERR_INVALID_SCANOUT_ID;
        };
        // As QEMU, for both commands.
        if id == 0 {
            *cursor = None;
            return OK_NODATA;
        }
        if le32(bytes, 0) == MOVE_CURSOR {
            match cursor {
                Some(cursor) => cursor.at = at,
                None => queues.violation("a cursor moved that is not there"),
            }
            return OK_NODATA;
        }
        let Some(resource) = self.resources.get(&id) else {
            queues.violation(format!("cursor from resource {id}, which is not there"));
            return ERR_INVALID_RESOURCE_ID;
        };
        if (resource.width, resource.height) != CURSOR || !resource.filled {
            queues.violation(format!(
                "cursor from resource {id}: size, or not transferred"
            ));
            return ERR_INVALID_PARAMETER;
        }
        *cursor = Some(FakeCursor {
            at,
            hot: (le32(bytes, 44), le32(bytes, 48)),
            pixels: resource.pixels.clone(),
        });
        OK_NODATA
    }

    fn serve(&mut self, request: &Request, on_control: bool, queues: &Queues<'_>) -> u32 {
        let bytes = request.read_all();
        let kind = le32(&bytes, 0);
        self.log.push(kind);
        self.check_backing(queues);
        if !self.check_command(&bytes, on_control, queues) {
            return 0;
        }
        let lie = self.lies.iter().position(|(of, _)| *of == kind);
        let lie = lie.map(|index| self.lies.remove(index).1);
        let (mut code, mut data) = match (lie, on_control) {
            (Some(Lie::Error(code)), _) => (code, Vec::new()),
            (_, true) => self.control(&bytes, queues),
            (_, false) => (self.move_or_update(&bytes, queues), Vec::new()),
        };
        if !on_control && !self.answers_cursor && lie.is_none() {
            return 0;
        }
        if let Some(Lie::Type(other)) = lie {
            code = other;
        }
        if let (Some(Lie::EdidSize(size)), Some(field)) = (lie, data.get_mut(..4)) {
            field.copy_from_slice(&size.to_le_bytes());
        }
        let fenced = le32(&bytes, 4) & FLAG_FENCE != 0;
        let mut answer = Vec::new();
        answer.extend(code.to_le_bytes());
        let flags = u32::from(fenced && lie != Some(Lie::NoFence));
        answer.extend(flags.to_le_bytes());
        let fence = le64(&bytes, 8) ^ u64::from(lie == Some(Lie::OtherFence));
        answer.extend(if flags != 0 { fence } else { 0 }.to_le_bytes());
        answer.extend([0; 8]);
        answer.extend(data);
        if request.writable_len() < answer.len() {
            let room = request.writable_len();
            queues.violation(format!("command {kind:#x} with room for {room} bytes"));
        }
        let written = request.write(0, &answer) as u32;
        match lie {
            Some(Lie::Length(len)) => len,
            _ => written,
        }
    }
}

impl DeviceModel for FakeGpu {
    fn id(&self) -> DeviceId {
        DeviceId::GPU
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        std::vec![self.queue_sizes.0, self.queue_sizes.1]
    }

    fn config(&self) -> Vec<u8> {
        let fields = [self.events, 0, self.scanouts, 0, 0];
        fields.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        if let (EVENTS_CLEAR, 4) = (offset, bytes.len()) {
            self.events &= !le32(bytes, 0);
        }
    }

    fn negotiated(&mut self, features: u64) {
        self.negotiated = features;
    }

    fn reset(&mut self) {
        self.resources.clear();
        self.screens = Default::default();
        self.cursors = Default::default();
    }

    fn process(&mut self, queue: u16, queues: &mut Queues<'_>) {
        while let Some(request) = queues.pop(queue) {
            if request.readable_len() < HEADER || request.writable_len() < HEADER {
                queues.violation("command without a header, or without room for an answer");
            }
            let written = self.serve(&request, queue == CONTROL, queues);
            queues.push(queue, request, written);
        }
    }
}
