// The rows as they are, bit for bit. Logits (format 1) only where a whole row is wanted.
#version 450
#extension GL_GOOGLE_include_directive : require

#define STEP_WORDS
#define PUSH uint cols;
#include "common.glsl"
#include "wanted.glsl"

layout(set = 1, binding = 0, std430) readonly buffer X { uint x[]; };
layout(set = 1, binding = 1, std430) writeonly buffer Out { uint result[]; };

void main() {
    uint row = gl_WorkGroupID.y;
    if (row >= row_count()) {
        return;
    }
    if (FORMAT == 1u && step_wanted(first_row + row) != 0u) {
        return;
    }
    for (uint i = 0u; i < COLUMNS; i += LANES) {
        uint c = gl_WorkGroupID.x * COLUMNS + i + gl_LocalInvocationID.x;
        if (c < cols) {
            uint at = row * cols + c;
            result[base[1] + at] = x[base[0] + at];
        }
    }
}
