//! The benchmark: bytes copied to and from where the memory is mapped, and flushes.

use alloc::vec;
use core::cell::Cell;

use embassy_futures::yield_now;
use futures_util::future::try_join_all;

use super::super::bench::places::Places;
use super::super::bench::{Took, measure};
use super::{failed, get, put, refuse_store};
use crate::devices::pmem::Pmem;
use crate::shell::Error;

/// Pieces that are copied before others have their turn.
const A_TURN: u64 = 256;

/// What is done to pieces of the memory.
#[derive(Clone, Copy)]
pub(super) enum Access {
    Read,
    /// With a flush after so many writes; 0 is none.
    Write {
        flush_every: u64,
    },
}

/// Reads or writes `count` pieces of `bytes` each.
pub(super) async fn copy(
    pmem: &Pmem,
    access: Access,
    places: &Places,
    bytes: u64,
    count: u64,
) -> Result<Took, Error> {
    if let Access::Write { .. } = access {
        refuse_store(pmem)?;
    }
    let mut piece = vec![0x5a; bytes as usize];
    let work = async {
        for number in 1..=count {
            let offset = places.next();
            match access {
                Access::Read => get(pmem, offset, &mut piece)?,
                Access::Write { flush_every } => {
                    put(pmem, offset, &piece)?;
                    if number.checked_rem(flush_every) == Some(0) {
                        pmem.flush().await.map_err(|error| failed(pmem, error))?;
                    }
                }
            }
            if number % A_TURN == 0 {
                yield_now().await;
            }
        }
        Ok(())
    };
    let (copied, took) = measure(|| pmem.report(), work).await;
    copied.map(|()| took)
}

/// Has `count` flushes done by `depth` callers.
pub(super) async fn flush(pmem: &Pmem, depth: u64, count: u64) -> Result<Took, Error> {
    let left = Cell::new(count);
    let caller = async || {
        while left.get() > 0 {
            left.set(left.get() - 1);
            pmem.flush().await?;
        }
        Ok::<(), vringlet::Error>(())
    };
    let callers = (0..depth).map(|_| caller());
    let (flushed, took) = measure(|| pmem.report(), try_join_all(callers)).await;
    flushed.map_err(|error| failed(pmem, error))?;
    Ok(took)
}
