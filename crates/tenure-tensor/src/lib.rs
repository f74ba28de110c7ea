//! Words of the project: element types, shapes, byte sizes, block formats and their scalar codecs.
//!
//! What it is: the vocabulary every other crate speaks, with no behaviour beyond arithmetic on sizes and the scalar
//! definition of each block format. What it is not: a tensor library; nothing here owns or computes with tensors.
//!
//! Three types to know: [`DType`], [`TensorSpec`], [`ByteSize`].
//!
//! ```
//! use tenure_tensor::{DType, Shape, TensorSpec};
//!
//! let spec = TensorSpec { name: "w".into(), dtype: DType::Q4_0, shape: Shape::from([576, 1536]) };
//! assert_eq!(spec.bytes().map(|b| b.get()), Some(576 * 1536 / 32 * 18));
//! ```
#![forbid(unsafe_code)]

mod byte_size;
pub mod codec;
mod dtype;
mod shape;
mod spec;

pub use byte_size::ByteSize;
pub use dtype::DType;
pub use shape::Shape;
pub use spec::TensorSpec;
