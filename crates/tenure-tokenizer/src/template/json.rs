//! JSON as Python's `json.dumps` writes it, which is what models were trained on.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::budget::Meter;

/// Deeper than any tool's schema.
const MAX_DEPTH: usize = 128;

/// The value in JSON, with a space after `:` and `,`, or in lines with `indent` spaces for each level.
pub(super) fn dumps(meter: &Meter, value: &Value, indent: Option<usize>) -> Result<String, Error> {
    let mut out = String::new();
    write(meter, value, indent, 0, &mut out)?;
    Ok(out)
}

fn write(meter: &Meter, value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "recursion limit exceeded"));
    }
    let before = out.len();
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            // An escaped character has six bytes at most.
            meter.charge(text.len() as u64 * 2)?;
            quote(text, out)?;
        }
        ValueKind::Map => {
            list(meter, ['{', '}'], value.try_iter()?, indent, depth, out, |meter, key, out| {
                quote(&meter.text_of(&key)?, out)?;
                out.push_str(": ");
                write(meter, &value.get_item(&key)?, indent, depth + 1, out)
            })?;
        }
        ValueKind::Seq | ValueKind::Iterable => {
            list(meter, ['[', ']'], value.try_iter()?, indent, depth, out, |meter, item, out| {
                write(meter, &item, indent, depth + 1, out)
            })?;
        }
        ValueKind::Bytes | ValueKind::Plain | ValueKind::Invalid | _ => {
            return Err(Error::new(ErrorKind::BadSerialization, "tojson of a value that JSON does not have"));
        }
    }
    meter.charge((out.len() - before) as u64)
}

fn list<T>(
    meter: &Meter,
    [open, close]: [char; 2],
    items: impl Iterator<Item = T>,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
    mut item: impl FnMut(&Meter, T, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |depth: usize, out: &mut String| {
        let Some(indent) = indent else { return Ok(()) };
        meter.charge((indent * depth) as u64)?;
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent * depth));
        Ok::<(), Error>(())
    };
    out.push(open);
    let mut empty = true;
    for next in items {
        if !std::mem::take(&mut empty) {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        line(depth + 1, out)?;
        item(meter, next, out)?;
    }
    if !empty {
        line(depth, out)?;
    }
    out.push(close);
    Ok(())
}

fn quote(text: &str, out: &mut String) -> Result<(), Error> {
    let quoted =
        serde_json::to_string(text).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    out.push_str(&quoted);
    Ok(())
}
