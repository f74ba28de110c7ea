// What both kernels for attention know of a head: how its elements are read and shared out, and what scores become.

// Elements of a word, and words of a position's elements.
const uint PER_WORD = FORMAT == KV_F32 ? 1u : FORMAT == KV_F16 ? 2u : 4u;
const uint WORDS = (HEAD_DIM + PER_WORD - 1u) / PER_WORD;
// The lanes that share out a value's words, so that there are several such teams when there are few words.
const uint TEAM = WORDS > 64u ? 128u : WORDS > 32u ? 64u : WORDS > 16u ? 32u : 16u;
const uint TEAMS = LANES / TEAM;
const uint WORDS_EACH = (WORDS + TEAM - 1u) / TEAM;

#define NEGATIVE_INFINITY uintBitsToFloat(0xff800000u)

// The elements of a word; those beyond the head are whatever fills it.
vec4 elements(uint at, uint word) {
    uint bits = kv[at + word];
    if (FORMAT == KV_F32) {
        return vec4(uintBitsToFloat(bits), 0.0, 0.0, 0.0);
    }
    if (FORMAT == KV_F16) {
        return vec4(low_half(bits), high_half(bits), 0.0, 0.0);
    }
    uint g = word / (KV_GROUP / 4u);
    float d = half_to_float((kv[at + WORDS + g / 2u] >> (16u * (g & 1u))) & 0xffffu);
    int codes = int(bits);
    return d * vec4(float(bitfieldExtract(codes, 0, 8)), float(bitfieldExtract(codes, 8, 8)),
                    float(bitfieldExtract(codes, 16, 8)), float(codes >> 24));
}

// The first position that a row at `position` attends to.
uint first_attended(uint position) { return window != 0u && position >= window ? position + 1u - window : 0u; }

float capped(float product) {
    float score = product * scale;
    return softcap > 0.0 ? softcap * tanh_of(score / softcap) : score;
}

// The weight of a score; none, where nothing is attended to.
float weight_of(float score, float largest) { return score == NEGATIVE_INFINITY ? 0.0 : exp(score - largest); }
