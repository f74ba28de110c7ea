//! The Unicode classes that pre-tokenizers speak of.

use regex_syntax::hir::{Class, HirKind};

/// What a character is. Several may hold: U+2003 is white space and a separator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Kinds(u8);

impl Kinds {
    pub(crate) const LETTER: Kinds = Kinds(1);
    pub(crate) const NUMBER: Kinds = Kinds(2);
    pub(crate) const SPACE: Kinds = Kinds(4);
    pub(crate) const MARK: Kinds = Kinds(8);
    pub(crate) const PUNCTUATION: Kinds = Kinds(16);
    pub(crate) const SYMBOL: Kinds = Kinds(32);

    pub(crate) const fn or(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }

    /// Whether it is one of `kinds`.
    pub(crate) fn is(self, kinds: Kinds) -> bool {
        self.0 & kinds.0 != 0
    }
}

/// The kinds of all characters.
#[derive(Debug)]
pub(crate) struct Classes {
    /// By the character's upper bits: which block of `kinds`.
    blocks: Vec<u16>,
    kinds: Vec<Kinds>,
}

const BLOCK: usize = 128;
const BLOCKS: usize = 0x11_0000 / BLOCK;

impl Classes {
    /// From the tables of `regex-syntax`, which follow the current Unicode version.
    pub(crate) fn new() -> Classes {
        let classes = [
            (r"\p{L}", Kinds::LETTER),
            (r"\p{N}", Kinds::NUMBER),
            (r"\p{White_Space}", Kinds::SPACE),
            (r"\p{M}", Kinds::MARK),
            (r"\p{P}", Kinds::PUNCTUATION),
            (r"\p{S}", Kinds::SYMBOL),
        ];
        // Blocks of one kind, such as the tens of thousands of ideographs, share one copy.
        let mut uniform: Vec<Kinds> = vec![Kinds::default(); BLOCKS];
        let mut mixed: Vec<Option<Box<[Kinds; BLOCK]>>> = vec![None; BLOCKS];
        for (pattern, kind) in classes {
            for (first, last) in ranges(pattern) {
                for block in first / BLOCK..=last / BLOCK {
                    let (Some(all), Some(own)) = (uniform.get_mut(block), mixed.get_mut(block)) else { continue };
                    let from = first.saturating_sub(block * BLOCK);
                    let to = (last - block * BLOCK).min(BLOCK - 1);
                    if own.is_none() && (from, to) == (0, BLOCK - 1) {
                        *all = all.or(kind);
                        continue;
                    }
                    let own = own.get_or_insert_with(|| Box::new([*all; BLOCK]));
                    own.iter_mut().take(to + 1).skip(from).for_each(|kinds| *kinds = kinds.or(kind));
                }
            }
        }
        let mut table = Classes { blocks: Vec::with_capacity(BLOCKS), kinds: Vec::new() };
        let mut of_kind: [Option<u16>; 256] = [None; 256];
        for (all, own) in uniform.iter().zip(&mixed) {
            let next = (table.kinds.len() / BLOCK) as u16;
            let shared = if own.is_none() { of_kind.get_mut(usize::from(all.0)) } else { None };
            let at = match shared {
                Some(Some(at)) => *at,
                shared => {
                    table.kinds.extend_from_slice(own.as_deref().unwrap_or(&[*all; BLOCK]));
                    if let Some(shared) = shared {
                        *shared = Some(next);
                    }
                    next
                }
            };
            table.blocks.push(at);
        }
        table
    }

    /// What `c` is.
    pub(crate) fn of(&self, c: char) -> Kinds {
        let block = self.blocks.get(c as usize / BLOCK).copied().unwrap_or_default();
        self.kinds.get(usize::from(block) * BLOCK + c as usize % BLOCK).copied().unwrap_or_default()
    }
}

/// The characters of a class, as ranges.
pub(crate) fn ranges(pattern: &str) -> Vec<(usize, usize)> {
    let Ok(hir) = regex_syntax::parse(pattern) else { return Vec::new() };
    match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => {
            class.iter().map(|range| (range.start() as usize, range.end() as usize)).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_characters_have_their_kinds() {
        let classes = Classes::new();
        let cases = [
            ('a', Kinds::LETTER),
            ('é', Kinds::LETTER),
            ('中', Kinds::LETTER),
            ('𠮷', Kinds::LETTER),
            ('7', Kinds::NUMBER),
            ('½', Kinds::NUMBER),
            ('Ⅷ', Kinds::NUMBER),
            (' ', Kinds::SPACE),
            ('\u{85}', Kinds::SPACE),
            ('\u{3000}', Kinds::SPACE),
            ('\u{301}', Kinds::MARK),
            ('!', Kinds::PUNCTUATION),
            ('。', Kinds::PUNCTUATION),
            ('$', Kinds::SYMBOL),
            ('😀', Kinds::SYMBOL),
            ('\0', Kinds::default()),
            ('\u{200d}', Kinds::default()),
            ('\u{10ffff}', Kinds::default()),
        ];
        for (c, kinds) in cases {
            assert_eq!(classes.of(c), kinds, "{c:?}");
        }
    }

    #[test]
    fn letters_and_white_space_are_as_the_standard_library_has_them() {
        let classes = Classes::new();
        for c in '\0'..=char::MAX {
            assert_eq!(classes.of(c).is(Kinds::SPACE), c.is_whitespace(), "{c:?}");
            if c.is_ascii() {
                assert_eq!(classes.of(c).is(Kinds::LETTER), c.is_ascii_alphabetic(), "{c:?}");
                assert_eq!(classes.of(c).is(Kinds::NUMBER), c.is_ascii_digit(), "{c:?}");
                let other = classes.of(c).is(Kinds::PUNCTUATION.or(Kinds::SYMBOL));
                assert_eq!(other, c.is_ascii_punctuation(), "{c:?}");
            }
        }
    }
}
