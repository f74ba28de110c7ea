//! Benchmarks live beside this file; what they share would stand here.
