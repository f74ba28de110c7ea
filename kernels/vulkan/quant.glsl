// Weights: every type's layout on the device, and its decoding, once.
//
// A row is a multiple of four words. Of a block type it holds first the bodies of all blocks, then a tail with one
// small field of each. A kernel defines WEIGHT_BINDING before it includes this file, after common.glsl; and
// SMALL_STORAGE where single bytes and halves of words may be loaded (8 and 16 bit storage).

// The numbers of the types are GGML's. LEN elements make a block, whose body is WORDS words; TAIL bytes of it are in the
// row's tail. A test compares these lines with tenure-tensor.
#define F32 0u
#define F16 1u
#define Q4_0 2u
#define Q4_0_LEN 32u
#define Q4_0_WORDS 4u
#define Q4_0_TAIL 2u
#define Q4_1 3u
#define Q4_1_LEN 32u
#define Q4_1_WORDS 5u
#define Q4_1_TAIL 0u
#define Q5_0 6u
#define Q5_0_LEN 32u
#define Q5_0_WORDS 5u
#define Q5_0_TAIL 2u
#define Q5_1 7u
#define Q5_1_LEN 32u
#define Q5_1_WORDS 6u
#define Q5_1_TAIL 0u
#define Q8_0 8u
#define Q8_0_LEN 32u
#define Q8_0_WORDS 8u
#define Q8_0_TAIL 2u
#define Q2_K 10u
#define Q2_K_LEN 256u
#define Q2_K_WORDS 21u
#define Q2_K_TAIL 0u
#define Q3_K 11u
#define Q3_K_LEN 256u
#define Q3_K_WORDS 27u
#define Q3_K_TAIL 2u
#define Q4_K 12u
#define Q4_K_LEN 256u
#define Q4_K_WORDS 36u
#define Q4_K_TAIL 0u
#define Q5_K 13u
#define Q5_K_LEN 256u
#define Q5_K_WORDS 44u
#define Q5_K_TAIL 0u
#define Q6_K 14u
#define Q6_K_LEN 256u
#define Q6_K_WORDS 52u
#define Q6_K_TAIL 2u
#define IQ4_NL 20u
#define IQ4_NL_LEN 32u
#define IQ4_NL_WORDS 4u
#define IQ4_NL_TAIL 2u
#define IQ4_XS 23u
#define IQ4_XS_LEN 256u
#define IQ4_XS_WORDS 34u
#define IQ4_XS_TAIL 0u
#define BF16 30u
#define MXFP4 39u
#define MXFP4_LEN 32u
#define MXFP4_WORDS 4u
#define MXFP4_TAIL 1u

// The same words twice: one by one, and four at a time where four lie aligned.
layout(set = 1, binding = WEIGHT_BINDING, std430) readonly buffer Weights { uint w1[]; };
layout(set = 1, binding = WEIGHT_BINDING, std430) readonly buffer WeightsByFour { uvec4 w4[]; };
#ifdef SMALL_STORAGE
layout(set = 1, binding = WEIGHT_BINDING, std430) readonly buffer WeightHalves { uint16_t w_halves[]; };
layout(set = 1, binding = WEIGHT_BINDING, std430) readonly buffer WeightBytes { uint8_t w_bytes[]; };
#endif

// Elements of a unit, which is decoded at a time: no scale of any type covers fewer. Two make a block, or a part of one.
const uint UNIT = 16u;
const uint BLOCK = 2u * UNIT;

// What the codes of IQ4_NL and IQ4_XS stand for.
const int UNEVEN[16] = int[](-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
// What the codes of MXFP4 stand for, doubled.
const int E2M1[16] = int[](0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);

bool is_plain() { return FORMAT == F32 || FORMAT == F16 || FORMAT == BF16; }

uint byte_of(uint word, uint i) { return (word >> (8u * i)) & 0xffu; }

// Byte or half `i` of the words from `at` on.
#ifdef SMALL_STORAGE
uint byte_at(uint at, uint i) { return uint(w_bytes[4u * at + i]); }
uint half_at(uint at, uint i) { return uint(w_halves[2u * at + i]); }
#else
uint byte_at(uint at, uint i) { return byte_of(w1[at + i / 4u], i & 3u); }
uint half_at(uint at, uint i) { return (w1[at + i / 2u] >> (16u * (i & 1u))) & 0xffffu; }
#endif

// The number that a byte with a code of a table stands for.
int listed(uint code) { return FORMAT == MXFP4 ? E2M1[code] : UNEVEN[code]; }
bool is_listed() { return FORMAT == IQ4_NL || FORMAT == IQ4_XS || FORMAT == MXFP4; }

// The numbers that a word of codes stands for: those of a table, or signed bytes, or bytes below 128.
vec4 numbers_of(uint q) {
    if (is_listed()) {
        return vec4(ivec4(listed(q & 15u), listed((q >> 8) & 15u), listed((q >> 16) & 15u), listed(q >> 24)));
    }
    if (FORMAT == Q8_0) {
        int bits = int(q);
        return vec4(float(bitfieldExtract(bits, 0, 8)), float(bitfieldExtract(bits, 8, 8)),
                    float(bitfieldExtract(bits, 16, 8)), float(bits >> 24));
    }
    return vec4(float(q & 0xffu), float((q >> 8) & 0xffu), float((q >> 16) & 0xffu), float(q >> 24));
}

// The same as four signed bytes.
int packed_numbers_of(uint q) {
    if (!is_listed()) {
        return int(q);
    }
    uint low = (uint(listed(q & 15u)) & 0xffu) | ((uint(listed((q >> 8) & 15u)) & 0xffu) << 8);
    uint high = (uint(listed((q >> 16) & 15u)) & 0xffu) | (uint(listed(q >> 24)) << 8);
    return int(low | (high << 16));
}

// The number whose code stands for zero.
int zero_number() {
    return FORMAT == Q4_0 ? 8 : FORMAT == Q5_0 ? 16 : FORMAT == Q3_K ? 4 : FORMAT == Q6_K ? 32 : 0;
}

// Whether something is added to the scaled numbers of a unit.
bool has_offset() {
    return FORMAT == Q4_1 || FORMAT == Q5_1 || FORMAT == Q2_K || FORMAT == Q4_K || FORMAT == Q5_K;
}

// The lowest four bits, each in the fifth place of a byte of its own.
uint fifth_bits(uint bits) { return (((bits & 15u) * 0x00204081u) & 0x01010101u) << 4; }

// The element of a plain type that is one of the last, for there may be no whole unit of them.
float plain_element(uint at, uint k, uint i) {
    if (i >= k) {
        return 0.0;
    }
    if (FORMAT == F32) {
        return uintBitsToFloat(w1[at + i]);
    }
    uint bits = half_at(at, i);
    return FORMAT == F16 ? half_to_float(bits) : uintBitsToFloat(bits << 16);
}

// Six-bit scale and minimum of group `g` of eight, from the header of a block of Q4_K or Q5_K.
uvec2 scale_min(uvec4 header, uint g) {
    uint j = g & 3u;
    uint a = byte_of(header.y, j);
    uint b = byte_of(header.z, j);
    if (g < 4u) {
        return uvec2(a & 63u, b & 63u);
    }
    uint low = byte_of(header.w, j);
    return uvec2((low & 15u) | ((a >> 6) << 4), (low >> 4) | ((b >> 6) << 4));
}

// Unit 2 block + second of the row of `k` elements of a block type that starts at word `at`: its elements are
// scale (number - zero_number()) + offset, with the numbers of the codes. Whoever asks for both units of a block with the
// numbers 0 and 1 has what they share computed once.
void codes_of(uint at, uint k, uint block, uint second, out uvec4 codes, out float scale, out float offset) {
    offset = 0.0;
    // Blocks of 32: two units, the first in the low nibbles.
    uint nibble = 4u * second;
    // Blocks of 256: sixteen units in eight groups of two.
    uint super = block / 8u;
    uint group = block % 8u;
    uint sixteenth = 2u * group + second;

    if (FORMAT == Q4_0 || FORMAT == IQ4_NL) {
        scale = half_to_float(half_at(at + (k / Q4_0_LEN) * Q4_0_WORDS, block));
        codes = (w4[at / 4u + block] >> nibble) & 0x0f0f0f0fu;
    } else if (FORMAT == MXFP4) {
        uint exponent = byte_at(at + (k / MXFP4_LEN) * MXFP4_WORDS, block);
        scale = uintBitsToFloat(exponent < 2u ? 0x00200000u << exponent : (exponent - 1u) << 23);
        codes = (w4[at / 4u + block] >> nibble) & 0x0f0f0f0fu;
    } else if (FORMAT == Q4_1) {
        uint from = at + block * Q4_1_WORDS;
        scale = low_half(w1[from]);
        offset = high_half(w1[from]);
        for (uint i = 0u; i < 4u; i++) {
            codes[i] = (w1[from + 1u + i] >> nibble) & 0x0f0f0f0fu;
        }
    } else if (FORMAT == Q5_0) {
        uint from = at + block * Q5_0_WORDS;
        scale = half_to_float(half_at(at + (k / Q5_0_LEN) * Q5_0_WORDS, block));
        uint fifth = w1[from] >> (16u * second);
        for (uint i = 0u; i < 4u; i++) {
            codes[i] = ((w1[from + 1u + i] >> nibble) & 0x0f0f0f0fu) | fifth_bits(fifth >> (4u * i));
        }
    } else if (FORMAT == Q5_1) {
        uint from = at + block * Q5_1_WORDS;
        scale = low_half(w1[from]);
        offset = high_half(w1[from]);
        uint fifth = w1[from + 1u] >> (16u * second);
        for (uint i = 0u; i < 4u; i++) {
            codes[i] = ((w1[from + 2u + i] >> nibble) & 0x0f0f0f0fu) | fifth_bits(fifth >> (4u * i));
        }
    } else if (FORMAT == Q8_0) {
        scale = half_to_float(half_at(at + (k / Q8_0_LEN) * Q8_0_WORDS, block));
        codes = w4[at / 4u + 2u * block + second];
    } else if (FORMAT == Q2_K) {
        uint from = at + super * Q2_K_WORDS;
        uint scales = byte_at(from, sixteenth);
        scale = low_half(w1[from + 20u]) * float(scales & 15u);
        offset = -high_half(w1[from + 20u]) * float(scales >> 4);
        uint first = from + 4u + 8u * (sixteenth / 8u) + 4u * second;
        uint shift = 2u * (group & 3u);
        for (uint i = 0u; i < 4u; i++) {
            codes[i] = (w1[first + i] >> shift) & 0x03030303u;
        }
    } else if (FORMAT == Q3_K) {
        uint from = at + super * Q3_K_WORDS;
        uint low = byte_at(from + 24u, sixteenth & 7u) >> (4u * (sixteenth / 8u));
        uint high = byte_at(from + 26u, sixteenth & 3u) >> (2u * (sixteenth / 4u));
        scale = half_to_float(half_at(at + (k / Q3_K_LEN) * Q3_K_WORDS, super));
        scale *= float((low & 15u) | ((high & 3u) << 4)) - 32.0;
        uint first = from + 8u + 8u * (sixteenth / 8u) + 4u * second;
        uint shift = 2u * (group & 3u);
        for (uint i = 0u; i < 4u; i++) {
            uint third = (w1[from + 4u * second + i] >> group) & 0x01010101u;
            codes[i] = ((w1[first + i] >> shift) & 0x03030303u) | (third << 2);
        }
    } else if (FORMAT == Q4_K || FORMAT == Q5_K) {
        uint from = at / 4u + super * ((FORMAT == Q4_K ? Q4_K_WORDS : Q5_K_WORDS) / 4u);
        uvec4 header = w4[from];
        uvec2 by = scale_min(header, group);
        scale = low_half(header.x) * float(by.x);
        offset = -high_half(header.x) * float(by.y);
        uint first = from + (FORMAT == Q4_K ? 1u : 3u) + 2u * (group / 2u) + second;
        codes = (w4[first] >> (4u * (group & 1u))) & 0x0f0f0f0fu;
        if (FORMAT == Q5_K) {
            codes |= ((w4[from + 1u + second] >> group) & 0x01010101u) << 4;
        }
    } else if (FORMAT == Q6_K) {
        uint from = at / 4u + super * (Q6_K_WORDS / 4u);
        scale = half_to_float(half_at(at + (k / Q6_K_LEN) * Q6_K_WORDS, super));
        scale *= float(bitfieldExtract(int(byte_at(4u * from + 48u, sixteenth)), 0, 8));
        uvec4 low = w4[from + 4u * (sixteenth / 8u) + (sixteenth & 3u)] >> (4u * ((sixteenth / 4u) & 1u));
        uvec4 high = w4[from + 8u + 2u * (sixteenth / 8u) + second] >> (2u * (group & 3u));
        codes = (low & 0x0f0f0f0fu) | ((high & 0x03030303u) << 4);
    } else if (FORMAT == IQ4_XS) {
        uint from = at + super * IQ4_XS_WORDS;
        uint low = (w1[from + 1u] >> (4u * group)) & 15u;
        uint high = (w1[from] >> (16u + 2u * group)) & 3u;
        scale = low_half(w1[from]) * (float(low | (high << 4)) - 32.0);
        uint first = from + 2u + 4u * group;
        for (uint i = 0u; i < 4u; i++) {
            codes[i] = (w1[first + i] >> nibble) & 0x0f0f0f0fu;
        }
    }
}

// The same of any type, decoded: 16 elements, of which those from `k` on are zero.
void decode(uint at, uint k, uint block, uint second, out vec4 v[4]) {
    uint unit = 2u * block + second;
    if (!is_plain()) {
        uvec4 codes;
        float scale, offset;
        codes_of(at, k, block, second, codes, scale, offset);
        for (uint i = 0u; i < 4u; i++) {
            v[i] = scale * (numbers_of(codes[i]) - float(zero_number())) + offset;
        }
    } else if (UNIT * unit + UNIT > k) {
        for (uint i = 0u; i < 4u; i++) {
            uint e = UNIT * unit + 4u * i;
            v[i] = vec4(plain_element(at, k, e), plain_element(at, k, e + 1u), plain_element(at, k, e + 2u),
                        plain_element(at, k, e + 3u));
        }
    } else if (FORMAT == F32) {
        for (uint i = 0u; i < 4u; i++) {
            v[i] = uintBitsToFloat(w4[at / 4u + 4u * unit + i]);
        }
    } else {
        for (uint i = 0u; i < 2u; i++) {
            uvec4 q = w4[at / 4u + 2u * unit + i];
            if (FORMAT == F16) {
                v[2u * i] = vec4(unpackHalf2x16(q.x), unpackHalf2x16(q.y));
                v[2u * i + 1u] = vec4(unpackHalf2x16(q.z), unpackHalf2x16(q.w));
            } else {
                uvec4 low = q << 16;
                uvec4 high = q & 0xffff0000u;
                v[2u * i] = uintBitsToFloat(uvec4(low.x, high.x, low.y, high.y));
                v[2u * i + 1u] = uintBitsToFloat(uvec4(low.z, high.z, low.w, high.w));
            }
        }
    }
}
