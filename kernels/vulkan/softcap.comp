// cap * tanh(x / cap).
#version 450
#extension GL_GOOGLE_include_directive : require

#define PUSH uint cols; float cap;
#include "common.glsl"

layout(set = 1, binding = 0, std430) readonly buffer X { float x[]; };
layout(set = 1, binding = 1, std430) writeonly buffer Out { float result[]; };

void main() {
    uint row = gl_WorkGroupID.y;
    if (row >= row_count()) {
        return;
    }
    for (uint i = 0u; i < COLUMNS; i += LANES) {
        uint c = gl_WorkGroupID.x * COLUMNS + i + gl_LocalInvocationID.x;
        if (c < cols) {
            uint at = row * cols + c;
            result[base[1] + at] = cap * tanh_of(x[base[0] + at] / cap);
        }
    }
}
