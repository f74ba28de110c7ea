// Activations as integers of 16 bits with a scale for each unit of 16, in two signed bytes each.
#version 450
#extension GL_GOOGLE_include_directive : require

#define PUSH uint cols;
#include "common.glsl"
#include "i16_rows.glsl"
#define I16_BINDING 1
#include "to_i16.glsl"

layout(set = 1, binding = 0, std430) readonly buffer X { float x[]; };

void main() {
    uint row = gl_WorkGroupID.y;
    if (row >= row_count()) {
        return;
    }
    uint first = gl_WorkGroupID.x * COLUMNS;
    for (uint i = 0u; i < COLUMNS; i += LANES) {
        uint c = i + gl_LocalInvocationID.x;
        if (first + c < cols) {
            elements[c] = x[base[0] + row * cols + first + c];
        }
    }
    leave_i16(base[1] + i16_word(row, cols, first), min(cols - first, COLUMNS));
}
