// activation(gate) * up. With I16, rows are left as integers too.
#version 450
#pragma variants(I16)
#extension GL_GOOGLE_include_directive : require

#define PUSH uint cols;
#include "common.glsl"
#ifdef I16
#include "i16_rows.glsl"
#define I16_BINDING 3
#include "to_i16.glsl"
#endif

layout(set = 1, binding = 0, std430) readonly buffer Gate { float gate[]; };
layout(set = 1, binding = 1, std430) readonly buffer Up { float up[]; };
layout(set = 1, binding = 2, std430) writeonly buffer Out { float result[]; };

#define SILU 0u
#define GELU_TANH 1u

float activation(float x) {
    if (FORMAT == SILU) {
        // Bounded, so that the exponential stays finite; what is left of x beyond that is nothing.
        float bounded = x < -80.0 ? -80.0 : x;
        return bounded / (1.0 + exp(-bounded));
    }
    return 0.5 * x * (1.0 + tanh_of(0.7978845608 * x * (1.0 + 0.044715 * x * x)));
}

void main() {
    uint row = gl_WorkGroupID.y;
    if (row >= row_count()) {
        return;
    }
    uint first = gl_WorkGroupID.x * COLUMNS;
    for (uint i = 0u; i < COLUMNS; i += LANES) {
        uint c = i + gl_LocalInvocationID.x;
        if (first + c < cols) {
            uint at = row * cols + first + c;
            float y = activation(gate[base[0] + at]) * up[base[1] + at];
            result[base[2] + at] = y;
#ifdef I16
            elements[c] = y;
#endif
        }
    }
#ifdef I16
    leave_i16(base[3] + i16_word(row, cols, first), min(cols - first, COLUMNS));
#endif
}
