//! Any bytes as a safetensors file: a typed error, or tensors that tile the file's data.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenure_weights::safetensors::Safetensors;

fuzz_target!(|bytes: &[u8]| {
    let file = match Safetensors::from_bytes(bytes) {
        Ok(file) => file,
        Err(e) => {
            let message = e.to_string();
            assert!(message.len() < 4096 && !message.contains(char::is_control), "{message:?}");
            return;
        }
    };
    let mut total = 0;
    for tensor in file.tensors() {
        let end = tensor.offset().checked_add(tensor.bytes().get()).expect("an end that overflows");
        assert_eq!(tensor.spec().bytes(), Some(tensor.bytes()));
        assert!(end <= bytes.len() as u64);
        assert!(file.find(&tensor.spec().name).is_some());
        total += tensor.bytes().get();
    }
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    assert_eq!(8 + header + total, bytes.len() as u64);
    for (key, value) in file.metadata().iter() {
        assert_eq!(file.metadata().value(key), Some(value));
    }
});
