//! Lines of the tables: which tensor of a file becomes which tensor of diffusers.

/// One line of a table of names.
///
/// In `from`, `{}` stands for a number and a last `*` for any end; in `to` they stand for what they were in the name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    /// As the file has it.
    pub(crate) from: &'static str,
    /// As diffusers or transformers has it.
    pub(crate) to: &'static str,
    /// What of the file's tensor.
    pub(crate) take: Take,
}

/// What of a file's tensor is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// All, as it is.
    Whole,
    /// All, as plain numbers: blocks are decoded.
    Numbers,
    /// Of `of` ranges of rows, equally long, the one numbered `at`.
    Part { at: usize, of: usize },
    /// The second half of the rows, then the first.
    Swapped,
    /// A matrix, `[a, b]` as `[b, a]`.
    Transposed,
    /// A kernel of one pixel as a matrix.
    Pixel,
    /// With one more dimension of 1 outside, up to three.
    Outer,
}

/// The tensor taken whole, under another name.
pub(crate) const fn renamed(from: &'static str, to: &'static str) -> Rule {
    Rule { from, to, take: Take::Whole }
}

/// The tensor taken whole, under its own name.
pub(crate) const fn same(name: &'static str) -> Rule {
    renamed(name, name)
}

/// The tensor taken whole, as plain numbers, under another name.
pub(crate) const fn numbers(from: &'static str, to: &'static str) -> Rule {
    Rule { from, to, take: Take::Numbers }
}

/// One of three equal ranges of rows.
pub(crate) const fn third(at: usize, from: &'static str, to: &'static str) -> Rule {
    Rule { from, to, take: Take::Part { at, of: 3 } }
}

/// Two halves of the rows, exchanged.
pub(crate) const fn swapped(from: &'static str, to: &'static str) -> Rule {
    Rule { from, to, take: Take::Swapped }
}

/// A matrix turned over.
pub(crate) const fn transposed(from: &'static str, to: &'static str) -> Rule {
    Rule { from, to, take: Take::Transposed }
}

/// A matrix that the file may have as a kernel of one pixel.
pub(crate) const fn pixel(from: &'static str, to: &'static str) -> Rule {
    Rule { from, to, take: Take::Pixel }
}

impl Rule {
    /// The name that `name` becomes by this line.
    pub(crate) fn apply(&self, name: &str) -> Option<String> {
        let found = capture(self.from, name)?;
        let mut to = String::with_capacity(self.to.len() + 8);
        let mut found = found.into_iter();
        for c in self.to.chars() {
            match c {
                '{' | '*' => to.push_str(found.next().unwrap_or_default()),
                '}' => {}
                c => to.push(c),
            }
        }
        Some(to)
    }
}

/// What the lines of `table` make of `name`.
pub(crate) fn apply(table: &[Rule], name: &str) -> Vec<(String, Take)> {
    table.iter().filter_map(|rule| Some((rule.apply(name)?, rule.take))).collect()
}

/// What stands in `name` for each `{}` and for the `*` of `pattern`.
fn capture<'n>(pattern: &str, name: &'n str) -> Option<Vec<&'n str>> {
    let (pattern, open) = pattern.strip_suffix('*').map_or((pattern, false), |pattern| (pattern, true));
    let (mut rest, mut found) = (name, Vec::new());
    for (i, piece) in pattern.split("{}").enumerate() {
        if i > 0 {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, behind) = rest.split_at_checked(digits)?;
            // 01 is not another name of 1.
            if number.is_empty() || (number.len() > 1 && number.starts_with('0')) {
                return None;
            }
            found.push(number);
            rest = behind;
        }
        rest = rest.strip_prefix(piece)?;
    }
    match (open, rest.is_empty()) {
        (true, false) => found.push(rest),
        (false, true) => {}
        (true, true) | (false, false) => return None,
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_carries_numbers_and_the_end_over() {
        let rule = renamed("resblocks.{}.ln_1.*", "layers.{}.layer_norm1.*");
        assert_eq!(rule.apply("resblocks.12.ln_1.bias").as_deref(), Some("layers.12.layer_norm1.bias"));
        for other in ["resblocks..ln_1.bias", "resblocks.01.ln_1.bias", "resblocks.1.ln_1.", "x.resblocks.1.ln_1.bias"]
        {
            assert_eq!(rule.apply(other), None, "{other}");
        }
        assert_eq!(renamed("a", "b").apply("a").as_deref(), Some("b"));
        assert_eq!(renamed("a", "b").apply("aa"), None);
    }

    #[test]
    fn one_name_may_become_several() {
        let table = [third(0, "qkv", "q"), third(1, "qkv", "k"), third(2, "qkv", "v")];
        let names: Vec<_> = apply(&table, "qkv").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["q", "k", "v"]);
    }
}
