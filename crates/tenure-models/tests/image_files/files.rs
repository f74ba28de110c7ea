//! Files and folders of tests.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use tenure_tensor::{DType, Shape};
use tenure_weights::gguf::{GgufWriter, KvValue};

/// A tensor to be written.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    /// A tensor whose 32-bit words count on from a number of its name.
    pub(crate) fn counted(name: &str, dtype: DType, shape: &[usize]) -> Self {
        let first = name.bytes().fold(7u32, |sum, b| sum.wrapping_mul(31).wrapping_add(u32::from(b)));
        let cols = shape.last().copied().unwrap_or(1);
        let rows: usize = shape.split_last().map_or(1, |(_, outer)| outer.iter().product());
        let len = dtype.row_bytes(cols).expect("whole blocks") * rows;
        let words = (0..len.div_ceil(4) as u32).flat_map(|i| first.wrapping_add(i).to_le_bytes());
        Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes: words.take(len).collect() }
    }
}

/// A folder that goes with its test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("tenure-models-image-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("writable");
        Folder(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().expect("within the folder")).expect("writable");
        std::fs::write(&path, bytes).expect("writable");
        path
    }

    pub(crate) fn safetensors(&self, name: &str, tensors: &[Tensor]) -> PathBuf {
        self.safetensors_with(name, tensors, "")
    }

    /// With pairs of metadata, such as `"a":"b"`.
    pub(crate) fn safetensors_with(&self, name: &str, tensors: &[Tensor], metadata: &str) -> PathBuf {
        let mut header = format!("{{\"__metadata__\":{{{metadata}}}");
        let mut data = Vec::new();
        for t in tensors {
            let dims: Vec<String> = t.shape.iter().map(usize::to_string).collect();
            let (start, end) = (data.len(), data.len() + t.bytes.len());
            header += &format!(
                ",\"{}\":{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{start},{end}]}}",
                t.name,
                t.dtype,
                dims.join(",")
            );
            data.extend(&t.bytes);
        }
        header.push('}');
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        self.write(name, file)
    }

    pub(crate) fn gguf(&self, name: &str, pairs: &[(&str, KvValue)], tensors: &[Tensor]) -> PathBuf {
        let mut writer = GgufWriter::new();
        for (key, value) in pairs {
            writer = writer.kv(*key, value.clone());
        }
        for t in tensors {
            writer = writer.tensor(t.name.as_str(), t.dtype, Shape::new(t.shape.clone()), t.bytes.clone());
        }
        self.write(name, writer.finish().expect("a well-formed file"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder left behind among temporary files harms nobody.
        let _: std::io::Result<()> = std::fs::remove_dir_all(&self.0);
    }
}
