//! Which models are refused, and how.
