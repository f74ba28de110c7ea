// Weights: every type's layout on the device, and its decoding, once.
//
// A row is a multiple of four words. Of a block type it holds first the bodies of all blocks, then a tail with one
// small field of each. A kernel defines WEIGHT_BINDING before it includes this file, after common.glsl.

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

// Elements that one call of decode gives: no scale of any type covers fewer.
const uint UNIT = 16u;

// What the codes of IQ4_NL and IQ4_XS stand for.
const float UNEVEN[16] = float[](-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0,
                                 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0);
// What the codes of MXFP4 stand for, doubled.
const float E2M1[16] = float[](0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0,
                               0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0);

bool is_plain() { return FORMAT == F32 || FORMAT == F16 || FORMAT == BF16; }

uint byte_of(uint word, uint i) { return (word >> (8u * i)) & 0xffu; }

vec4 bytes_of(uint word) {
    return vec4(float(word & 0xffu), float((word >> 8) & 0xffu), float((word >> 16) & 0xffu), float(word >> 24));
}

vec4 signed_bytes_of(uint word) {
    int bits = int(word);
    return vec4(float(bitfieldExtract(bits, 0, 8)), float(bitfieldExtract(bits, 8, 8)),
                float(bitfieldExtract(bits, 16, 8)), float(bits >> 24));
}

vec4 uneven_of(uint codes) {
    return vec4(UNEVEN[codes & 15u], UNEVEN[(codes >> 8) & 15u], UNEVEN[(codes >> 16) & 15u], UNEVEN[codes >> 24]);
}

vec4 e2m1_of(uint codes) {
    return vec4(E2M1[codes & 15u], E2M1[(codes >> 8) & 15u], E2M1[(codes >> 16) & 15u], E2M1[codes >> 24]);
}

// The lowest four bits, each in the fifth place of a byte of its own.
uint fifth_bits(uint bits) { return (((bits & 15u) * 0x00204081u) & 0x01010101u) << 4; }

// The scale that a tail of f16 has for a block.
float tail_half(uint tail, uint block) {
    return half_to_float((w1[tail + block / 2u] >> (16u * (block & 1u))) & 0xffffu);
}

// The element of a plain type that is one of the last, for there may be no whole unit of them.
float plain_element(uint at, uint k, uint i) {
    if (i >= k) {
        return 0.0;
    }
    if (FORMAT == F32) {
        return uintBitsToFloat(w1[at + i]);
    }
    uint bits = (w1[at + i / 2u] >> (16u * (i & 1u))) & 0xffffu;
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

// Elements 16 unit to 16 unit + 15 of the row of `k` elements that starts at word `at`; those from `k` on are zero.
void decode(uint at, uint k, uint unit, out vec4 v[4]) {
    if (is_plain()) {
        if (UNIT * unit + UNIT > k) {
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
        return;
    }

    // Blocks of 32: two units, the first in the low nibbles.
    uint block = unit / 2u;
    uint second = unit & 1u;
    uint nibble = 4u * second;
    // Blocks of 256: sixteen units in eight groups of two.
    uint super = unit / 16u;
    uint sixteenth = unit % 16u;
    uint group = sixteenth / 2u;

    if (FORMAT == Q4_0 || FORMAT == IQ4_NL) {
        float d = tail_half(at + (k / Q4_0_LEN) * Q4_0_WORDS, block);
        uvec4 q = (w4[at / 4u + block] >> nibble) & 0x0f0f0f0fu;
        for (uint i = 0u; i < 4u; i++) {
            v[i] = d * (FORMAT == Q4_0 ? bytes_of(q[i]) - 8.0 : uneven_of(q[i]));
        }
    } else if (FORMAT == MXFP4) {
        uint exponent = byte_of(w1[at + (k / MXFP4_LEN) * MXFP4_WORDS + block / 4u], block & 3u);
        float d = uintBitsToFloat(exponent < 2u ? 0x00200000u << exponent : (exponent - 1u) << 23);
        uvec4 q = (w4[at / 4u + block] >> nibble) & 0x0f0f0f0fu;
        for (uint i = 0u; i < 4u; i++) {
            v[i] = d * e2m1_of(q[i]);
        }
    } else if (FORMAT == Q4_1) {
        uint from = at + block * Q4_1_WORDS;
        float d = low_half(w1[from]);
        float m = high_half(w1[from]);
        for (uint i = 0u; i < 4u; i++) {
            v[i] = d * bytes_of((w1[from + 1u + i] >> nibble) & 0x0f0f0f0fu) + m;
        }
    } else if (FORMAT == Q5_0) {
        uint from = at + block * Q5_0_WORDS;
        float d = tail_half(at + (k / Q5_0_LEN) * Q5_0_WORDS, block);
        uint fifth = w1[from] >> (16u * second);
        for (uint i = 0u; i < 4u; i++) {
            uint q = ((w1[from + 1u + i] >> nibble) & 0x0f0f0f0fu) | fifth_bits(fifth >> (4u * i));
            v[i] = d * (bytes_of(q) - 16.0);
        }
    } else if (FORMAT == Q5_1) {
        uint from = at + block * Q5_1_WORDS;
        float d = low_half(w1[from]);
        float m = high_half(w1[from]);
        uint fifth = w1[from + 1u] >> (16u * second);
        for (uint i = 0u; i < 4u; i++) {
            uint q = ((w1[from + 2u + i] >> nibble) & 0x0f0f0f0fu) | fifth_bits(fifth >> (4u * i));
            v[i] = d * bytes_of(q) + m;
        }
    } else if (FORMAT == Q8_0) {
        float d = tail_half(at + (k / Q8_0_LEN) * Q8_0_WORDS, block);
        uvec4 q = w4[at / 4u + unit];
        for (uint i = 0u; i < 4u; i++) {
            v[i] = d * signed_bytes_of(q[i]);
        }
    } else if (FORMAT == Q2_K) {
        uint from = at + super * Q2_K_WORDS;
        uint scales = byte_of(w1[from + sixteenth / 4u], sixteenth & 3u);
        float d = low_half(w1[from + 20u]) * float(scales & 15u);
        float m = high_half(w1[from + 20u]) * float(scales >> 4);
        uint codes = from + 4u + 8u * (sixteenth / 8u) + 4u * second;
        uint shift = 2u * (group & 3u);
        for (uint i = 0u; i < 4u; i++) {
            v[i] = d * bytes_of((w1[codes + i] >> shift) & 0x03030303u) - m;
        }
    } else if (FORMAT == Q3_K) {
        uint from = at + super * Q3_K_WORDS;
        uint low = byte_of(w1[from + 24u + (sixteenth & 7u) / 4u], sixteenth & 3u) >> (4u * (sixteenth / 8u));
        uint high = byte_of(w1[from + 26u], sixteenth & 3u) >> (2u * (sixteenth / 4u));
        float scale = float((low & 15u) | ((high & 3u) << 4)) - 32.0;
        float d = tail_half(at + (k / Q3_K_LEN) * Q3_K_WORDS, super) * scale;
        uint codes = from + 8u + 8u * (sixteenth / 8u) + 4u * second;
        uint shift = 2u * (group & 3u);
        for (uint i = 0u; i < 4u; i++) {
            uint third = (w1[from + 4u * second + i] >> group) & 0x01010101u;
            uint q = ((w1[codes + i] >> shift) & 0x03030303u) | (third << 2);
            v[i] = d * (bytes_of(q) - 4.0);
        }
    } else if (FORMAT == Q4_K) {
        uint from = at / 4u + super * (Q4_K_WORDS / 4u);
        uvec4 header = w4[from];
        uvec2 scale = scale_min(header, group);
        float d = low_half(header.x) * float(scale.x);
        float m = high_half(header.x) * float(scale.y);
        uvec4 q = (w4[from + 1u + 2u * (group / 2u) + second] >> (4u * (group & 1u))) & 0x0f0f0f0fu;
        for (uint i = 0u; i < 4u; i++) {
            v[i] = d * bytes_of(q[i]) - m;
        }
    } else if (FORMAT == Q5_K) {
        uint from = at / 4u + super * (Q5_K_WORDS / 4u);
        uvec4 header = w4[from];
        uvec2 scale = scale_min(header, group);
        float d = low_half(header.x) * float(scale.x);
        float m = high_half(header.x) * float(scale.y);
        uvec4 fifth = (w4[from + 1u + second] >> group) & 0x01010101u;
        uvec4 q = (w4[from + 3u + 2u * (group / 2u) + second] >> (4u * (group & 1u))) & 0x0f0f0f0fu;
        q |= fifth << 4;
        for (uint i = 0u; i < 4u; i++) {
            v[i] = d * bytes_of(q[i]) - m;
        }
    } else if (FORMAT == Q6_K) {
        uint from = at / 4u + super * (Q6_K_WORDS / 4u);
        int scale = bitfieldExtract(int(w1[4u * from + 48u + sixteenth / 4u]), int(8u * (sixteenth & 3u)), 8);
        float d = tail_half(at + (k / Q6_K_LEN) * Q6_K_WORDS, super) * float(scale);
        uvec4 low = w4[from + 4u * (sixteenth / 8u) + (sixteenth & 3u)] >> (4u * ((sixteenth / 4u) & 1u));
        uvec4 high = w4[from + 8u + 2u * (sixteenth / 8u) + second] >> (2u * (group & 3u));
        uvec4 q = (low & 0x0f0f0f0fu) | ((high & 0x03030303u) << 4);
        for (uint i = 0u; i < 4u; i++) {
            v[i] = d * (bytes_of(q[i]) - 32.0);
        }
    } else if (FORMAT == IQ4_XS) {
        uint from = at + super * IQ4_XS_WORDS;
        uint low = (w1[from + 1u] >> (4u * group)) & 15u;
        uint high = (w1[from] >> (16u + 2u * group)) & 3u;
        float d = low_half(w1[from]) * (float(low | (high << 4)) - 32.0);
        uint codes = from + 2u + 4u * group;
        for (uint i = 0u; i < 4u; i++) {
            v[i] = d * uneven_of((w1[codes + i] >> nibble) & 0x0f0f0f0fu);
        }
    }
}
