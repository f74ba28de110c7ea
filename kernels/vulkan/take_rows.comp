// The rows whose results were asked for, bit for bit.
#version 450
#extension GL_GOOGLE_include_directive : require

#define STEP_WORDS
#define PUSH uint cols; uint source_first; uint source_rows;
#include "common.glsl"

layout(set = 1, binding = 0, std430) readonly buffer X { uint x[]; };
layout(set = 1, binding = 1, std430) writeonly buffer Out { uint result[]; };

void main() {
    uint row = gl_WorkGroupID.y;
    if (row >= row_count()) {
        return;
    }
    uint source = step_output(first_row + row);
    if (source < source_first || source - source_first >= source_rows) {
        return;
    }
    source -= source_first;
    for (uint i = 0u; i < COLUMNS; i += LANES) {
        uint c = gl_WorkGroupID.x * COLUMNS + i + gl_LocalInvocationID.x;
        if (c < cols) {
            result[base[1] + row * cols + c] = x[base[0] + source * cols + c];
        }
    }
}
