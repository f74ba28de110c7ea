// activation(gate) * up.
#version 450
#extension GL_GOOGLE_include_directive : require

#define PUSH uint cols;
#include "common.glsl"

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
    for (uint i = 0u; i < COLUMNS; i += LANES) {
        uint c = gl_WorkGroupID.x * COLUMNS + i + gl_LocalInvocationID.x;
        if (c < cols) {
            uint at = row * cols + c;
            result[base[2] + at] = activation(gate[base[0] + at]) * up[base[1] + at];
        }
    }
}
