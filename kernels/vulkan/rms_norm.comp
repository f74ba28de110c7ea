// Root-mean-square norm of each run of `group` columns, times a weight. One workgroup for each run.
#version 450
#pragma variants(SUBGROUP)
#extension GL_GOOGLE_include_directive : require
#ifdef SUBGROUP
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif

#define PUSH uint cols; uint group; float eps;
#include "common.glsl"
#include "reduce.glsl"

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
    for (uint c = lane; c < group; c += LANES) {
        result[base[2] + run + c] = x[base[0] + run + c] * factor * weight[base[1] + c];
    }
}
