// What every kernel shares: the step, the pushed words, the rows of a dispatch, and numerics that drivers leave open.
//
// A kernel defines PUSH, its own pushed words, before it includes this file; kernels that read arrays of the step
// define STEP_WORDS.

layout(local_size_x = 128, local_size_y = 1, local_size_z = 1) in;

const uint LANES = 128u;
// Columns that one workgroup of an elementwise kernel covers.
const uint COLUMNS = 512u;
// Positions of one block of the KV cache.
const uint KV_BLOCK = 32u;

layout(constant_id = 0) const uint FORMAT = 0u;

layout(set = 0, binding = 0, std140) uniform Step {
    // rows of the step, rows asked for, blocks in a table, words before the tokens
    uvec4 step_a;
    // words before the positions, the tables, the outputs, the blocks
    uvec4 step_b;
};

#ifdef STEP_WORDS
layout(set = 0, binding = 1, std430) readonly buffer StepWords { uint step_words[]; };

uint step_token(uint row) { return step_words[step_a.w + row]; }
uint step_position(uint row) { return step_words[step_b.x + row]; }
uint step_output(uint row) { return step_words[step_b.z + row]; }

// Where the blocks of the row's sequence are listed.
uint step_table(uint row) { return step_b.w + step_words[step_b.y + row] * step_a.z; }
#endif

layout(push_constant) uniform Push {
    // Words before what each binding of set 1 holds for this dispatch.
    uint base[4];
    // The first row of this dispatch, of which kind, and how many at most.
    uint first_row;
    uint rows_kind;
    uint chunk_rows;
    PUSH
};

// Rows of this dispatch.
uint row_count() {
    uint total = rows_kind == 0u ? step_a.x : step_a.y;
    return total > first_row ? min(total - first_row, chunk_rows) : 0u;
}

// Of f16 `bits`, exactly: drivers may flush what is subnormal, and scales of blocks often are.
float half_to_float(uint bits) {
    uint magnitude = bits & 0x7fffu;
    float value;
    if (magnitude < 0x0400u) {
        value = float(magnitude) * uintBitsToFloat(0x33800000u); // 2^-24
    } else {
        uint rebias = magnitude < 0x7c00u ? 0x38000000u : 0x70000000u;
        value = uintBitsToFloat((magnitude << 13) + rebias);
    }
    return (bits & 0x8000u) != 0u ? -value : value;
}

float low_half(uint word) { return half_to_float(word & 0xffffu); }
float high_half(uint word) { return half_to_float(word >> 16); }

// To the nearest f16, ties to even: how packHalf2x16 rounds is the driver's choice.
uint float_to_half(float value) {
    uint bits = floatBitsToUint(value);
    uint sign = (bits >> 16) & 0x8000u;
    uint magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return sign | 0x7e00u;
    }
    if (magnitude >= 0x47800000u) { // 2^16 and infinity
        return sign | 0x7c00u;
    }
    if (magnitude < 0x38800000u) { // below 2^-14: a multiple of 2^-24
        uint exponent = magnitude >> 23;
        if (exponent < 102u) {
            return sign;
        }
        uint whole = (magnitude & 0x7fffffu) | 0x800000u;
        uint drop = 126u - exponent;
        uint kept = whole >> drop;
        uint rest = whole & ((1u << drop) - 1u);
        uint middle = 1u << (drop - 1u);
        return sign | (kept + ((rest > middle || (rest == middle && (kept & 1u) != 0u)) ? 1u : 0u));
    }
    // A carry out of the fraction raises the exponent, up to infinity, as it should.
    return sign | ((magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13);
}

bool is_finite(float value) { return (floatBitsToUint(value) & 0x7f800000u) != 0x7f800000u; }

// The biased exponent of a number, so far inside that 2^14 over its power of two and the inverse of that are normal.
uint exponent_of(float most) { return clamp(floatBitsToUint(most) >> 23, 16u, 254u); }
float scale_of(uint exponent) { return uintBitsToFloat((268u - exponent) << 23); }
float inverse_of(uint exponent) { return uintBitsToFloat((exponent - 14u) << 23); }

// The driver's tanh may be infinity over infinity for large arguments.
float tanh_of(float x) {
    float a = abs(x);
    if (a < 0.25) {
        float s = x * x;
        return x + x * s * (-0.333333333 + s * (0.133333333 + s * (-0.0539682540 + s * 0.0218694885)));
    }
    float t = 1.0 - 2.0 / (exp(2.0 * min(a, 10.0)) + 1.0);
    t = x < 0.0 ? -t : t;
    // min and the comparison lose NaN.
    return isnan(x) ? x : t;
}
