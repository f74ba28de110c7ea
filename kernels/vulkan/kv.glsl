// How the KV cache of a layer lies in memory: for each KV head the keys, then the values, position after position.
//
// A position is `pos_words` words: f32 elements; or f16 elements, two a word; or (Q8_0) 8-bit numbers, four a word, then
// their scales, f16, one for 32 elements, two a word.

#define KV_F32 0u
#define KV_F16 1u
#define KV_Q8_0 8u

// Elements that share a scale.
const uint KV_GROUP = 32u;

// Elements of a word.
uint kv_per_word() { return FORMAT == KV_F32 ? 1u : FORMAT == KV_F16 ? 2u : 4u; }

// The first word of the keys (`values` 0) or the values (1) of a position; `head` counts from the first of this part.
uint kv_position(uint cache, uint head, uint values, uint slots, uint block, uint slot) {
    return cache + ((head * 2u + values) * slots + block * KV_BLOCK + slot) * pos_words;
}
