// Rows of activations in f32, four elements at a time: binding 0 of set 1.

layout(set = 1, binding = 0, std430) readonly buffer X { float x[]; };
layout(set = 1, binding = 0, std430) readonly buffer XByFour { vec4 x4[]; };

// Whether rows of `k` elements begin at multiples of four words.
bool is_aligned(uint k) { return ((base[0] | k) & 3u) == 0u; }

// Four elements from word `at` on.
vec4 four_of(uint at, bool aligned) {
    return aligned ? x4[at / 4u] : vec4(x[at], x[at + 1u], x[at + 2u], x[at + 3u]);
}

// The same from element `e` of a row of `k`, which is a multiple of four: zeros behind the row's end, for what follows
// is not this row's, and may be NaN.
vec4 four_within(uint row, uint e, uint k, bool aligned) {
    if (e + 4u <= k) {
        return four_of(row + e, aligned);
    }
    vec4 v = vec4(0.0);
    for (uint i = 0u; i < 3u; i++) {
        if (e + i < k) {
            v[i] = x[row + e + i];
        }
    }
    return v;
}
