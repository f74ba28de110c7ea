//! Checks and chores of the Tenure workspace.
fn main() {}
