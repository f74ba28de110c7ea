//! Model files: GGUF and safetensors read strictly, and the store that hands out their tensors.
//!
//! What it is: readers that copy a header, prove every number in it, and then give views; every refusal names the file,
//! the key or tensor and the figures. What it is not: a place for weights. It reads bytes where the caller wants them,
//! knows nothing of devices, and does not decode blocks (that is `tenure_tensor::codec`).
//!
//! Three types to know: [`WeightStore`], [`gguf::Metadata`], [`WeightsError`].
//!
//! ```
//! use tenure_tensor::DType;
//! use tenure_weights::{WeightStore, gguf::GgufWriter};
//!
//! # let folder = std::env::temp_dir().join(format!("tenure-weights-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! let path = folder.join("tiny.gguf");
//! let file = GgufWriter::new()
//!     .kv("general.architecture", "llama")
//!     .tensor("output_norm.weight", DType::F32, [2], 1f32.to_le_bytes().repeat(2))
//!     .finish()?;
//! std::fs::write(&path, file)?;
//!
//! let store = WeightStore::open(&path)?;
//! let metadata = store.metadata().ok_or("not a GGUF file")?;
//! assert_eq!(metadata.str("general.architecture")?, "llama");
//! let norm = store.find("output_norm.weight").ok_or("no such tensor")?;
//! let mut bytes = vec![0; 8];
//! store.read_at(norm, 0, &mut bytes)?;
//! assert_eq!(bytes, 1f32.to_le_bytes().repeat(2));
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

pub mod diffusers;
mod error;
#[allow(unsafe_code)] // The one map.
mod file;
pub mod gguf;
mod index;
pub mod safetensors;
mod shards;
mod store;
mod tensor;

pub use error::{ErrorKind, ShardFault, Shown, WeightsError};
pub use store::{MappedTensor, TrustFile, WeightStore};
pub use tensor::StoredTensor;
