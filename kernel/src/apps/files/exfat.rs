//! exFAT, read only, by the crate `hadris-fat`.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::ControlFlow;

use hadris_fat::exfat::async_::ExFatFs;
use hadris_fs::{MountOptions, OpenOptions};

use super::error::Fault;
use super::fat::{entry, read_at};
use super::medium::{DeviceError, Medium};
use super::{Entry, Listing};

/// What the first sector has in the place of FAT's name of who formatted it.
const MAGIC_OFFSET: usize = 3;
const MAGIC: &[u8] = b"EXFAT   ";

/// A file system in use.
#[derive(Clone)]
pub(super) struct Volume {
    fs: hadris_fs::local::Volume<ExFatFs<Medium>>,
}

/// A file that is read from its beginning to its end.
pub(super) struct File {
    file: hadris_fs::local::File<ExFatFs<Medium>>,
    at: u64,
    size: u64,
}

/// Whether these are the first bytes of an exFAT file system.
pub(super) fn is_exfat(start: &[u8]) -> bool {
    let rest = start.get(MAGIC_OFFSET..);
    rest.is_some_and(|rest| rest.starts_with(MAGIC))
}

impl Volume {
    pub(super) async fn mount(medium: Medium) -> Result<Self, Fault> {
        let fs = ExFatFs::mount(medium, MountOptions::new().read_only()).await;
        let fs = fs.map_err(|failed| Fault::from(DeviceError::from(failed)))?;
        let fs = hadris_fs::local::Volume::new(fs);
        Ok(Self { fs })
    }

    pub(super) async fn label(&self) -> Result<Option<String>, Fault> {
        let mut space = [0; 64];
        let mut fs = self.fs.lock().await?;
        let label = fs.label(&mut space).await?;
        Ok(label.map(|label| label.to_string()))
    }

    /// What there is at a path, without its name.
    pub(super) async fn entry(&self, path: &str) -> Result<Entry, Fault> {
        Ok(entry(String::new(), &self.fs.metadata(path).await?))
    }

    pub(super) async fn list(&self, path: &str, mut listing: Listing) -> Result<Listing, Fault> {
        let mut directory = self.fs.read_dir(path).await?;
        while let Some(found) = directory.next_entry().await {
            let found = found?;
            let name = String::from_utf8_lossy(found.name().as_bytes());
            match listing.wants(&name) {
                ControlFlow::Continue(true) => {
                    listing.add(entry(name.into_owned(), found.metadata()))?;
                }
                ControlFlow::Continue(false) => {}
                ControlFlow::Break(()) => break,
            }
        }
        Ok(listing)
    }

    pub(super) async fn open(&self, path: &str) -> Result<File, Fault> {
        let file = self.fs.open(path, OpenOptions::new().read()).await?;
        let size = file.metadata().await?.len();
        Ok(File { file, at: 0, size })
    }
}

impl File {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The next bytes of the file, `len` or fewer; none at its end.
    pub(super) async fn read(&mut self, len: usize) -> Result<Vec<u8>, Fault> {
        let bytes = read_at(&self.file, self.at, len).await?;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }
}
