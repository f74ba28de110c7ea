//! A look at a template's text before it is parsed.
//!
//! The parser bounds the nesting of blocks and parentheses itself. It does not bound chains of operators and of `elif`,
//! which become trees as deep as they are long, and it computes constant expressions; this does.

use super::{BudgetLimit, MAX_BYTES, TemplateError};

const MAX_SOURCE: usize = 1 << 20;
/// In one tag.
const MAX_TOKENS: usize = 4096;
const MAX_ELIFS: usize = 512;

/// The template without its `generation` tags, which mark for training what an assistant said.
pub(super) fn prepare(source: &str) -> Result<String, TemplateError> {
    if source.len() > MAX_SOURCE {
        let message = format!("the template has {} bytes, at most {MAX_SOURCE} are allowed", source.len());
        return Err(TemplateError::TemplateError { line: 1, message });
    }
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut raw, mut elifs, mut constants) = (source, false, 0, 0u64);
    while let Some((text, tag, after)) = next_tag(rest) {
        out.push_str(text);
        rest = after;
        let word = first_word(tag);
        if raw || tag.starts_with("{#") {
            raw &= word != "endraw";
            out.push_str(tag);
            continue;
        }
        raw = word == "raw";
        if matches!(word, "generation" | "endgeneration") && tag.starts_with("{%") {
            // A comment trims the text around it as the tag does.
            let inner = tag.trim_start_matches("{%").trim_end_matches("%}");
            let sign = |c: Option<char>| c.filter(|c| matches!(c, '-' | '+')).map(String::from).unwrap_or_default();
            out.push_str(&format!("{{#{} {}#}}", sign(inner.chars().next()), sign(inner.chars().next_back())));
            continue;
        }
        elifs += usize::from(word == "elif");
        let counted = count(tag);
        constants = constants.saturating_add(counted.repeated);
        if counted.tokens > MAX_TOKENS || elifs > MAX_ELIFS {
            return Err(TemplateError::TemplateTooDeep);
        }
        if constants > MAX_BYTES {
            return Err(TemplateError::TemplateBudget(BudgetLimit::Bytes(MAX_BYTES)));
        }
        out.push_str(tag);
    }
    out.push_str(rest);
    Ok(out)
}

/// The longest text between tags.
pub(super) fn longest_text(source: &str) -> u64 {
    let (mut rest, mut longest) = (source, 0);
    while let Some((text, _, after)) = next_tag(rest) {
        longest = longest.max(text.len());
        rest = after;
    }
    longest.max(rest.len()) as u64
}

/// The text before the next tag, the tag, and what is behind it.
fn next_tag(source: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    let start = loop {
        let at = from + source.get(from..)?.find('{')?;
        if matches!(source.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')) {
            break at;
        }
        from = at + 1;
    };
    let (text, tag) = source.split_at_checked(start)?;
    let end = match tag.as_bytes().get(1) {
        Some(b'#') => tag.find("#}").map(|i| i + 2),
        Some(b'%') => tag_end(tag, b'%'),
        _ => tag_end(tag, b'}'),
    };
    let (tag, rest) = tag.split_at_checked(end.unwrap_or(tag.len()))?;
    Some((text, tag, rest))
}

/// Where a tag ends that ends with `last` and `}`: strings may hold both.
fn tag_end(tag: &str, last: u8) -> Option<usize> {
    let bytes = tag.as_bytes();
    let (mut i, mut quote, mut braces) = (2, None, 0usize);
    while let Some(&byte) = bytes.get(i) {
        match quote {
            Some(_) if byte == b'\\' => i += 1,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if byte == last && bytes.get(i + 1) == Some(&b'}') && (last == b'%' || braces == 0) => {
                return Some(i + 2);
            }
            None if matches!(byte, b'"' | b'\'') => quote = Some(byte),
            None if byte == b'{' => braces += 1,
            None if byte == b'}' => braces = braces.saturating_sub(1),
            None => {}
        }
        i += 1;
    }
    None
}

fn first_word(tag: &str) -> &str {
    let inner = tag.get(2..).unwrap_or_default().trim_start_matches(['-', '+']).trim_start();
    inner.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// What a tag has.
struct Counted {
    tokens: usize,
    /// The longest string that a constant product in it can be.
    repeated: u64,
}

fn count(tag: &str) -> Counted {
    let bytes = tag.as_bytes();
    let (mut i, mut tokens, mut stars, mut strings, mut number) = (0, 0, 0u32, 0u64, 1u64);
    let while_from =
        |from: usize, of: fn(&u8) -> bool| bytes.get(from..).unwrap_or_default().iter().take_while(|b| of(b)).count();
    while let Some(&byte) = bytes.get(i) {
        tokens += 1;
        i += match byte {
            b'"' | b'\'' => {
                let mut len = 1;
                while let Some(&inner) = bytes.get(i + len) {
                    len += if inner == b'\\' { 2 } else { 1 };
                    if inner == byte {
                        break;
                    }
                }
                strings += len as u64;
                len
            }
            b'0'..=b'9' => {
                let len = while_from(i, |b| b.is_ascii_alphanumeric() || *b == b'_');
                let digits: String = tag.get(i..i + len).unwrap_or_default().replace('_', "");
                number = number.max(digits.parse().unwrap_or(u64::MAX));
                len
            }
            b'*' => {
                stars += 1;
                1
            }
            _ if byte.is_ascii_whitespace() => {
                tokens -= 1;
                1
            }
            _ if byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80 => {
                while_from(i, |b| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80)
            }
            _ => 1,
        };
    }
    // Several products may multiply one another; of one, or with no string, the size is known.
    let repeated = match (stars, strings) {
        (0, _) | (_, 0) => 0,
        (1, _) => number.saturating_mul(strings),
        _ => number.saturating_pow(stars).saturating_mul(strings),
    };
    Counted { tokens, repeated }
}
