//! The vocabularies that are built in, compressed. `data/README.md` says where they are from.

/// CLIP's merges, in the form of a `merges.txt`.
pub(crate) const CLIP_MERGES: &[u8] = include_bytes!("../data/clip-merges.z");

/// T5's pieces, scores and replaced characters, in the form of a `spiece.model`.
pub(crate) const T5_PIECES: &[u8] = include_bytes!("../data/t5-spiece.z");
