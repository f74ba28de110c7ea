//! Progress on stderr.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts bytes; invisible where stderr is no terminal.
pub fn bytes(what: &'static str) -> ProgressBar {
    bar(what, "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}")
}

/// A bar that counts steps; invisible where stderr is no terminal.
pub fn steps(what: &'static str) -> ProgressBar {
    bar(what, "{msg} {wide_bar} {pos}/{len} {eta}")
}

fn bar(what: &'static str, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_message(what);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
