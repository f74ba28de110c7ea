// What the kernels for attention share: how a head's elements are read and shared out among lanes, which positions and
// rows there are, and what scores become.

layout(set = 1, binding = 0, std430) readonly buffer Q { float q[]; };
// The same words twice: one by one, and four at a time where four lie aligned.
layout(set = 1, binding = 1, std430) readonly buffer Kv { uint kv[]; };
layout(set = 1, binding = 1, std430) readonly buffer KvByFour { uvec4 kv4[]; };
layout(set = 1, binding = 2, std430) writeonly buffer Out { float result[]; };

// The same as head_dim, known when the pipeline is made.
layout(constant_id = 1) const uint HEAD_DIM = 64u;

// Elements of a word, and words of a position's elements.
const uint PER_WORD = FORMAT == KV_F32 ? 1u : FORMAT == KV_F16 ? 2u : 4u;
const uint WORDS = (HEAD_DIM + PER_WORD - 1u) / PER_WORD;
// Words of a key read at once: positions are whole fours of words if the elements are and nothing follows them.
const uint AT_ONCE = FORMAT == KV_Q8_0 ? 1u : WORDS % 4u == 0u ? 4u : 1u;
// The lanes that share out a value's words, so that there are several such teams when there are few words.
const uint TEAM = WORDS > 64u ? 128u : WORDS > 32u ? 64u : WORDS > 16u ? 32u : 16u;
const uint TEAMS = LANES / TEAM;
const uint WORDS_EACH = (WORDS + TEAM - 1u) / TEAM;

// AT_ONCE words.
uvec4 words_at(uint at) { return AT_ONCE == 4u ? kv4[at / 4u] : uvec4(kv[at], 0u, 0u, 0u); }

// The elements of a word of the position that begins at `at`; those beyond the head are whatever fills it. A driver may
// take subnormal f16 for zero: less than the cache's own rounding of what is larger than 2^-4.
vec4 elements_of(uint bits, uint at, uint word) {
    if (FORMAT == KV_F32) {
        return vec4(uintBitsToFloat(bits), 0.0, 0.0, 0.0);
    }
    if (FORMAT == KV_F16) {
        return vec4(unpackHalf2x16(bits), 0.0, 0.0);
    }
    uint g = word / (KV_GROUP / 4u);
    float d = half_to_float((kv[at + WORDS + g / 2u] >> (16u * (g & 1u))) & 0xffffu);
    int codes = int(bits);
    return d * vec4(float(bitfieldExtract(codes, 0, 8)), float(bitfieldExtract(codes, 8, 8)),
                    float(bitfieldExtract(codes, 16, 8)), float(codes >> 24));
}

vec4 elements(uint at, uint word) { return elements_of(kv[at + word], at, word); }

float capped(float product) {
    float score = product * scale;
    return softcap > 0.0 ? softcap * tanh_of(score / softcap) : score;
}

// Rows of a workgroup of attention_rows.
const uint ROWS = 8u;
// Rows of a sequence there must be on the average, for them to be computed together.
const uint LEAST_ROWS = 4u;

// Whether the rows from `row` on, of so many, are computed together: by attention_rows rather than attention.
bool is_shared(uint row, uint rows) {
    rows = min(rows - row, ROWS);
    uint runs = 1u;
    for (uint r = 1u; r < rows; r++) {
        runs += step_table(first_row + row + r) != step_table(first_row + row + r - 1u) ? 1u : 0u;
    }
    return rows >= LEAST_ROWS * runs;
}
