// Activations as integers of 16 bits with a scale for each unit of 16, in two signed bytes each: a lane for each unit.
#version 450
#extension GL_GOOGLE_include_directive : require

#define PUSH uint k;
#include "common.glsl"
#include "rows.glsl"
#include "i16_rows.glsl"

layout(set = 1, binding = 1, std430) writeonly buffer Out { uvec4 result[]; };

const uint UNIT = 16u;
// The largest integer: 127 in the high byte, and in the low one, which is signed too.
const float LARGEST = 32639.0;

void main() {
    uint unit = gl_WorkGroupID.x * LANES + gl_LocalInvocationID.x;
    uint row = gl_WorkGroupID.y;
    if (row >= row_count() || UNIT * unit >= k) {
        return;
    }
    bool aligned = is_aligned(k);
    vec4 v[4];
    // By their bits, infinity and NaN are the largest.
    uint most = 0u;
    for (uint i = 0u; i < 4u; i++) {
        v[i] = four_of(base[0] + row * k + UNIT * unit + 4u * i, aligned);
        uvec4 bits = floatBitsToUint(v[i]) & 0x7fffffffu;
        most = max(most, max(max(bits.x, bits.y), max(bits.z, bits.w)));
    }
    // The largest goes to between half of LARGEST and LARGEST; of those below 2^-111 less is left.
    uint exponent = clamp(most >> 23, 16u, 254u);
    float to = uintBitsToFloat((268u - exponent) << 23) * (LARGEST / 32768.0);
    float scale = uintBitsToFloat((exponent - 14u) << 23) * (32768.0 / LARGEST);
    if (most >= 0x7f800000u) {
        // Zeros of a scale that is NaN: so is whatever they are multiplied by.
        to = 0.0;
        scale = uintBitsToFloat(0x7fc00000u);
    }
    uvec4 high = uvec4(0u);
    uvec4 low = uvec4(0u);
    int sum = 0;
    for (uint i = 0u; i < 4u; i++) {
        for (uint j = 0u; j < 4u; j++) {
            int whole = to == 0.0 ? 0 : int(roundEven(v[i][j] * to));
            int upper = (whole + 128) >> 8;
            sum += whole;
            high[i] |= (uint(upper) & 0xffu) << (8u * j);
            low[i] |= (uint(whole) & 0xffu) << (8u * j);
        }
    }
    uint at = (base[1] + (row * (k / UNIT) + unit) * UNIT_WORDS) / 4u;
    result[at] = high;
    result[at + 1u] = low;
    result[at + 2u] = uvec4(floatBitsToUint(scale), uint(sum), 0u, 0u);
}
