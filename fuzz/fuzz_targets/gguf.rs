//! Any bytes as a GGUF file: a typed error, or a header whose tensors tile the file and whose values can all be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenure_weights::gguf::{Gguf, Value};

fuzz_target!(|bytes: &[u8]| {
    let file = match Gguf::from_bytes(bytes) {
        Ok(file) => file,
        Err(e) => {
            // Messages stay printable and short, whatever names the file holds.
            let message = e.to_string();
            assert!(message.len() < 4096 && !message.contains(char::is_control), "{message:?}");
            return;
        }
    };
    let mut spans = Vec::new();
    for tensor in file.tensors() {
        let end = tensor.offset().checked_add(tensor.bytes().get()).expect("an end that overflows");
        assert_eq!(tensor.spec().bytes(), Some(tensor.bytes()));
        assert_eq!(tensor.offset() % file.alignment(), 0);
        assert!(tensor.offset() >= file.data_start() && end <= bytes.len() as u64);
        assert!(file.find(&tensor.spec().name).is_some());
        spans.push((tensor.offset(), end));
    }
    spans.sort_unstable();
    assert!(spans.windows(2).all(|w| w[0].1 <= w[1].0));
    let mut seen = 0;
    for (key, value) in file.metadata().iter() {
        seen += 1;
        assert!(file.metadata().value(key).is_some());
        if let Value::Array(array) = value {
            assert_eq!(array.values().count(), array.len());
        }
    }
    assert_eq!(seen, file.metadata().len());
});
