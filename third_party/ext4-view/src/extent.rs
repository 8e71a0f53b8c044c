// Copyright 2024 Google LLC
//
// Licensed under the Apache License, Version 2.0 <LICENSE-APACHE or
// https://www.apache.org/licenses/LICENSE-2.0> or the MIT license
// <LICENSE-MIT or https://opensource.org/licenses/MIT>, at your
// option. This file may not be copied, modified, or distributed
// except according to those terms.

use crate::block_index::{FileBlockIndex, FsBlockIndex};

/// Contiguous range of blocks that contain file data.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Extent {
    // Offset of the block within the file.
    pub(crate) block_within_file: FileBlockIndex,

    // This is the actual block within the filesystem.
    pub(crate) start_block: FsBlockIndex,

    // Number of blocks (both within the file, and on the filesystem).
    pub(crate) num_blocks: u16,

    // Whether the blocks have been allocated, but not written yet. Such
    // blocks read as zeroes, whatever is in them.
    pub(crate) is_unwritten: bool,
}

impl Extent {
    /// Maximum length of an extent. Larger values mark the extent as
    /// unwritten, and are this much larger than the actual length.
    const MAX_NUM_BLOCKS: u16 = 0x8000;

    /// Get the number of blocks in an extent and whether it is
    /// unwritten from the raw `ee_len` field.
    pub(crate) fn num_blocks_from_raw(ee_len: u16) -> (u16, bool) {
        match ee_len.checked_sub(Self::MAX_NUM_BLOCKS) {
            None | Some(0) => (ee_len, false),
            Some(num_blocks) => (num_blocks, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_num_blocks_from_raw() {
        for (ee_len, expected) in [
            (1, (1, false)),
            (0x7fff, (0x7fff, false)),
            (0x8000, (0x8000, false)),
            (0x8001, (1, true)),
            (0xffff, (0x7fff, true)),
        ] {
            assert_eq!(Extent::num_blocks_from_raw(ee_len), expected);
        }
    }
}
