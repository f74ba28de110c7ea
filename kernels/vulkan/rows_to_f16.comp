// Activations as f16 with a power of two for each row, so that numbers of any size fit: a workgroup for each row.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_shader_subgroup_arithmetic : require

#define SUBGROUP
#define PUSH uint k;
#include "common.glsl"
#include "rows.glsl"
#include "reduce.glsl"
#include "f16_rows.glsl"

layout(set = 1, binding = 1, std430) writeonly buffer Out { f16vec4 result[]; };
layout(set = 1, binding = 1, std430) writeonly buffer Scales { float scales[]; };

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint row = gl_WorkGroupID.y;
    if (row >= row_count()) {
        return;
    }
    bool aligned = is_aligned(k);
    uint from = base[0] + row * k;
    vec4 four = vec4(0.0);
    for (uint e = 4u * lane; e < k; e += 4u * LANES) {
        four = max(four, abs(four_within(from, e, k, aligned)));
    }
    uint exponent = exponent_of(largest_of_all(max(max(four.x, four.y), max(four.z, four.w))));
    uint to = base[1] + row * f16_row_words(k);
    if (lane == 0u) {
        scales[to] = inverse_of(exponent);
    }
    // Up to the end of the row's last eight.
    for (uint e = 4u * lane; e < (k + 7u) / 8u * 8u; e += 4u * LANES) {
        result[(to + HEADER + e / 2u) / 2u] = f16vec4(four_within(from, e, k, aligned) * scale_of(exponent));
    }
}
