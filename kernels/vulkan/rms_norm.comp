// Root-mean-square norm of each run of `group` columns, times a weight. One workgroup for each run. With I16, runs are
// whole rows, which are left as integers too.
#version 450
#pragma variants(SUBGROUP I16)
#extension GL_GOOGLE_include_directive : require
#ifdef I16
#define SUBGROUP
#endif
#ifdef SUBGROUP
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif

#define PUSH uint cols; uint group; float eps;
#include "common.glsl"
#include "reduce.glsl"
#ifdef I16
#include "i16_rows.glsl"
#define I16_BINDING 3
#include "to_i16.glsl"
#endif

layout(set = 1, binding = 0, std430) readonly buffer X { float x[]; };
layout(set = 1, binding = 1, std430) readonly buffer Weight { float weight[]; };
layout(set = 1, binding = 2, std430) writeonly buffer Out { float result[]; };

void main() {
    uint row = gl_WorkGroupID.y;
    uint lane = gl_LocalInvocationID.x;
    if (row >= row_count()) {
        return;
    }
    uint run = row * cols + gl_WorkGroupID.x * group;
    float sum = 0.0;
    for (uint c = lane; c < group; c += LANES) {
        float v = x[base[0] + run + c];
        sum += v * v;
    }
    float factor = 1.0 / sqrt(sum_of_all(sum) / float(group) + eps);
#ifdef I16
    for (uint first = 0u; first < group; first += COLUMNS) {
        for (uint i = 0u; i < COLUMNS; i += LANES) {
            uint c = first + i + lane;
            if (c < group) {
                float y = x[base[0] + run + c] * factor * weight[base[1] + c];
                result[base[2] + run + c] = y;
                elements[i + lane] = y;
            }
        }
        leave_i16(base[3] + i16_word(row, cols, first), min(group - first, COLUMNS));
    }
#else
    for (uint c = lane; c < group; c += LANES) {
        result[base[2] + run + c] = x[base[0] + run + c] * factor * weight[base[1] + c];
    }
#endif
}
