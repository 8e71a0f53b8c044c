//! The test pattern: bytes that say which sector of a disk they belong to, and which seed they were made from.

pub(in crate::shell::commands) use vringlet::blk::SECTOR_LEN;

const WORD_LEN: usize = 8;
const WORDS: u64 = (SECTOR_LEN / WORD_LEN) as u64;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of the splitmix64 generator.
pub(super) fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The words from `sector` on, without end.
fn words(sector: u64, seed: u64) -> impl Iterator<Item = [u8; WORD_LEN]> {
    let first = seed
        .wrapping_mul(GOLDEN)
        .wrapping_add(sector.wrapping_mul(WORDS));
    (0u64..).map(move |word| mix(first.wrapping_add(word)).to_le_bytes())
}

/// Fills `bytes` with the pattern from `sector` on.
pub(in crate::shell::commands) fn fill(bytes: &mut [u8], sector: u64, seed: u64) {
    for (place, word) in bytes.chunks_mut(WORD_LEN).zip(words(sector, seed)) {
        for (to, from) in place.iter_mut().zip(word) {
            *to = from;
        }
    }
}

/// The first sector, counted as the pattern does, in which `bytes` differ from the pattern from `sector` on.
pub(super) fn first_difference(bytes: &[u8], sector: u64, seed: u64) -> Option<u64> {
    let differs = |(place, word): (&[u8], [u8; WORD_LEN])| !word.starts_with(place);
    let word = bytes
        .chunks(WORD_LEN)
        .zip(words(sector, seed))
        .position(differs)?;
    Some(sector + word as u64 / WORDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_a_rule_that_others_can_follow() {
        let mut bytes = [0; 2 * SECTOR_LEN];
        fill(&mut bytes, 7, 3);
        // Byte i of sector s is byte i % 8 of the mixed k * GOLDEN + s * 64 + i / 8.
        for (offset, byte) in bytes.iter().enumerate() {
            let (sector, i) = (7 + offset / 512, offset % 512);
            let x = 3u64
                .wrapping_mul(GOLDEN)
                .wrapping_add((sector * 64 + i / 8) as u64);
            assert_eq!(*byte, (mix(x) >> (8 * (i % 8))) as u8);
        }
        // splitmix64's first output from state 0.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn the_first_difference_is_found_in_its_sector() {
        let mut bytes = [0; 3 * SECTOR_LEN];
        fill(&mut bytes, u64::MAX - 1, 9);
        fill(&mut bytes, 100, 9);
        assert_eq!(first_difference(&bytes, 100, 9), None);
        assert_eq!(first_difference(&bytes, 100, 8), Some(100));
        for at in [0, 511, 512, 1535] {
            bytes[at] ^= 1;
            assert_eq!(
                first_difference(&bytes, 100, 9),
                Some(100 + at as u64 / 512)
            );
            bytes[at] ^= 1;
        }
    }
}
