//! What templates may call, and metered forms of what makes long strings.

use std::time::SystemTime;

use minijinja::machinery::Instruction;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::BudgetLimit;
use super::budget::{Meter, Refusal};
use super::clock::strftime;
use super::json;

/// Numbers that a range may have.
const MAX_RANGE: u64 = 100_000;
/// Spaces of an indentation.
const MAX_INDENT: usize = 1024;

// No template can say these names.
const CONCAT: &str = "~";
const ADD: &str = "+";
const MUL: &str = "*";
const SLICE: &str = "[:]";

/// The function that does metered what an instruction does unmetered, and the number of its arguments.
pub(super) fn in_place_of(instruction: &Instruction<'_>) -> Option<(&'static str, u16)> {
    match instruction {
        Instruction::StringConcat => Some((CONCAT, 2)),
        Instruction::Add => Some((ADD, 2)),
        Instruction::Mul => Some((MUL, 2)),
        Instruction::Slice => Some((SLICE, 4)),
        _ => None,
    }
}

/// Gives an environment its functions, filters and methods.
pub(super) fn install(environment: &mut Environment<'_>, meter: &Meter, now: SystemTime) {
    // What is left makes nothing that is longer than what it is given, or is metered below.
    for name in ["pprint", "format", "batch", "slice", "chain", "zip", "safe", "escape", "e", "groupby"] {
        environment.remove_filter(name);
    }
    environment.remove_global("debug");
    let m = meter.clone();
    environment.set_formatter(move |output, _, value| {
        if !value.is_undefined() {
            output.write_str(&m.text_of(value)?).map_err(Error::from)?;
        }
        Ok(())
    });
    operators(environment, meter);
    filters(environment, meter);

    environment.add_function("range", |first: i64, last: Option<i64>, step: Option<i64>| {
        let (first, last) = last.map_or((0, first), |last| (first, last));
        let step = step.unwrap_or(1);
        if step == 0 {
            return Err(Error::new(ErrorKind::InvalidOperation, "range() by steps of 0"));
        }
        let span = if step > 0 { i128::from(last) - i128::from(first) } else { i128::from(first) - i128::from(last) };
        let count = (span.max(0) as u128).div_ceil(u128::from(step.unsigned_abs()));
        if count > u128::from(MAX_RANGE) {
            return Err(Refusal::Budget(BudgetLimit::Steps(MAX_RANGE)).into());
        }
        // Below the bound, so what wraps on the way comes back.
        Ok((0..count as i64).map(|i| first.wrapping_add(i.wrapping_mul(step))).collect::<Vec<i64>>())
    });
    environment.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        Err(Refusal::Raised(message.to_string().chars().take(1024).collect()).into())
    });
    let m = meter.clone();
    environment.add_function("strftime_now", move |format: &str| {
        m.charge(format.len() as u64 * 10)?;
        Ok::<_, Error>(strftime(format, now))
    });
    let m = meter.clone();
    environment
        .set_unknown_method_callback(move |state, value, method, args| method_of(&m, state, value, method, args));
}

fn operators(environment: &mut Environment<'_>, meter: &Meter) {
    let m = meter.clone();
    environment.add_function(CONCAT, move |left: Value, right: Value| -> Result<String, Error> {
        let mut text = m.text_of(&left)?;
        text.push_str(&m.text_of(&right)?);
        Ok(text)
    });
    let m = meter.clone();
    environment.add_function(ADD, move |left: Value, right: Value| -> Result<Value, Error> {
        if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
            m.charge((left.len() + right.len()) as u64)?;
            return Ok(Value::from([left, right].concat()));
        }
        if is_list(&left) && is_list(&right) {
            m.charge_list(left.len().unwrap_or(0).saturating_add(right.len().unwrap_or(0)))?;
            return Ok(left.try_iter()?.chain(right.try_iter()?).collect());
        }
        numbers("+", &left, &right, i64::checked_add, |a, b| a + b)
    });
    let m = meter.clone();
    environment.add_function(MUL, move |left: Value, right: Value| -> Result<Value, Error> {
        let (repeated, count) = if left.is_number() { (&right, &left) } else { (&left, &right) };
        let count = i64::try_from(count.clone()).ok().map(|count| count.max(0) as usize);
        if let (Some(text), Some(count)) = (repeated.as_str(), count) {
            m.charge((text.len() as u64).saturating_mul(count as u64))?;
            return Ok(Value::from(text.repeat(count)));
        }
        if let (true, Some(count)) = (is_list(repeated), count) {
            m.charge_list(repeated.len().unwrap_or(0).saturating_mul(count))?;
            let items: Vec<Value> = repeated.try_iter()?.collect();
            return Ok((0..count).flat_map(|_| items.iter().cloned()).collect());
        }
        numbers("*", &left, &right, i64::checked_mul, |a, b| a * b)
    });
    let m = meter.clone();
    environment.add_function(SLICE, move |value: Value, start: Value, stop: Value, step: Value| {
        match value.as_str() {
            // The characters, and the text made of them.
            Some(text) => m.charge((text.len() as u64).saturating_mul(1 + size_of::<char>() as u64))?,
            None => m.charge_like(&value)?,
        }
        slice(&value, &start, &stop, &step)
    });
}

fn filters(environment: &mut Environment<'_>, meter: &Meter) {
    let m = meter.clone();
    environment.add_filter("tojson", move |value: Value, indent: Option<usize>, kwargs: Kwargs| {
        let indent = match indent {
            Some(indent) => Some(indent),
            None => kwargs.get::<Option<usize>>("indent")?,
        };
        json::dumps(&m, &value, indent.map(|indent| indent.min(MAX_INDENT)))
    });
    let m = meter.clone();
    environment.add_filter("string", move |value: Value| m.text_of(&value));
    let m = meter.clone();
    environment.add_filter("join", move |value: Value, between: Option<String>| join(&m, &value, between.as_deref()));
    let m = meter.clone();
    environment.add_filter("replace", move |text: Value, from: &str, to: &str| {
        let text = m.text_of(&text)?;
        replace(&m, &text, from, to, usize::MAX)
    });
    let m = meter.clone();
    environment.add_filter(
        "indent",
        move |text: &str, width: Option<usize>, first: Option<bool>, blank: Option<bool>| {
            let width = width.unwrap_or(4).min(MAX_INDENT);
            m.charge((text.len() + text.lines().count().saturating_mul(width)) as u64)?;
            let space = " ".repeat(width);
            let mut out = String::new();
            for (i, line) in text.split('\n').enumerate() {
                if i > 0 {
                    out.push('\n');
                }
                let indented = if i == 0 { first.unwrap_or(false) } else { !line.is_empty() || blank.unwrap_or(false) };
                if indented {
                    out.push_str(&space);
                }
                out.push_str(line);
            }
            Ok::<_, Error>(out)
        },
    );
    // Each makes a string about as long as its own.
    let cased: [(&str, Change); 4] = [
        ("upper", |text| text.to_uppercase()),
        ("lower", |text| text.to_lowercase()),
        ("title", |text| titled(text, true)),
        ("capitalize", |text| titled(text, false)),
    ];
    for (name, change) in cased {
        let m = meter.clone();
        environment.add_filter(name, move |text: Value| {
            let text = m.text_of(&text)?;
            m.charge(text.len() as u64 * 2)?;
            Ok::<_, Error>(change(&text))
        });
    }
    let m = meter.clone();
    environment.add_filter("trim", move |text: Value, chars: Option<String>| {
        let text = m.text_of(&text)?;
        Ok::<_, Error>(match chars {
            Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
            None => text.trim().to_owned(),
        })
    });
    let m = meter.clone();
    environment.add_filter("list", move |value: Value| {
        let len = value.as_str().map(str::len).or(value.len()).unwrap_or(0);
        m.charge_list(len)?;
        Ok::<Vec<Value>, Error>(value.try_iter()?.collect())
    });
    let m = meter.clone();
    environment.add_filter("split", move |text: &str, by: Option<String>| {
        m.charge_list(text.len())?;
        Ok::<Vec<Value>, Error>(match by.as_deref() {
            Some(by) if !by.is_empty() => text.split(by).map(Value::from).collect(),
            _ => text.split_whitespace().map(Value::from).collect(),
        })
    });
}

/// What a filter makes of a text.
type Change = fn(&str) -> String;

/// A method of Python's strings, lists and dictionaries.
fn method_of(meter: &Meter, state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let text_at = |i: usize| args.get(i).and_then(|arg| arg.as_str());
    match (value.as_str(), method) {
        (Some(_), "format") => return Err(Error::from(ErrorKind::UnknownMethod)),
        (Some(text), "replace") => {
            let (Some(from), Some(to)) = (text_at(0), text_at(1)) else {
                return Err(Error::new(ErrorKind::MissingArgument, "replace() takes two strings"));
            };
            let most = args.get(2).and_then(|most| usize::try_from(most.clone()).ok()).unwrap_or(usize::MAX);
            return replace(meter, text, from, to, most).map(Value::from);
        }
        (Some(between), "join") => {
            let list = args.first().ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            return join(meter, list, Some(between)).map(Value::from);
        }
        (Some(text), "split" | "splitlines") => meter.charge_list(text.len())?,
        (Some(text), _) => meter.charge(text.len() as u64 * 3)?,
        (None, _) => meter.charge_like(value)?,
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn numbers(
    sign: &str,
    left: &Value,
    right: &Value,
    of_ints: fn(i64, i64) -> Option<i64>,
    of_floats: fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    let bad = |what: &str| Error::new(ErrorKind::InvalidOperation, what.to_owned());
    if !left.is_number() || !right.is_number() {
        return Err(bad(&format!("no {sign} of {} and {}", left.kind(), right.kind())));
    }
    if left.is_integer() && right.is_integer() {
        let both = of_ints(i64::try_from(left.clone())?, i64::try_from(right.clone())?);
        return both.map(Value::from).ok_or_else(|| bad("integer overflow"));
    }
    Ok(Value::from(of_floats(f64::try_from(left.clone())?, f64::try_from(right.clone())?)))
}

fn join(meter: &Meter, list: &Value, between: Option<&str>) -> Result<String, Error> {
    let between = between.unwrap_or_default();
    let mut out = String::new();
    for (i, item) in list.try_iter()?.enumerate() {
        if i > 0 {
            meter.charge(between.len() as u64)?;
            out.push_str(between);
        }
        out.push_str(&meter.text_of(&item)?);
    }
    Ok(out)
}

fn replace(meter: &Meter, text: &str, from: &str, to: &str, most: usize) -> Result<String, Error> {
    let times = text.matches(from).take(most).count();
    meter.charge((text.len() as u64).saturating_add((to.len() as u64).saturating_mul(times as u64)))?;
    Ok(text.replacen(from, to, most))
}

/// The first letter in upper case and the others in lower case: of each word, or of the text.
fn titled(text: &str, each: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut first = true;
    for c in text.chars() {
        if first {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        first = each && !c.is_alphanumeric();
    }
    out
}

/// Python's `value[start:stop:step]`.
fn slice(value: &Value, start: &Value, stop: &Value, step: &Value) -> Result<Value, Error> {
    let number = |value: &Value| match value.kind() {
        ValueKind::None | ValueKind::Undefined => Ok(None),
        _ => i64::try_from(value.clone()).map(Some),
    };
    let step = number(step)?.unwrap_or(1);
    if step == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "cannot slice by steps of 0"));
    }
    if value.is_undefined() || value.is_none() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    if let Some(text) = value.as_str() {
        let chars: Vec<char> = text.chars().collect();
        let picked = places(chars.len(), number(start)?, number(stop)?, step).filter_map(|at| chars.get(at));
        return Ok(Value::from(picked.collect::<String>()));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    let picked = places(items.len(), number(start)?, number(stop)?, step).filter_map(|at| items.get(at));
    Ok(picked.cloned().collect())
}

/// The places that Python's `[start:stop:step]` takes of `len`.
fn places(len: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let len = len as i64;
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamped = |place: Option<i64>, otherwise: i64| match place {
        None => otherwise,
        Some(place) if place < 0 => place.saturating_add(len).clamp(lowest, highest),
        Some(place) => place.clamp(lowest, highest),
    };
    let (first, last) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let (start, stop) = (clamped(start, first), clamped(stop, last));
    std::iter::successors(Some(start), move |at| at.checked_add(step))
        .take_while(move |&at| if step > 0 { at < stop } else { at > stop })
        .filter_map(|at| usize::try_from(at).ok())
}
