//! SentencePiece's precompiled table of replaced characters.
//!
//! The table is the size in bytes of a double-array trie (little-endian u32), the trie's units (u32 each), and texts
//! that end with a zero byte; the trie's values are places in these. A unit has its label in the lowest 8 bits, an
//! offset in bits 10 to 30 (shifted by 8 more where bit 9 is set), bit 8 where a value follows, and a value in the
//! lowest 31 bits of a leaf, whose bit 31 is set. After the `darts-clone` library, whose form it is.

use unicode_segmentation::UnicodeSegmentation;

/// Which characters become which texts.
#[derive(Debug)]
pub(super) struct Charsmap {
    units: Vec<u32>,
    texts: String,
}

/// Longer clusters of characters are not looked for as a whole.
const LONGEST_CLUSTER: usize = 5;

impl Charsmap {
    /// Reads a table; none if it is malformed.
    pub(super) fn new(bytes: &[u8]) -> Option<Charsmap> {
        let (size, rest) = bytes.split_first_chunk::<4>()?;
        let (trie, texts) = rest.split_at_checked(u32::from_le_bytes(*size) as usize)?;
        let (units, []) = trie.as_chunks::<4>() else { return None };
        let texts = std::str::from_utf8(texts).ok()?.to_owned();
        Some(Charsmap { units: units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(), texts })
    }

    /// Appends `text` with its characters replaced.
    ///
    /// Each cluster of characters is replaced by what its shortest beginning in the table becomes, the whole of it;
    /// where no beginning is, each character by itself.
    pub(super) fn replace(&self, text: &str, out: &mut String) {
        for cluster in text.graphemes(true) {
            if cluster.len() <= LONGEST_CLUSTER
                && let Some(new) = self.shortest(cluster)
            {
                out.push_str(new);
                continue;
            }
            for (at, c) in cluster.char_indices() {
                match self.shortest(cluster.get(at..at + c.len_utf8()).unwrap_or_default()) {
                    Some(new) => out.push_str(new),
                    None => out.push(c),
                }
            }
        }
    }

    /// What the shortest beginning of `key` that the table has becomes.
    fn shortest(&self, key: &str) -> Option<&str> {
        let unit = |at: u32| self.units.get(at as usize).copied();
        let mut at = offset(unit(0)?);
        for byte in key.bytes().take_while(|&byte| byte != 0) {
            at ^= u32::from(byte);
            let node = unit(at)?;
            if node & 0x8000_00ff != u32::from(byte) {
                return None;
            }
            at ^= offset(node);
            if node >> 8 & 1 == 1 {
                let start = unit(at)? & 0x7fff_ffff;
                return self.texts.get(start as usize..)?.split('\0').next();
            }
        }
        None
    }
}

fn offset(unit: u32) -> u32 {
    (unit >> 10) << ((unit >> 6) & 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The unit of a node: its label, where its children are, and whether it has a value.
    fn node(label: u8, offset: u32, value: bool) -> u32 {
        u32::from(label) | offset << 10 | u32::from(value) << 8
    }

    fn table(units: &[u32], texts: &str) -> Vec<u8> {
        let mut bytes = (units.len() as u32 * 4).to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend_from_slice(texts.as_bytes());
        bytes
    }

    #[test]
    fn characters_are_replaced_by_their_texts() {
        let mut units = vec![0; 512];
        units[0] = node(0, 256, false);
        units[256 ^ usize::from(b'a')] = node(b'a', 1, true);
        // The value of `a`: behind its offset.
        units[256 ^ usize::from(b'a') ^ 1] = 1 << 31 | 3;
        let charsmap = Charsmap::new(&table(&units, "no\0yes\0")).unwrap();
        let mut out = String::new();
        charsmap.replace("bab a\u{301}", &mut out);
        // The mark goes with the character that it stands on.
        assert_eq!(out, "byesb yes");
    }

    #[test]
    fn malformed_tables_replace_nothing_and_do_not_panic() {
        assert!(Charsmap::new(&[]).is_none());
        assert!(Charsmap::new(&[4, 0, 0, 0, 1]).is_none());
        assert!(Charsmap::new(&[3, 0, 0, 0, 1, 2, 3]).is_none());
        assert!(Charsmap::new(&[0, 0, 0, 0, 0xff]).is_none());
        for seed in 0..200u32 {
            let units: Vec<u32> = (0..300u32).map(|i| (i ^ seed).wrapping_mul(0x9e37_79b9).rotate_left(seed)).collect();
            let charsmap = Charsmap::new(&table(&units, "é\0")).unwrap();
            let mut out = String::new();
            charsmap.replace("any text, é, 日本, e\u{301}", &mut out);
            assert!(out.len() < 200);
        }
    }
}
