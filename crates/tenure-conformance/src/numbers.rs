//! Numbers that follow from their names alone: what the models of `fixtures/image` are filled with, computed alike by its
//! `filling.py`.

use tenure_tensor::TensorSpec;

/// A weight's bytes, in 32-bit floats.
pub fn weight(spec: &TensorSpec) -> Vec<u8> {
    const TABLES: [&str; 4] =
        ["embedding.weight", "shared.weight", "pos_embed.pos_embed", "relative_attention_bias.weight"];
    let (name, dims) = (&spec.name[..], spec.shape.dims());
    let (base, factor) = match dims {
        [_] if name.ends_with(".weight") => (1.0, 0.2),
        [_] => (0.0, 0.2),
        _ if TABLES.iter().any(|table| name.ends_with(table)) => (0.0, 1.0),
        _ => (0.0, (3.0 / dims[1..].iter().product::<usize>() as f64).sqrt() as f32),
    };
    numbers(name).take(dims.iter().product()).flat_map(|x| (base + factor * x).to_le_bytes()).collect()
}

/// From -1 to 1, in 24 bits.
pub fn numbers(name: &str) -> impl Iterator<Item = f32> {
    words(name).map(|word| (word >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
}

/// SplitMix64 (Steele et al. 2014) from the FNV-1a hash of the name.
pub fn words(name: &str) -> impl Iterator<Item = u64> {
    let hash = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let seed = name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, hash);
    (1..).map(move |at: u64| {
        let z = seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}
