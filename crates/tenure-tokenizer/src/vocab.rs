//! The tokens: their kinds, their bytes, and which bytes are which token.

use crate::error::{ByteTokenFault, TokenizerError, try_vec};
use crate::source::VocabSource;
use crate::table::ByteTable;

/// What a token is for, after `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// A piece of text.
    Normal,
    /// Stands for what no token stands for.
    Unknown,
    /// Has a meaning and no text: the beginning of a turn, the end of a text.
    Control,
    /// A piece of text that is found before all others are.
    UserDefined,
    /// Has neither text nor meaning.
    Unused,
    /// One byte.
    Byte,
}

impl TokenKind {
    fn from_file(number: i32) -> TokenKind {
        match number {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            6 => TokenKind::Byte,
            _ => TokenKind::Unused,
        }
    }

    /// Whether text has such tokens only where it is asked for.
    pub(crate) fn is_special(self) -> bool {
        match self {
            TokenKind::Unknown | TokenKind::Control => true,
            TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused | TokenKind::Byte => false,
        }
    }
}

/// How token texts spell bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// One printable character for each byte, as GPT-2 has it.
    ByteLevel,
    /// As they are, with U+2581 for a space.
    Pieces,
}

/// U+2581, which stands for a space in token texts.
pub(crate) const SPACE: &str = "\u{2581}";

/// The tokens. All bytes lie in one arena.
#[derive(Debug)]
pub(crate) struct Vocab {
    spelling: Spelling,
    arena: Vec<u8>,
    /// Where each token's piece ends in the arena; it begins where the one before ends.
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
    /// The bytes that merging finds a token by, where they are not its piece: the token, and where they are behind the
    /// pieces. By token.
    keys: Vec<(u32, u32, u32)>,
    by_key: ByteTable,
    /// The longest key.
    pub(crate) longest: usize,
    /// The token for each byte.
    bytes: Box<[Option<u32>; 256]>,
}

impl Vocab {
    pub(crate) fn new(source: &VocabSource<'_>, spelling: Spelling) -> Result<Self, TokenizerError> {
        let count = source.tokens.len();
        let text: usize = source.tokens.iter().map(|t| t.len()).sum();
        if count == 0 {
            return Err(TokenizerError::EmptyVocabulary);
        }
        // Pieces and keys are no longer than the texts, and numbers plus one fit.
        if count >= u32::MAX as usize || text > u32::MAX as usize / 2 {
            return Err(TokenizerError::VocabularyTooLarge);
        }
        let kinds: Vec<TokenKind> = match &source.token_types {
            Some(types) if types.len() != count => {
                let key = "tokenizer.ggml.token_type";
                return Err(TokenizerError::LengthMismatch { key, want: count, got: types.len() });
            }
            Some(types) => types.iter().map(|&t| TokenKind::from_file(t)).collect(),
            None => vec![TokenKind::Normal; count],
        };
        let mut vocab = Vocab {
            spelling,
            arena: try_vec(text, "the token bytes")?,
            ends: try_vec(count, "the token ends")?,
            kinds,
            keys: Vec::new(),
            by_key: ByteTable::new(count)?,
            longest: 0,
            bytes: Box::new([None; 256]),
        };
        vocab.fill(source)?;
        vocab.find_bytes()?;
        Ok(vocab)
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes that `token` adds to a text; none for a number that is no token.
    pub(crate) fn piece(&self, token: u32) -> &[u8] {
        piece(&self.arena, &self.ends, token)
    }

    pub(crate) fn kind(&self, token: u32) -> Option<TokenKind> {
        self.kinds.get(token as usize).copied()
    }

    pub(crate) fn set_kind(&mut self, token: u32, kind: TokenKind) {
        if let Some(old) = self.kinds.get_mut(token as usize) {
            *old = kind;
        }
    }

    /// The token that merging finds by these bytes.
    pub(crate) fn find(&self, key: &[u8]) -> Option<u32> {
        if key.is_empty() || key.len() > self.longest {
            return None;
        }
        self.by_key.find(key, |token| key_of(&self.arena, &self.ends, &self.keys, token))
    }

    /// The token with this text.
    pub(crate) fn find_text(&self, text: &str) -> Option<u32> {
        let mut key = Vec::with_capacity(text.len());
        spell(self.spelling, text, &mut key).then(|| self.find(&key))?
    }

    /// The token that stands for a byte.
    pub(crate) fn byte(&self, byte: u8) -> Option<u32> {
        self.bytes.get(usize::from(byte)).copied().flatten()
    }

    /// Pieces first, and behind them the keys that are not pieces.
    fn fill(&mut self, source: &VocabSource<'_>) -> Result<(), TokenizerError> {
        let mut other_keys = Vec::new();
        let mut key = Vec::new();
        for (id, (&text, &kind)) in source.tokens.iter().zip(&self.kinds).enumerate() {
            let id = id as u32;
            key.clear();
            let mergeable = spell(self.spelling, text, &mut key);
            let start = self.arena.len();
            match kind {
                // What cannot be spelt stays as it is.
                TokenKind::Normal if mergeable => self.arena.extend_from_slice(&key),
                TokenKind::Normal | TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined => {
                    self.arena.extend_from_slice(text.as_bytes());
                }
                TokenKind::Unused => {}
                TokenKind::Byte => {
                    let fault = ByteTokenFault::NotAByte;
                    self.arena.push(named_byte(text).ok_or(TokenizerError::BadByteToken { id, fault })?);
                }
            }
            self.ends.push(self.arena.len() as u32);
            if mergeable && !key.is_empty() {
                self.longest = self.longest.max(key.len());
                if self.arena.get(start..) != Some(&key[..]) {
                    let at = other_keys.len() as u32;
                    other_keys.extend_from_slice(&key);
                    self.keys.push((id, at, key.len() as u32));
                }
            } else {
                self.keys.push((id, 0, 0));
            }
        }
        let pieces = self.arena.len();
        let bytes = other_keys.len();
        let what = "the token bytes";
        self.arena.try_reserve_exact(bytes).map_err(|_| TokenizerError::HostOutOfMemory { what, bytes })?;
        self.arena.extend_from_slice(&other_keys);
        if self.arena.len() > u32::MAX as usize {
            return Err(TokenizerError::VocabularyTooLarge);
        }
        self.keys.iter_mut().for_each(|(_, at, _)| *at += pieces as u32);

        let Vocab { arena, ends, keys, by_key, .. } = self;
        let mut own = keys.iter().peekable();
        for id in 0..ends.len() as u32 {
            // The keys are in order, so walking along is enough here.
            let key = match own.next_if(|(token, ..)| *token == id) {
                Some(&(_, at, len)) => arena.get(at as usize..(at + len) as usize).unwrap_or_default(),
                None => piece(arena, ends, id),
            };
            if !key.is_empty() {
                by_key.insert(key, id, |token| key_of(arena, ends, keys, token));
            }
        }
        Ok(())
    }

    fn find_bytes(&mut self) -> Result<(), TokenizerError> {
        let first = self.kinds.iter().position(|&kind| kind == TokenKind::Byte).map(|id| id as u32);
        for byte in 0..=255u8 {
            let token = match self.spelling {
                Spelling::ByteLevel => self.find(&[byte]),
                Spelling::Pieces => {
                    let named = self.find(format!("<0x{byte:02X}>").as_bytes());
                    named.or_else(|| byte.is_ascii().then(|| self.find(&[byte]))?)
                }
            };
            if let Some(place) = self.bytes.get_mut(usize::from(byte)) {
                *place = token;
            }
            if let (Spelling::Pieces, Some(id), None) = (self.spelling, first, token) {
                return Err(TokenizerError::BadByteToken { id, fault: ByteTokenFault::Missing(byte) });
            }
        }
        Ok(())
    }
}

fn piece<'a>(arena: &'a [u8], ends: &[u32], token: u32) -> &'a [u8] {
    let Some(&end) = ends.get(token as usize) else { return &[] };
    let start = (token as usize).checked_sub(1).and_then(|before| ends.get(before)).map_or(0, |&end| end);
    arena.get(start as usize..end as usize).unwrap_or_default()
}

fn key_of<'a>(arena: &'a [u8], ends: &[u32], keys: &[(u32, u32, u32)], token: u32) -> &'a [u8] {
    match keys.binary_search_by_key(&token, |key| key.0).ok().and_then(|i| keys.get(i)) {
        Some(&(_, at, len)) => arena.get(at as usize..(at + len) as usize).unwrap_or_default(),
        None => piece(arena, ends, token),
    }
}

/// Appends the bytes that a token's text spells, and says whether it spells any: merging makes no other tokens.
pub(crate) fn spell(spelling: Spelling, text: &str, out: &mut Vec<u8>) -> bool {
    match spelling {
        Spelling::ByteLevel => text.chars().all(|c| byte_of(c).inspect(|&byte| out.push(byte)).is_some()),
        Spelling::Pieces => {
            // Text is merged with U+2581 for its spaces, so no merge makes a token with a space.
            let mut rest = text.as_bytes();
            while let Some((&byte, after)) = rest.split_first() {
                if byte == b' ' {
                    return false;
                }
                match rest.strip_prefix(SPACE.as_bytes()) {
                    Some(after) if byte >= 0x80 => {
                        out.push(b' ');
                        rest = after;
                    }
                    _ => {
                        out.push(byte);
                        rest = after;
                    }
                }
            }
            true
        }
    }
}

/// The byte that a character spells in byte-level token texts: the printable ones of Latin-1 spell themselves, and the
/// others follow from U+0100 in order.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The character that spells a byte in byte-level token texts.
pub(crate) fn char_of(byte: u8) -> char {
    let code = u32::from(byte);
    let code = match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x00..=0x20 => code + 0x100,
        0x7f..=0xa0 => code - 0x7f + 0x121,
        0xad => 0x143,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that `<0x00>` to `<0xFF>` name.
fn named_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let two = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| two)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_spelt_by_one_character() {
        let mut seen = [false; 256];
        for c in '\0'..='\u{1000}' {
            if let Some(byte) = byte_of(c) {
                assert!(!std::mem::replace(&mut seen[usize::from(byte)], true), "{byte}");
            }
        }
        assert_eq!(seen, [true; 256]);
        for byte in 0..=255 {
            assert_eq!(byte_of(char_of(byte)), Some(byte));
        }
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of(' '), None);
    }

    #[test]
    fn only_two_hexadecimal_digits_name_a_byte() {
        assert_eq!(named_byte("<0x0A>"), Some(10));
        assert_eq!(named_byte("<0xff>"), Some(255));
        for bad in ["<0x-1>", "<0x+1>", "<0xZZ>", "<0x100>", "<0x>", "<0x1>", "0x0A", "<0x0A", ""] {
            assert_eq!(named_byte(bad), None, "{bad}");
        }
    }
}
